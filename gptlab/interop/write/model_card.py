"""README.md of an exported model: what it is, how good it is, what it read, how to use it."""

from pathlib import Path

from gptlab.data.token_files import find_meta, text_label
from gptlab.files import without_folders
from gptlab.interop.read.imported_model import qualities
from gptlab.model.arithmetic import active_in_words, count_parameters

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{license}tags:
- gptlab
---

# {name}

{summary}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=100, do_sample=True)[0]))
```

## Figures

| | |
|---|---|
{figures}

## Data

{data}

It writes what is likely after texts like these; it knows no facts beyond them, repeats their
mistakes and prejudices, and can make up anything.
"""


def model_card(checkpoint, architecture: str) -> str:
    """The page for a checkpoint (`runs.load_checkpoint`) as Markdown with its metadata."""
    config, content = checkpoint.model.config, checkpoint.content
    imported = content.get("imported") or {}
    name = imported.get("name") or checkpoint.path.resolve().parent.name
    number = f"{count_parameters(config):,}"
    active = active_in_words(config)
    if imported:
        summary = f"A language model of {number} parameters{active}"
        summary += f", imported as {imported['kind']}"
        origin = without_folders(str(imported.get("from", "")))
        summary += f" from {origin}." if origin else "."
        summary += "".join(f" {words[0].upper()}{words[1:]}." for words in qualities(imported))
    else:
        summary = f"A language model of {number} parameters{active} ({architecture}), "
        summary += "trained with gptlab."
    return _CARD.format(
        license=f"license: {imported['license']}\n" if imported.get("license") else "",
        name=name,
        summary=summary,
        figures="\n".join(f"| {what} | {value} |" for what, value in _figures(checkpoint)),
        data=_data(checkpoint),
    )


def _figures(checkpoint) -> list[tuple[str, str]]:
    config, content = checkpoint.model.config, checkpoint.content
    tokenizer = checkpoint.tokenizer
    found = [
        ("parameters", f"{count_parameters(config):,}{active_in_words(config)}"),
        (
            "layers, heads, key/value heads",
            f"{config.n_layer}, {config.n_head}, {config.n_kv_head}",
        ),
        ("width, MLP", f"{config.n_embd}, {config.intermediate_size}"),
        ("context", f"{config.block_size:,} tokens"),
        ("vocabulary", f"{config.vocab_size:,} ids ({tokenizer.kind if tokenizer else 'none'})"),
    ]
    if checkpoint.step:
        found.append(("training steps", f"{checkpoint.step:,}"))
    resolved = (content.get("train_config") or {}).get("resolved") or {}
    start = resolved.get("init_from") or "scratch"
    if start != "scratch":  # of a path only the name: the page may be published
        found.append(("started from", Path(start).name))
    sizes = [resolved.get(n) for n in ("batch_size", "gradient_accumulation_steps", "block_size")]
    if checkpoint.step and all(isinstance(size, int) for size in sizes):
        found.append(("tokens trained on", f"{checkpoint.step * sizes[0] * sizes[1] * sizes[2]:,}"))
    if checkpoint.val_loss is not None:
        loss = f"{checkpoint.val_loss:.4f} nats per token"
        bits = content.get("val_bits_per_byte")
        found.append(("validation loss", loss + (f", {bits:.3f} bits per byte" if bits else "")))
    return found


def _data(checkpoint) -> str:
    """What the text was, where the dataset is still the one that the model was trained on."""
    name = (checkpoint.content.get("dataset") or {}).get("name")
    if not isinstance(name, str):
        return "Not known here: the model was trained elsewhere."
    meta = find_meta(name) or {}
    recorded = (meta.get("tokenizer") or {}).get("fingerprint")
    if checkpoint.tokenizer is None or recorded != checkpoint.tokenizer.fingerprint:
        return f"The dataset {Path(name).name}, as it was prepared then."
    tokens = meta.get("train_tokens", 0), meta.get("val_tokens", 0)
    size = meta.get("train_bytes", 0) + meta.get("val_bytes", 0)
    lines = [
        f"- {Path(name).name}: {text_label(meta) or 'a text'}",
        f"- {size:,} bytes in {meta.get('documents', 1):,} document(s); {tokens[0]:,} tokens for "
        f"training, {tokens[1]:,} for validation",
    ]
    bits = {n: v for n, v in (meta.get("baselines") or {}).items() if not n.endswith("_used")}
    if bits:
        lines.append(
            f"- simple programs reach, in bits per byte of the validation text: "
            f"{', '.join(f'{program} {value:.2f}' for program, value in bits.items())}"
        )
    return "\n".join(lines)
