"""The command line that prepared a dataset, from its meta.json."""

from collections.abc import Mapping
from typing import Any

from gptlab.data.prepare import PrepareOptions
from gptlab.files import display, quoted
from gptlab.options import options_of


def prepare_command(meta: Mapping[str, Any], **changed: str) -> str:
    """The command line that prepared a dataset; "" if its meta.json does not tell.

    changed: options that take other values.
    """
    source = meta.get("source") or {}
    files = source.get("files") or []
    identity = source.get("identity", "")
    if identity == "shakespeare" or identity.startswith("hf:"):
        named = identity
    elif identity and "\n" not in identity:
        named = display(identity)
    elif len(files) == 1:
        named = display(files[0]["path"])
    else:
        return ""
    words = ["python", "prepare.py", named]
    recorded = {**(meta.get("options") or {}), **changed}
    for name, option in options_of(PrepareOptions).items():
        value = recorded.get(name, option.default)
        if option.type is tuple:
            words += [word for each in value or () for word in (f"--{name}", str(each))]
        elif value != option.default:
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    if isinstance(meta.get("name"), str):
        words += ["--dataset", meta["name"]]
    return " ".join(map(quoted, words))
