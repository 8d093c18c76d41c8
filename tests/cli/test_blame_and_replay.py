"""blame and replay as commands: what is printed, the page, the exit codes, what is refused."""

import re
import zipfile
from hashlib import sha256

import pytest
import torch

from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.files import read_json, write_json
from gptlab.training import trainer
from gptlab.training.picture import Picture

pytestmark = pytest.mark.usefixtures("in_home")
LINE = "the line {n} of this book is much like all the others\n"
NASTY = "\x1b[31mred</span><script>alert(1)</script>\x07 "


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with the run "small" on two books, one of which would steer a terminal."""
    home = tmp_path_factory.mktemp("home")
    (home / "books").mkdir()
    for i in range(4):
        text = "".join(LINE.format(n=n * i) for n in range(20))
        (home / "books" / f"b{i}.txt").write_text(text, encoding="utf-8")
    (home / "books" / "nasty.txt").write_text(NASTY * 20, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        patch.setattr(Picture, "draw", lambda *_: None)
        prepare("books", PrepareOptions(tokenizer="char", split="tail", val_fraction=0.05))
        trainer.train(
            dataset="books", out_dir="out/small", n_layer=1, n_head=2, n_embd=16, block_size=32,
            dropout=0.0, batch_size=64, max_iters=6, eval_tokens=64, log_interval=2, quiet=True,
            device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
    return home


# blame --------------------------------------------------------------------------------------------


def test_blame_says_what_was_read_what_was_recorded_and_whose_losses_these_are(capsys):
    assert main(["blame", "small", "--step", "4", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "trained on sequences 192 to 255 (32 tokens each) of books; a step reads" in out
    assert re.search(r"The run recorded at this step: loss \d\.\d+, gradient norm \d\.\d+\.", out)
    assert re.search(r"those of out/small/best\.pt \(step 6\), not of the model at that step", out)
    headings = re.findall(r"^(\d)\. sequence \d+: \d\.\d+ nats per token, from books/", out, re.M)
    assert headings == ["1", "2", "3"]
    assert out.count("hardest: ") == 3


def test_a_step_without_a_record_says_so_and_the_newest_run_is_the_default(trained, capsys):
    trace = trained / "out" / "small" / "trace.jsonl"
    aside = trace.rename(trace.with_name("aside"))
    try:
        assert main(["blame", "--step", "3", "--checkpoint", "ckpt"]) == 0
    finally:
        aside.rename(trace)
    out = capsys.readouterr().out
    assert "recorded nothing at this step; at step 2: loss " in out
    assert "out/small/ckpt.pt (step 6)" in out


def test_in_a_pipe_nothing_steers_a_terminal_and_at_one_tokens_have_colours(capsys, monkeypatch):
    argv = ["blame", "small", "--step", "1", "--top", "64"]
    assert main(argv) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain and "\x07" not in plain and "\ufffd[31mred" in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(argv) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured and "\x1b[31mred<" not in coloured and "\x07" not in coloured
    assert "share of the uniform baseline" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(argv) == 0
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]", capsys.readouterr().out)


def test_the_page_needs_no_other_file_and_shows_text_as_text(trained, capsys):
    assert main(["blame", "small", "--step", "2", "--top", "64", "--html", "two.html"]) == 0
    assert "Wrote two.html" in capsys.readouterr().out
    page = (trained / "two.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Step 2 of small" in page
    assert "<script" not in page and "http" not in page and "src=" not in page
    assert "\x1b" not in page and "prefers-color-scheme: dark" in page and "width=device" in page
    token = r'<span class="l[0-4]" data-loss="(\d+\.\d\d)" tabindex="-1">(.*?)</span>'
    losses, texts = zip(*re.findall(token, page, re.S), strict=True)
    assert len(losses) == 64 * 32
    assert "books/nasty.txt:1" in page and "books/b1.txt:" in page
    shown = "".join(texts)
    assert "&lt;script&gt;alert(1)" in shown


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["small"], "blame needs a step: choose one of the 6 that out/small has taken, with"),
        (
            ["small", "--step", "7"],
            "has taken 6 steps, so choose one from 1 to 6 (a step reads one",
        ),
        (["small", "--step", "1", "--top", "0"], "--top is 0: it must be at least 1."),
        (["none", "--step", "1"], "There is no run 'none'"),
        (["small", "--step", "1", "--html", "books"], "books is a folder: name a file"),
        (["small", "--step", "1", "--checkpoint", "x"], "choose from best, ckpt"),
        (["small", "--step", "1", "--device", "tpu"], "tpu"),
    ],
)
def test_what_blame_cannot_do_is_one_sentence(argv, sentence, capsys):
    assert main(["blame", *argv]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and captured.out == ""


# replay -------------------------------------------------------------------------------------------


def test_replay_says_bitwise_equal_and_what_it_compared(capsys):
    assert main(["replay", "small"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The first 6 steps of out/small: bitwise equal.\n")
    assert out.endswith("and the weights after steps 0, 1, 2, 5.\n")


def test_an_equal_result_under_other_conditions_names_them(trained, capsys, monkeypatch):
    path = trained / "out" / "small" / "provenance.json"
    stored = read_json(path)
    other = {**stored, "conditions": {**stored["conditions"], "torch": "2.12.1", "threads": 7}}
    write_json(path, other)
    try:
        assert main(["replay", "small", "--steps", "1"]) == 0
    finally:
        write_json(path, stored)
    out = capsys.readouterr().out
    assert out.startswith("The first step of out/small: bitwise equal, although:\n")
    assert f"  torch: 2.12.1 -> {torch.__version__}\n" in out
    threads = torch.get_num_threads()
    assert f"  threads: 7 -> {threads} (OMP_NUM_THREADS=7 restores them)\n" in out


def test_a_difference_ends_with_1_and_is_named(capsys, monkeypatch):
    from gptlab.model.transformer import GPT

    features = GPT.features
    monkeypatch.setattr(GPT, "features", lambda *args: features(*args) * 1.01)
    assert main(["replay", "small"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("out/small differs first in the loss of step 1: the weights before it")
    assert re.search(r"  loss: \d\.\d{10,} -> \d\.\d{10,}\n", out)
    assert "  tensors that differ at step 1: token_embedding.weight, " in out
    assert out.endswith("Nothing that a run records has changed since.\n")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["small", "--steps", "0"], "--steps is 0: it must be at least 1."),
        (["none"], "There is no run 'none'"),
        (["books"], "no provenance.json"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence(argv, sentence, capsys):
    assert main(["replay", *argv]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_changed_code_is_listed_by_file_the_model_first(trained, capsys):
    from gptlab.runs import Run, read_sources

    run = Run(trained / "out" / "small")
    kept = {path: path.read_bytes() for path in (run.provenance, run.sources)}
    texts, stored = read_sources(run), read_json(run.provenance)
    model, batches = "gptlab/model/transformer.py", "gptlab/data/batches.py"
    lines = texts[model].splitlines(keepends=True)
    texts[model] = "".join(["# gone\n", *lines[:9], "# and this\n", *lines[9:]])
    texts[batches] = texts[batches].replace("import time\n", "", 1)
    stored["sources"] |= {
        path: sha256(texts[path].encode()).hexdigest() for path in (model, batches)
    }
    with zipfile.ZipFile(run.sources, "w") as archive:
        for path, text in texts.items():
            archive.writestr(path, text)
    write_json(run.provenance, stored)
    try:
        assert main(["replay", "small", "--steps", "1"]) == 0
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    out = capsys.readouterr().out
    first = f"  {model}:1: removed `# gone` (and 1 more in this file)\n"
    assert first in out and f"  {batches}:" in out and "added `import time`" in out
    assert out.index(model) < out.index(batches)
