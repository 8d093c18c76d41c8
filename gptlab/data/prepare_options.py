"""The options of `prepare.py`: what they may be, how files are read by them, which ones count."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from gptlab.data.corpora import dataset_name
from gptlab.data.intake import Cleaning, Unit
from gptlab.data.text_files import Reading
from gptlab.data.tokenizer import check_bpe_vocab_size
from gptlab.data.unknown import UnknownCharacters
from gptlab.data.vocabulary import DEFAULT_BPE_VOCAB
from gptlab.errors import ConfigError


@dataclass(frozen=True)
class PrepareOptions:
    """Preparing"""

    dataset: Annotated[
        str | None, "name of the dataset (default: the name of the file or folder)"
    ] = None
    tokenizer: Annotated[
        str, "auto, char, bpe (trained here), gpt2, or the path of a run, model or tokenizer.json"
    ] = "auto"
    vocab_size: Annotated[
        int | None, f"largest vocabulary of a bpe tokenizer (default: {DEFAULT_BPE_VOCAB})"
    ] = None
    val: Annotated[
        str | None,
        "a file or folder to validate on (default: a file named valid beside one named train, else "
        "a share of the text); none: train on all files",
    ] = None
    val_fraction: Annotated[float, "share of the text to keep for validation"] = 0.1
    split: Annotated[
        Literal["auto", "tail", "document"],
        "what to keep for validation: the tail of the text or whole documents; auto: documents if "
        "there are many",
    ] = "auto"
    seed: Annotated[int, "chooses the documents to keep for validation"] = 1337
    column: Annotated[
        str | None,
        "field of a table that holds the text (default: text); data.text for a field in a field, "
        'several as title,body or in a pattern such as "{title}\\n{body}"',
    ] = None
    encoding: Annotated[str | None, "encoding of the text files (default: UTF-8)"] = None
    document: Annotated[
        Literal["file", "row", "line", "paragraph"] | None,
        "what a document is (default: a text file, or a row of a table)",
    ] = None
    separator: Annotated[
        tuple[str, ...],
        "text between two documents, such as '<|endoftext|>'; may be given several times",
    ] = ()
    keep_line_endings: Annotated[bool, "do not turn CR LF and CR into line feeds"] = False
    normalize: Annotated[
        Literal["nfc", "nfkc"] | None, "normal form of Unicode for letters with several spellings"
    ] = None
    clean: Annotated[bool, "drop control characters and invisible ones"] = False
    gutenberg: Annotated[
        Literal["cut", "keep"], "what to do with Project Gutenberg's header and licence"
    ] = "cut"
    dedup: Annotated[
        bool, "drop documents that repeat an earlier one, exactly or in most of their words"
    ] = False
    max_bytes: Annotated[int | None, "stop after this many bytes of text"] = None
    overwrite: Annotated[bool, "replace a dataset of this name, whatever its source"] = False
    header: Annotated[
        Literal["auto", "yes", "no"], "whether the first row of a CSV file holds names of fields"
    ] = "auto"
    delimiter: Annotated[
        str,
        "of a CSV file: comma, semicolon, tab, bar, another character, none (one column) or auto",
    ] = "auto"
    quoting: Annotated[
        Literal["auto", "yes", "no"],
        "whether quotation marks enclose fields of a CSV file; no: they are letters",
    ] = "auto"
    tags: Annotated[
        Literal["auto", "keep", "drop"],
        "of HTML and XML; auto: drop those of pages, books, feeds and notes, keep those of other "
        "XML",
    ] = "auto"
    max_bad_rows: Annotated[
        str, "share of a table's rows to skip at most where they cannot be read"
    ] = "1%"
    exclude: Annotated[
        str | None, "leave out files and folders of these names, such as node_modules,*.min.js"
    ] = None
    unknown: Annotated[
        str,
        "what to do with characters that the tokenizer of a model lacks: add (new ids), drop or "
        "replace:TEXT [add to the dataset's own tokenizer, else refuse]",
    ] = ""

    workers: Annotated[
        int | None,
        "processes that encode shards; 1 = one with a thread for each core; the ids do not depend "
        "on it [1, or as many as cores where that saves time]",
    ] = None
    shard_tokens: Annotated[
        str,
        "cut token files into shards of about this many tokens, which an interrupted preparation "
        "keeps: such as 20M or 1e8",
    ] = "100M"

    streaming: Annotated[
        bool,
        "of an hf: dataset: write shards as the rows come, keep no text; training may begin when "
        "the first shard stands",
    ] = False

    @property
    def unit(self) -> Unit:
        """What a document is."""
        return Unit(self.document, self.separator)

    @property
    def cleaning(self) -> Cleaning:
        """What is changed in the text."""
        return Cleaning(self.normalize, self.clean, self.gutenberg == "cut")


def check_options(options: PrepareOptions) -> None:
    """Raise ConfigError or TokenizerError for an option that has no valid value."""
    options.unit.check()
    UnknownCharacters(options.unknown)
    if not 0 < options.val_fraction < 1:
        raise ConfigError(
            f"val_fraction cannot be {options.val_fraction:g}",
            "it is a share between 0 and 1, such as 0.1",
        )
    if options.dataset is not None and dataset_name(options.dataset) != options.dataset:
        raise ConfigError(
            f"dataset cannot be {options.dataset!r}",
            "a name has only letters, digits, - _ and .; for example "
            f"{dataset_name(options.dataset)}",
        )
    if options.vocab_size is not None:
        if options.tokenizer not in ("auto", "bpe"):
            raise ConfigError(
                f"--vocab_size belongs to --tokenizer bpe; the size of a {options.tokenizer} "
                "tokenizer is fixed, so leave it out."
            )
        check_bpe_vocab_size(options.vocab_size)
    if options.max_bytes is not None and options.max_bytes < 1:
        raise ConfigError(f"max_bytes cannot be {options.max_bytes}", "give a number of bytes")
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"workers cannot be {options.workers}", "give a number from 1 on")
    shard_size(options.shard_tokens)
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"seed cannot be {options.seed}", "it is a whole number, 0 or more")


def reading_of(options: PrepareOptions, say: Callable[[str], None]) -> Reading:
    """How the files are to be read."""
    return Reading(
        options.encoding,
        options.keep_line_endings,
        options.column,
        header=options.header,
        delimiter=options.delimiter,
        quoting=options.quoting,
        tags=options.tags,
        max_bad_rows=_share(options.max_bad_rows),
        exclude=tuple(filter(None, map(str.strip, (options.exclude or "").split(",")))),
        note=say,
    )


def _share(word: str) -> float:
    """A share such as "1%" or "0.01" as a number from 0 to 1. Raises ConfigError."""
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise ConfigError(
            f"max_bad_rows cannot be {word!r}", "it is a share such as 1% or 0.01, or 0 for none"
        )
    return share


def shard_size(word: str) -> int:
    """Tokens of a shard, written as 100M, 1e8 or 100_000_000. Raises ConfigError."""
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(word[-1:].lower(), 1)
    try:
        tokens = float((word[:-1] if factor > 1 else word).replace("_", "")) * factor
    except ValueError:
        tokens = math.nan
    if not 1000 <= tokens < 1e15:  # also not for NaN
        raise ConfigError(
            f"shard_tokens cannot be {word!r}", "it is a number of tokens such as 20M or 1e8"
        )
    return int(tokens)


def options_that_matter(options: PrepareOptions) -> dict:
    """The options that the token files depend on, where they differ from the default."""
    return _other_than_default(dataclasses.asdict(options))


def options_that_differ(before: dict, options: PrepareOptions) -> list[str]:
    """Each option that differs from those of a meta.json, as "name old -> new"."""
    old, new = _other_than_default(before), options_that_matter(options)
    defaults = {field.name: field.default for field in dataclasses.fields(PrepareOptions)}
    return [
        f"{name} {old.get(name, defaults.get(name))} -> {new.get(name, defaults.get(name))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _other_than_default(values: dict) -> dict:
    defaults = {field.name: field.default for field in dataclasses.fields(PrepareOptions)}
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return {
        name: value
        for name, value in lists.items()
        if name not in ("dataset", "overwrite", "workers")
        and (value or None) != (defaults.get(name) or None)
    }
