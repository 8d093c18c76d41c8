"""The optimizers of a run as one: the chosen one for what it takes, AdamW for the rest."""

import pkgutil

import torch

from gptlab.errors import CheckpointError
from gptlab.model.shards import place
from gptlab.model.transformer import GPT
from gptlab.training.config import TrainConfig
from gptlab.training.optimizers.adamw import AdamW
from gptlab.training.optimizers.table import OPTIMIZERS


class Optimizers:
    """The optimizers of a run as one. Weight decay acts on matrices only, embeddings included.

    fast_dtype: the precision in which this device multiplies fast.
    """

    def __init__(self, model: GPT, config: TrainConfig, fast_dtype: torch.dtype):
        self.names = {id(p): name for name, p in model.named_parameters()}
        options = config.optimizer
        chosen = pkgutil.resolve_name(OPTIMIZERS[options.optimizer].where)
        taken = {id(parameter) for parameter in chosen.takes(model)}
        own, rest = [], []
        for parameter in model.parameters():
            if parameter.requires_grad:
                (own if id(parameter) in taken else rest).append(parameter)
        self.optimizers = [
            kind(_groups(parameters, options.weight_decay), options, fast_dtype)
            for kind, parameters in ((AdamW, rest), (chosen, own))
            if parameters
        ]

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step, for all groups."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self, found_inf: torch.Tensor) -> None:
        """Update the weights, unless found_inf (a float tensor, on the device) is above 0."""
        for optimizer in self.optimizers:
            optimizer.step(found_inf)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def state_dict(self) -> dict:
        """{parameter name: {state name: tensor}}: independent of the order of groups."""
        return {
            self.names[id(parameter)]: dict(state)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict) -> None:
        """Restore the state of `state_dict`; CheckpointError for the state of another optimizer."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self.names[id(parameter)]
                    state = saved.get(name, {})
                    optimizer.state[parameter] = expected = optimizer.new_state(parameter)
                    _check_state(name, state, expected)
                    for part, value in state.items():
                        place(expected[part], value)


def _groups(parameters: list[torch.nn.Parameter], weight_decay: float) -> list[dict]:
    """Matrices with weight decay and vectors without; a group that would be empty is left out."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _check_state(name: str, state: dict, expected: dict) -> None:
    """CheckpointError unless the state of a parameter has these names, shapes and dtypes."""
    if set(state) != set(expected):
        raise CheckpointError(
            "The checkpoint's optimizer state belongs to another optimizer: resume with the "
            "optimizer that the run began with."
        )
    for part, wanted in expected.items():
        found = state[part]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise CheckpointError(
                f"The optimizer state {part} of {name} in the checkpoint is {_in_words(found)} and "
                f"must be {_in_words(wanted)}: start a new run from its weights with --init_from."
            )


def _in_words(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
