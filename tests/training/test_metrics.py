"""What a run says and records: honest units, honest rates, and nothing from other processes."""

import io
import json
import math
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from gptlab.model.arithmetic import flops_per_token
from gptlab.runs import Run
from gptlab.training import metrics as module
from gptlab.training.config import build
from gptlab.training.loop import StepResult
from gptlab.training.messages import closing_words
from gptlab.training.metrics import Metrics
from gptlab.training.parallel import Parallel
from gptlab.training.units import TextUnits, duration

META = {
    "val_tokens": 1000,
    "val_bytes": 4000,
    "baselines": {"lzma": 2.0, "unigram": 4.0, "5gram": 1.5, "train_tokens_used": 9000},
}
CONFIG = build(dict(
    batch_size=2, block_size=10, n_layer=1, n_head=1, n_embd=8, vocab_size=11, max_iters=100,
    log_interval=1, eval_interval=10, eval_tokens=60,
))  # fmt: skip


class Clock:
    """time.perf_counter of a machine on which one step takes a second."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def make(tmp_path, clock):
    def make(peak=None, first=True, config=CONFIG):
        parallel = Parallel.alone("cpu")
        parallel.is_first = first
        metrics = Metrics(config, Run(tmp_path), TextUnits(META), parallel=parallel, peak=peak)
        metrics.begin(0)
        return metrics

    return make


def step(metrics, number, loss=2.0, reading=0.0):
    state = SimpleNamespace(step=number, sequences_seen=2 * number, skipped_steps=0)
    metrics.step(state, StepResult(loss, 1.0, 0.0, 0.1), reading)


def records(tmp_path):
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[1:]]  # after the line of the version


def test_a_loss_in_nats_per_token_becomes_bits_per_byte_of_text():
    units = TextUnits(META)
    assert units.bits_per_byte(4 * math.log(2)) == pytest.approx(1.0)  # 4 bytes a token, 4 bits
    assert units.levels() == pytest.approx(
        {"5-gram": 6 * math.log(2), "lzma": 8 * math.log(2), "unigram": 16 * math.log(2)}
    )


@pytest.mark.parametrize("meta", [None, {}, {"val_tokens": 3}, {"val_tokens": 3, "val_bytes": 0}])
def test_without_the_sizes_of_the_text_there_are_no_bits_per_byte(meta):
    assert TextUnits(meta).bits_per_byte(1.0) is None and TextUnits(meta).levels() == {}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_shown_in_readable_units(seconds, words):
    assert duration(seconds) == words


def test_a_record_has_the_rate_of_the_steps_since_the_last_and_no_time_of_evaluations(
    make, clock, tmp_path
):
    metrics = make()
    clock.now = 1.0
    step(metrics, 1)
    with metrics.paused():
        clock.now += 100.0  # an evaluation
    clock.now += 2.0
    step(metrics, 2, reading=0.5)
    first, second = records(tmp_path)
    assert first["tokens_per_second"] == 20.0
    assert second["tokens_per_second"] == 10.0 and second["data_share"] == 0.25
    assert second["bits_per_byte"] == pytest.approx(2.0 / math.log(2) / 4)


def test_the_time_left_has_the_evaluations_and_checkpoints_to_come(make, clock):
    metrics = make()
    clock.now = 1.0
    step(metrics, 1)
    metrics.save_seconds = 4.0
    assert metrics.seconds_left(1) == pytest.approx(99 + 10 * (1 + 4))
    with metrics.paused():
        clock.now += 30.0  # as long as one really takes
    assert metrics.seconds_left(10) == pytest.approx(90 + 9 * 30)
    assert metrics.seconds_left(100) == 0


def test_only_log_steps_and_the_first_are_recorded(make, clock, tmp_path):
    metrics = make(config=CONFIG.replace(log_interval=4))
    for number in range(1, 11):
        clock.now += 1.0
        step(metrics, number)
    assert [record["step"] for record in records(tmp_path)] == [1, 4, 8]
    assert [record["tokens_per_second"] for record in records(tmp_path)] == [20.0, 20.0, 20.0]


def test_mfu_is_a_share_of_the_peak_and_a_faster_step_raises_the_peak(make, clock, tmp_path):
    flops = 20 * flops_per_token(CONFIG.model)  # of a step
    metrics = make(peak=2 * flops)
    for number, seconds in enumerate((1.0, 0.25, 1.0), start=1):
        clock.now += seconds
        step(metrics, number)
    assert [record["mfu"] for record in records(tmp_path)] == [0.5, 1.0, 0.25]


def test_without_a_known_peak_no_mfu_is_claimed(make, clock, tmp_path, capsys):
    metrics = make()
    clock.now = 1.0
    step(metrics, 1)
    assert "mfu" not in records(tmp_path)[0] and "mfu" not in capsys.readouterr().out


def test_in_a_pipe_there_are_plain_lines_now_and_then_and_no_bar(make, clock, capsys):
    metrics = make(peak=1e9)
    for number in range(1, 21):
        clock.now += 1.0
        step(metrics, number)
    metrics.close()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "step 1/100",
        "step 7/100",
        "step 13/100",
        "step 19/100",
    ]
    # 93 steps, and 10 evaluations of the tokens of 3 steps, forward only: 1 s each
    assert lines[1].startswith("step 7/100: loss 2.0000, 1 min 43 s left, 20 tokens/s, mfu")
    assert err == "" and "\x1b" not in out and "\r" not in out


def test_an_evaluation_is_shown_in_one_unit_without_the_baselines(make, capsys, tmp_path):
    metrics = make()
    metrics.evaluation(10, 2.0, 1.5, True)
    line = capsys.readouterr().out
    assert line == "step 10: validation loss 2.0000, averaged weights 1.5000, the lowest so far\n"
    assert records(tmp_path)[0] == {
        "step": 10,
        "val_loss": 2.0,
        "val_bits_per_byte": pytest.approx(0.7213, abs=1e-4),
        "ema_val_loss": 1.5,
    }


@pytest.mark.parametrize("width", [40, 60, 80])
def test_every_line_fits_the_window_and_breaks_between_words(
    make, clock, capsys, monkeypatch, width
):
    """Words, numbers and wide characters; a command stays in one line, to be copied."""
    monkeypatch.setenv("COLUMNS", str(width))
    metrics = make(peak=1e9, config=CONFIG.replace(max_iters=200_000))
    clock.now = 9.0
    step(metrics, 100_000)
    metrics.evaluation(100_000, 2.0, 1.5, True, "the cat sat on the mat " * 9 + "天气很好" * 30)
    sentence = "Stopping early: 3 evaluations since step 40 brought no lower validation loss. " * 2
    command = "  python train.py --out_dir out/" + "long_name_" * 8
    metrics.say(sentence)
    metrics.say(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == command
    assert max(map(cell_len, lines)) <= width
    assert " ".join(" ".join(lines).split()).endswith(sentence.strip())
    assert lines[0].startswith("step 100000/200000: loss 2.0000")
    sample = [line for line in lines if line.startswith("  | ")]
    assert "".join(line[4:] for line in sample).count("天气很好") == 30


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_never_cuts_a_number(make, clock, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", shown)
    metrics = make(peak=1e12, config=CONFIG.replace(max_iters=200_000))
    metrics.val_loss = 12.345
    clock.now = 0.001
    step(metrics, 1, loss=12.3456)
    metrics.close()
    bars = [bar for bar in shown.getvalue().split("\r") if "loss" in bar]
    assert bars and max(len(bar.rstrip()) for bar in bars) < width
    parts = ["loss 12.346", "val 12.345", "20,000 tokens/s", "mfu 0%"]
    number = {60: 1, 80: 2, 120: 4}[width]
    assert bars[-1].rstrip().endswith("left, " + ", ".join(parts[:number]))


def test_other_processes_print_and_write_nothing(make, clock, capsys, tmp_path):
    metrics = make(first=False)
    clock.now = 1.0
    step(metrics, 1)
    metrics.evaluation(1, 2.0, None, True)
    metrics.say("words")
    assert capsys.readouterr() == ("", "") and not (tmp_path / "metrics.jsonl").exists()


def test_closing_words_compare_the_loss_with_the_baselines(make, tmp_path):
    def closing(best_step, best_loss):
        setup = SimpleNamespace(
            config=CONFIG, run=Run(tmp_path), units=TextUnits(META),
            data=SimpleNamespace(tokenizer=object(), parts=(), example_prompt=""),
        )  # fmt: skip
        state = SimpleNamespace(best_step=best_step, best_val_loss=best_loss, step=100)
        return " ".join(closing_words(setup, state, make()))

    nats = math.log(2) * 4
    words = closing(90, 1.8 * nats)
    assert "Lowest validation loss 4.9907 at step 90." in words
    assert "beats the unigram (11.090) and lzma (5.545), but not yet the 5-gram (4.159)." in words
    assert "That is 1.800 bits per byte" in words and words.count("bits") == 1
    assert "overfitted" not in words
    assert "does not beat the unigram (11.090), lzma (5.545) or" in closing(90, 5 * nats)
    assert "After step 50 the model overfitted" in closing(50, 1.0)


def test_at_a_terminal_other_words_name_the_next_command(make, tmp_path, monkeypatch):
    """`gptlab.cli` shows its own, so that there is one list of next commands."""
    setup = SimpleNamespace(
        config=CONFIG, run=Run(tmp_path), units=TextUnits(META),
        data=SimpleNamespace(tokenizer=object(), parts=(), example_prompt=""),
    )  # fmt: skip
    state = SimpleNamespace(best_step=90, best_val_loss=2.0, step=100)
    assert closing_words(setup, state, make())[-1].startswith("Next: python sample.py")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "Next" not in " ".join(closing_words(setup, state, make()))
