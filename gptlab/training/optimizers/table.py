"""The optimizers that a run can use (no torch); a new one needs a file and an entry here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerEntry:
    """The class of an optimizer, its memory, and its name in the option's help.

    where: "module:class", a subclass of `Optimizer`. values_per_parameter: float32 values that a
    training keeps per parameter of a model, averaged over the parameters that the class takes and
    the others, which AdamW updates.
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
