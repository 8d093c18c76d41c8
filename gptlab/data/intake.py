"""The documents of a corpus as they are stored: each with its place, cleaned and cut as the user
says."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from gptlab.data import boundaries, cleaning, gutenberg
from gptlab.data.corpora import Source
from gptlab.data.messages import ConversationCounts
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError

_LOOKED_AHEAD = 64_000_000  # characters in which a separator is looked for as it is written


@dataclass(frozen=True)
class Unit:
    """What a document is. document: None for a file, or a row of a table. separators: or the text
    between two of these."""

    document: Literal["file", "row", "line", "paragraph"] | None = None
    separators: tuple[str, ...] = ()

    @property
    def is_inside(self) -> bool:
        """Whether documents are parts of a file or of a row."""
        return bool(self.separators) or self.document in ("line", "paragraph")

    def check(self) -> None:
        """Raise ConfigError for a unit that says two things, or nothing."""
        if self.separators and self.document:
            raise ConfigError(
                "--separator and --document both say what a document is", "leave one of them out"
            )
        if "" in self.separators:
            raise ConfigError("The separator is empty", "give the text between two documents")


@dataclass(frozen=True)
class Cleaning:
    """What is changed in a text. gutenberg: whether Project Gutenberg's header and licence go."""

    normalize: Literal["nfc", "nfkc"] | None = None
    clean: bool = False
    gutenberg: bool = True


@dataclass(frozen=True)
class Changes:
    """What was changed, with counts: letters, characters, and what of Project Gutenberg was met."""

    respelled: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    gutenberg: Counter = field(default_factory=Counter)


class Intake:
    """Reads a source document by document. `reading.document` is the place of the newest.

    changes: receives what is changed.
    """

    def __init__(
        self,
        source: Source,
        reading: Reading,
        unit: Unit,
        cleaning: Cleaning,
        changes: Changes,
    ):
        unit.check()
        self._source, self._reading, self._unit = source, reading, unit
        self._cleaning, self._changes = cleaning, changes
        self._rows = self._documents = 0
        self._missing = set(unit.separators)
        self._written = {}  # {separator as it stands in the text: as it was given}

    def documents(self) -> Iterator[Iterable[str]]:
        """Each document as blocks of clean text; read each before the next."""
        unit, reading = self._unit, self._reading
        cut = self._cut()
        for document in _whole(self._source, reading, unit):
            self._rows += reading.document[1] == 0
            if reading.conversations:
                if unit.is_inside or unit.document == "file":
                    raise ConfigError(
                        "A conversation is always one document",
                        "leave out --separator" if unit.separators else "leave out --document",
                    )
                yield self._clean_conversation(document)
                continue
            place, is_blank = reading.document, True
            for lines, book in self._books(document):
                is_blank = False
                text = self._clean(book)
                reading.document = _further(place, lines)
                if cut is None:
                    yield text
                    continue
                parts = self._noticed(cut(text))
                for inside, blocks in boundaries.documents_of(parts):
                    self._documents += 1
                    reading.document = _further(place, lines + inside)
                    yield blocks
            reading.counts["blank documents left out"] += is_blank

    def _books(self, document: Iterable[str]) -> Iterator[tuple[int, Iterable[str]]]:
        """(lines before it, blocks) of each text between Project Gutenberg's marks, mostly one."""
        parts = gutenberg.without_licence(document, self._changes.gutenberg)
        if not self._cleaning.gutenberg:
            yield 0, (text for text, _ in parts)
            return
        for lines, blocks in boundaries.documents_of(parts):
            first = next(iter(blocks), None)
            if first is not None:
                yield lines, itertools.chain([first], blocks)

    def _clean(self, blocks: Iterable[str]) -> Iterable[str]:
        if self._cleaning.normalize:
            changed = self._changes.respelled
            blocks = cleaning.normalized(blocks, self._cleaning.normalize, changed)
        if self._cleaning.clean:
            blocks = cleaning.without_invisible(blocks, self._changes.dropped)
        return blocks

    def _clean_conversation(self, document: Iterable[str]) -> Iterable[str]:
        """The same conversation (JSON) with its texts cleaned."""
        if not (self._cleaning.normalize or self._cleaning.clean):
            return document

        def clean(value: object) -> object:
            if isinstance(value, str):
                return "".join(self._clean([value]))
            if isinstance(value, list):
                return [clean(each) for each in value]
            if isinstance(value, dict):
                return {name: clean(each) for name, each in value.items()}
            return value

        return [json.dumps(clean(json.loads("".join(document))), ensure_ascii=False)]

    def check(self) -> None:
        """Call at the end. Raises DataError for a unit that did not occur in the source."""
        unit, label = self._unit, self._source.label
        if unit.document == "row" and not self._rows:
            raise DataError(
                f"{label} is text and has no rows",
                "leave out --document row, or say --document line",
                sep="; ",
            )
        if unit.document in ("line", "paragraph") and self._documents == 1:
            other = "" if unit.document == "line" else ", or say --document line"
            raise DataError(
                f"{label} is one {unit.document}, so --document has no effect",
                f"leave it out{other}",
                sep="; ",
            )
        for separator in unit.separators:
            if separator not in self._missing:
                continue
            raise DataError(
                f"The separator {separator!r} never occurs in {label}",
                "copy it from the text (\\n means a line end), or say --document line or "
                "--document paragraph",
                sep="; ",
            )

    def _cut(self) -> boundaries.Cut | None:
        if self._unit.document == "paragraph":
            return boundaries.cut_paragraphs
        if self._unit.document == "line":
            return boundaries.cut_at("\n")
        for separator in self._unit.separators:
            text, escaped = separator, boundaries.read_escapes(separator)
            if escaped != text and not _occurs(text, self._source, self._reading):
                text = escaped
            if not self._reading.keep_line_endings:
                text = text.replace("\r\n", "\n")
            self._written[text] = separator
        return boundaries.cut_at(*self._written) if self._written else None

    def _noticed(self, parts: Iterable[boundaries.Part]) -> Iterator[boundaries.Part]:
        """The same parts; notices which separators occur."""
        for text, is_text in parts:
            if not is_text and self._missing:
                self._missing -= {self._written.get(text), self._written.get(text[:-1])}
            yield text, is_text


