"""Checkpoints, malformed: bytes, tensors, settings and tokenizers, with a hash that fits."""

import copy
import json

import pytest
import torch
from hypothesis import strategies as st

from gptlab.checkpoints import content_sha256
from gptlab.runs import Run, load_checkpoint

# what a value of a checkpoint may be instead
VALUES = [
    None, True, 0, -1, 3, 10**9, 10**30, 0.5, float("nan"), float("inf"), "", "x", "7", [], {},
    [1, "x"], {"a": 1}, {1: 2}, b"x",
]  # fmt: skip
VALUES += [
    *(torch.ones(shape) for shape in ((), (0,), (1,), (16,), (16, 16), (2, 3, 4), (16, 0))),
    *(torch.ones((16, 16)).to(kind) for kind in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64,
        torch.uint8,
    )),
    torch.zeros(1).expand(10**6, 10**6),  # four bytes in the file
    torch.eye(4).to_sparse(),
    torch.full((16, 16), float("nan")),
    torch.nn.Parameter(torch.ones(3)),
]  # fmt: skip


def places_in(content, path=()):
    found = [path] if path else []
    if isinstance(content, dict):
        for key, value in content.items():
            found += places_in(value, (*path, key))
    return found


def changed(valid: dict):
    places = [p for p in places_in(valid) if p != ("sha256",)]
    settings = [p for p in places if p[0] == "model_config"]
    change = st.tuples(
        st.sampled_from(["set", "set", "delete", "swap"]),
        st.one_of(st.sampled_from(places), st.sampled_from(settings)),
        st.integers(0, len(VALUES) - 1),
        st.sampled_from(places),
    )
    return st.lists(change, min_size=1, max_size=3)


def apply(valid: dict, changes) -> dict:
    content = copy.deepcopy(valid)
    for what, path, value, other in changes:
        parent, second = _parent(content, path), _parent(content, other)
        if path[-1] not in parent or other[-1] not in second:
            continue
        if what == "set":
            parent[path[-1]] = VALUES[value]
        elif what == "delete":
            del parent[path[-1]]
        else:
            parent[path[-1]], second[other[-1]] = second[other[-1]], parent[path[-1]]
    return content


def _parent(content, path):
    for key in path[:-1]:
        content = content.get(key, {}) if isinstance(content, dict) else {}
    return content if isinstance(content, dict) else {}


def save(content: dict, path) -> None:
    """As gptlab would, with a hash that fits wherever one can be computed."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    try:
        content["sha256"] = content_sha256(content)
    except Exception:  # huge or sparse: any hash, to be refused before it is computed
        content["sha256"] = "0" * 64
    torch.save(content, path)


@pytest.mark.parametrize("name", ["best.pt", "ckpt.pt"])
def test_a_checkpoint_with_changed_bytes_is_refused_by_name(fuzz, name):
    path = fuzz.home / "out" / "plays" / name
    run = Run(path.parent)
    (path.parent / "ckpt.prev.pt").unlink(missing_ok=True)

    def attempt(content):
        path.write_bytes(content)
        fuzz.survives(lambda: load_checkpoint(path), name)
        if name == "ckpt.pt":
            fuzz.survives(run.load, name)

    fuzz.run(f"{name}, bytes", fuzz.bytes_file(path.read_bytes()), attempt, 40)


@pytest.mark.parametrize("name", ["best.pt", "ckpt.pt"])
def test_a_checkpoint_with_changed_content_is_refused_by_name(fuzz, name):
    path = fuzz.home / "out" / "plays" / name
    valid = torch.load(path, weights_only=True)
    run = Run(path.parent)
    (path.parent / "ckpt.prev.pt").unlink(missing_ok=True)

    def attempt(changes):
        save(apply(valid, changes), path)
        fuzz.survives(lambda: load_checkpoint(path), name)
        if name == "best.pt":
            fuzz.command("generate", "--checkpoint", str(path), "--max_tokens", "2",
                         "--device", "cpu", "--prompt", "to", names=(name, "prompt"))  # fmt: skip
        else:
            fuzz.survives(run.load, name)
        fuzz.command("doctor", "plays")

    fuzz.run(f"{name}, content", changed(valid), attempt, 30)


def test_a_run_with_a_malformed_state_does_not_resume_into_a_traceback(fuzz):
    folder = fuzz.home / "out" / "plays"
    valid = torch.load(folder / "ckpt.pt", weights_only=True)
    (folder / "ckpt.prev.pt").unlink(missing_ok=True)
    state = {key: value for key, value in valid.items() if key not in ("model",)}

    def attempt(changes):
        changes = [("set" if what == "delete" else what, *rest) for what, *rest in changes]
        save({**apply(state, changes), "model": valid["model"]}, folder / "ckpt.pt")
        fuzz.command("train", "--out_dir", "out/plays", "--resume", "--dry_run", "--quiet")

    fuzz.run("ckpt.pt, resumed", changed(state), attempt, 8)


def test_a_malformed_tokenizer_in_a_checkpoint_is_refused_by_name(fuzz):
    path = fuzz.home / "out" / "plays" / "best.pt"
    valid = torch.load(path, weights_only=True)
    text = valid["tokenizer"]["json"]

    def attempt(content):
        tokenizer = {**valid["tokenizer"], "json": content.decode("utf-8", "replace")}
        save({**valid, "tokenizer": tokenizer}, path)
        fuzz.survives(lambda: load_checkpoint(path), "best.pt")

    assert json.loads(text)
    fuzz.run("best.pt, tokenizer", fuzz.json_file(text.encode()), attempt, 40)
