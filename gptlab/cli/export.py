"""`python gpt.py export`: a trained model in the files of other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display, in_bytes
from gptlab.options import parse_command_line

EXAMPLE = """\
python gpt.py export out/shakespeare_char --format hf --output my_model"""

SUMMARY = """\
Write a run as a folder that transformers opens (AutoModelForCausalLM.from_pretrained), as Llama,
Qwen3 or GPT-2, with its tokenizer and a model card. A setting that none of these has is refused."""


@dataclass(frozen=True)
class ExportOptions:
    """Output."""

    format: Annotated[Literal["hf"], "hf: Hugging Face folder (config, safetensors, tokenizer)"] = (
        "hf"
    )
    output: Annotated[str | None, "where to [RUN/hf]"] = None
    overwrite: Annotated[bool, "replace an earlier export of that name"] = False


def main(argv: list[str]) -> int:
    """Export; the exit code."""
    said = parse_command_line(
        argv,
        [ExportOptions],
        prog="gpt.py export",
        summary=SUMMARY,
        example=EXAMPLE,
        positionals=[("run", "?", "run directory, name under out/, or checkpoint [the newest]")],
    )
    word = said.pop("run", None)
    options = ExportOptions(**said)
    from gptlab.analysis.targets import run_folder
    from gptlab.interop.export import DEFAULT_NAMES, export
    from gptlab.runs import load_checkpoint, newest_run

    if word is None:
        path = newest_run()
    else:
        path = Path(word).expanduser()
        path = path if path.is_file() else run_folder(word)
    folder = path.parent if path.is_file() else path
    output = folder / DEFAULT_NAMES[options.format]
    if options.output is not None:
        output = Path(options.output).expanduser()
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"{display(output)} holds the run itself: choose another --output.")
    checkpoint = load_checkpoint(path)
    with Bars() as bars:
        written = export(
            checkpoint,
            options.format,
            output,
            overwrite=options.overwrite,
            progress=bars.progress,
        )
    files = [file for file in [written, *written.rglob("*")] if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(f"Wrote {display(written)} ({in_bytes(size)}): {_how_to_open(options.format, written)}")
    return 0


def _how_to_open(format: str, written: Path) -> str:
    ways = {"hf": f'AutoModelForCausalLM.from_pretrained("{display(written)}") opens it.'}
    return ways[format]
