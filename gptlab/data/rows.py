"""Rows of tables as documents: which of their fields hold the text, and which rows are odd."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from gptlab.data.messages import conversation_of
from gptlab.data.text_files import Reading
from gptlab.data.turns import FoundConversation, NoConversationError, is_turn
from gptlab.errors import DataError
from gptlab.files import quoted


def documents_of_rows(rows: Iterable[tuple[str, object]], reading: Reading) -> Iterator[str]:
    """The text of each row; rows whose text is null or missing are skipped and counted.

    A row is a dict, the text itself, or the DataError of a row that cannot be read. The text of a
    conversation is its messages as JSON. Rows that lack the field of the text, or whose field does
    not hold text, are odd; raises DataError if there are more of those than may be skipped.
    """
    reading.rows, reading.bad_rows, reading.first_bad = 0, 0, None
    for place, row in rows:
        reading.document = (place, 0)
        reading.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            text = _text_of_row(place, row, reading)
        except DataError as error:
            reading.skip_row(error)
            continue
        if text is not None:
            yield text
    reading.end_of_table()


def _text_of_row(place: str, row: object, reading: Reading) -> str | None:
    """The text of one row, or None for a row without; raises DataError for an odd row."""
    whole = row
    if isinstance(row, list) and row and all(map(is_turn, row)):
        row = {"messages": row}
    if isinstance(row, dict):
        if not row:
            reading.counts["empty rows skipped"] += 1
            return None
        row = _with_nested(row, reading.column)
        if (found := _conversation_of_row(place, row, reading)) is not None:
            if not found.messages:
                reading.counts["conversations without text skipped"] += 1
                return None
            reading.chats.add(found)
            reading.conversations += 1
            return found.to_json()
        names = text_columns(list(row), reading.column, place, row)
        if len(names) > 1 or is_pattern(reading.column, list(row)):
            return _joined(row, names, reading, place)
        (name,) = names
        row = row[name]
        place = f"{place}, field {name!r},"
    if isinstance(row, list):
        row = _text_of_pieces(row)
    if reading.column and isinstance(row, list) and all(isinstance(text, str) for text in row):
        row = "\n".join(row)
    if row is None:
        reading.counts["rows without text skipped"] += 1
        return None
    if isinstance(row, str):
        return row
    raise DataError(f"{place} holds {type(row).__name__}, not text", _advice(whole), sep="; ")


def _without_nul(value, counts: Counter):
    """A value of JSON without NUL in its texts."""
    if isinstance(value, list):
        return [_without_nul(item, counts) for item in value]
    if isinstance(value, dict):
        return {name: _without_nul(item, counts) for name, item in value.items()}
    if isinstance(value, str) and "\0" in value:
        counts["NUL characters removed"] += value.count("\0")
        return value.replace("\0", "")
    return value


def _conversation_of_row(place: str, row: dict, reading: Reading) -> FoundConversation | None:
    """The conversation that a row holds, None if it holds none; raises for one that is unfit."""
    try:
        found = conversation_of(row, reading.column, place, reading.keep_line_endings)
    except NoConversationError as error:
        example = _example(row)
        fix = f"{error.fix}; or read a field as plain text with{example}" if example else error.fix
        raise NoConversationError(error.problem, fix) from None
    if found is not None and found.messages:
        found.messages = _without_nul(found.messages, reading.counts)
        found.tools = _without_nul(found.tools, reading.counts)
        reading.fits(found, place)
    elif found is None and reading.conversations and reading.column is None and "text" not in row:
        fields = ", ".join(map(str, list(row)[:20]))
        raise NoConversationError(f"{place} has no messages: its fields are {fields}")
    return found


def _text_of_pieces(value: list) -> object:
    """The text of a list of pieces, strings and {"text": ...} for what is formatted, as Telegram
    exports it; any other list as it is."""
    pieces = [piece.get("text") if isinstance(piece, dict) else piece for piece in value]
    is_formatted = any(isinstance(piece, dict) for piece in value)
    if is_formatted and all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return value


def text_columns(
    fields: list[str], column: str | None, place: str, row: dict | None = None
) -> list[str]:
    """The fields that hold the text: those of `column`, else "text", else the only field.

    column: as in `Reading`. row: one with these fields, from which an error names one with text.
    Raises DataError if there are no such fields.
    """
    wanted = [column] if column else ["text" if len(fields) != 1 else fields[0]]
    if column and column not in fields:
        if is_pattern(column, fields):
            wanted = list(dict.fromkeys(_PATTERN_FIELD.findall(column)))
        elif "," in column:
            wanted = [name.strip() for name in column.split(",") if name.strip()] or wanted
    for name in wanted:
        if name not in fields:
            raise DataError(
                f"{place} has no field {name!r}: its fields are {', '.join(map(str, fields[:20]))}",
                _advice(row),
                sep="; ",
            )
    return wanted


_PATTERN_FIELD = re.compile(r"\{([^{}]+)\}")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def _with_nested(row: dict, column: str | None) -> dict:
    """A row with the values that a column finds in its fields: `data.text`, or in a pattern."""
    if not column or "." not in column or column in row:
        return row
    names = [*_PATTERN_FIELD.findall(column), *column.split(","), column]
    names = {name.strip() for name in names} - row.keys()
    found = {name: _value_at(row, name.split(".")) for name in names if "." in name}
    return row | {name: value for name, value in found.items() if value is not None}


def _value_at(value: object, path: list[str]) -> object:
    """The value at a path of keys, None where there is none; texts of a list's items are lines."""
    if not path:
        return value
    if isinstance(value, dict):
        return _value_at(value.get(path[0]), path[1:])
    if isinstance(value, list):
        texts = [_text_of_pieces(_value_at(item, path)) for item in value]
        return "\n".join(text for text in texts if isinstance(text, str) and text) or None
    return None


