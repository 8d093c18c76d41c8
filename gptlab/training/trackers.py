"""Send metrics to a tracker as well: TensorBoard or Weights & Biases."""

import logging

from gptlab.training.config import TrainConfig

logger = logging.getLogger(__name__)


def make_tracker(config: TrainConfig, folder):
    """A function that sends a record to TensorBoard or W&B, or None; a failure is a warning."""
    if config.run.log_to == "none":
        return None
    try:
        if config.run.log_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))

            def send(record):
                for name, value in record.items():
                    if isinstance(value, (int, float)) and name not in ("step", "time"):
                        writer.add_scalar(name, value, record["step"])
                writer.flush()

            return send
        import wandb

        # never asks for a key: without one the run is kept locally
        mode = "online" if wandb.api.api_key else "offline"
        session = wandb.init(dir=str(folder), config=config.flat(), mode=mode)
        return lambda record: session.log(record, step=record["step"])
    except Exception as error:
        logger.warning(
            "log_to %s is not available (%s): pip install %s installs it; training continues.",
            config.run.log_to,
            error,
            config.run.log_to,
        )
        return None
