"""The formats that a model can be written in: a module each, with `check` and `write`."""

import importlib
from pathlib import Path

from gptlab.interop.write import onnx
from gptlab.interop.write.verify import check_architecture

# check(checkpoint): raises ConfigError for a model that the format cannot hold.
# write(checkpoint, output, *, overwrite, progress, ...) -> Path: all of it, or nothing.
FORMATS = {
    "hf": "gptlab.interop.write.huggingface",
    "gguf": "gptlab.interop.write.gguf",
    "html": "gptlab.interop.write.html",
    "onnx": "gptlab.interop.write.onnx",
}
# below the run directory, where nothing else is said; {} is the run's name
DEFAULT_NAMES = {"hf": "hf", "gguf": "{}.gguf", "html": "{}.html", "onnx": "onnx"}


def export(checkpoint, format: str, output, *, overwrite=False, progress=None, **options) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) in a format of FORMATS; where it lies.

    options: of the format's own `write`. Raises ConfigError, and leaves nothing under the name,
    for a model that the format cannot hold: by its settings, or by what its module computes.
    """
    module = importlib.import_module(FORMATS[format])
    module.check(checkpoint)
    if format != "onnx" or not onnx.has_runtime():
        check_architecture(checkpoint.model, format)
    return module.write(checkpoint, output, overwrite=overwrite, progress=progress, **options)
