"""How llama.cpp splits and spells text before byte-level BPE: the rules that GGUF files name."""

# Split rules that llama.cpp knows by name, each for several models (llama-vocab.cpp).
_GPT2_RULE = ("gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "roberta-bpe")
_DIGIT_RULE = ("smollm", "starcoder", "refact", "command-r", "codeshell")
LLAMA3_RULE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe")
_QWEN2_RULE = ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2")
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def split_of(rule: str) -> dict | None:
    """The pre-tokenizer of a rule that llama.cpp has under this name; None where not known here."""
    by_gpt2 = BYTE_LEVEL | {"use_regex": True}
    if rule in _GPT2_RULE:
        return by_gpt2
    if rule in _DIGIT_RULE:
        first, then = {"type": "Digits", "individual_digits": True}, by_gpt2
    elif rule in (*LLAMA3_RULE, *_QWEN2_RULE):
        pattern = _LLAMA3_SPLIT if rule in LLAMA3_RULE else _QWEN2_SPLIT
        first = {"type": "Split", "pattern": {"Regex": pattern}}
        first |= {"behavior": "Isolated", "invert": False}
        then = BYTE_LEVEL | {"use_regex": False}
    else:
        return None
    return {"type": "Sequence", "pretokenizers": [first, then]}


def spelled(text: str) -> str:
    """The UTF-8 bytes of a text as GPT-2 spells them with visible characters."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
