"""The command line that prepared a dataset, from its meta.json."""

from collections.abc import Mapping
from typing import Any

from gptlab.files import display, quoted
from gptlab.options import option_words, options_of


def prepare_command(meta: Mapping[str, Any], **changed: str | None) -> str:
    """The command line that prepared a dataset; "" if its meta.json does not tell.

    changed: options that take other values.
    """
    from gptlab.data.prepare_options import PrepareOptions  # which imports every reader of files

    identity = (meta.get("source") or {}).get("identity") or ""
    if not identity or identity.startswith("a pipe, "):
        return ""
    is_name = identity == "shakespeare" or identity.startswith(("hf:", "task:"))
    named = [identity] if is_name else map(display, identity.split("\n"))
    recorded = {**(meta.get("options") or {}), **changed}
    given = {
        name: recorded[name]
        for name, option in options_of(PrepareOptions).items()
        if recorded.get(name, option.default) != option.default
    }
    if isinstance(meta.get("name"), str):
        given["dataset"] = meta["name"]
    return " ".join(map(quoted, ["python", "prepare.py", *named, *option_words(given)]))
