"""gptlab: your own text in, your own GPT out.

    import gptlab
    gptlab.prepare("my.txt")
    gptlab.train(dataset="my", max_iters=500)

The names below are imported on first use (PEP 562), so that `import gptlab` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOME_OF = {
    "GPT": "gptlab.model.transformer",
    "GPTConfig": "gptlab.model.config",
    "GPTLabError": "gptlab.errors",
    "Generator": "gptlab.inference.generator",
    "KVCache": "gptlab.model.kv_cache",
    "PRESETS": "gptlab.model.config",
    "SamplingConfig": "gptlab.inference.config",
    "Tokenizer": "gptlab.data.tokenizer",
    "create_model": "gptlab.model.transformer",
    "load_checkpoint": "gptlab.runs",
    "open_dataset": "gptlab.data.token_files",
    "prepare": "gptlab.data.prepare",
    "train": "gptlab.training.trainer",
}

__all__ = [*sorted(_HOME_OF), "__version__"]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
