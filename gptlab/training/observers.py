"""The observers of a training, which a checkpoint never stores."""

from dataclasses import dataclass

from gptlab.training.background import BackgroundSave
from gptlab.training.clock import Clock
from gptlab.training.interruption import Interruption
from gptlab.training.metrics import Metrics
from gptlab.training.picture import Picture
from gptlab.training.provenance import Trace
from gptlab.training.stability import Stability
from gptlab.training.state import TrainState
from gptlab.training.watch import Watch


@dataclass(frozen=True)
class Observers:
    """Metrics, trace, clock, stability of the loss, signals, picture, what is being saved, and the
    watch over the processes."""

    metrics: Metrics
    trace: Trace
    clock: Clock
    stability: Stability
    interruption: Interruption
    picture: Picture
    watch: Watch
    saving: BackgroundSave

    def must_stop(self, state: TrainState) -> bool:
        """Whether a signal came, or the time is over before the last step."""
        self.watch.after(state.step)
        return bool(self.interruption.received) or self.clock.is_out_of_time(state)
