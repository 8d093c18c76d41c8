"""A tokenizer as the metadata of a GGUF file: what llama.cpp needs to give the same ids."""

import json

from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.errors import ConfigError
from gptlab.interop.gguf_rules import spelled, split_of

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of tokens
# llama.cpp never normalises: only text that is typed in pieces comes to other ids
_NFC = {"type": "NFC"}


def vocabulary_fields(tokenizer: Tokenizer) -> dict:
    """The fields below `tokenizer.ggml.`, all as plain types, the end of text always among them.

    All kinds are byte-level BPEs there (`model` gpt2). The end of a vocabulary that has none is one
    more token, so it counts `vocab_size` + 1. Raises ConfigError for a vocabulary or a split rule
    that llama.cpp does not know by name.
    """
    spec = json.loads(tokenizer.to_json())
    if isinstance(tokenizer, CharTokenizer):
        rule, tokens, merges = "gpt-2", *_characters(tokenizer)
    else:
        rule = _split_rule(spec)
        tokens = {i: token for token, i in spec["model"]["vocab"].items()}
        pairs = (m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"])
        merges = list(pairs)
    types = dict.fromkeys(tokens, _NORMAL)
    for token in spec["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    end = tokenizer.eot_id
    if end is None:  # without it llama.cpp takes GPT-2's id, which is another token here
        end = tokenizer.vocab_size
        tokens[end], types[end] = "<|endoftext|>", _CONTROL
    ids = range(max(tokens) + 1)
    return {
        "model": "gpt2",
        "pre": rule,
        "tokens": [tokens.get(i, f"[UNUSED{i}]") for i in ids],
        "token_type": [types.get(i, _UNUSED) for i in ids],
        "merges": merges or ["Ā Ā"],  # an empty list is refused there; this one never applies
        "bos_token_id": end if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos_token_id": end,
        "padding_token_id": end,
        "add_bos_token": tokenizer.bos_id is not None,
    }


def _characters(tokenizer: CharTokenizer) -> tuple[dict[int, str], list[str]]:
    """The characters in GPT-2's spelling of their bytes, and merges that join those of each.

    A character of three bytes is joined from the left, through a pair that needs no id of its own.
    No merge crosses from one character to the next: none begins with what may follow a first byte.
    """
    tokens = {i: spelled(character) for i, character in enumerate(tokenizer.characters)}
    merges = {
        f"{token[:length]} {token[length]}": None
        for token in tokens.values()
        for length in range(1, len(token))
    }
    return tokens, list(merges)


def _split_rule(spec: dict) -> str:
    """llama.cpp's name of the rule by which a byte-level BPE splits text."""
    model, normalizer = spec["model"], spec.get("normalizer")
    is_byte_level = '"ByteLevel"' in json.dumps(spec.get("decoder"))
    if model["type"] == "BPE" and is_byte_level and normalizer in (None, _NFC):
        for rule in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
            is_same = _essence(spec["pre_tokenizer"]) == _essence(split_of(rule))
            if is_same and bool(model.get("ignore_merges")) == (rule == "llama-bpe"):
                return rule
    raise ConfigError(
        "This model's tokenizer cannot be written as GGUF: its vocabulary or its split rule has no "
        "name in llama.cpp that is known here; use --format hf, and llama.cpp's own converter."
    )


def _essence(split: dict | None) -> list[dict]:
    """The steps of a pre-tokenizer without what changes no token."""
    steps = (split or {}).get("pretokenizers") or [split or {}]
    passed_over = ("trim_offsets", "invert")
    return [{k: v for k, v in step.items() if k not in passed_over} for step in steps]
