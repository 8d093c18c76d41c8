"""Read JSON files as typed dicts: other content is refused, with the name of the field.

Forms are TypedDicts: a file of another release may have more fields, which stay as they are.
"""

import sys
from typing import Annotated, TypeVar

import msgspec

from gptlab.errors import DataError, GPTLabError
from gptlab.files import check_format_version, display, read_json

Form = TypeVar("Form")
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
# a finite number, whole or not
Number = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


def misfit(value, form) -> str:
    """Why a JSON value does not have a form, with the place; "" if it has."""
    try:
        msgspec.convert(value, form)
    except (ValueError, RecursionError) as error:  # a lone surrogate as well
        return str(error)
    return ""


def read_form(path, kind: str, form: type[Form], error: type[GPTLabError], fix: str) -> Form:
    """The checked content of a JSON file of gptlab; a null field counts as missing.

    kind: a key of FORMAT_VERSIONS. Raises `error`, with `fix`, for a file that is damaged or of a
    newer version, FileNotFoundError for one that does not exist.
    """
    try:
        content = read_json(path)
    except DataError as damage:
        raise error(damage.problem, fix, sep="; ") from None
    content = {name: value for name, value in content.items() if value is not None}
    check_format_version(content.get("format_version"), kind, path, error)
    if what := misfit(content, form):
        raise error(f"{display(path)} is damaged ({what})", fix, sep="; ")
    return content
