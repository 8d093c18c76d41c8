"""The tokenizer and the chat template of a model from elsewhere."""

import json
from pathlib import Path

from gptlab.data.tokenizer import (
    BytePairTokenizer,
    ImportedTokenizer,
    Tokenizer,
    byte_level_bpe,
)
from gptlab.data.tokenizer_json import END_MARK, added_token, merges_of
from gptlab.errors import TokenizerError
from gptlab.files import display


def folder_tokenizer(folder) -> Tokenizer:
    """The tokenizer.json of a Hugging Face folder, with the end of text that its other files name.

    Raises TokenizerError if there is none.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{display(folder)} has no tokenizer.json",
            "let transformers write one "
            f'(AutoTokenizer.from_pretrained("{display(folder)}").save_pretrained(...))',
        )
    return adopted(Tokenizer.load(path), _named_end(folder))


def adopted(tokenizer: Tokenizer, end: int | str | None) -> Tokenizer:
    """An imported model's tokenizer, with the end of text that the model names.

    The vocabulary alone is not enough: a model may end its texts with <|im_end|> and still have
    <|endoftext|>. A byte-level BPE is rebuilt in the form used here, so that an imported GPT-2
    tokenizer equals the built-in one.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        return byte_level_bpe(merges_of(json.loads(tokenizer.to_json())["model"]))
    if not isinstance(tokenizer, ImportedTokenizer):
        return tokenizer
    end = tokenizer.id_of(end) if isinstance(end, str) else end
    if end is None or end == tokenizer.eot_id or not tokenizer.token_of(end):
        return tokenizer
    spec = json.loads(tokenizer.to_json())
    spec["added_tokens"] = [
        {name: value for name, value in token.items() if name != END_MARK}
        for token in spec["added_tokens"]
    ]
    marked = [token for token in spec["added_tokens"] if token["id"] == end]
    if not marked:
        marked = [added_token(end, tokenizer.token_of(end))]
        spec["added_tokens"] = sorted(spec["added_tokens"] + marked, key=lambda t: t["id"])
    marked[0].update({END_MARK: True, "special": True})
    return ImportedTokenizer(spec)


def _named_end(folder: Path) -> int | str | None:
    """The end of text that a Hugging Face folder names: a token, an id, or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        end = _content_of(folder / name).get("eos_token")
        end = end.get("content") if isinstance(end, dict) else end
        if isinstance(end, str):
            return end
    for name in ("generation_config.json", "config.json"):
        end = _content_of(folder / name).get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        if isinstance(end, int):
            return end
    return None


def folder_chat_template(folder) -> str:
    """The chat template of a Hugging Face folder; newer releases keep it in a separate file."""
    path = Path(folder) / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _content_of(Path(folder) / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name, as {"name", "template"}
        named = {each.get("name"): each.get("template") for each in template}
        template = named.get("default", next(iter(named.values()), ""))
    return template if isinstance(template, str) else ""


def _content_of(path: Path) -> dict:
    """The JSON object in a file; {} if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
