"""Save checkpoints in shards while the training goes on."""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from gptlab.training.parallel import Parallel

END_SECONDS = 60  # that a start which failed waits for the save that is being written


class BackgroundSave:
    """Writes one checkpoint at a time in a thread; all processes call each method at one point.

    The threads agree in a group of their own. What cannot be written is raised where the training
    waits for it: before the next save, before the checkpoint is read, and at the end.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # that the last one took
        self._parallel: Parallel | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(
        self, content: dict, write: Callable[[dict, Parallel], None], parallel: Parallel
    ) -> None:
        """Call `write` with a copy of `content` and the processes as its thread may use them."""
        self.wait()
        self._parallel = self._parallel or parallel.with_own_group()
        self._thread = threading.Thread(
            target=self._run, args=(_copied(content), write, self._parallel), daemon=True
        )
        self._thread.start()

    def _run(self, content: dict, write: Callable, parallel: Parallel) -> None:
        began = time.perf_counter()
        try:
            write(content, parallel)
        except BaseException as error:  # raised by `wait`
            self._error = error
        self.seconds = time.perf_counter() - began

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises what its writing raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def end(self) -> None:
        """As `wait`, where the training ends with another error: for a minute at most."""
        if self._thread is not None:
            self._thread.join(END_SECONDS)


def _copied(value: Any) -> Any:
    """A content whose tensors no step changes, in main memory."""
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
