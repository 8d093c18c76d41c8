"""A model by its name or path becomes a run directory: what it is, who reads it, where it goes."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gptlab.checkpoints import read_checkpoint
from gptlab.errors import CheckpointError, ConfigError, DataError, GPTLabError, RunError
from gptlab.files import display, out_home, quoted, read_json
from gptlab.interop.read.hub import SHORT_NAMES, hub_folder, hub_name
from gptlab.interop.read.imported_model import Imported, origin_in_words, write_run
from gptlab.interop.read.smollm2 import FILE, MODEL, smollm2_file
from gptlab.interop.read.smollm2 import NAME as SMOLLM2
from gptlab.runs import Run, find_run
from gptlab.sharded_checkpoints import has_shards

Progress = Callable[[str, int, int | None], None]


def import_model(
    word: str,
    out_dir=None,
    *,
    meta=None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda sentence: None,
    progress: Progress | None = None,
) -> Path:
    """Make a run directory of a model from elsewhere, and return it.

    word: a path (a Hugging Face folder, a GGUF file, nanoGPT's ckpt.pt or its folder), a name such
    as "smollm2-135m" or "gpt2", or "hf:OWNER/NAME". out_dir: where to, by default out/ and the
    model's name. meta: the meta.pkl of a nanoGPT model of characters. note, progress: called with
    sentences, and with (stage, advance, total in bytes). Raises a GPTLabError that says what is
    wrong; nothing is written then.
    """
    folder = Path(out_dir).expanduser() if out_dir else default_folder(word)
    if Run(folder).exists() and not overwrite:
        raise RunError(
            f"{display(folder)} holds a run already",
            "use it as it is, choose another --out_dir, or delete it with --overwrite",
        )
    path = model_path(word, note, progress)
    note(f"Reading {display(path)}.")  # a large vocabulary alone takes seconds
    imported = read_model(path, meta, progress)
    if path.name == FILE:
        imported = replace(imported, name=MODEL)
    note(origin_in_words(imported.origin()))
    note(f"Writing {display(folder)}.")
    return write_run(imported, folder, _source(word, path), overwrite)


def local_checkpoint(word: str, note: Callable[[str], None], option: str = "init_from") -> Path:
    """The run directory or checkpoint that an option names, imported if it is from elsewhere."""
    return present_checkpoint(word, option) or import_model(word, default_folder(word), note=note)


def present_checkpoint(word: str, option: str = "init_from") -> Path | None:
    """The run directory or checkpoint that an option names; None if it must be imported first.

    An import is kept under out/ and used again as long as its source is the same. Raises
    CheckpointError for a word that names nothing, RunError if another run has the import's folder.
    """
    path = Path(word).expanduser()
    if not path.exists() and not is_known_name(word):
        with contextlib.suppress(RunError):
            path = find_run(word)
    if Run(path).exists() and not _is_nanogpt(path / "ckpt.pt"):
        return path
    if has_shards(path) or (path.suffix == ".pt" and not _is_nanogpt(path)):
        return path
    if not is_known_name(word) and not path.exists():
        raise CheckpointError(
            f"{option} {word!r} names no model: there is no checkpoint {display(path)}, "
            f"and the known names are {', '.join((SMOLLM2, *SHORT_NAMES))} and hf:OWNER/NAME."
        )
    folder = default_folder(word)
    if Run(folder).exists():
        kept = read_checkpoint(Run(folder).best) if Run(folder).best.is_file() else {}
        before = kept.get("imported") or {}
        if before.get("from") == word and (is_known_name(word) or before == before | _stat(path)):
            return folder
        raise RunError(
            f"{display(folder)} holds another run than {word}",
            f"import the model elsewhere with gpt.py import {quoted(word)} --out_dir DIR, and use "
            f"--{option} DIR",
        )
    return None


def is_known_name(word: str) -> bool:
    """Whether a word names a model that is no path here."""
    return not Path(word).expanduser().exists() and (
        word == SMOLLM2 or word in SHORT_NAMES or word.startswith("hf:")
    )


def default_folder(word: str) -> Path:
    """out/ and the name of a model."""
    if is_known_name(word):
        name = word if word == SMOLLM2 else hub_name(word).rsplit("/", 1)[-1]
        return out_home() / name.lower()
    path = Path(word).expanduser().resolve()
    name = path.parent.name if path.name in ("ckpt.pt", "model.safetensors") else path.stem
    return out_home() / (name if path.is_file() else path.name)


def model_path(word: str, note: Callable[[str], None], progress: Progress | None) -> Path:
    """Where the files of a model lie; fetched, if it is a name."""
    path = Path(word).expanduser()
    if path.exists():  # before names: a folder that is here is what was meant
        return path
    if word == SMOLLM2:
        return smollm2_file(note, progress)
    if is_known_name(word):
        return hub_folder(word, note)
    raise ConfigError(
        f"There is no {word!r} to import",
        f"name a Hugging Face folder, a .gguf file, a ckpt.pt of nanoGPT, {SMOLLM2}, or "
        "hf:OWNER/NAME",
    )


def read_model(path: Path, meta=None, progress: Progress | None = None) -> Imported:
    """The model at a path, by the reader of its kind. meta, progress: as in `import_model`."""
    if path.is_dir() and (path / "config.json").is_file():
        from gptlab.interop.read import huggingface

        return huggingface.read(path, progress)
    if path.is_dir():
        path = _file_in(path)
    if path.suffix == ".gguf" or _begins(path, b"GGUF"):
        from gptlab.interop.read import gguf

        return gguf.read(path, progress)
    if path.name.endswith(".safetensors") and (path.parent / "config.json").is_file():
        from gptlab.interop.read import huggingface

        return huggingface.read(path.parent, progress)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        from gptlab.interop.read import nanogpt

        return nanogpt.read(path, meta)
    if (path.suffix in (".index", ".meta") or path.name == "checkpoint") and _is_tensorflow(
        path.parent
    ):
        raise _no_model(path.parent)
    raise ConfigError(
        f"{display(path)} is not a model that can be imported",
        "name a Hugging Face folder with config.json and .safetensors files, a .gguf file, or a "
        "ckpt.pt of nanoGPT",
    )


def _file_in(folder: Path) -> Path:
    """The one model file of a folder that is no Hugging Face folder."""
    found = [
        path for path in (folder / "ckpt.pt", *sorted(folder.glob("*.gguf"))) if path.is_file()
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{display(folder)} holds several models",
            f"name one of {', '.join(path.name for path in found)}",
        )
    raise _no_model(folder)


def _no_model(folder: Path) -> GPTLabError:
    """The error for a folder without a model that can be read: what it is, and its way here."""
    where = display(folder)
    if (folder / "adapter_config.json").is_file():
        return _only_an_adapter(folder)
    if _is_tensorflow(folder):
        indices = folder.glob("*.index")
        newest = display(max(indices, key=lambda file: (file.stat().st_mtime, file.name)))
        return ConfigError(
            f"{where} is a checkpoint of TensorFlow, as gpt-2-simple writes it, which gptlab does "
            "not read",
            "convert it where transformers 4 and tensorflow are installed, and import the folder "
            f"converted: GPT2LMHeadModel.from_pretrained({newest!r}, from_tf=True, "
            f"config=GPT2Config({_gpt2_sizes(folder)})).save_pretrained('converted') and "
            "AutoTokenizer.from_pretrained('gpt2').save_pretrained('converted')",
            sep="; ",
        )
    if any(folder.glob("*.safetensors")):
        return ConfigError(
            f"{where} has no config.json, so there is no model to import",
            "copy the config.json of the model into it",
            sep="; ",
        )
    return ConfigError(
        f"{where} has no config.json, .gguf or ckpt.pt, so there is no model to import",
        "name a Hugging Face folder, a .gguf file or a ckpt.pt of nanoGPT",
        sep="; ",
    )


def _gpt2_sizes(folder: Path) -> str:
    """OpenAI's hparams.json as arguments of transformers' GPT2Config; "..." if it is not here."""
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    try:
        sizes = read_json(folder / "hparams.json")
        return ", ".join(
            f"{names.get(name, name)}={int(sizes[name])}"
            for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
        )
    except (OSError, DataError, LookupError, TypeError, ValueError):
        return "..."


def _is_tensorflow(folder: Path) -> bool:
    return (folder / "checkpoint").is_file() and any(folder.glob("*.index"))


def _only_an_adapter(folder: Path) -> GPTLabError:
    """The error for a folder of peft: the run that it belongs to, or how it is merged."""
    try:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except DataError:
        base = None
    of = f"an adapter of {base}" if base else "an adapter"
    problem = f"{display(folder)} holds {of} and no model of its own"
    run = folder.resolve().parent
    if Run(run).exists():
        where = display(run)
        return ConfigError(
            problem,
            f"the run {where} holds the model with it: use that one, or gpt.py export {where}",
            sep="; ",
        )
    return ConfigError(
        problem,
        "merge them with peft and import the folder merged: PeftModel.from_pretrained("
        f"AutoModelForCausalLM.from_pretrained({base or 'MODEL'!r}), {display(folder)!r})"
        ".merge_and_unload().save_pretrained('merged'), with the model's tokenizer.json beside it",
        sep="; ",
    )


def _is_nanogpt(path: Path) -> bool:
    from gptlab.interop.read import nanogpt

    return path.is_file() and nanogpt.is_checkpoint(path)


def _begins(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _source(word: str, path: Path) -> dict:
    """Where a model came from, for its checkpoint."""
    return {"from": word} | ({} if is_known_name(word) else _stat(path))


def _stat(path: Path) -> dict:
    """What changes when the files of a model do."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return {
        "path": str(path.resolve()),
        "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files],
    }
