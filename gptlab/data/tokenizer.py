"""Text to ids and back, exactly: characters, byte-level BPE, GPT-2, or an imported vocabulary.

Every tokenizer is one `tokenizer.json` in the format of Hugging Face `tokenizers`. Text is always
plain text: the string `<|endoftext|>` in a text becomes ordinary tokens, and the end-of-text id
marks only document boundaries. Ids are `uint32` arrays or lists of int.
"""

import functools
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gptlab.errors import TokenizerError
from gptlab.files import atomic_write, display

END_OF_TEXT = "<|endoftext|>"
MIN_BPE_VOCAB = 257  # 256 bytes and the end of text

# GPT-2's split rule (Radford et al. 2019) with possessive quantifiers: the same pieces, and a
# megabyte without a space neither backtracks nor overflows the stack.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SHA-256 of GPT-2's list of merges, the file `vocab.bpe`.
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# Names of the end-of-text token in other vocabularies, the most specific first.
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>")

# Marks the end-of-text token among the added tokens of an imported tokenizer.json, if its model
# names another than the first one of _END_NAMES. Other programs ignore the mark.
_END_MARK = "end_of_text"


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


class Tokenizer:
    """Maps text to ids and back. kind: "char", "bpe", "gpt2" or "imported". eot_id: may be None."""

    kind: str
    vocab_size: int
    eot_id: int | None
    # The id that an imported model expects before every text; `encode` does not add it.
    bos_id: int | None = None
    _bytes: list[bytes]  # of each id, where they do not follow from its spelling
    # Whether the ids of a text's pieces, cut by `TextStore.pieces`, are the ids of the text.
    can_be_cut = True

    def __init__(self, spec: dict):
        self._json = json.dumps(spec, ensure_ascii=False)

    def __repr__(self):
        return f"<{self.kind} tokenizer, {self.vocab_size:,} ids>"

    @staticmethod
    def from_json(text: str) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json`. Raises TokenizerError for any other text."""
        try:
            spec = json.loads(text)
            spec["model"]["vocab"], spec["model"]["type"]
            if _is_char(spec):
                return CharTokenizer(spec)
            if _is_byte_level_bpe(spec):
                return BytePairTokenizer(spec)
            return ImportedTokenizer(spec)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            # a field is missing or has the wrong type
            raise TokenizerError(
                "This is not a tokenizer.json (the format of Hugging Face `tokenizers`)."
            ) from None

    @staticmethod
    def load(path) -> "Tokenizer":
        """Read a tokenizer.json. Raises TokenizerError if the file is not one."""
        path = Path(path)
        try:
            return Tokenizer.from_json(path.read_text(encoding="utf-8"))
        except (TokenizerError, UnicodeDecodeError):
            raise TokenizerError(
                f"{display(path)} is not a tokenizer.json (the format of Hugging Face "
                "`tokenizers`)",
                "prepare the dataset again, or name another file",
                sep="; ",
            ) from None

    def to_json(self) -> str:
        """The text of tokenizer.json; `Tokenizer.from_json` gives an equal tokenizer."""
        return self._json

    def to_plain_json(self) -> str:
        """`to_json` for other programs, without gptlab's own mark."""
        return self._json

    def special_token(self, token_id: int) -> str:
        """The text of a special id; "" for any other id."""
        return END_OF_TEXT if token_id == self.eot_id else ""

    @property
    def special_ids(self) -> dict[str, int]:
        """{text: id} of the special ids; `encode` never gives one of them."""
        return {} if self.eot_id is None else {self.special_token(self.eot_id): self.eot_id}

    def save(self, path) -> None:
        """Write tokenizer.json, atomically."""
        with atomic_write(path, "w") as file:
            file.write(self._json)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json()`: equal for equal tokenizers."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of plain text. Raises TokenizerError for text that cannot be encoded."""
        return self.encode_to_array(text).tolist()

    def encode_to_array(self, text: str) -> np.ndarray:
        """`encode` as a uint32 array, several times faster for long text."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """The text of ids; special ids are left out unless `keep_special`.

        Bytes that are not valid UTF-8, such as an incomplete character at the end, become U+FFFD.
        """
        return b"".join(
            (self.special_token(i).encode() if keep_special else b"") or self.token_bytes(i)
            for i in map(int, ids)
        ).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of an id; b"" for a special id. Raises TokenizerError for no id."""
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(
                f"The id {token_id} is outside this vocabulary of {self.vocab_size:,} ids "
                f"(0 to {self.vocab_size - 1:,})."
            )
        return self._bytes[token_id]


