"""What a tokenizer.json holds (the format of Hugging Face `tokenizers`): made, and recognised."""

import functools

END_OF_TEXT = "<|endoftext|>"

# Names of the end-of-text token in other vocabularies, the most specific first.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>")

# Marks the end-of-text token among the added tokens of an imported tokenizer.json, if its model
# names another than the first one of END_NAMES. Other programs ignore the mark.
END_MARK = "end_of_text"


# The model of a tokenizer.json, without its vocabulary and merges.
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def make_spec(vocab: dict, merges: list, pre_tokenizer: dict | None, decoder: dict) -> dict:
    """The content of tokenizer.json, with the end of text as the last id."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(len(vocab), END_OF_TEXT)],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {**PLAIN_BPE, "vocab": vocab, "merges": merges},
    }


def added_token(token_id: int, content: str) -> dict:
    """An entry of added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": True}


def is_of_characters(spec: dict) -> bool:
    """Whether CharTokenizer can represent it: an id for each character, no merges."""
    ids, added = ids_of_characters(spec), spec.get("added_tokens")
    if (
        spec["model"]["type"] != "BPE"
        or spec["model"].get("merges")
        or (spec.get("decoder") or {}).get("type") != "Fuse"
        or spec.get("normalizer") is not None
        or spec.get("pre_tokenizer") is not None
        or not all(len(token) == 1 for token in ids)
        or not isinstance(added, list)
    ):
        return False
    end = added[0]["id"] if added else None
    found = sorted([*ids.values(), *([end] if added else [])])
    is_in_vocab = spec["model"]["vocab"].get(END_OF_TEXT, end) == end
    return (
        found == list(range(len(found)))
        and is_in_vocab
        and (not added or _only_special_is(spec, end))
    )


def ids_of_characters(spec: dict) -> dict[str, int]:
    """{character: id}; the end of text may be in the vocabulary as well."""
    return {token: i for token, i in spec["model"]["vocab"].items() if token != END_OF_TEXT}


def is_byte_level_bpe(spec: dict) -> bool:
    """Whether BytePairTokenizer can represent it: ids, split rule, one special token at the end."""
    model, split = spec["model"], spec.get("pre_tokenizer") or {}
    plain = not any(
        model.get(key)
        for key in (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "byte_fallback",
            "ignore_merges",
        )
    )
    if not (
        model["type"] == "BPE"
        and plain
        and spec.get("normalizer") is None
        and split.get("type") == "ByteLevel"
        and not split.get("add_prefix_space", True)
        and split.get("use_regex", True)
    ):
        return False
    expected = list(byte_of_character()) + [left + right for left, right in merges_of(model)]
    vocab = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    return vocab == {token: i for i, token in enumerate(expected)} and _only_special_is(
        spec, len(expected)
    )


def _only_special_is(spec: dict, token_id: int) -> bool:
    added = spec.get("added_tokens") or []
    return [(token["id"], token["content"]) for token in added] == [(token_id, END_OF_TEXT)]


def merges_of(model: dict) -> list[tuple[str, str]]:
    """The merges of a BPE model as pairs; older files store them as "left right"."""
    return [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]


@functools.cache
def byte_of_character() -> dict[str, int]:
    """{visible character: byte}: GPT-2's notation of bytes, in the order of its ids."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    spelled = {chr(b): b for b in visible}
    spelled.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return spelled


def first_of_template(post_processor: dict | None) -> int | None:
    """The id that a post-processor adds before every text, or None."""
    parts = [post_processor or {}]
    if parts[0].get("type") == "Sequence":
        parts = parts[0].get("processors") or []
    for part in parts:
        single = part.get("single") if part.get("type") == "TemplateProcessing" else None
        if single and "SpecialToken" in single[0]:
            name = single[0]["SpecialToken"]["id"]
            return int(part["special_tokens"][name]["ids"][0])
    return None
