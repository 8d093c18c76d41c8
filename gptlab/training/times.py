"""How long a step, an evaluation and a checkpoint take, before anything is measured."""

from gptlab.model.arithmetic import count_parameters, trained_parameters
from gptlab.training.config import TrainConfig
from gptlab.training.optimizers.table import OPTIMIZERS
from gptlab.training.resolving import Measurements

# The share of the peak (model FLOPs utilisation, Chowdhery et al. 2022) that training is assumed to
# reach, here and on a GPU. A compiled model of GPT-2's size reaches about 40% on an A100. Narrow
# models do not fill a GPU: nanoGPT's three minutes for its 384-channel run on an A100 are some 10%.
SHARE_OF_PEAK = 0.4
BYTES_PER_SECOND = 200e6  # of an ordinary disk, with the hash of all that is written


def estimated_times(config: TrainConfig, peak: float) -> Measurements:
    """The times at which every FLOP runs at the usual share of the peak, in FLOP/s."""
    token = config.flops_per_token / (SHARE_OF_PEAK * peak)
    return Measurements(
        step=config.tokens_per_step * token,
        eval_token=config.forward_share * token,
        save=saving_seconds(config),
    )


def saving_seconds(config: TrainConfig) -> float:
    """The time to write the training state and the best weights once."""
    trained = trained_parameters(config.model, config.trained)
    # adapters are written without the model that they stand beside
    written = trained if config.finetune.lora_rank else count_parameters(config.model)
    average = 1 if config.optimizer.ema_decay else 0  # which may be the best weights too
    moments = OPTIMIZERS[config.optimizer.optimizer].values_per_parameter
    values = (2 + average) * written + (moments + average) * trained
    return 4 * values / BYTES_PER_SECOND
