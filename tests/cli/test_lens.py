"""lens as a command: its screens, its page and JSON, the tuned lens it keeps, what it refuses."""

import json
import os
import re
import sys

import pytest

from gptlab.analysis import tuned_lens
from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training import trainer
from gptlab.training.picture import Picture

pytestmark = pytest.mark.usefixtures("in_home")
NASTY = "\x1b]0;t\x07\u202e"  # sets a terminal's title, rings, turns the text around


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with the run "small" of two layers on a small text."""
    home = tmp_path_factory.mktemp("home")
    (home / "book.txt").write_text(("to be, or not to be\n" * 20 + NASTY) * 10, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        patch.setattr(Picture, "draw", lambda *_: None)
        prepare("book.txt", PrepareOptions(tokenizer="char"))
        trainer.train(
            dataset="book", out_dir="out/small", n_layer=2, n_head=2, n_embd=16, block_size=16,
            dropout=0.0, batch_size=4, max_iters=2, eval_interval=2, eval_tokens=64, quiet=True,
            device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
    return home


def lens(*argv):
    return main(["lens", "small", "--prompt", "to be", *argv])


@pytest.mark.parametrize("columns", [None, 60])
def test_the_screen_shows_every_view_in_its_width_and_names_the_page(
    trained, capsys, monkeypatch, columns
):
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    assert lens("--ablate", "1.0,mlp0") == 0
    out = capsys.readouterr().out
    *screen, last = out.splitlines()
    assert max(map(len, screen)) <= (columns or 80) and "\x1b" not in out
    for title in ("say at each layer", "each head looks", "Who votes", "prediction needs",
                  "known job", "surprises the model", "alike to the model"):  # fmt: skip
        assert title in out
    flat = " ".join(out.split())
    assert "tokens of the validation text" in flat
    assert re.search(r"1\.0, mlp0 +\d+\.\d{3} +[+-]\d+\.\d{3}", out)
    assert "none found; the most is 0." in flat
    assert re.fullmatch(r"Wrote .*small.lens\.html \(.* kB\): open it in a browser; .*\.", last)
    page = (trained / "out" / "small" / "lens.html").read_text(encoding="utf-8")
    assert "to be" in page and "What surprises the model" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_one_view_is_shown_whole_and_alone(trained, capsys):
    (trained / "out" / "small" / "lens.html").unlink(missing_ok=True)
    assert lens("--view", "ablation") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^ (\d\.\d|mlp\d) ", out, re.M)) == 6 and "Who votes" not in out
    assert "Wrote" not in out and not (trained / "out" / "small" / "lens.html").exists()


def test_json_is_the_views_alone_and_the_page_can_be_had_beside_it(trained, capsys):
    assert lens("--json", "--view", "surprise", "--html", "mine.html") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert list(made["views"]) == ["surprise"] and len(made["views"]["surprise"]["nats"]) == 5
    assert "Wrote mine.html" in err and (trained / "mine.html").exists()


def test_position_and_target_choose_what_is_explained(capsys):
    assert lens("--view", "contributions", "--position", "1", "--target", "e", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["position"] == 1 and made["texts"][str(made["target"])] == "e"


def test_the_tuned_lens_is_trained_once_and_kept(trained, capsys, monkeypatch):
    for name, value in dict(STEPS=3, SEQUENCES=1, HELD_OUT=2).items():
        monkeypatch.setattr(tuned_lens, name, value)
    assert lens("--tuned", "--view", "lens") == 0
    out, err = capsys.readouterr()
    assert "the tuned lens (Belrose et al. 2023) after" in out
    assert re.search(r"wrote .*tuned_lens\.safetensors\): trained on 48 tokens", err)
    assert lens("--tuned", "--view", "lens") == 0
    assert capsys.readouterr()[1].startswith("Tuned lens (from ")


def test_a_run_whose_text_is_gone_shows_all_but_the_tuned_lens(trained, capsys):
    data = trained / "data" / "book"
    os.rename(data, trained / "aside")
    try:
        assert lens("--view", "ablation") == 0
        flat = " ".join(capsys.readouterr().out.split())
        assert "the 5 tokens of the prompt (there is no validation text)" in flat
        (trained / "out" / "small" / "tuned_lens.safetensors").unlink(missing_ok=True)
        assert lens("--tuned") == 2
        err = capsys.readouterr().err
        assert "--tuned trains on the run's validation text" in err and "leave --tuned out" in err
    finally:
        os.rename(trained / "aside", data)


def test_no_token_steers_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["lens", "small", "--prompt", f"to {NASTY}"]) == 0
    out = capsys.readouterr().out
    assert "\x1b]" not in out and "\x07" not in out and "\u202e" not in out
    assert "\x1b[" in out and r"'\x1b'" in out and r"'\u202e'" in out


@pytest.mark.parametrize(("argv", "words"), [
    (["small"], "lens looks at a prompt"),
    (["small", "--prompt", ""], "The prompt is empty"),
    (["small", "--prompt", "to be " * 3], "18 tokens and the model's window is 16"),
    (["small", "--prompt", "to é"], "The character 'é'"),
    (["small", "--prompt", "to", "--ablate", "3.1"], "This model has no 3.1"),
    (["small", "--prompt", "to", "--ablate", "head"], "'head' names no head and no MLP"),
    (["small", "--prompt", "to", "--view", "lens", "--ablate", "0.0"], "nothing of --ablate"),
    (["small", "--prompt", "to", "--view", "heads", "--tuned"], "nothing of --tuned"),
    (["small", "--prompt", "to", "--html", "."], "is a folder"),
    (["small", "--prompt", "to", "--html", "book.txt"], "another file, which is not replaced"),
    (["smal", "--prompt", "to"], "No model found at 'smal'"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_sentence(capsys, argv, words):
    assert main(["lens", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
