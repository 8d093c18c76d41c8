"""The tokenizer inside a GGUF file, rebuilt as a tokenizer.json."""

import json

from gptlab.data.adopted_tokenizer import adopted
from gptlab.data.tokenizer import Tokenizer, char_tokenizer
from gptlab.data.tokenizer_json import END_OF_TEXT, PLAIN_BPE
from gptlab.errors import TokenizerError
from gptlab.interop.gguf_rules import BYTE_LEVEL, LLAMA3_RULE, spelled, split_of

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # types of tokens


def tokenizer_of(fields: dict, where: str) -> Tokenizer:
    """The tokenizer that a file's metadata describes.

    Raises TokenizerError for a kind or a split rule that cannot be rebuilt.
    """
    model = fields.get("tokenizer.ggml.model")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise TokenizerError(f"{where} has no vocabulary in it.")
    types = fields.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(f"{where} is damaged: its vocabulary has {len(types)} types.")
    if model == "gpt2" and (ids := _ids_of_characters(tokens, types)):
        end = tokens.index(END_OF_TEXT) if END_OF_TEXT in tokens else len(tokens)
        first, added = list(ids)[:end], list(ids)[end:]
        if len(tokens) == len(ids) + 1 and end < len(tokens) and first == sorted(first):
            tokenizer = char_tokenizer(first)
            for character in added:  # in their order, behind the end of text
                tokenizer = tokenizer.extended(character)
            return tokenizer
        if added:
            ids[END_OF_TEXT] = end
        vocab = dict(sorted(ids.items(), key=lambda item: item[1]))
        spec = _spec({"vocab": vocab, "merges": []})
        spec["decoder"] = {"type": "Fuse"}
    elif model == "gpt2":
        spec = _byte_level(fields, tokens, where)
    elif model == "llama":
        spec = _sentence_piece(fields, tokens, types, where)
    else:
        raise TokenizerError(
            f"{where} has a tokenizer of the kind {model!r}: gpt2 and llama can be imported."
        )
    spec["added_tokens"] = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    begin = fields.get("tokenizer.ggml.bos_token_id")
    adds_begin = fields.get("tokenizer.ggml.add_bos_token", model == "llama")
    spec["post_processor"] = _beginning_with(tokens, begin) if adds_begin else None
    tokenizer = Tokenizer.from_json(json.dumps(spec, ensure_ascii=False))
    end = fields.get("tokenizer.ggml.eos_token_id")
    return adopted(tokenizer, end)


def _beginning_with(tokens: list[str], begin) -> dict | None:
    """The post-processor that puts the beginning of a text before it."""
    if not isinstance(begin, int) or not 0 <= begin < len(tokens):
        return None
    token, text = tokens[begin], {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [begin], "tokens": [token]}},
    }


def _spec(model: dict, **parts) -> dict:
    empty = dict(truncation=None, padding=None, normalizer=None, pre_tokenizer=None, decoder=None)
    return {"version": "1.0", "added_tokens": [], **empty, **parts, "model": PLAIN_BPE | model}


def _ids_of_characters(tokens: list[str], types: list[int]) -> dict[str, int]:
    """{character: id} of a vocabulary of characters; {} where it is another one.

    A byte-level BPE always has bytes that are no character by themselves.
    """
    from tokenizers.decoders import ByteLevel

    decoder, found, between = ByteLevel(), {}, []
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != _NORMAL:
            between.append((i, token))
            continue
        character = decoder.decode([token])
        if len(character) != 1 or spelled(character) != token:
            return {}
        found[character] = i
    last = max(found.values(), default=-1)
    return found if {token for i, token in between if i < last} <= {END_OF_TEXT} else {}


def _byte_level(fields: dict, tokens: list[str], where: str) -> dict:
    merges = fields.get("tokenizer.ggml.merges")
    rule = fields.get("tokenizer.ggml.pre", "gpt-2")
    if not isinstance(merges, list):
        raise TokenizerError(f"{where} has a vocabulary without merges.")
    split = split_of(rule)
    if split is None:
        raise TokenizerError(
            f"{where} splits text by the rule {rule!r}, which is not known here",
            "import the model's Hugging Face folder instead",
        )
    return _spec(
        {
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
            "ignore_merges": rule in LLAMA3_RULE,
        },
        pre_tokenizer=split,
        decoder=BYTE_LEVEL | {"use_regex": True},
    )


def _sentence_piece(fields: dict, tokens: list[str], types: list[int], where: str) -> dict:
    """SentencePiece's BPE: joins the pair whose token has the highest score.

    The same as a list of merges in the order of the scores of what they make.
    """
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise TokenizerError(f"{where} has a vocabulary without scores.")
    vocab = {token: i for i, token in enumerate(tokens)}
    joinable = {t for t, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    merges = []
    for token in sorted(joinable, key=lambda t: (-scores[vocab[t]], vocab[t])):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if joinable.issuperset(pair)]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    adds_space = fields.get("tokenizer.ggml.add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": "▁"}] if adds_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return _spec(
        {
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
        normalizer={"type": "Sequence", "normalizers": [*prepend, space]},
        decoder={
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
    )
