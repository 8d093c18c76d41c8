"""The optimizers that a run can choose from (no torch); a new one is a file and a line here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerEntry:
    """Where the class of an optimizer is, what it costs, and how the option's help names it.

    where: "module:class", a subclass of `Optimizer`. values_per_parameter: float32 values that a
    training keeps for each parameter of a model, counted over the parameters that the class takes
    and the others, which AdamW has.
    """

    where: str
    values_per_parameter: float
    help: str


OPTIMIZERS = {
    "adamw": OptimizerEntry("gptlab.training.optimizers.adamw:AdamW", 2.0, "adamw"),
    # about four fifths of a model are hidden matrices, with one value each
    "muon": OptimizerEntry(
        "gptlab.training.optimizers.muon:Muon",
        1.2,
        "muon for the hidden matrices and adamw for the rest",
    ),
}
