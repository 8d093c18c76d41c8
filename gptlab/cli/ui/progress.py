"""Progress bars and sentences on stderr."""

import sys
import time


class Bars:
    """One progress bar per stage on a terminal, sentences on stderr anywhere.

    A stage that takes less than a second has no bar.
    """

    def __init__(self, unit: str = "B"):
        self._unit = unit
        self._stage = self._bar = None
        self._pending, self._shown_at = 0, 0.0

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def note(self, sentence: str) -> None:
        """Print a sentence, above the bar if there is one."""
        if self._bar is not None:
            self._bar.clear()
        print(sentence, file=sys.stderr, flush=True)

    def progress(self, stage: str, advance: int, total: int | None) -> None:
        """`advance` more units (bytes) of a stage of `total`, if that is known."""
        if stage != self._stage:
            self._close()
            self._stage = stage
            if sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(
                    total=total, desc=stage, unit=self._unit, leave=False, delay=1.0,
                    unit_scale=total is None or total >= 10_000,
                )  # fmt: skip
        self._pending += advance
        # a corpus of many small documents reports progress far too often to show each
        if self._bar is not None and time.monotonic() - self._shown_at > 0.1:
            self._bar.update(self._pending)
            self._pending, self._shown_at = 0, time.monotonic()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
        self._pending = 0
