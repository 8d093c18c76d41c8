"""Files of strangers that would run code, write elsewhere or take all memory when they are read."""

import io
import pickle
import zipfile

import pytest
import torch

from gptlab.checkpoints import write_checkpoint
from gptlab.data import downloads
from gptlab.errors import DownloadError
from gptlab.files import sha256_file
from gptlab.runs import read_sources


class Trap:
    """Unpickled, it makes the file `sprung`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def sprung(world, tmp_path):
    """The file that a trap would make; the test ends with it not being there."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


def zipped_pickle(content: bytes) -> bytes:
    """A pickle in the kind of archive that torch.save writes."""
    kept = io.BytesIO()
    torch.save({"model": torch.ones(1)}, kept)
    old, new = zipfile.ZipFile(kept), io.BytesIO()
    with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        for member in old.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            archive.writestr(member, content if is_pickle else old.read(member))
    return new.getvalue()


@pytest.mark.parametrize("wrap", [bytes, zipped_pickle], ids=["bare", "archive"])
@pytest.mark.parametrize("name", ["ckpt.pt", "best.pt"])
@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "--out_dir", "out/plays", "--prompt", "to"),
        ("generate", "--checkpoint", "FILE", "--prompt", "to"),
        ("train", "--out_dir", "out/plays", "--resume", "--dry_run"),
        ("train", "--dataset", "plays", "--init_from", "FILE", "--out_dir", "out/next"),
        ("blame", "plays", "--step", "1"),
        ("export", "FILE", "--format", "hf", "--output", "exported"),
        ("import", "FILE", "--out_dir", "out/next"),
        ("prepare", "texts", "--dataset", "again", "--tokenizer", "FILE"),
    ],
    ids=lambda argv: "-".join(argv[:3:2]),
)
def test_a_pickle_that_runs_code_is_refused_by_every_command(fuzz_once, sprung, argv, name, wrap):
    folder = fuzz_once.home / "out" / "plays"
    for path in folder.glob("*.pt"):
        path.unlink()
    (folder / name).write_bytes(wrap(pickle.dumps({"model": Trap(sprung)}, protocol=2)))
    words = [word.replace("FILE", f"out/plays/{name}") for word in argv]
    code = fuzz_once.command(*words, names=(name, "no run to resume", "is no checkpoint"))
    assert code == 2 and not sprung.exists()


def test_doctor_names_a_pickle_that_runs_code(fuzz_once, sprung, capsys):
    folder = fuzz_once.home / "out" / "plays"
    (folder / "best.pt").write_bytes(zipped_pickle(pickle.dumps(Trap(sprung), protocol=2)))
    assert fuzz_once.command("doctor", "plays") == 1


def test_a_pickle_renamed_to_safetensors_is_refused(fuzz_once, sprung):
    folder = fuzz_once.home / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}',
        encoding="utf-8",
    )
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    assert fuzz_once.command("import", "model", names=("model",)) == 2
    assert fuzz_once.command("import", "model/model.safetensors", names=("model",)) == 2


def test_a_meta_pkl_that_runs_code_is_refused(fuzz_once, sprung):
    folder = fuzz_once.home / "nano"
    folder.mkdir()
    settings = dict(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=8)
    shapes = {
        "transformer.wte.weight": (9, 8), "transformer.wpe.weight": (8, 8),
        "transformer.h.0.ln_1.weight": (8,), "transformer.h.0.attn.c_attn.weight": (24, 8),
        "transformer.h.0.attn.c_proj.weight": (8, 8), "transformer.h.0.ln_2.weight": (8,),
        "transformer.h.0.mlp.c_fc.weight": (32, 8), "transformer.h.0.mlp.c_proj.weight": (8, 32),
        "transformer.ln_f.weight": (8,), "lm_head.weight": (9, 8),
    }  # fmt: skip
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    arguments = settings | {"bias": False, "dropout": 0.0}
    torch.save({"model_args": arguments, "model": weights}, folder / "ckpt.pt")
    good = {"stoi": {c: i for i, c in enumerate("abcdefghi")}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(good | {"itos": Trap(sprung)}))
    assert fuzz_once.command("import", "nano/ckpt.pt", names=("meta.pkl",)) == 2
    (folder / "meta.pkl").write_bytes(pickle.dumps(good))
    assert fuzz_once.command("import", "nano/ckpt.pt", writes=True) == 0


def test_a_checkpoint_that_describes_more_than_it_holds_takes_no_memory(fuzz_once):
    path = fuzz_once.home / "out" / "plays" / "best.pt"
    valid = torch.load(path, weights_only=True)
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({**valid, "model": {"token_embedding.weight": huge}, "sha256": ""}, path)
    assert fuzz_once.command("generate", "--checkpoint", str(path), "--prompt", "t",
                             names=("larger than its data",)) == 2  # fmt: skip
    for name in ("n_layer", "n_embd", "vocab_size", "block_size", "n_head", "intermediate_size"):
        for size in (10**9, 10**7, 10**30):
            settings = {**valid["model_config"], name: size}
            write_checkpoint({**valid, "model_config": settings}, path)
            code = fuzz_once.command("generate", "--checkpoint", str(path), "--prompt", "to",
                                     "--max_tokens", "1", names=("best.pt",))  # fmt: skip
            assert code == 2, (name, size)


# Names and archives -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".", ".hidden", "a\\b", "~/x"])
@pytest.mark.parametrize(
    "argv",
    [
        ("prepare", "texts", "--dataset=NAME"),
        ("prepare", "texts", "--dataset=NAME", "--overwrite"),
        ("dataset", "delete", "NAME", "--yes"),
        ("info", "--rename", "plays", "--to=NAME"),
        ("info", "--delete", "NAME", "--yes"),
        ("import", "hf:NAME"),
        ("import", "hf:me/NAME"),
        ("prepare", "hf:NAME"),
        ("prepare", "hf:me/NAME"),
    ],
    ids=" ".join,
)
def test_no_name_leads_out_of_its_folder(fuzz_once, tmp_path, name, argv):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "keep.txt").write_text("keep", encoding="utf-8")
    beside = sorted(tmp_path.iterdir())
    code = fuzz_once.command(*(word.replace("NAME", name) for word in argv))
    assert code == 2
    assert sorted(tmp_path.iterdir()) == beside and (tmp_path / "x" / "keep.txt").exists()


def wheel(path, names) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "to be")


def test_a_wheel_is_read_and_never_unpacked(world, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "odd-1.0-py3-none-any.whl"
    names = ["../../escaped.md", "/escaped.md", "odd/a.md", "odd-1.0.dist-info/METADATA",
             "odd-1.0.dist-info/WHEEL", "odd-1.0.dist-info/RECORD"]  # fmt: skip
    wheel(path, names)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    before = sorted(tmp_path.rglob("*"))
    try:
        files = downloads.from_wheel("odd==1.0", sha256_file(path), ".md")
        assert set(files) == {name for name in names if name.endswith(".md")}
    except DownloadError:  # a pip that reads the metadata may refuse it as a whole
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_sources_that_unpack_to_gigabytes_are_left_aside(world):
    from gptlab.runs import Run

    run = Run(world / "out" / "plays")
    assert "gptlab/training/loop.py" in read_sources(run)
    with zipfile.ZipFile(run.sources, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"\0" * (1 << 25))
    assert read_sources(run) == {}
