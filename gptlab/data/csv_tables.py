"""CSV and TSV files: delimiter, quoting and header are found in the content.

What the content leaves open is decided as most files have it, and every decision has an option.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.opening import file_suffix
from gptlab.data.tables import Row
from gptlab.data.text_files import Reading, head_of_text, lines, text_blocks
from gptlab.errors import ConfigError, DataError
from gptlab.files import display

HEAD_BYTES = 1 << 18
MANY_LINE_ENDS = 100
_LARGEST_FIELD = 1 << 26  # characters: a mark that is never closed needs no more memory
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_UNIT_SEPARATOR = "\x1f"  # stands for "no delimiter" where the csv module needs one
_KNOWN_NAMES = frozenset(
    "text texts content body title name id label labels message messages sentence document doc "
    "prompt completion question answer instruction input output response comment review story "
    "poem lyrics article summary description author date time url lang language source target "
    "tweet post quote line abstract category context key value no nr number index".split()
)


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    delimiter: "" for a single column. quoting: whether a quotation mark opens a field that may hold
    delimiters and line ends. unquotes: without quoting, whether marks around a whole field go.
    header: the names of the fields. has_header: whether the first row holds them. comments: lines
    above the table that begin with # and are no row of it.
    """

    delimiter: str
    quoting: bool
    unquotes: bool
    header: tuple[str, ...]
    has_header: bool
    skips_space: bool = False
    escape: str | None = None
    has_sep_line: bool = False
    comments: int = 0

    def __str__(self) -> str:
        names = ", ".join(self.header[:8]) + (", ..." if len(self.header) > 8 else "")
        kind = f"{DELIMITERS.get(self.delimiter, repr(self.delimiter))}-separated"
        if not self.delimiter:
            kind = "one column"
        header = f"with the header {names}" if self.has_header else "without a header"
        if not self.has_header and len(self.header) > 1:
            header += f" (its columns are {names})"
        marks = "enclose fields" if self.quoting else "are letters"
        if self.unquotes:
            marks += " unless they enclose a field as a whole"
        lines_of = "1 line" if self.comments == 1 else f"{self.comments} lines"
        above = f", below {lines_of} of comments" if self.comments else ""
        return f"{kind}, {header}{above}; quotation marks {marks}"


def find_dialect(head: str, is_whole: bool, suffix: str, reading: Reading) -> Dialect:
    """How a CSV file that begins with `head` is written, as far as the options leave it open."""
    if not is_whole and "\n" in head:
        head = head[: head.rindex("\n") + 1]
    physical = [line.removesuffix("\r") for line in head.split("\n")]
    has_sep_line = bool(re.fullmatch(r'"?sep=(.)"?', physical[0]))  # as Excel writes it
    forced = _delimiter_option(reading.delimiter)
    if has_sep_line and forced is None:
        forced = physical[0].strip('"')[4:]
    physical = physical[has_sep_line:]
    while physical and not physical[-1]:
        physical.pop()
    comments = next((n for n, line in enumerate(physical) if line[:1] != "#"), 0)
    best = _best_attempt(physical[comments:], forced, suffix, is_whole, reading)
    if comments and (not best.delimiter or best.delimiter in physical[comments - 1]):
        # in one column # may begin a text, and the last line above a table may be its header
        comments = comments - 1 if best.delimiter else 0
        best = _best_attempt(physical[comments:], forced, suffix, is_whole, reading)
    header, has_header = _header(best.rows, reading)
    is_tab_or_one = best.delimiter in ("", "\t")
    unquotes = not best.quoting and reading.quoting == "auto" and is_tab_or_one
    return Dialect(
        best.delimiter, best.quoting, unquotes, header, has_header,
        best.skips_space, best.escape, has_sep_line, comments,
    )  # fmt: skip


@dataclass(frozen=True)
class _Attempt:
    delimiter: str
    quoting: bool
    skips_space: bool
    escape: str | None
    rows: list[list[str]]
    broken: int  # rows that cannot be read so


def _best_attempt(
    physical: list[str], forced: str | None, suffix: str, is_whole: bool, reading: Reading
) -> _Attempt:
    """The first lines with the delimiter that makes rows of one width of them."""
    candidates = list(DELIMITERS) if forced is None else [forced]
    best, best_score = _attempt(physical, "", is_whole, reading), (0.0, 0.0, 0)
    for delimiter in candidates:
        found = _attempt(physical, delimiter, is_whole, reading)
        share, width = _consistency(found.rows)
        share *= len(found.rows) / max(1, len(found.rows) + found.broken)
        if forced is not None:
            best = found
        elif share >= 0.3:
            hint = {".tsv": "\t", ".tab": "\t"}.get(suffix, ",") == delimiter
            score = (round(share, 2), float(hint), width)
            if score > best_score:
                best, best_score = found, score
    return best


