"""Rows of JSON, JSON Lines, CSV and Parquet files, read in bounded memory.

A row that cannot be read is yielded as its DataError, which `documents_of_rows` skips and counts.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from gptlab.data.messages import conversation_columns
from gptlab.data.opening import naming_damage
from gptlab.data.rows import text_columns
from gptlab.data.text_files import Reading, lines, text_blocks
from gptlab.data.turns import is_message
from gptlab.errors import DataError
from gptlab.files import display

Row = tuple[str, object]
_SPACE = re.compile(r"[ \t\n\r]*")
_LARGEST_VALUE = 1 << 28  # characters of one value of a JSON file


class JsonText:
    """The values of a JSON text that comes in blocks: read one by one, in bounded memory."""

    def __init__(self, blocks: Iterator[str], name: str):
        self._blocks, self._name = blocks, name
        self._text, self._at, self._is_whole = "", 0, False
        self._lines, self._counted = 1, 0
        self._decoder = json.JSONDecoder()

    @property
    def line(self) -> int:
        """The line of the next character, from 1 on."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    @property
    def position(self) -> int:
        """How many characters of the text in memory are read."""
        return self._at

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._more(1):
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Pass this character, if it is the next one that is not white space."""
        is_next = self.peek() == character
        self._at += is_next
        return is_next

    def value(self) -> object:
        """The next value. Raises DataError, with its line, for what is not valid JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more(1):  # a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._text) - 16 or error.msg.startswith("Unterminated")
                held = len(self._text) - self._at
                if not is_cut or held > _LARGEST_VALUE or not self._more(held):
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), self._at) from None

    def error(self, reason: str, at: int | None = None) -> DataError:
        """The DataError of JSON that is not valid at this place."""
        line = self.line + self._text.count("\n", self._at, self._at if at is None else at)
        return DataError(
            f"{self._name} line {line:,} is not valid JSON ({reason})",
            "correct that line",
            sep="; ",
        )

    def _more(self, characters: int) -> bool:
        """Read at least so many more characters; False at the end of the text."""
        blocks, size = [], 0
        while size < characters and not self._is_whole:
            block = next(self._blocks, None)
            if block is None:
                self._is_whole = True
            else:
                blocks.append(block)
                size += len(block)
        if not size:
            return False
        _ = self.line  # counts what is dropped now
        self._text = self._text[self._at :] + "".join(blocks)
        self._at, self._counted = 0, 0
        return True


