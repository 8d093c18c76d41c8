"""The files that pages are made of: templates, a style and scripts, for several commands."""

from pathlib import Path

PAGE_MARK = b'<meta name="generator" content="gptlab">'  # of the pages made from them
_FOLDER = Path(__file__).parent


def asset(name: str) -> str:
    """The text of a file of this folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def filled(template: str, **parts: str) -> str:
    """A file of this folder with each {{NAME}} replaced; what is put in is not looked at again.

    {{NAME.EXT}} is replaced by the file of that name.
    """
    pieces = asset(template).split("{{")
    found = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        found += [asset(name) if "." in name else parts[name], rest]
    return "".join(found)