def _delimiter_option(word: str) -> str | None:
    """The delimiter that --delimiter names; "" for none, None for auto."""
    if word == "auto":
        return None
    if word == "none":
        return ""
    by_name = {name: delimiter for delimiter, name in DELIMITERS.items()} | {"\\t": "\t"}
    found = by_name.get(word, word)
    if len(found) != 1 or found in '"\n\r':
        raise ConfigError(
            f"delimiter cannot be {word!r}",
            f"it is one character, {', '.join(DELIMITERS.values())}, none or auto",
        )
    return found


def _attempt(physical: list[str], delimiter: str, is_whole: bool, reading: Reading) -> _Attempt:
    """The rows of the first lines with this delimiter, with quoting as it fits best."""
    first = [[cell for cell in line.split(delimiter)] if delimiter else [line] for line in physical]
    plain = [cells for cells in first if any(cell.strip() for cell in cells)]
    text = "\n".join(physical)
    skips_space = bool(delimiter) and text.count(f'{delimiter} "') > text.count(f'{delimiter}"')
    escape = None
    quoted, for_it, against = _quoted(physical, delimiter, is_whole, skips_space, None)
    inside = rf'\\"[^"\n{re.escape(delimiter)}]'  # a field may end in a backslash
    if against and re.search(inside, text):
        with_escape = _quoted(physical, delimiter, is_whole, skips_space, "\\")
        if with_escape[2] < against:
            escape, (quoted, for_it, against) = "\\", with_escape
    quoting = for_it > against if delimiter == "\t" else for_it >= against
    if reading.quoting != "auto":
        quoting = reading.quoting == "yes"
    rows = quoted if quoting else plain
    return _Attempt(delimiter, quoting, skips_space, escape, rows, against if quoting else 0)


def _quoted(
    physical: list[str], delimiter: str, is_whole: bool, skips_space: bool, escape: str | None
) -> tuple[list[list[str]], int, int]:
    """The rows if marks enclose fields; how many fields speak for that, how many against it.

    A field within a line that is enclosed as a whole speaks for it, and so does one over several
    lines. A field that takes in lines which look like rows of their own is against it, and so is a
    mark that is never closed, or closed in the middle of a field.
    """
    reader = _reader(iter(f"{line}\n" for line in physical), delimiter, skips_space, escape)
    rows, for_it, against, start = [], 0, 0, 0
    while True:
        is_broken = False
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            row, is_broken = [], True
        taken = physical[start : reader.line_num]
        is_cut = reader.line_num >= len(physical) and not is_whole
        start = reader.line_num
        if not is_broken and any(cell.strip() for cell in row):
            rows.append(row)
        cells = [cell for line in taken[:1] for cell in _cells(line, delimiter)]
        for_it += sum(len(c) > 1 and c[0] == '"' == c[-1] for c in map(str.strip, cells))
        if is_broken and not is_cut:
            against += 1
        elif len(taken) > 1:
            is_plain = all(len(_cells(line, delimiter)) == len(cells) for line in taken)
            if delimiter and len(cells) > 1 and is_plain:
                against += 1
            elif not is_broken:
                for_it += 1
    return rows, for_it, against


def _cells(line: str, delimiter: str) -> list[str]:
    return line.split(delimiter) if delimiter else [line]


def _reader(source: Iterator[str], delimiter: str, skips_space: bool, escape: str | None):
    csv.field_size_limit(_LARGEST_FIELD)
    return csv.reader(
        source,
        delimiter=delimiter or _UNIT_SEPARATOR,
        strict=True,
        skipinitialspace=skips_space,
        escapechar=escape,
        doublequote=True,
    )


def _consistency(rows: list[list[str]]) -> tuple[float, int]:
    """(share of the rows with the usual number of fields, that number), or (0, 1)."""
    widths = Counter(map(len, rows))
    if not widths:
        return 0.0, 1
    first = len(rows[0])
    width, times = max(widths.items(), key=lambda item: (item[1], item[0] == first))
    share = times / len(rows)
    if width > 1 and (share >= 0.9 or (share >= 0.7 and width == first)):
        return share, width
    wider = sum(times for width, times in widths.items() if width >= first) / len(rows)
    if first > 1 and wider >= 0.7 and all(map(_is_name, rows[0])):
        return wider / 2, first
    return 0.0, 1


def _is_name(cell: str) -> bool:
    """Whether a cell may be the name of a field: one short word, or words joined by _ - or ."""
    return bool(re.fullmatch(r"[^\W\d][\w.\-]{0,39}", cell.strip()))


def _header(rows: list[list[str]], reading: Reading) -> tuple[tuple[str, ...], bool]:
    """(names of the fields, whether the first row holds them)."""
    width = max(Counter(map(len, rows)).items(), key=lambda item: item[1])[0] if rows else 1
    has_header = bool(rows) and reading.header != "no"
    if reading.header == "auto" and rows:
        has_header = _looks_like_header(rows, reading.column)
    if not has_header:
        return ("text",) if width == 1 else tuple(str(i + 1) for i in range(width)), False
    names: list[str] = []
    for number, cell in enumerate(rows[0], 1):
        name = cell.strip() or f"column {number}"
        names.append(name if name not in names else f"{name} {number}")
    return tuple(names), True


