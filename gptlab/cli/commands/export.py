"""`python gpt.py export`: a trained model in the files of other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display, in_bytes, quoted


@dataclass(frozen=True)
class ExportOptions:
    """Output."""

    format: Annotated[
        Literal["hf", "gguf", "html", "onnx"],
        "hf: Hugging Face folder (config, safetensors, tokenizer); gguf: a file for "
        "llama.cpp; html: a page that writes in any browser; onnx: a graph without a cache",
    ] = "hf"
    output: Annotated[str | None, "where to [RUN/hf, RUN/NAME.gguf, RUN/NAME.html, RUN/onnx]"] = (
        None
    )
    quantize: Annotated[
        str | None,
        "gguf: how its matrices are stored, f32, f16, bf16, q8_0 or q4_0 [f32]; llama-quantize "
        "makes other forms of a file",
    ] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        "hf: how its weights are stored; the last two take half the space [float32]",
    ] = None
    overwrite: Annotated[bool, "replace an earlier export of that name"] = False


QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q4_0")


def main(argv: list[str]) -> int:
    """Export; the exit code."""
    overrides = COMMANDS["export"].parse(argv)
    word = overrides.pop("run", None)
    if "quantize" in overrides:
        overrides["quantize"] = overrides["quantize"].lower()  # as the tools of GGUF take it
    options = ExportOptions(**overrides)
    if options.quantize and options.format != "gguf":
        raise ConfigError(
            f"--quantize is an option of --format gguf, not of {options.format}",
            "use --dtype float16 or bfloat16" if options.format == "hf" else "leave it out",
        )
    if options.quantize and options.quantize not in QUANTIZATIONS:
        raise ConfigError(
            f"quantize cannot be {options.quantize!r}",
            f"choose from {', '.join(QUANTIZATIONS)}, or write the file with f16 and let "
            f"llama.cpp make the other form of it: llama-quantize FILE.gguf {options.quantize}",
        )
    if options.dtype and options.format != "hf":
        raise ConfigError(
            f"--dtype is an option of --format hf, not of {options.format}",
            "use --quantize f16 or bf16" if options.format == "gguf" else "leave it out",
        )
    from gptlab.interop.write.export import DEFAULT_NAMES, export
    from gptlab.runs import Run, find_run, load_checkpoint, newest_run
    from gptlab.sharded_checkpoints import has_shards

    if word is None:
        path = newest_run()
    else:
        path = Path(word).expanduser()
        path = path if path.is_file() else find_run(word)
    folder = path.parent if path.is_file() or has_shards(path) else path
    output = folder / DEFAULT_NAMES[options.format].format(folder.resolve().name)
    if options.output is not None:
        output = Path(options.output).expanduser()
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"{display(output)} holds the run itself", "choose another --output")
    checkpoint = load_checkpoint(path)
    more = {name: getattr(options, name) for name in ("quantize", "dtype")}
    if options.format == "html":
        from gptlab.analysis.lens import known_means
        from gptlab.reports.lens_page import look_inside

        more["inside"] = look_inside(checkpoint, known_means(checkpoint.model, Run(folder)))
    with Bars() as bars:
        written = export(
            checkpoint,
            options.format,
            output,
            overwrite=options.overwrite,
            progress=bars.progress,
            **{name: value for name, value in more.items() if value is not None},
        )
    files = [file for file in [written, *written.rglob("*")] if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(f"Wrote {display(written)} ({in_bytes(size)}): {_how_to_open(options.format, written)}")
    if checkpoint.content.get("reversed_answers"):
        print("It writes answers last character first; only sample.py shows them the other way.")
    return 0


def _how_to_open(format: str, written: Path) -> str:
    ways = {
        "hf": f'AutoModelForCausalLM.from_pretrained("{display(written)}") opens it.',
        "gguf": f"llama-cli -m {quoted(display(written))} runs it.",
        "onnx": "tokens [B, T] -> logits [B, T, V], for onnxruntime and others.",
        "html": "open it in any browser, or send it to someone.",
    }
    return ways[format]
