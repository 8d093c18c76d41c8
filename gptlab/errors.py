"""Every error that a user can cause, as one tree.

GPTLabError                 exit code 2, one sentence: what is wrong and what to do
├── ConfigError             an unknown option, a bad value, an impossible combination
├── DataError               a corpus, a prepared dataset or a token file
│   └── TokenizerError      a vocabulary, or text that a vocabulary cannot spell
├── CheckpointError         a checkpoint that is missing, damaged, foreign or of another version
├── RunError                a run directory: taken, locked, finished
├── HardwareError           a device or a precision that this machine does not have
├── GenerationError         a prompt or a sampling setting
├── DownloadError           something that only the network has
└── TrainingError           exit code 1: the training itself went wrong (loss not finite)
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "GPTLabError",
    "GenerationError",
    "HardwareError",
    "RunError",
    "TokenizerError",
    "TrainingError",
]


class GPTLabError(Exception):
    """Base of all errors that a user can cause; the message is one sentence to show as it is."""

    exit_code = 2


class ConfigError(GPTLabError):
    """An unknown option, a value of the wrong type or range, or an impossible combination."""


class DataError(GPTLabError):
    """A corpus that cannot be read, or a prepared dataset that is missing or does not fit."""


class TokenizerError(DataError):
    """A vocabulary that does not fit, or text that it cannot spell."""


class CheckpointError(GPTLabError):
    """A checkpoint that is missing, damaged, foreign or of another format version."""


class RunError(GPTLabError):
    """A run directory that is already used, locked by another process, or finished."""


class HardwareError(GPTLabError):
    """A device or precision that was asked for and that this machine does not have."""


class GenerationError(GPTLabError):
    """A prompt or a sampling setting that cannot be used."""


class DownloadError(GPTLabError):
    """Something that only the network has, and the network is not there."""


class TrainingError(GPTLabError):
    """The training itself went wrong: a loss that stays non-finite, for example."""

    exit_code = 1