def _looks_like_header(rows: list[list[str]], column: str | None) -> bool:
    first, others = [cell.strip() for cell in rows[0]], rows[1:]
    asked = column or ""
    wanted = {asked, *re.split(r"\s*,\s*", asked), *re.findall(r"\{([^{}]+)\}", asked)} - {""}
    if wanted & set(first):
        return True
    if any(len(cell) > 60 or "\n" in cell for cell in first):
        return False
    if any(cell.lower() in _KNOWN_NAMES for cell in first):
        return True
    named = [cell for cell in first if cell]
    if any(_is_number(cell) or cell.endswith((".", "!", "?")) for cell in named):
        return False
    if len(set(named)) < len(named) or not named:
        return False
    for i, cell in enumerate(first):  # a word over a column of numbers
        below = [row[i].strip() for row in others if i < len(row) and row[i].strip()]
        if below and cell and sum(map(_is_number, below)) > 0.9 * len(below):
            return True
    if len(first) > 1:
        return all(len(cell.split()) <= 4 for cell in first)
    return False


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.,:/\- ]*\d[\d.,:/\-%]*", cell))


def csv_rows(
    path: Path, reading: Reading, name: str = "", dialect: Dialect | None = None
) -> Iterator[Row]:
    """(place, row as a dict) of each row of a CSV file; empty rows are counted.

    In a short row the missing fields are None; a row with more fields than the header is odd.
    """
    name = name or display(path)
    if dialect is None:
        dialect = dialect_of(path, reading, name)
    source = lines(text_blocks(path, reading, name))
    skipped = dialect.has_sep_line + dialect.comments
    for _ in range(skipped):
        next(source, None)
    reading.counts["lines of comments above a table left out"] += dialect.comments
    rows = _quoted_rows(source, dialect) if dialect.quoting else _plain_rows(source, dialect)
    is_header, long_fields = dialect.has_header, []
    width = len(dialect.header)
    for number, row in rows:
        place = f"{name} line {number + skipped:,}"
        if isinstance(row, csv.Error):
            what = f"{place} is not valid CSV ({row})"
            fix = "fix that line, or let marks be letters with --quoting no"
            yield place, DataError(what, fix, sep="; ")
            continue
        if not dialect.delimiter:
            row = [_UNIT_SEPARATOR.join(row)]
        if not any(cell.strip() for cell in row):
            reading.counts["empty rows skipped"] += 1
        elif is_header:
            is_header = False
        elif len(row) > width and any(cell.strip() for cell in row[width:]):
            what = f"{place} has {len(row):,} fields where the table has {width:,}"
            fix = "quote a field that holds the delimiter, or name it with --delimiter"
            yield place, DataError(what, fix, sep="; ")
        else:
            if dialect.quoting and any(cell.count("\n") > MANY_LINE_ENDS for cell in row):
                long_fields.append(place)
            cells = row + [None] * (width - len(row))
            yield place, dict(zip(dialect.header, cells, strict=False))
    if long_fields:
        more = f", and so have {len(long_fields) - 1:,} others" if len(long_fields) > 1 else ""
        reading.tell(
            f"fields with more than {MANY_LINE_ENDS} line ends",
            len(long_fields),
            f"The field that ends in {long_fields[0]} has more than {MANY_LINE_ENDS} line ends"
            f"{more}; if a loose quotation mark opens it, read marks as letters with --quoting no.",
        )


def dialect_of(path: Path, reading: Reading, name: str = "") -> Dialect:
    """How this CSV file is written."""
    head, is_whole = head_of_text(path, reading.encoding, name, HEAD_BYTES)
    return find_dialect(head, is_whole, file_suffix(path), reading)


def _plain_rows(source: Iterator[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(source, 1):
        cells = _cells(line.removesuffix("\n").removesuffix("\r"), dialect.delimiter)
        if dialect.unquotes and '"' in line:
            cells = [_unquoted(cell) for cell in cells]
        yield number, cells


def _unquoted(cell: str) -> str:
    """A cell without the marks that enclose it as a whole."""
    inner = cell[1:-1]
    is_whole = len(cell) > 1 and cell[0] == '"' == cell[-1]
    return inner.replace('""', '"') if is_whole and '"' not in inner.replace('""', "") else cell


def _quoted_rows(
    source: Iterator[str], dialect: Dialect
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(number of the last line, row or what is wrong with it); one error per line that is lost."""
    reader = _reader(source, dialect.delimiter, dialect.skips_space, dialect.escape)
    before = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            for number in range(before + 1, reader.line_num + 1):
                yield number, error
        else:
            yield reader.line_num, row
        before = reader.line_num
