"""A trace of some steps by torch's profiler, as a file in the run's folder."""

import logging
import os

import torch

from gptlab.files import display
from gptlab.runs import Run

logger = logging.getLogger(__name__)


class Profile:
    """Traces `steps`, in the first process, as far as this start takes them.

    run: None where nothing is written. A failure is a warning and ends the trace, not the run.
    """

    def __init__(self, steps: range, run: Run | None):
        self.steps, self.run = steps, run
        self.profiler = None

    def after(self, step: int) -> str:
        """After a step, or before the first of this start: begin, end, or do nothing.

        Returns what there is to say: the name of a file that was written, or "".
        """
        if self.run is None or not self.steps:
            return ""
        if self.profiler is None and step + 1 in self.steps:
            self._begin()
        elif self.profiler is not None and step + 1 not in self.steps:
            return self.end()
        return ""

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        kinds = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}
        found = [kinds[kind] for kind in kinds if getattr(torch, kind).is_available()]
        try:
            self.profiler = profile(activities=[ProfilerActivity.CPU, *found], acc_events=True)
            self.profiler.start()
        except Exception as error:
            self._stop_for(error)

    def end(self) -> str:
        """Write what was traced so far, if anything; what there is to say."""
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return ""
        begun = self.run.profile.with_name(f".{self.run.profile.name}.tmp")
        try:
            profiler.stop()
            profiler.export_chrome_trace(str(begun))
            os.replace(begun, self.run.profile)
        except Exception as error:
            begun.unlink(missing_ok=True)
            self._stop_for(error)
            return ""
        return f"Wrote {display(self.run.profile)}: open it in https://ui.perfetto.dev."

    def _stop_for(self, error: Exception) -> None:
        self.profiler, self.steps = None, range(0)
        logger.warning("profile_steps: there is no trace (%s).", error)
