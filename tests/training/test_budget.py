"""A budget in minutes is kept, and what was decided to keep it is repeated."""

import itertools
import time

import pytest

from gptlab.analysis.replay import replay
from gptlab.checkpoints import read_checkpoint
from gptlab.runs import Run
from gptlab.training import budget, loop, measuring, picture
from gptlab.training.config import build
from gptlab.training.schedules import Stretch, learning_rate

IMPORTING, EVALUATING, SAVING, LOADING, DRAWING, LEAVING = 2.0, 0.4, 0.1, 1.5, 0.3, 0.5

pytestmark = pytest.mark.usefixtures("pictures")  # drawn by the machine below


class Machine:
    """A clock in place of the system's, which moves on by what work takes on this machine.

    step: seconds of a step, by the seconds since the start.
    """

    def __init__(self, monkeypatch, step):
        self.now, self.step = 1000.0, step
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        for module in (loop, measuring):
            self.delay(monkeypatch, module, "train_step", lambda: self.step(self.now - 1000))
        self.delay(monkeypatch, loop, "evaluate", lambda: EVALUATING)
        self.delay(monkeypatch, Run, "save", lambda: SAVING)
        monkeypatch.setattr(picture, "load_library", lambda: self.work(LOADING))
        monkeypatch.setattr(picture, "plot_loss", lambda *_, **__: self.work(DRAWING))

    def work(self, seconds):
        """Take so long."""
        self.now += seconds

    def delay(self, monkeypatch, owner, name, seconds):
        work = getattr(owner, name)

        def delayed(*arguments, **named):
            self.work(seconds())
            return work(*arguments, **named)

        monkeypatch.setattr(owner, name, delayed)

    def start(self, train, *arguments, **options):
        """(the outcome of a training that starts now, the seconds that it took)."""
        started = self.now
        self.now += IMPORTING
        outcome = train(*arguments, started=started, **options)
        return outcome, self.now + LEAVING - started


MINUTES = dict(max_iters=None, minutes=1)
SPEEDS = {
    "halves": lambda seconds: 0.25 if seconds < 30 else 0.5,
    "doubles": lambda seconds: 0.5 if seconds < 30 else 0.25,
    "is slow at the start only": lambda seconds: 0.6 if seconds < 6 else 0.3,
    "is asleep for a moment": lambda seconds: 5.0 if 20 < seconds < 20.4 else 0.3,
}


def moves_of(folder):
    return [r for r in Run(folder).records() if "planned" in r]


def rates_of(folder):
    return [r["learning_rate"] for r in Run(folder).records() if "loss" in r]


@pytest.mark.parametrize(
    "name, schedule", list(zip(SPEEDS, ("wsd", "cosine", "wsd", "cosine"), strict=True))
)
def test_a_budget_is_kept_within_3_percent_and_the_rate_has_no_jump(
    train, tmp_path, monkeypatch, capsys, name, schedule
):
    machine = Machine(monkeypatch, SPEEDS[name])
    outcome, took = machine.start(train, **MINUTES, schedule=schedule, min_lr=0.0, quiet=False)
    assert took == pytest.approx(60, rel=0.03)
    run = Run(tmp_path / "run")
    assert run.was_evaluated(outcome.step)  # the last step too
    moves = {move["step"]: move["planned"] for move in moves_of(run.folder)}
    plans = list(moves.values())
    first = plans[0]["schedule"]
    assert outcome.step == plans[-1]["end"]
    assert outcome.step > 1.1 * first or name not in ("doubles", "is slow at the start only")
    assert outcome.step < 0.9 * first or name not in ("halves", "is asleep for a moment")
    assert "The run ends at step" in capsys.readouterr().out
    rates = rates_of(run.folder)
    falls = [0.0, *(one - other for one, other in itertools.pairwise(rates))]
    planned = (
        1e-3 * (2 if schedule == "cosine" else 5) / first
    )  # the steepest fall as first planned
    for step in moves:
        if 10 < step < len(rates):  # the first rate after the move, and the last one before
            assert falls[step] == pytest.approx(falls[step - 1], rel=0.1, abs=planned / 4)
    assert rates[-1] < 2e-4  # of 1e-3: the last move may cut some steps


