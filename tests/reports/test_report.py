"""The report: one file that needs nothing else and shows the run's own numbers."""

import html.parser
import json
import math
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gptlab.data.prepare_command import prepare_command
from gptlab.errors import RunError
from gptlab.options import parse_command_line
from gptlab.reports.run_report import make_report
from gptlab.reports.run_view import at, commands, shared, train_command, view_run
from gptlab.runs import Run
from gptlab.training.config import GROUPS, PresetOption, layer, read_recipe

VOID = {"meta", "br", "col", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """The elements, the attributes and the text of a page; tags that do not fit are an error."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.text += " "
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def text_of(source):
    return " ".join(Page(source).text.split())


def test_the_page_is_whole_and_needs_no_network_and_no_script(make_run):
    source = make_report([make_run().folder, make_run("other").folder])
    page = Page(source)
    assert not {"script", "img", "link", "iframe", "object", "embed"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "srcset", "data"} & names
    assert {value for name, value in page.attributes if name == "href"} == {"#words"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\(", source)
    for svg in re.findall(r"<svg.*?</svg>", source, re.DOTALL):
        ET.fromstring(svg)


def test_the_page_fits_a_phone_and_knows_the_dark(make_run):
    source = make_report([make_run().folder])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert "prefers-color-scheme: dark" in source and "color-scheme: light dark" in source
    assert source.count('class="wide"') == source.count('class="narrow"') == 1


def test_the_lowest_loss_and_what_it_beats_are_reported(make_run):
    run = make_run()
    lowest = min(r["val_loss"] for r in run.records() if "val_loss" in r)
    text = text_of(make_report([run.folder]))
    bits = lowest / math.log(2)
    assert f"Its lowest validation loss is {lowest:.3f} ({bits:.2f} bits per byte)" in text
    # 2.29 bits: unigram 4.8 and lzma 2.7 are beaten, 5-gram 2.2 is not
    assert "It beats unigram and lzma, but not yet 5-gram" in text


def test_every_part_of_a_run_is_there(make_run):
    text = text_of(make_report([make_run(typed={"seed": 9}).folder]))
    for words in (
        "Learning rate", "Tokens per second", "Gradient norm",  # curves
        "step 100", "to be 100", "to be 400",  # samples
        "seed 9 command line", "n_layer 2 config/own.py", "warmup_iters 20 a twentieth of the run",
        "the plays, 1.1 MB", "1,003,854 tokens", "char, 66 ids", "CR LF as LF: 3",  # data
        "a machine", "cpu, because there is no accelerator", "30%",  # hardware
        "python train.py --config config/own.py --seed 9",
        "python prepare.py shakespeare --tokenizer char --dataset plays",
    ):  # fmt: skip
        assert words in text, words


def test_what_a_model_wrote_cannot_become_part_of_the_page(make_run):
    sample = "</pre><script>alert(1)</script>\x00\x1b[31m&amp; step {step}"
    source = make_report([make_run(sample=sample).folder])
    assert "script" not in Page(source).tags
    assert "</pre><script>alert(1)</script>\ufffd\ufffd[31m&amp; step 100" in Page(source).text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", source)


def test_of_many_samples_a_few_are_shown_and_all_can_be_unfolded(make_run):
    source = make_report([make_run(eval_interval=20).folder])
    assert "All 20 samples" in source
    shown = source[: source.index("All 20 samples")]
    assert re.findall(r"to be (\d+)", shown) == ["20", "80", "160", "240", "320", "400"]


def test_a_run_without_samples_says_how_to_get_them(make_run):
    assert "--sample_interval" in text_of(make_report([make_run(sample="").folder]))


def test_a_run_that_broke_off_says_where_and_how_it_goes_on(make_run):
    run = make_run(done=150)
    text = text_of(make_report([run.folder]))
    assert "150 of 400 steps" in text and "interrupted" in text
    assert "--resume" in commands(view_run(run.folder))[-2][1]


def test_overfitting_is_pointed_out(make_run):
    run = make_run(done=390)
    run.append({"step": 400, "loss": 0.5, "learning_rate": 0.0, "tokens_per_second": 1.0})
    run.append({"step": 400, "val_loss": 3.0, "val_bits_per_byte": 4.3})
    assert "Overfitting since step 300" in text_of(make_report([run.folder]))


def test_a_folder_without_records_is_refused(home):
    (home / "out" / "empty").mkdir(parents=True)
    with pytest.raises(RunError, match="no records of a training"):
        make_report([home / "out" / "empty"])


@pytest.mark.parametrize("missing", ["config.py", "meta.json", "evaluations", "everything"])
def test_what_is_missing_is_left_out(make_run, home, missing):
    run = make_run()
    if missing in ("config.py", "everything"):
        run.recipe.unlink()
    if missing in ("meta.json", "everything"):
        (home / "data" / "plays" / "meta.json").unlink()
    if missing in ("evaluations", "everything"):
        lines = run.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if "val_loss" not in line]
        run.metrics.write_text("\n".join(kept) + "\n", encoding="utf-8")
    text = text_of(make_report([run.folder]))
    assert "Loss" in text
    assert ("There is no evaluation yet" in text) == (missing in ("evaluations", "everything"))
    assert ("Configuration" in text) == (missing not in ("config.py", "everything"))
    text_of(make_report([run.folder, make_run("other").folder]))


def test_samples_come_first_and_options_are_folded(make_run):
    source = make_report([make_run().folder])
    titles = re.findall(r"<h2>(.*?)</h2>", source)
    assert titles[0] == "Samples over time" and titles.index("Configuration") > 4
    tables = re.findall(r"<(/?details|table)", source[source.index("<h2>Configuration") :])
    assert tables[:2] == ["details", "table"]


def test_of_one_record_there_is_no_curve_but_its_numbers(make_run):
    text = text_of(make_report([make_run(done=1).folder]))
    assert "Too few records for a curve: training 4.2" in text
    assert "<svg" not in make_report([make_run("other", done=1).folder])


def test_what_the_wizard_or_a_program_chose_is_not_said_to_be_typed(make_run):
    for asked in ("the wizard", "a call from Python"):
        run = make_run(asked.split()[-1], typed={"seed": 9}, asked=asked)
        text = text_of(make_report([run.folder]))
        assert f"seed 9 {asked}" in text and "seed 9 command line" not in text
        assert "--config config/own.py --seed 9" in text  # which repeats the same


def test_no_page_that_is_shared_names_a_folder_of_its_author(make_run, home, tmp_path_factory):
    """Everything that a run records as an absolute path, as a home elsewhere writes it."""
    private = "/home/Anna Secret/own texts"
    meta = home / "data" / "plays" / "meta.json"
    content = json.loads(meta.read_text(encoding="utf-8"))
    text = f"{private}/diary.txt"
    file = {"path": text, "bytes": 1, "mtime_ns": 1, "sha256": "0"}
    content["source"] |= {"identity": text, "label": text, "files": [file]}
    content["options"]["tokenizer"] = f"{private}/tokenizer.json"
    meta.write_text(json.dumps(content), encoding="utf-8")
    typed = {"init_from": f"{private}/out/base", "seed": 3}
    run = make_run(typed=typed, recipe_name=f"{private}/mine.py")
    row = {"data": "/home/anna-secret/x.txt", "step": 1, "loss": 1.0, "perplexity": 2.7,
           "bits_per_byte": 1.4, "tokens": 9, "time": "today"}  # fmt: skip
    run.add_evaluation(row)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tmp_path_factory.mktemp("elsewhere"))
        pages = [make_report([run.folder]), make_report([run.folder, make_run("two").folder])]
    for page in pages:
        for word in ("Secret", "secret", "/home", str(home), "own texts"):
            assert word not in page, word
        assert "diary.txt" in page and "mine.py" in page


def test_evaluations_show_the_loss_of_the_clean_part_where_one_was_measured(make_run):
    run = make_run()
    row = {"data": "x.txt", "step": 1, "loss": 1.5, "perplexity": 4.5, "bits_per_byte": None,
           "tokens": 9}  # fmt: skip
    run.add_evaluation(row)
    assert "clean loss" not in make_report([run.folder])
    run.add_evaluation({**row, "loss": 1.25, "clean_loss": 1.375})
    run.add_evaluation({**row, "loss": 1.1, "clean_loss": "no number"})  # no line of ours
    page = make_report([run.folder])
    assert page.count("clean loss") == 2 and "no number" not in page and "1.1000" not in page
    assert "<td>1.2500</td><td>1.3750</td>" in page and "<td>1.5000</td><td></td>" in page


def test_losses_that_are_not_finite_do_not_stop_a_report(make_run):
    run = make_run(done=200)
    run.append({"step": 210, "loss": None, "grad_norm": None, "learning_rate": 1.0})
    text_of(make_report([run.folder]))


def test_a_dataset_that_changed_since_gives_no_baselines(make_run):
    run = make_run(tokens_per_byte=0.3)  # meta.json says one token a byte
    view = view_run(run.folder)
    assert view.baselines == {} and view.bits_per_nat == pytest.approx(0.3 / math.log(2))
    assert "is no longer the one" in text_of(make_report([run.folder]))


@pytest.fixture
def other_dataset(home):
    """Writes a dataset "other" beside "plays": of the same text, unless `text` names another."""

    def write(tokens=1.0, text="plays"):
        folder = home / "data" / "other"
        plays = json.loads((home / "data" / "plays" / "meta.json").read_text(encoding="utf-8"))
        plays["source"]["fingerprint"] = "plays"
        (home / "data" / "plays" / "meta.json").write_text(json.dumps(plays), encoding="utf-8")
        folder.mkdir()
        (folder / "train.bin").write_bytes(b"")
        meta = {**plays, "name": "other", "val_tokens": round(tokens * plays["val_bytes"])}
        meta["source"] = {**plays["source"], "fingerprint": text}
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        return "other"

    return write


# Several ------------------------------------------------------------------------------------------


def test_runs_of_different_vocabularies_are_compared_in_bits_per_byte(make_run, other_dataset):
    runs = [
        make_run("chars").folder,
        make_run("pieces", tokens_per_byte=0.5, dataset=other_dataset(tokens=0.5)).folder,
    ]
    source = make_report(runs)
    text = text_of(source)
    lowest = view_run(runs[1]).record.best[1] * 0.5 / math.log(2)
    assert f"pieces reached the lowest validation loss, {lowest:.3f} bits per byte" in text
    assert 'aria-label="Validation loss against tokens: bits per byte over tokens"' in source
    assert "Losses per token are comparable only" not in text
    assert "\u2605 pieces" in text and "\u2605 chars" not in text


def test_runs_on_different_texts_are_not_ranked_against_each_other(make_run, other_dataset):
    zh = other_dataset(text="another")
    runs = [make_run("en").folder, make_run("zh", dataset=zh).folder]
    text = text_of(make_report(runs))
    assert "different texts (plays, other)" in text and "only runs on the same text" in text
    assert "reached the lowest" not in text and "\u2605" not in text
    both = make_run("zh2", dataset=zh, done=300).folder  # two of three share a text
    text = text_of(make_report([*runs, both]))
    assert "zh reached the lowest validation loss on other" in text


def test_runs_whose_bytes_are_unknown_are_compared_with_a_warning(make_run):
    runs = [make_run("one"), make_run("two")]
    lines = runs[0].metrics.read_text(encoding="utf-8").splitlines()
    plain = []
    for line in map(json.loads, lines):
        line.pop("val_bits_per_byte", None)
        plain.append(json.dumps(line))
    runs[0].metrics.write_text("\n".join(plain) + "\n", encoding="utf-8")
    text = text_of(make_report([run.folder for run in runs]))
    assert "Losses per token are comparable only between runs with the same vocabulary" in text


def test_several_runs_are_told_apart_and_what_differs_is_listed(make_run):
    runs = [make_run("one").folder, make_run("two", typed={"n_layer": 4, "seed": 3}).folder]
    source = make_report(runs)
    text = text_of(source)
    assert "n_layer 2 4" in text and "seed 1337 3" in text
    assert (
        "Against tokens" in text and "Against time" in text and "seconds of training steps" in text
    )
    assert 'class="line run0"' in source and 'class="line run1"' in source


def test_runs_of_the_same_name_are_named_by_their_folder(make_run, home):
    first = make_run("one").folder
    (home / "elsewhere").mkdir()
    second = home / "elsewhere" / "one"
    make_run("two").folder.rename(second)
    text = text_of(make_report([first, second]))
    assert "elsewhere/one" in text


# Curves and commands ------------------------------------------------------------------------------


def test_tokens_and_seconds_follow_from_the_records(make_run):
    view = view_run(make_run().folder)
    assert view.tokens[-1] == (400, 400 * 8 * 64)
    tokens = 8 * 64
    expected = tokens / 10_001 + 9 * tokens / 10_010
    expected += sum(10 * tokens / (10_000 + step) for step in range(20, 401, 10))
    assert view.seconds[-1] == (400, pytest.approx(expected))
    at_100 = dict(view.curve("val_loss", "tokens"))
    assert list(at_100) == [step * tokens for step in (100, 200, 300, 400)]
    assert (
        dict(view.evaluations("seconds")).keys() == dict(view.curve("val_loss", "seconds")).keys()
    )


def test_values_between_and_beyond_the_points_of_a_table_lie_on_its_lines():
    table = [(0, 0), (10, 100), (20, 120)]
    assert [at(table, x) for x in (0, 5, 10, 15, 25)] == [0, 50, 100, 110, 130]
    assert at([(0, 7)], 3) == 7


def test_the_command_that_started_a_run_says_the_same_again(make_run, home, monkeypatch):
    (home / "config").mkdir()
    monkeypatch.chdir(home)
    typed = {"learning_rate": 2e-3, "bias": True, "sample_prompt": "to be, it's"}
    run = make_run(typed=typed)
    overrides = view_run(run.folder).recipe.overrides
    lines = [
        f"{n} = {v!r}"
        for n, v in overrides.values.items()
        if overrides.sources[n] != "command line"
    ]
    (home / "config" / "own.py").write_text("\n".join(lines), encoding="utf-8")
    words = shlex.split(train_command(view_run(run.folder)))
    assert words[:2] == ["python", "train.py"]
    config = words.index("--config")
    recipe = read_recipe(words[config + 1])
    rest = words[2:config] + words[config + 2 :]
    again = parse_command_line(
        rest, [PresetOption, *GROUPS.values()], prog="train.py", summary="", example=""
    )
    assert again.pop("out_dir") == "out/run"
    assert layer(recipe, again).values == overrides.values


def test_the_command_that_prepared_a_text_names_it():
    meta = {"name": "b", "options": {"tokenizer": "bpe", "vocab_size": 500, "val_fraction": 0.1},
            "source": {"identity": "/a/b c.txt", "files": [{"path": "/a/b c.txt"}]}}  # fmt: skip
    expected = "python prepare.py 'b c.txt' --tokenizer bpe --vocab_size 500 --dataset b"
    assert shared(prepare_command(meta)) == expected
    assert prepare_command({"source": {"identity": "hf:x/y"}}) == "python prepare.py hf:x/y"
    assert prepare_command({"source": {"identity": "/a\n/b"}}) == "python prepare.py /a /b"
    assert prepare_command({"source": {"identity": "a pipe, 12ab"}}) == ""
    assert prepare_command({}) == ""


def test_a_report_is_made_without_torch(make_run):
    """Importing torch takes seconds."""
    folder = Run(make_run().folder).folder
    code = (
        "import sys; from gptlab.reports.run_report import make_report; "
        f"make_report([{str(folder)!r}]); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# Inside over time ---------------------------------------------------------------------------------


def looked(run, scores, steps=(100, 200, 300)):
    """Records of looks inside a model of one layer; scores: of head 0.1 at each step."""
    for step, score in zip(steps, scores, strict=True):
        heads = {kind: [[0.01, score]] for kind in ("previous", "induction", "duplicate")}
        run.append({"step": step, "inside": {
            "heads": heads, "stream": [1.0, step / 100],
            "norms": {"token_embedding": 3.0, "blocks.0.attention.q_proj": step / 10},
            "ranks": {"token_embedding": 8.0, "blocks.0.attention.q_proj": None},
        }})  # fmt: skip
    return make_report([run.folder])


def test_a_head_is_found_at_the_same_place_in_the_loss_and_in_its_scores(make_run):
    source = looked(make_run(), (0.02, 0.6, 0.93))
    assert (
        "Head 0.1 is an induction head since step 200, with a score of 0.93. Head 0.1 is a "
        "previous-token head since step 200" in text_of(source)
    )
    marks = re.findall(r'"level" d="M([\d.]+) [\d.]+V[\d.]+"', source)
    assert len(marks) == 4 and marks[:2] == marks[2:]  # wide and narrow, of loss and of scores
    loss, induction = (source.index(f'aria-label="{name}') for name in ("Loss: loss", "Induction"))
    assert loss < induction
    assert ">head 0.1 found</text>" in source and "the other head" in source
    assert "blocks.0.attention.q_proj 10 30" in text_of(source)  # its norms; no rank is known


def test_where_no_head_is_found_the_page_says_so_with_the_highest_score(make_run):
    words = text_of(looked(make_run(), (0.02, 0.6, 0.04)))  # it had been one
    assert "No head is an induction head: the highest score is 0.04, of head 0.1." in words
    assert "found" not in words.partition("Inside over time")[2].partition("Each matrix")[0]


def test_one_look_or_looks_without_heads_leave_out_what_cannot_be_drawn(make_run):
    assert "Inside over time" not in make_report([make_run().folder])
    assert "with a score of 0.7" in text_of(looked(make_run("one"), [0.7], [100]))
    run = make_run("odd")
    for step in (100, 200):
        run.append({"step": step, "inside": {"norms": {"blocks.": 1.0, "blocks.0.q": 2.0}}})
    assert "Norm of a layer" in make_report([run.folder])
