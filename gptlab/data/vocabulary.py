"""Choose the tokenizer of a text, and the sample that a BPE learns its merges from."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from gptlab.data.adopted_tokenizer import folder_chat_template, folder_tokenizer
from gptlab.data.downloads import gpt2_tokenizer
from gptlab.data.text_store import Split, TextStore
from gptlab.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gptlab.errors import ConfigError, TokenizerError
from gptlab.files import display, out_home, read_json

KINDS = ("auto", "char", "bpe", "gpt2")
DEFAULT_BPE_VOCAB = 8192
# "auto" chooses characters for a small text with a small alphabet.
CHAR_MAX_BYTES = 5_000_000
CHAR_MAX_ALPHABET = 300
# A BPE learns from at most BPE_TRAIN_BYTES of text, evenly spread, with at most BPE_WORD_BYTES of
# distinct words: the trainer keeps each of them, at about 100 bytes per byte. 100 MB of English
# have about 8 MB of distinct words; in Chinese, where a word ends only at punctuation, distinct
# words have nearly the size of the text.
BPE_TRAIN_BYTES = 64_000_000
BPE_WORD_BYTES = 4_000_000
BPE_PIECE_BYTES = 1 << 16
# Longer words are cut for the trainer, whose work grows with the square of their length.
_MAY_BE_LONG = re.compile(r"\S{256}|\s{256}")
_LONG_WORD = re.compile(r"\w{256}|[^\w\s]{256}|\s{256}")


def ready_tokenizer(word: str) -> Tokenizer | None:
    """An existing tokenizer: GPT-2's, or the one at a path; None for "auto", "char" and "bpe".

    word: a kind, or the path of a tokenizer.json, a folder with one (a Hugging Face model, a
    dataset), a run (also by its name under out/) or a checkpoint. Raises ConfigError for a word
    that is neither a kind nor a path, TokenizerError for a file without a tokenizer or if GPT-2's
    cannot be downloaded.
    """
    if word == "gpt2":
        return gpt2_tokenizer()
    if word in KINDS:
        return None
    path = model_at(word)
    if (path / "tokenizer.json").is_file():
        return folder_tokenizer(path)
    if checkpoint := _checkpoint_at(path):
        return _tokenizer_of_checkpoint(checkpoint)
    if not path.is_file():
        raise ConfigError(
            f"tokenizer cannot be {word!r}",
            f"choose {', '.join(KINDS)}, or name an existing tokenizer.json, a run, or a folder "
            "of a model",
        )
    return Tokenizer.load(path)


def model_at(word: str) -> Path:
    """The path that `word` names: itself, or else a run by its name under out/."""
    path = Path(word).expanduser()
    run = out_home() / word
    return run if run.is_dir() and not path.exists() else path


def chat_template_at(word: str) -> str:
    """The chat template of the model at a path that `ready_tokenizer` accepts; "" for none."""
    path = model_at(word)
    if path.is_dir() and (template := folder_chat_template(path)):  # also beside a tokenizer alone
        return template
    if checkpoint := _checkpoint_at(path):
        with contextlib.suppress(Exception):  # `ready_tokenizer` reports a damaged file
            template = _content(checkpoint).get("chat_template")
            return template if isinstance(template, str) else ""
    return ""


def _checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that a path names, itself or as a run."""
    for each in (path, *(path / name for name in ("best.pt", "best", "ckpt.pt", "ckpt"))):
        if each.suffix == ".pt" and each.is_file():
            return each
        if (each / "state.json").is_file():  # in shards
            return each / "state.json"
    return None


def _content(path: Path) -> dict:
    """The content of a checkpoint; its weights are memory-mapped and not read."""
    import torch

    if path.suffix == ".json":
        return read_json(path)["content"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd pickles, which are refused anyway
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _tokenizer_of_checkpoint(path: Path) -> Tokenizer:
    """The tokenizer stored in a checkpoint. Raises TokenizerError if it has none."""
    try:
        return Tokenizer.from_json(_content(path)["tokenizer"]["json"])
    except MemoryError:
        raise
    except Exception:  # torch raises errors of many kinds for a damaged file
        raise TokenizerError(
            f"{display(path)} holds no tokenizer",
            "name a gptlab checkpoint that was trained on text, or a tokenizer.json",
        ) from None


def learn_tokenizer(
    store: TextStore,
    train: Split,
    kind: str,
    vocab_size: int | None,
    progress: Callable[[str, int, int | None], None],
    note: Callable[[str], None],
) -> Tokenizer:
    """A tokenizer for a text. kind: "char", "bpe", or "auto", which chooses one of them.

    vocab_size: the largest vocabulary of a BPE; None means the default. A BPE learns only from
    `train`. An alphabet is that of the whole text, so that the validation text can be encoded.
    progress: called with (stage, bytes since the last call, total bytes or None). note: called with
    each message for the user.
    """
    if kind == "auto":
        kind = "bpe"
        alphabet = store.alphabet() if store.bytes < CHAR_MAX_BYTES else ""
        if vocab_size is None and 0 < len(alphabet) <= CHAR_MAX_ALPHABET:
            kind = "char"
        distinct = f"{len(alphabet):,} distinct characters in " if alphabet else ""
        note(f"Tokenizer: {kind}, for {distinct}{store.bytes:,} bytes of text.")
    if kind == "char":
        return char_tokenizer(store.alphabet())
    wanted = vocab_size or DEFAULT_BPE_VOCAB
    tokenizer = train_bpe(_training_texts(store, train, progress, note), wanted)
    if tokenizer.vocab_size < wanted:
        note(
            f"{train.bytes:,} bytes of training text support only {tokenizer.vocab_size:,} ids "
            f"instead of {wanted:,}."
        )
    return tokenizer


def _training_texts(
    store: TextStore,
    train: Split,
    progress: Callable[[str, int, int | None], None],
    note: Callable[[str], None],
) -> Iterator[str]:
    share = min(1.0, BPE_TRAIN_BYTES / train.bytes)
    if train.bytes > BPE_WORD_BYTES:
        share *= _share_of_words(_evenly(store, train, share))
    if share < 1:
        note(f"The tokenizer learns from {share:.0%} of the training text, evenly spread.")
    for text in _evenly(store, train, share):
        progress("learning the vocabulary", int(len(text.encode()) / share), train.bytes)
        yield from short_words(text)
    progress("merging pairs", 0, None)  # the trainer now has all words


def _evenly(store: TextStore, train: Split, share: float) -> Iterator[str]:
    for i, (text, _) in enumerate(store.pieces(train, BPE_PIECE_BYTES)):
        if int((i + 1) * share) > int(i * share):
            yield text


def _share_of_words(texts: Iterator[str]) -> float:
    """The share of these texts whose distinct words have BPE_WORD_BYTES, at most 1."""
    words, size, read, limit = set(), 0, 0, None
    for text in texts:
        read += len(text)
        if limit is not None:
            continue
        new = set(re.findall(r"\w{1,256}", text)) - words
        words |= new
        size += sum(len(word.encode()) for word in new)
        if size > BPE_WORD_BYTES:
            limit = read
    return 1.0 if limit is None else limit / read


def short_words(text: str) -> Iterator[str]:
    """Cut a text into pieces whose words, as a split rule sees them, have at most a few hundred
    characters."""
    start = 0
    if _MAY_BE_LONG.search(text):
        for match in _LONG_WORD.finditer(text):
            yield text[start : match.end()]
            start = match.end()
    yield text[start:]
