"""trace as a command: what is printed, the page, what a report shows, what is refused; samples of
the same run measured by evaluate."""

import json
import re
import sys

import pytest

from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training import trainer
from gptlab.training.picture import Picture

pytestmark = pytest.mark.usefixtures("in_home")
LINE = "line {n} of this book: {n} and {m} are what it is about\n"
NASTY = "\x1b[31mred</span><script>alert(1)</script>\x07 is what this line of the book says"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with the run "small" on a book, whose line 40 would steer a terminal."""
    home = tmp_path_factory.mktemp("home")
    lines = [LINE.format(n=n, m=n * n % 977) for n in range(1, 200)]
    lines[39] = NASTY + "\n"
    (home / "book.txt").write_text("".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        patch.setattr(Picture, "draw", lambda *_: None)
        prepare("book.txt", PrepareOptions(tokenizer="char"))
        trainer.train(
            dataset="book", out_dir="out/small", n_layer=1, n_head=2, n_embd=16, block_size=32,
            dropout=0.0, batch_size=8, max_iters=4, eval_interval=2, eval_tokens=64, quiet=True,
            sample_interval=1, device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
    (home / "mine.txt").write_bytes(f"\ufeffMy own.\r\n{''.join(lines[9:11])}Mine.".encode())
    (home / "nasty.txt").write_text(f"So: {NASTY}", encoding="utf-8")
    return home


def test_a_file_is_traced_to_file_and_line_beside_what_stands_by_chance(capsys):
    assert main(["trace", "small", "--file", "mine.txt"]) == 0
    out = capsys.readouterr().out
    copied = len("\n") + len(LINE.format(n=10, m=100)) + len(LINE.format(n=11, m=121))
    size = len("My own.") + copied + len("Mine.")
    share = re.match(r"(\d+)% of mine\.txt \((\d+) characters\) stands verbatim", out)
    assert int(share[2]) == size and abs(int(share[1]) - 100 * copied / size) < 2
    assert "the training text (book, " in out and ": 1 span of 30 characters or more" in out
    assert re.search(r"By chance, \d+(\.\d)?% of \d+ pieces of validation text as long as", out)
    assert re.search(rf"^ +{copied} +book\.txt:10 +line 10 of this book", out, re.M)
    assert "\ufeff" not in out and "\x1b" not in out


def test_what_a_model_writes_is_traced_without_its_prompt(capsys):
    argv = ["trace", "--prompt", "line 10 of this book: 10 and 100 are", "--max_tokens", "40"]
    assert main([*argv, "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert re.search(r"of what out/small wrote \(\d\d characters\) stands verbatim", first)
    assert "line 10 of this book" not in first
    assert main([*argv, "--seed", "3"]) == 0
    assert capsys.readouterr().out == first


def test_nothing_steers_a_terminal_or_becomes_part_of_the_page(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["trace", "small", "--file", "nasty.txt", "--html", "page.html"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[31mred" not in out and "\x07" not in out
    assert re.search(r"\x1b\[[\d;]*m\ufffd\[31mred", out)  # in the colour of its length
    page = (trained / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert f'<span class="l1" data-where="{len(NASTY)} characters, book.txt:40"' in page
    assert str(trained) not in page


def test_a_report_has_the_longest_spans_of_its_samples_beside_chance(trained, capsys):
    assert main(["report", "small"]) == 0
    page = (trained / "out" / "small" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"\d+% of the last sample stands there in spans of 30 characters", page)
    assert re.search(r"By chance, in validation text as long: \d+%, and \d+\.", page)
    assert "python gpt.py trace out/small".replace(" ", "</span> <span>") in page
    aside = (trained / "data" / "book").rename(trained / "aside")
    try:
        assert main(["report", "small"]) == 0
    finally:
        aside.rename(trained / "data" / "book")
    page = (trained / "out" / "small" / "report.html").read_text(encoding="utf-8")
    assert "The samples were not looked up in the training text: No prepared dataset" in page


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--file", "mine.txt", "--prompt", "x"], "--prompt has no effect: leave one of the two"),
        (["--file", "mine.txt", "--device", "cpu"], "--device has no effect"),
        (["--file", "mine.txt", "--min_chars", "7"], "--min_chars is 7: it must be at least 8"),
        (["--file", "mine.txt", "--html", "out"], "out is a folder: name a file with --html"),
        (["--file", "none.txt"], "none.txt does not exist"),
        (["--file", "out/small/best.pt"], "best.pt"),
        (["--temperature", "-1"], "temperature is -1"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_sentence(argv, sentence, capsys):
    assert main(["trace", "small", *argv]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and len(err.strip().splitlines()) == 1 and not out


def test_samples_are_measured_beside_held_out_text_and_the_report_shows_it(trained, capsys):
    assert main(["report", "small", "--output", "page.html"]) == 0
    recorded = (trained / "page.html").read_text(encoding="utf-8")
    assert "Of the last sample and" in recorded and "known words" in recorded
    assert "different words" not in recorded  # recorded samples share their random numbers
    capsys.readouterr()
    words = ["evaluate", "small", "--samples", "3", "--max_tokens", "60", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    held_out = {each["name"]: each["held_out"] for each in found["measures"]}
    assert held_out["known words"] > 0 and held_out["verbatim"] is not None
    assert found["compared_texts"] == 3
    assert main([*words]) == 0
    assert found["verdict"] in " ".join(capsys.readouterr().out.split())
    assert main(["report", "small", "--output", "page.html"]) == 0
    page = (trained / "page.html").read_text(encoding="utf-8")
    assert "Measured on 3 samples of at most 60 tokens at step 4" in page
    assert "different words" in page
    (trained / "out" / "small" / "evaluations.jsonl").unlink()