class CharTokenizer(Tokenizer):
    """One id per character, and one for the end of text.

    An alphabet learned here is sorted, the end of text follows it, and characters that were added
    later follow that. One imported with a model keeps the model's order and may lack the end of
    text. alphabet: in the order of the ids. characters: by id, "" for the end of text.
    """

    kind = "char"

    def __init__(self, spec: dict):
        super().__init__(spec)
        ids = _ids_of_characters(spec)
        self.alphabet = "".join(sorted(ids, key=ids.get))
        self.eot_id = spec["added_tokens"][0]["id"] if spec["added_tokens"] else None
        self.vocab_size = len(ids) + len(spec["added_tokens"])
        self.characters = list(self.alphabet)
        if self.eot_id is not None:
            self.characters.insert(self.eot_id, "")
        self._bytes = [character.encode() for character in self.characters]
        codes = _code_points(self.alphabet)
        # the id of each code point; vocab_size for those outside the alphabet
        self._id_of_code = np.full(int(codes.max(initial=0)) + 2, self.vocab_size, np.uint32)
        self._id_of_code[codes] = [ids[character] for character in self.alphabet]

    def extends(self, other: Tokenizer | None) -> bool:
        """Whether it has the characters of `other` under the same ids, and perhaps more."""
        return (
            isinstance(other, CharTokenizer)
            and self.alphabet.startswith(other.alphabet)
            and self.eot_id == other.eot_id
        )

    def extended(self, characters: Iterable[str]) -> "CharTokenizer":
        """A tokenizer with the same ids, and with new ones for those of `characters` that are new,
        in their order."""
        spec, new = json.loads(self._json), sorted(set(characters) - set(self.alphabet))
        if not new:
            return self
        if self.eot_id is not None:  # inside the vocabulary, as GPT-2's: its id is none behind it
            spec["model"]["vocab"][END_OF_TEXT] = self.eot_id
        spec["model"]["vocab"] |= {c: self.vocab_size + i for i, c in enumerate(new)}
        return CharTokenizer(spec)

    def encode_to_array(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = self._id_of_code[np.minimum(codes, len(self._id_of_code) - 1)]
        if ids.max(initial=0) == self.vocab_size:
            unknown = np.flatnonzero(ids == self.vocab_size)
            characters = Counter(text[i] for i in unknown)
            position = int(unknown[0])
            place, pair = f"position {position:,} of the text", text[max(0, position - 1) :][:2]
            raise unknown_in_text(characters, self, place, [pair])
        return ids


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), GPT-2's or trained here.

    Ids: the 256 bytes in GPT-2's order, the merged tokens in the order of their merges, the end of
    text. tiktoken does the encoding. Its rule (merge the adjacent pair whose bytes are the token of
    lowest rank) equals that of tokenizers (apply the earliest merge in the list), because every
    token comes from exactly one merge and merges only build on earlier ones.
    """

    def __init__(self, spec: dict):
        super().__init__(spec)
        vocab = {token: i for token, i in spec["model"]["vocab"].items() if token != END_OF_TEXT}
        byte_of = _byte_of_character()
        self._bytes = [bytes(byte_of[c] for c in token) for token in sorted(vocab, key=vocab.get)]
        self._bytes.append(b"")
        self.eot_id = len(vocab)
        self.vocab_size = self.eot_id + 1
        merges = "".join(f"{left} {right}\n" for left, right in _merges(spec["model"]))
        is_gpt2 = self.vocab_size == 50257 and (
            hashlib.sha256(f"#version: 0.2\n{merges}".encode()).hexdigest() == GPT2_MERGES_SHA256
        )
        self.kind = "gpt2" if is_gpt2 else "bpe"

    @functools.cached_property
    def _encoding(self):
        import tiktoken

        return tiktoken.Encoding(
            self.kind,
            pat_str=GPT2_SPLIT,
            mergeable_ranks={token: i for i, token in enumerate(self._bytes[:-1])},
            special_tokens={END_OF_TEXT: self.eot_id},
        )

    def encode_to_array(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError as error:
            raise _not_unicode(text, error) from None


class ImportedTokenizer(Tokenizer):
    """Any other tokenizer.json, run by `tokenizers` as the imported model expects it."""

    kind = "imported"

    def __init__(self, spec: dict):
        super().__init__(spec)
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._json)
        except BaseException as error:  # tokenizers raises a bare Exception or a PanicException
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(f"This tokenizer.json cannot be read ({error}).") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self._tokens = {i: token for token, i in ids.items()}
        added = spec.get("added_tokens") or []
        self._special = {t["id"]: t["content"] for t in added if t["special"]}
        self._plain_added = {t["id"]: t["content"] for t in added if not t["special"]}
        ends = {content: i for i, content in self._special.items()}
        ends_by_name = [ends[name] for name in _END_NAMES if name in ends]
        declared = [token["id"] for token in added if token.get(_END_MARK)]
        self.eot_id = next(iter(declared + ends_by_name), None)
        self.bos_id = _first_of_template(spec.get("post_processor"))
        self._is_byte_level = '"type": "ByteLevel"' in json.dumps(spec.get("decoder"))
        # pieces would differ from the whole text: a prefix would be added to each piece, and a
        # custom split rule may join a punctuation mark and the line end after it
        shaped = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
        self.can_be_cut = not any(
            mark in shaped
            for mark in ("Metaspace", "Prepend", '"add_prefix_space": true', '"Split"')
        )

    def encode_to_array(self, text: str) -> np.ndarray:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _not_unicode(text, error) from None
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers has no class of its own: a word that is unknown
            raise TokenizerError(
                f"This vocabulary cannot spell {text[:40]!r} ({error})", "write it in its words"
            ) from None
        return np.array(ids, np.uint32)

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not keep_special)

    def to_plain_json(self) -> str:
        spec = json.loads(self._json)
        for token in spec.get("added_tokens") or []:
            token.pop(_END_MARK, None)
        return json.dumps(spec, ensure_ascii=False)

    def special_token(self, token_id: int) -> str:
        return self._special.get(token_id, "")

    @property
    def special_ids(self) -> dict[str, int]:
        return {content: token_id for token_id, content in self._special.items()}

    def id_of(self, token: str) -> int | None:
        """The id of a token given by its text; None if there is none."""
        return self._tokenizer.token_to_id(token)

    def token_of(self, token_id: int) -> str:
        """The text of an id in the vocabulary; "" if there is none."""
        return self._tokens.get(token_id, "")

    def token_bytes(self, token_id: int) -> bytes:
        token = self.token_of(token_id)
        if token_id in self._special:
            return b""
        if token_id in self._plain_added:
            return token.encode()
        if self._is_byte_level:
            byte_of = _byte_of_character()
            if all(c in byte_of for c in token):
                return bytes(byte_of[c] for c in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()


def char_tokenizer(characters: Iterable[str]) -> CharTokenizer:
    """The character-level tokenizer of these characters: sorted, then the end of text."""
    return CharTokenizer(_char_spec(sorted(set(characters))))


def char_tokenizer_without_end(alphabet: Sequence[str]) -> CharTokenizer:
    """The character-level tokenizer of an imported model: these ids and no end of text."""
    return CharTokenizer(_char_spec(alphabet) | {"added_tokens": []})


def word_tokenizer(words: Sequence[str]) -> ImportedTokenizer:
    """A tokenizer of whole numbers and of other single characters: each of `words` is one id."""
    spec = _spec({word: i for i, word in enumerate(words)}, [], None, {"type": "Fuse"})
    pattern = {"Regex": r"\d+|\D"}
    spec["pre_tokenizer"] = {
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    # the name of the unknown word is none of the words, so that an unknown one is an error
    spec["model"] = {"type": "WordLevel", "vocab": spec["model"]["vocab"], "unk_token": "[UNK]"}
    return ImportedTokenizer(spec)


def _char_spec(alphabet: Sequence[str]) -> dict:
    vocab = {character: i for i, character in enumerate(alphabet)}
    return _spec(vocab, merges=[], pre_tokenizer=None, decoder={"type": "Fuse"})


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
        return byte_level_bpe(_merges(json.loads(tokenizer.to_json())["model"]))
    if not isinstance(tokenizer, ImportedTokenizer):
        return tokenizer
    end = tokenizer.id_of(end) if isinstance(end, str) else end
    if end is None or end == tokenizer.eot_id or not tokenizer.token_of(end):
        return tokenizer
    spec = json.loads(tokenizer.to_json())
    spec["added_tokens"] = [
        {name: value for name, value in token.items() if name != _END_MARK}
        for token in spec["added_tokens"]
    ]
    marked = [token for token in spec["added_tokens"] if token["id"] == end]
    if not marked:
        marked = [_special_token(end, tokenizer.token_of(end))]
        spec["added_tokens"] = sorted(spec["added_tokens"] + marked, key=lambda t: t["id"])
    marked[0].update({_END_MARK: True, "special": True})
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


def _first_of_template(post_processor: dict | None) -> int | None:
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


def check_bpe_vocab_size(vocab_size: int) -> None:
    """Raise TokenizerError for a size too small for all bytes and the end of text."""
    if vocab_size < MIN_BPE_VOCAB:
        raise TokenizerError(
            f"--vocab_size {vocab_size} is too small for a byte-level BPE: its 256 bytes and the "
            f"end of text need at least {MIN_BPE_VOCAB}."
        )


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """A byte-level BPE of at most `vocab_size` ids; fewer if the text runs out of repeated pairs.

    texts: pieces of the text, cut where GPT-2's split rule cuts anyway. All 256 bytes are ids, so
    any text can be encoded. Raises TokenizerError for a vocab_size below 257.
    """
    check_bpe_vocab_size(vocab_size)
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,  # a pair that occurs once is not worth an id
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return byte_level_bpe(_merges(json.loads(tokenizer.to_str())["model"]))


def byte_level_bpe(merges: Sequence[tuple[str, str]]) -> BytePairTokenizer:
    """The tokenizer of a list of merges in GPT-2's notation, such as the lines of `vocab.bpe`.

    Raises TokenizerError if two merges build the same token.
    """
    vocab = {character: i for i, character in enumerate(_byte_of_character())}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    spec = _spec(vocab, [list(pair) for pair in merges], byte_level, byte_level)
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    if not isinstance(tokenizer, BytePairTokenizer):
        raise TokenizerError("This list of merges builds the same token twice.")
    return tokenizer


def _spec(vocab: dict, merges: list, pre_tokenizer: dict | None, decoder: dict) -> dict:
    """The content of tokenizer.json, with the end of text as the last id."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(len(vocab), END_OF_TEXT)],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {**PLAIN_BPE, "vocab": vocab, "merges": merges},
    }