def _further(place: tuple[str, int], lines: int) -> tuple[str, int]:
    """A place so many lines on; a row has no lines."""
    name, line = place
    return name, line and line + lines


def _whole(source: Source, reading: Reading, unit: Unit) -> Iterator[Iterable[str]]:
    """The documents as their files give them: a text, or a row; with "file" all rows of a file."""
    if unit.document != "file":
        yield from source.documents(reading)
        return
    if source.hub_name:
        raise ConfigError(
            f"{source.label}, has rows and no files", "leave out --document file", sep="; "
        )
    for file in source.files:
        rows = dataclasses.replace(source, files=(file,)).documents(reading)
        for document in rows:
            if reading.document[1] or reading.conversations:
                yield document
                continue
            reading.document = (file.name, 0)
            yield _joined(document, rows)
            reading.document = (file.name, 0)


def _joined(first: Iterable[str], others: Iterable[Iterable[str]]) -> Iterator[str]:
    """Rows as one text, a line end after each."""
    yield from first
    yield "\n"
    for row in others:
        yield from row
        yield "\n"


def _occurs(separator: str, source: Source, reading: Reading) -> bool:
    r"""Whether a separator occurs as it is written: `\newpage` is no line end in a LaTeX text."""
    read = 0
    trial = dataclasses.replace(
        reading,
        counts=Counter(),
        chats=ConversationCounts(),
        progress=lambda _: None,
        note=lambda _: None,
    )
    for document in source.documents(trial):
        for text, is_text in boundaries.cut_at(separator)(document):
            read += len(text)
            if not is_text:
                return True
            if read > _LOOKED_AHEAD:
                return False
    return False