def _advice(row: object) -> str:
    """How to name the field that holds the text: with one of this row, its longest text. None:
    the row is not known."""
    if row is None:
        return "name a field of text with --column"
    if not isinstance(row, dict):
        return "a row is a text, or an object with a field of text"
    example = f", for example{_example(row)}" if _example(row) else ""
    return f"name the one that holds the text with --column{example}, or several as --column a,b"


def _example(row: dict) -> str:
    """` --column NAME` of the field with the longest text, or "" if none has any."""
    name = max(_texts_in(row), key=lambda found: len(found[1]), default=("", ""))[0]
    return f" --column {quoted(name)}" if name else ""


def _texts_in(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path of its keys, text) of each text in the fields of a row, and in their fields."""
    if isinstance(value, str) and path:
        yield ".".join(path), value
    elif isinstance(value, list) and path:
        yield from itertools.chain(*(_texts_in(item, path) for item in value[:4] if item))
    elif isinstance(value, dict) and len(path) < 3:
        for key, item in value.items():
            yield from _texts_in(item, (*path, str(key)))


def is_pattern(column: str | None, fields: list[str]) -> bool:
    """Whether `--column` is a pattern of fields in braces, not the name of a field."""
    return bool(column and column not in fields and _PATTERN_FIELD.search(column))


def _joined(row: dict, names: list[str], reading: Reading, place: str) -> str | None:
    """Several fields of a row as one text; None if none of them holds any."""
    values = {}
    for name in names:
        value = row[name]
        if isinstance(value, (int, float)):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{place}, field {name!r}, holds {type(value).__name__}, not text",
                "name fields of text with --column",
                sep="; ",
            )
        values[name] = value or ""
    missing = sum(not value for value in values.values())
    if missing == len(values):
        reading.counts["rows without text skipped"] += 1
        return None
    if is_pattern(reading.column, list(row)):
        if missing:
            reading.counts["fields of the pattern that are empty in a row"] += missing
        pattern = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], reading.column or "")
        return _PATTERN_FIELD.sub(lambda match: values[match[1]], pattern)
    return "\n".join(filter(None, values.values()))