def json_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, value) of each row of a JSON file.

    The rows are the elements of the list that the file holds; or of the longest list of objects in
    the one object that it holds, or in an object in that, or all its values if these are objects;
    or the values that stand one after the other.
    """
    name = name or display(path)
    text = _json_text(path, reading, name)
    if text.peek() == "[":
        yield from _elements(text, name)
        text.take(";")
        if text.peek():
            raise text.error("Extra data")
        return
    field = _field_of_rows(path, reading, name)
    if field is None:
        while text.peek():
            line = text.line
            yield f"{name} line {line:,}", text.value()
        return
    shown = ".".join(field)
    which = f"are those of its field {shown!r}" if field else "are its values"
    reading.note(f"{name} holds one object: the rows {which}.")
    yield from _rows_at(text, field, name)


def _rows_at(text: JsonText, field: tuple[str, ...], name: str) -> Iterator[Row]:
    """(place, value) of the rows of the object that is next; field: as of `_field_of_rows`."""
    text.take("{")
    for key in _keys(text):
        if not field:
            text.peek()
            line = text.line
            yield f"{name} line {line:,}", text.value()
        elif key != field[0]:
            text.value()
        elif field[1:]:
            yield from _rows_at(text, field[1:], name)
        else:
            yield from _elements(text, name)


# tweets.js and other files of Twitter's archive are a program that sets one value
_ASSIGNMENT = re.compile(r"\s*(?:(?:var|let|const) )?[A-Za-z_$][\w$.]*\s*=\s*(?=[\[{])")


def without_assignment(text: str) -> str:
    """The text of a JSON value, without the name to which a program assigns it."""
    found = _ASSIGNMENT.match(text)
    return text[found.end() :] if found else text


def _json_text(path: Path, reading: Reading, name: str) -> JsonText:
    blocks = text_blocks(path, reading, name)
    first = without_assignment(next(blocks, ""))
    return JsonText(itertools.chain([first], blocks), name)


def _elements(text: JsonText, name: str) -> Iterator[Row]:
    """(place, value) of the elements of a list, whose bracket is next."""
    text.take("[")
    if text.take("]"):
        return
    while True:
        text.peek()
        line = text.line
        yield f"{name} line {line:,}", text.value()
        if text.take("]"):
            return
        if not text.take(","):
            raise text.error("Expecting ',' or ']'")


def _keys(text: JsonText) -> Iterator[str]:
    """The keys of an object whose brace was passed; the caller reads the value after each."""
    if text.take("}"):
        return
    while True:
        if text.peek() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = str(text.value())
        if not text.take(":"):
            raise text.error("Expecting ':' delimiter")
        yield key
        if text.take("}"):
            return
        if not text.take(","):
            raise text.error("Expecting ',' or '}'")


def _field_of_rows(path: Path, reading: Reading, name: str) -> tuple[str, ...] | None:
    """The path of the field of a file's one object whose list is the longest list of rows.

    () for an object of objects, as pandas writes a table with its index; None where there are no
    rows. Lists in the object go before those in an object in it. A list of messages, each with a
    role, is no table but one conversation.
    """
    text = _json_text(path, Reading(reading.encoding), name)
    sizes: dict[tuple[str, ...], int] = {}
    values, objects = 0, 0
    if not text.take("{"):
        return None
    for key in _keys(text):
        values += 1
        if text.peek() == "{":
            objects += 1
            text.take("{")
            for inner in _keys(text):
                sizes[key, inner] = _rows_in(text, name)
        else:
            sizes[(key,)] = _rows_in(text, name)
    text.take(";")
    if text.peek():
        return None
    sizes = {field: rows for field, rows in sizes.items() if rows}
    outer = {field: rows for field, rows in sizes.items() if len(field) == 1}
    if not outer and objects == values > 1:
        return ()
    sizes = outer or sizes
    return max(sizes, key=lambda field: sizes[field]) if sizes else None


def _rows_in(text: JsonText, name: str) -> int:
    """How many objects that are no messages the next value, a list, holds; 0 for another value."""
    if text.peek() != "[":
        text.value()
        return 0
    values = (value for _, value in _elements(text, name))
    return sum(isinstance(value, dict) and not is_message(value) for value in values)


def jsonl_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, value) of each line of a JSON Lines file; blank lines are counted."""
    name = name or display(path)
    for number, line in enumerate(lines(text_blocks(path, reading, name)), 1):
        if not line.strip():
            reading.counts["blank lines skipped"] += 1
            continue
        place, value = f"{name} line {number:,}", None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            value = DataError(
                f"{place} is not valid JSON ({reason})", "fix or remove that line", sep="; "
            )
        yield place, value


def parquet_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, row) of a Parquet file, read in batches; only the columns with the text."""
    import pyarrow.parquet  # comes with datasets

    name = name or display(path)
    with naming_damage(name, "not a readable Parquet file"):
        table = pyarrow.parquet.ParquetFile(path)
        fields = table.schema_arrow.names
        wanted = conversation_columns(fields, reading.column)
        if not wanted:
            nested = [column.path for column in table.schema]
            wanted = text_columns(list(dict.fromkeys([*fields, *nested])), reading.column, name)
        elif reading.column is None and "text" in fields:
            wanted.append("text")
        bytes_per_row = path.stat().st_size / max(1, table.metadata.num_rows)
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{name} row {number:,}", row
            reading.progress(int(batch.num_rows * bytes_per_row))