def _special_token(token_id: int, content: str) -> dict:
    """An entry of added_tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": True}


def _is_char(spec: dict) -> bool:
    ids, added = _ids_of_characters(spec), spec.get("added_tokens")
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


def _ids_of_characters(spec: dict) -> dict[str, int]:
    """{character: id}; the end of text may be in the vocabulary as well."""
    return {token: i for token, i in spec["model"]["vocab"].items() if token != END_OF_TEXT}


def _is_byte_level_bpe(spec: dict) -> bool:
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
    expected = list(_byte_of_character()) + [left + right for left, right in _merges(model)]
    vocab = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    return vocab == {token: i for i, token in enumerate(expected)} and _only_special_is(
        spec, len(expected)
    )


def _only_special_is(spec: dict, token_id: int) -> bool:
    added = spec.get("added_tokens") or []
    return [(token["id"], token["content"]) for token in added] == [(token_id, END_OF_TEXT)]


def _merges(model: dict) -> list[tuple[str, str]]:
    """The merges of a BPE model as pairs; older files store them as "left right"."""
    return [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """{visible character: byte}: GPT-2's notation of bytes, in the order of its ids."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    spelled = {chr(b): b for b in visible}
    spelled.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return spelled


def name_characters(characters: Counter, place: str = "") -> str:
    """Characters by their code points, each with its count; at most 20.

    place: of the first one, "" if it is unknown.
    """
    named = [f"{c!r} (U+{ord(c):04X})" for c in characters]
    named[0] += f" at {place}" if place else ""
    named = [
        name if number == 1 else f"{name}, {number:,} times"
        for name, number in zip(named, characters.values(), strict=True)
    ]
    more = f"; and {len(named) - 20:,} others" if len(named) > 20 else ""
    return "; ".join(named[:20]) + more


