"""`python gpt.py import`: a model from elsewhere as a run."""

from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.ui.command_line import command_line
from gptlab.cli.ui.progress import Bars
from gptlab.files import display
from gptlab.options import parse_command_line

EXAMPLE = """\
python gpt.py import smollm2-135m                  a small pretrained model, 93 MB
python gpt.py import folder_of_transformers/       Llama, Qwen2, Qwen3 or GPT-2, safetensors
python gpt.py import model.gguf                    llama.cpp's format, also quantised
python gpt.py import out-shakespeare-char/ckpt.pt  a checkpoint of nanoGPT
python gpt.py import hf:OWNER/NAME                 a model of the Hugging Face hub"""

SUMMARY = """\
Make a run directory of a model from elsewhere, with its tokenizer: sample.py, train.py --init_from
and export take it like one that was trained here. Nothing of a file is ever run as code."""


@dataclass(frozen=True)
class ImportOptions:
    """Import."""

    out_dir: Annotated[str | None, "the run directory to make [out/ and the model's name]"] = None
    meta: Annotated[
        str | None, "nanoGPT's meta.pkl of a model of characters [the one beside it]"
    ] = None
    overwrite: Annotated[bool, "delete the run in out_dir first"] = False


def main(argv: list[str]) -> int:
    """Import; the exit code."""
    overrides = parse_command_line(
        argv,
        [ImportOptions],
        prog="gpt.py import",
        summary=SUMMARY,
        example=EXAMPLE,
        positionals=[("model", None, "a path, smollm2-135m, gpt2, or hf:OWNER/NAME")],
    )
    word = overrides.pop("model")
    options = ImportOptions(**overrides)
    from gptlab.interop.read.models import import_model

    with Bars() as bars:
        folder = import_model(
            word,
            options.out_dir,
            meta=options.meta,
            overwrite=options.overwrite,
            note=bars.note,
            progress=bars.progress,
        )
    print(f"{display(folder)} holds the model now. Next, for example:")
    print(f"  {command_line('sample.py', {'out_dir': display(folder)})} --interactive")
    return 0
