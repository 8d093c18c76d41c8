"""Every error that a user can cause, as one tree.

GPTLabError                 exit code 2, one sentence: the problem and the fix
├── ConfigError             an unknown option, a bad value, an impossible combination
├── DataError               a corpus, a prepared dataset or a token file
│   └── TokenizerError      a vocabulary, or text that it cannot encode
├── CheckpointError         a checkpoint that is missing, damaged, foreign or of another version
├── RunError                a run directory: taken, locked, finished
├── HardwareError           a device or a precision that this machine does not have
├── GenerationError         a prompt or a sampling option
├── DownloadError           a file that cannot be downloaded
└── TrainingError           exit code 1: the training itself went wrong (loss not finite)
"""

import copyreg

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
    """Base of all errors that a user can cause; `str(error)` is the sentence to show.

    problem: what is wrong, without a full stop. fix: what to do about it, "" where the problem
    already shows it. sep: joins them in the sentence. All three survive pickling.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "", *, sep: str = ": "):
        super().__init__(problem, fix)
        self.problem, self.fix, self.sep = problem.removesuffix("."), fix.removesuffix("."), sep

    def __reduce__(self):  # without the constructor: a subclass may take other arguments
        return copyreg.__newobj__, (type(self), *self.args), vars(self)

    def __str__(self) -> str:
        sentence = f"{self.problem}{self.sep}{self.fix}" if self.fix else self.problem
        return sentence if sentence.endswith("?") else f"{sentence}."


class ConfigError(GPTLabError):
    """An unknown option, a value of the wrong type or range, or an impossible combination."""


class DataError(GPTLabError):
    """A corpus that cannot be read, or a prepared dataset that is missing or unsuitable."""


class TokenizerError(DataError):
    """A vocabulary that does not fit, or text that it cannot encode."""


class CheckpointError(GPTLabError):
    """A checkpoint that is missing, damaged, foreign or of another format version."""


class RunError(GPTLabError):
    """A run directory that is in use, locked by another process, or finished."""


class HardwareError(GPTLabError):
    """A requested device or precision that this machine does not have."""


class GenerationError(GPTLabError):
    """A prompt or a sampling option that cannot be used."""


class DownloadError(GPTLabError):
    """A file that cannot be downloaded."""


class TrainingError(GPTLabError):
    """The training itself went wrong: a loss that stays non-finite, for example."""

    exit_code = 1