def unknown_in_text(
    characters: Counter,
    tokenizer: "CharTokenizer",
    place: str,
    letters: Sequence[str] = (),
    ways: str = "",
) -> TokenizerError:
    """The refusal of a text whose characters a tokenizer lacks, each with its count.

    characters: the first of the text comes first. place: of that one, "" if it is unknown.
    letters: what they are part of, such as a letter with a mark. ways: what to do about them.
    """
    noun, verb = ("character", "is") if len(characters) == 1 else ("characters", "are")
    problem = (
        f"The {noun} {name_characters(characters, place)} {verb} not among the "
        f"{len(tokenizer.alphabet):,} characters that this tokenizer knows"
    )
    fix = "leave {} out, or prepare the text with --tokenizer bpe, which can encode any text"
    fix = ways or fix.format("it" if len(characters) == 1 else "them")
    if spelling := _other_spelling([*characters, *letters], tokenizer):
        fix = f"{spelling}; else {fix}"
    return TokenizerError(problem, fix, sep="; ")


def _other_spelling(letters: Iterable[str], tokenizer: "CharTokenizer") -> str:
    """How the tokenizer's own text spells one of these letters, "" where it spells none."""
    alphabet = set(tokenizer.alphabet)
    for letter in letters:
        for form in ("NFC", "NFD", "NFKC"):
            other = unicodedata.normalize(form, letter)
            if other == letter or not set(other) <= alphabet:
                continue
            codes = " + ".join(f"U+{ord(c):04X}" for c in other)
            ways = f"spell it so (Unicode {form})"
            if form == "NFD":
                ways += ", or prepare that text with --normalize nfc and train again"
            composed = unicodedata.normalize("NFC", letter)
            return f"the text that it learned from spells {composed} as {codes}: {ways}"
    return ""


def _code_points(text: str) -> np.ndarray:
    """The code points of a text as uint32."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError as error:
        raise _not_unicode(text, error) from None


def _not_unicode(text: str, error: UnicodeEncodeError) -> TokenizerError:
    return TokenizerError(
        f"The text is not valid Unicode at position {error.start:,} (the lone surrogate "
        f"U+{ord(text[error.start]):04X})",
        "leave it out",
        sep="; ",
    )
