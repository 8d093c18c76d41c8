"""What every importer hands over, and how it becomes a run directory."""

from dataclasses import dataclass, field
from pathlib import Path

from gptlab.checkpoints import model_from, tokenizer_content
from gptlab.data.tokenizer import Tokenizer
from gptlab.files import FORMAT_VERSIONS
from gptlab.model.config import GPTConfig
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
    chat_template: str = ""  # Jinja, as transformers and GGUF keep it
    more: dict = field(default_factory=dict)  # further entries of the checkpoint, such as step


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
            "imported": {
                "kind": imported.kind,
                "name": imported.name,
                "license": imported.license,
                **source,
            },
            "chat_template": imported.chat_template,
            **imported.more,
        }
        model = model_from(content, run.best)
        run.save_best({**content, "proof": proof_of(model)})
    finally:
        run.end()
    return run.folder
