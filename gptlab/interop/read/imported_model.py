"""What every importer hands over, and how it becomes a run directory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.checkpoints import model_from, tokenizer_content
from gptlab.data.tokenizer import Tokenizer
from gptlab.files import FORMAT_VERSIONS, write_json
from gptlab.model.config import GPTConfig
from gptlab.run_records import Origin
from gptlab.runs import Run


@dataclass(frozen=True)
class Imported:
    """A model from elsewhere. weights: by our names, float32, without a tied head."""

    config: GPTConfig
    weights: dict
    tokenizer: Tokenizer | None
    kind: str  # of the files it came from, in words
    name: str = ""  # what the files call the model
    license: str = ""
    stored_as: str = ""  # the precision of most weights in these files: Q4_1, BF16
    chat_template: str = ""  # Jinja, as transformers and GGUF keep it
    more: dict = field(default_factory=dict)  # further entries of the checkpoint, such as step

    def origin(self) -> Origin:
        """What the model is, for its checkpoint and for commands that do not load it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "license": self.license,
            "stored_as": self.stored_as,
            "is_chat": bool(self.chat_template),
            "block_size": self.config.block_size,
        }


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def origin_in_words(origin: Mapping) -> str:
    """What a model from elsewhere is: its name, the kind of its files, and `qualities`.

    origin: `imported` of its checkpoint, or the content of imported.json.
    """
    parts = [f"imported as {origin.get('kind', 'a model')}", *qualities(origin)]
    return f"{origin.get('name') or 'A model'}: {'; '.join(parts)}."


def qualities(origin: Mapping) -> list[str]:
    """How the files held the weights, and whether the model chats, in words; see above."""
    stored = str(origin.get("stored_as") or "")
    found = []
    if quantised := re.match(r"I?T?Q(\d)", stored):
        found.append(f"its weights were rounded to {quantised[1]} bits ({stored}) and stay so")
    elif stored:
        found.append(f"its weights came in {_FLOATS.get(stored, stored)}")
    if origin.get("is_chat"):
        found.append("a chat model, with its own template")
    return found


def write_run(imported: Imported, folder, source: dict, overwrite: bool = False) -> Path:
    """Make the run directory of an imported model: best.pt, and its tokenizer.json.

    source: where it came from, kept in the checkpoint. Raises RunError where a run is already.
    """
    from gptlab.model.proof import proof_of

    run = Run(folder)
    run.begin(overwrite=overwrite)
    try:
        if imported.tokenizer is not None:
            # beside the weights, so that `prepare.py --tokenizer RUN` finds it
            imported.tokenizer.save(run.folder / "tokenizer.json")
        content = {
            "format_version": FORMAT_VERSIONS["checkpoint"],
            "model_config": imported.config.to_dict(),
            "model": imported.weights,
            "tokenizer": tokenizer_content(imported.tokenizer),
            "step": 0,
            "val_loss": None,
            "imported": {**imported.origin(), **source},
            "chat_template": imported.chat_template,
            **imported.more,
        }
        model = model_from(content, run.best)
        run.save_best({**content, "proof": proof_of(model)})
        write_json(
            run.imported,
            {"format_version": FORMAT_VERSIONS["imported"], **imported.origin()},
        )
    finally:
        run.end()
    return run.folder