def test_a_stretch_leads_from_where_the_schedule_stands_to_its_end():
    config = build(dict(max_iters=100, warmup_iters=4, lr_decay_iters=100, min_lr=0.0))
    stretch = Stretch(step=40, position=40.0, end=60, planned=100)
    assert learning_rate(config, stretch.at(40)) == learning_rate(config, 40)
    assert stretch.at(50) == 70.0 and stretch.at(60) == stretch.at(61) == 100.0
    later = Stretch(step=50, position=stretch.at(50), end=110, planned=100)
    assert later.at(50) == 70.0 and later.at(80) == 85.0
    assert Stretch(step=50, position=70.0, end=50, planned=100).at(50) == 100.0


def test_times_before_a_resume_count_and_those_between_do_not(train, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, SPEEDS["halves"])
    _, first = machine.start(train, **MINUTES, stop_at=70)
    spent = read_checkpoint(tmp_path / "run" / "ckpt.pt")["spent"]
    assert spent == pytest.approx(first, abs=1)
    machine.now += 5000
    machine.step = SPEEDS["doubles"]
    outcome, second = machine.start(train, resume=True)
    assert first + second == pytest.approx(60, rel=0.03)
    assert Run(tmp_path / "run").was_evaluated(outcome.step)


def test_a_resume_repeats_what_was_decided_to_the_bit(train, tmp_path, monkeypatch):
    """The second run dies after its end was moved; then nothing moves the end again."""
    machine = Machine(monkeypatch, SPEEDS["halves"])
    plan = budget.steps_that_fit
    monkeypatch.setattr(
        budget, "steps_that_fit", lambda c, step, t: plan(c, step, t) if step < 80 else 125
    )
    options = dict(**MINUTES, eval_interval=20)
    machine.start(train, "whole", **options)
    machine.now = 1000.0
    with pytest.raises(ZeroDivisionError):
        machine.start(train, "broken", die_at=105, **options)
    stored = read_checkpoint(tmp_path / "broken" / "ckpt.pt")
    assert stored["stretch"] is not None and stored["decided"]["max_iters"] == 125
    machine.start(train, "broken", resume=True)
    ends = {name: read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "broken")}
    one, other = ends["whole"], ends["broken"]
    assert one["step"] == other["step"] == 125 and one["stretch"] == other["stretch"]
    assert all(weight.equal(other["model"][name]) for name, weight in one["model"].items())
    assert rates_of(tmp_path / "whole") == rates_of(tmp_path / "broken")


def test_a_replay_repeats_an_end_that_moved_within_its_steps(train, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, lambda seconds: 2.0 if seconds < 20 else 6.0)
    machine.start(train, **MINUTES)
    assert any(0 < move["step"] < 40 for move in moves_of(tmp_path / "run"))
    assert replay(tmp_path / "run", 50).difference is None
    records = Run(tmp_path / "run").records
    monkeypatch.setattr(Run, "records", lambda run: [r for r in records() if "planned" not in r])
    assert replay(tmp_path / "run", 50).difference is not None


def test_steps_that_are_set_are_taken_and_end_the_budget(train, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, SPEEDS["halves"])
    assert machine.start(train, "set", max_iters=30)[0].step == 30
    assert moves_of(tmp_path / "set") == []
    assert read_checkpoint(tmp_path / "set" / "ckpt.pt")["spent"] is None
    machine.start(train, **MINUTES, stop_at=90)
    moved = len(moves_of(tmp_path / "run"))
    assert machine.start(train, resume=True, max_iters=160)[0].step == 160
    assert len(moves_of(tmp_path / "run")) == moved > 0
    config = read_checkpoint(tmp_path / "run" / "ckpt.pt")["train_config"]["resolved"]
    assert config["max_iters"] == config["lr_decay_iters"] == 160


def test_a_schedule_that_is_set_keeps_its_end(train, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, SPEEDS["halves"])
    machine.start(train, **MINUTES, lr_decay_iters=60)
    assert {move["planned"]["schedule"] for move in moves_of(tmp_path / "run")} == {None}
    assert rates_of(tmp_path / "run")[60] == pytest.approx(1e-4)


def test_an_anneal_starts_from_where_a_moved_schedule_stands(train, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, SPEEDS["is slow at the start only"])
    machine.start(train, **MINUTES, schedule="wsd", stop_at=90)
    moves = moves_of(tmp_path / "run")
    assert moves[0]["planned"]["schedule"] < 90 < moves[-1]["planned"]["end"]
    assert machine.start(train, resume=True, anneal=10)[0].step == 100
    rates = rates_of(tmp_path / "run")
    assert rates[89] == rates[90] == 1e-3 and rates[-1] == pytest.approx(1e-4 + 9e-5)
