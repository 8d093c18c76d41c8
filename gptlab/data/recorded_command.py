"""The command that prepared a dataset, from what its meta.json records."""

from collections.abc import Mapping

from gptlab.files import display, quoted

# The defaults of PrepareOptions (data/prepare.py, above this module) that are no None, False or ();
# tests/data/test_token_files.py holds them against it.
DEFAULTS = {
    "tokenizer": "auto", "val_fraction": 0.1, "split": "auto", "seed": 1337, "gutenberg": "cut",
    "header": "auto", "delimiter": "auto", "quoting": "auto", "max_bad_rows": "1%",
}  # fmt: skip


def prepare_command(meta: Mapping) -> str:
    """The command line that prepared a dataset; "" if its meta.json does not tell."""
    identity = (meta.get("source") or {}).get("identity") or ""
    if not identity or identity.startswith("a pipe, "):
        return ""
    is_name = identity == "shakespeare" or identity.startswith("hf:")
    named = [identity] if is_name else map(display, identity.split("\n"))
    words = ["python", "prepare.py", *named]
    for name, value in (meta.get("options") or {}).items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and one is not False and one != DEFAULTS.get(name):
                words += [f"--{name}", str(one).lower() if isinstance(one, bool) else str(one)]
    if isinstance(meta.get("name"), str):
        words += ["--dataset", meta["name"]]
    return " ".join(map(quoted, words))


def prepare_again(name: str, meta: Mapping | None = None) -> str:
    """The fix for a dataset whose files are damaged or missing."""
    if command := prepare_command({**(meta or {}), "name": name} if meta else {}):
        return f"prepare it again: {command}"
    return (
        "prepare it again from its text: python prepare.py YOUR_TEXT.txt --dataset "
        f"{quoted(name)} --overwrite"
    )
