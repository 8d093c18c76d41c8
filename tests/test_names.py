"""One concept, one name: no public class or function is defined in two modules."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "gptlab"
# Modules of the same kind, which a table or a dispatch calls by the same functions: a command's
# main, and how a format is read, checked and written.
PROTOCOLS = {
    "main": "gptlab/cli/",
    "read": "gptlab/interop/read/",
    "read_weights": "gptlab/interop/read/",
    "check": "gptlab/interop/write/",
    "write": "gptlab/interop/write/",
}


def public_names(source: str) -> list[str]:
    """The classes and functions that a module defines for others, at its top level."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    return [node.name for node in nodes if not node.name.startswith("_")]


def homes_of_names() -> dict[str, list[str]]:
    """The modules in which each public name is defined."""
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in public_names(path.read_text(encoding="utf-8")):
            homes[name].append(path.relative_to(PACKAGE.parent).as_posix())
    return homes


def test_a_public_name_means_one_thing():
    twice = {name: where for name, where in homes_of_names().items() if len(where) > 1}
    for name, folder in PROTOCOLS.items():
        assert all(where.startswith(folder) for where in twice.pop(name)), name
    assert not twice


def test_what_is_defined_is_found():
    source = "class A: ...\ndef b(): ...\nasync def c(): ...\ndef _d(): ...\nfrom e import F\n"
    assert public_names(source) == ["A", "b", "c"]
