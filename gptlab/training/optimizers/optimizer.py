"""The base of all optimizers: the parameters it takes, their groups, and their states."""

from collections.abc import Iterable

import torch

from gptlab.model.transformer import GPT
from gptlab.training.config import OptimizerOptions


class Optimizer:
    """Updates the parameters of its groups, each {"params", "weight_decay", "lr"}.

    Not a subclass of torch's Optimizer, which imports torch's compiler before the first step: that
    takes three seconds on a small machine. A GradScaler needs no more than param_groups.

    options: the initial rate, and whatever else a subclass reads. fast_dtype: the precision in
    which this device multiplies fast.
    """

    def __init__(
        self, param_groups: list[dict], options: OptimizerOptions, fast_dtype: torch.dtype
    ):
        self.param_groups = [{**group, "lr": options.learning_rate} for group in param_groups]
        self.options = options
        self.fast_dtype = fast_dtype
        self.state = {}

    @staticmethod
    def takes(model: GPT) -> Iterable[torch.nn.Parameter]:
        """The parameters of a model that this optimizer is for; AdamW has the others."""
        return model.parameters()

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of a parameter before its first step: what a checkpoint must hold of it.

        A checkpoint is refused whose state has other names, shapes or dtypes.
        """
        raise NotImplementedError

    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """Update every parameter that has a gradient, unless found_inf (on the device) is 1.0.

        A skipped step changes neither weights nor state, and does not wait for the device.
        """
        raise NotImplementedError

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The state of a parameter, a new one before its first step."""
        if parameter not in self.state:
            self.state[parameter] = self.new_state(parameter)
        return self.state[parameter]
