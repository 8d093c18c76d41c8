"""Send metrics to a tracker as well: TensorBoard, Weights & Biases or Trackio."""

import logging
from collections.abc import Callable, Iterator

from gptlab.training.config import TrainConfig

logger = logging.getLogger(__name__)


def make_tracker(config: TrainConfig, folder) -> Callable[[dict], None] | None:
    """A function that sends a record to the tracker of log_to, or None; a failure is a warning.

    It may have an attribute `finish`, to be called after the last record.
    """
    name = config.run.log_to
    if name == "none":
        return None
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[name](
            config, folder
        )
    except Exception as error:
        logger.warning(
            "log_to %s is not available (%s): pip install %s installs it; training continues.",
            name,
            error,
            name,
        )
        return None


def _tensorboard(config: TrainConfig, folder) -> Callable[[dict], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def send(record: dict) -> None:
        for name, value in _figures(record):
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return send


def _wandb(config: TrainConfig, folder) -> Callable[[dict], None]:
    import wandb

    # never asks for a key: without one the run is kept locally
    mode = "online" if wandb.api.api_key else "offline"
    session = wandb.init(dir=str(folder), config=config.flat(), mode=mode)
    return lambda record: session.log(record, step=record["step"])


def _trackio(config: TrainConfig, folder) -> Callable[[dict], None]:
    import trackio

    # kept on this machine, where `trackio show` finds it; a resumed run goes on under its name
    session = trackio.init(
        "gptlab", name=folder.name, config=config.flat(), resume="allow", embed=False
    )

    def send(record: dict) -> None:
        session.log(dict(_figures(record)), step=record["step"])

    send.finish = session.finish  # type: ignore[attr-defined]  # its thread writes what is left
    return send


def _figures(record: dict) -> Iterator[tuple[str, float]]:
    """The figures of a record by name; those of each process as processes/NAME/RANK."""
    processes = record.get("processes", {})
    of_each = {
        f"processes/{name}/{rank}": value
        for name, values in processes.items()
        for rank, value in enumerate(values if isinstance(values, list) else [])
    }
    for name, value in {**record, **of_each}.items():
        if isinstance(value, int | float) and name not in ("step", "time"):
            yield name, value
