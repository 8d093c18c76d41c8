"""Draw loss.png of a run while it trains."""

import logging
import time

from gptlab.files import display
from gptlab.plots import load_library, plot_loss
from gptlab.training.setup import Setup

logger = logging.getLogger(__name__)

SHARE = 0.05  # of the time at most, because a short run has ten evaluations within seconds


class Picture:
    """Draws loss.png, rarely enough to take little time."""

    def __init__(self):
        self.next = 0.0  # time.perf_counter() from which to draw again
        self.seconds: float | None = None  # of drawing the last one
        self.all_seconds = 0.0  # of all, with loading the library

    def draw_if_due(self, setup: Setup) -> None:
        """Draw, unless the last time was recent."""
        if time.perf_counter() >= self.next:
            self.draw(setup)

    def draw(self, setup: Setup) -> None:
        """Draw loss.png; a failure never ends a run."""
        if not setup.parallel.is_first:
            return
        begin = time.perf_counter()
        try:
            load_library()
            loaded = time.perf_counter()
            plot_loss(
                setup.run.records(),
                setup.run.plot,
                title=f"{setup.run.folder.name} on {setup.data.name}",
                levels=setup.units.levels(),
            )
            self.seconds = time.perf_counter() - loaded
        except Exception as error:
            logger.warning("%s was not drawn (%s).", display(setup.run.plot), error)
        end = time.perf_counter()
        self.all_seconds += end - begin
        self.next = end + (end - begin) / SHARE
