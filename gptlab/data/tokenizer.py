"""Text to ids and back, exactly: characters, byte-level BPE, GPT-2, or an imported vocabulary.

Every tokenizer is one `tokenizer.json` in the format of Hugging Face `tokenizers`. Text is always
plain text: the string `<|endoftext|>` in a text becomes ordinary tokens, and the end-of-text id
marks only document boundaries. Ids are `uint32` arrays or lists of int.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gptlab.data.spelling import not_unicode, unknown_in_text
from gptlab.data.tokenizer_json import (
    END_MARK,
    END_NAMES,
    END_OF_TEXT,
    byte_of_character,
    first_of_template,
    ids_of_characters,
    is_byte_level_bpe,
    is_of_characters,
    make_spec,
    merges_of,
)
from gptlab.errors import TokenizerError
from gptlab.files import atomic_write, display

MIN_BPE_VOCAB = 257  # 256 bytes and the end of text

# GPT-2's split rule (Radford et al. 2019) with possessive quantifiers: the same pieces, and a
# megabyte without a space neither backtracks nor overflows the stack.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# SHA-256 of GPT-2's list of merges, the file `vocab.bpe`.
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


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
            if is_of_characters(spec):
                return CharTokenizer(spec)
            if is_byte_level_bpe(spec):
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
        ids = ids_of_characters(spec)
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
            raise unknown_in_text(characters, self.alphabet, place, [pair])
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
        byte_of = byte_of_character()
        self._bytes = [bytes(byte_of[c] for c in token) for token in sorted(vocab, key=vocab.get)]
        self._bytes.append(b"")
        self.eot_id = len(vocab)
        self.vocab_size = self.eot_id + 1
        merges = "".join(f"{left} {right}\n" for left, right in merges_of(spec["model"]))
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
            raise not_unicode(text, error) from None


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
        ends_by_name = [ends[name] for name in END_NAMES if name in ends]
        declared = [token["id"] for token in added if token.get(END_MARK)]
        self.eot_id = next(iter(declared + ends_by_name), None)
        self.bos_id = first_of_template(spec.get("post_processor"))
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
            raise not_unicode(text, error) from None
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
            token.pop(END_MARK, None)
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
            byte_of = byte_of_character()
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
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    split["pattern"] = {"Regex": r"\d+|\D"}
    spec = make_spec({word: i for i, word in enumerate(words)}, [], split, {"type": "Fuse"})
    # the name of the unknown word is none of the words, so that an unknown one is an error
    spec["model"] = {"type": "WordLevel", "vocab": spec["model"]["vocab"], "unk_token": "[UNK]"}
    return ImportedTokenizer(spec)


def _char_spec(alphabet: Sequence[str]) -> dict:
    vocab = {character: i for i, character in enumerate(alphabet)}
    return make_spec(vocab, merges=[], pre_tokenizer=None, decoder={"type": "Fuse"})


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
    return byte_level_bpe(merges_of(json.loads(tokenizer.to_str())["model"]))


def byte_level_bpe(merges: Sequence[tuple[str, str]]) -> BytePairTokenizer:
    """The tokenizer of a list of merges in GPT-2's notation, such as the lines of `vocab.bpe`.

    Raises TokenizerError if two merges build the same token.
    """
    vocab = {character: i for i, character in enumerate(byte_of_character())}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    spec = make_spec(vocab, [list(pair) for pair in merges], byte_level, byte_level)
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    if not isinstance(tokenizer, BytePairTokenizer):
        raise TokenizerError("This list of merges builds the same token twice.")
    return tokenizer


def _code_points(text: str) -> np.ndarray:
    """The code points of a text as uint32."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError as error:
        raise not_unicode(text, error) from None
