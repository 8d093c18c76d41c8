"""`python gpt.py scaling`: ladders, refusals, kills, budgets and checks.

Most tests put a law and noise in the place of a training, because a real ladder takes minutes.
"""

import json
import math
import signal
import zlib

import numpy as np
import pytest
from matplotlib.image import imread

from gptlab.analysis import scaling_fit, scaling_sizes
from gptlab.analysis.scaling import Ladder
from gptlab.cli.main import main
from gptlab.files import write_json
from gptlab.runs import Run
from gptlab.training.config import read_recipe
from gptlab.training.metrics import Metrics

TOKENS = 4_300_000


def write_tokens(home, name, tokens):
    """A dataset of random ids of 76 characters."""
    folder = home / "data" / name
    folder.mkdir(parents=True)
    ids = np.random.default_rng(0).integers(76, size=tokens).astype("<u2")
    ids.tofile(folder / "train.bin")
    ids[:2000].tofile(folder / "val.bin")
    meta = {
        "format_version": 1, "name": name, "dtype": "uint16", "vocab_size": 76,
        "train_tokens": tokens, "val_tokens": 2000, "sha256": {}, "fingerprint": name * 8,
    }  # fmt: skip
    write_json(folder / "meta.json", meta)


def loss_of(point, best=30, noise=2e-3):
    """The loss of a world in which a parameter wants `best` tokens."""
    ratio = 300.0 * best**0.4  # so that A / N^0.4 = B / D^0.4 there
    chance = np.random.default_rng(zlib.crc32(point.key.encode())).standard_normal()
    exact = 0.9 + 300 * point.size.parameters**-0.4 / 8 + ratio * point.tokens**-0.4 / 8
    return exact * math.exp(noise * chance)


@pytest.fixture
def here(here, monkeypatch):
    """A home with the dataset plays, and speeds that are the same on any machine."""
    data = here / "data"
    target = data.resolve()
    data.unlink()
    data.mkdir()
    for folder in target.iterdir():
        (data / folder.name).symlink_to(folder, target_is_directory=True)
    write_tokens(here, "plays", TOKENS)
    monkeypatch.setattr(scaling_fit, "REFITS", 60)
    monkeypatch.setattr(Ladder, "_time_steps", lambda ladder: [(6e4, 1e10), (4e6, 1e10)])
    return here


@pytest.fixture
def trained(here, monkeypatch):
    """The keys of the points that were trained, by a formula."""
    found = []

    def train(ladder, point, shows_bar):
        found.append(point.key)
        speed = 1e10 / point.size.flops
        return {"loss": loss_of(point), "tokens_per_second": speed}

    monkeypatch.setattr(Ladder, "_trained", train)
    return found


def scale(*words):
    return main(["scaling", *words])


def result(capsys, *words):
    assert scale(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


# Ladders ------------------------------------------------------------------------------------------


def test_a_ladder_finds_the_law_that_made_its_losses(here, trained, capsys):
    found = result(capsys)
    for level in range(3):
        points = [p for p in found["points"] if p["level"] == level]
        assert len({p["parameters"] for p in points}) >= 4
        for point in points:
            assert point["flops"] == pytest.approx(points[0]["flops"], rel=0.01)
            assert point["tokens"] <= 4 * TOKENS
        losses = [loss for _, loss in sorted((p["parameters"], p["loss"]) for p in points)]
        assert min(losses) < losses[0] and min(losses) < losses[-1]
    for name, truth in (("a", 0.4), ("b", 0.4), ("E", 0.9), ("power", 0.5)):
        _, low, high = found["law"]["parameters"][name]
        assert low <= truth <= high
    assert found["law"]["non_embedding"]["a"][0] != found["law"]["parameters"]["a"][0]
    # the seeds of the lowest level's best size show the noise
    assert sum(p["seed"] != 1337 for p in found["points"]) == 2
    assert 2e-4 < found["noise"]["between_seeds"] < 8e-3
    assert imread(here / found["picture"]).shape == (624, 1080, 4)


@pytest.mark.parametrize("best", [8, 60])
def test_levels_follow_the_best_size_wherever_it_is(here, capsys, monkeypatch, best):
    def train(ladder, point, shows_bar):
        return {"loss": loss_of(point, best), "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    found = result(capsys, "--minutes", "20")
    top = [p for p in found["points"] if p["level"] == 2]
    lowest = min(top, key=lambda p: p["loss"])
    assert best / 3 < lowest["tokens"] / lowest["parameters"] < best * 3


def test_the_screen_fits_60_columns_and_says_what_to_do_next(here, trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert scale() == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(" ")]
    assert all(len(line) <= 60 for line in rows) and sum("lowest" in line for line in rows) == 3
    assert "With 10 times the compute, the best model has 3." in out
    assert out.rstrip().splitlines()[-1].startswith("Next: python gpt.py scaling --for_minutes ")


def test_every_point_has_as_many_seeds_as_asked(here, trained, capsys):
    found = result(capsys, "--seeds", "3")
    points = {}
    for point in found["points"]:
        points.setdefault((point["parameters"], point["steps"]), set()).add(point["seed"])
    assert set(map(len, points.values())) == {3}


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--minutes", "0"], "minutes is 0: it must be above 0"),
        (["--for_minutes", "-1"], "for_minutes is -1: it must be above 0"),
        (["--seeds", "0"], "seeds is 0: it must be at least 1"),
        (["--minutes", "0.5"], "0.5 minutes are too short for a ladder on this machine: the "),
        (["--dataset", "tiny"], "has 3,600 tokens, and a ladder needs "),
        (["--dataset", "none"], "none"),
        (["--dataset", "tiny,other"], "name one of them"),
    ],
)
def test_what_gives_no_ladder_is_refused_in_a_sentence(here, trained, capsys, words, sentence):
    assert scale(*words) == 2
    assert sentence in capsys.readouterr().err
    assert not (here / "out").exists() and not trained


def test_what_a_refusal_advises_works(here, trained, capsys):
    assert scale("--minutes", "0.5") == 2
    minutes = capsys.readouterr().err.split("--minutes ")[1].split(".")[0]
    assert scale("--minutes", minutes) == 0
    assert scale("--for_minutes", "0.01") == 2
    assert "no model takes enough steps: ask for more --for_minutes" in capsys.readouterr().err
    assert scale("--for_minutes", "8") == 0
    assert scale("--dataset", "tiny") == 2
    assert "name a longer text with --dataset" in capsys.readouterr().err
    assert scale("--dataset", "plays") == 0
    words = ["--minutes", "50", "--out_dir"]
    assert scale(*words, "out/scaling/plays") == 2
    assert "holds another ladder: choose another --out_dir" in capsys.readouterr().err
    assert scale(*words, "out/longer") == 0


def test_a_ladder_whose_lowest_loss_lies_at_an_end_is_refused(here, capsys, monkeypatch):
    def train(ladder, point, shows_bar):  # below 1e12 FLOPs a larger model is always better
        loss = 3.0 - 1e-7 * point.size.parameters if point.flops < 1e12 else loss_of(point)
        return {"loss": loss, "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    assert scale() == 2
    err = capsys.readouterr().err
    assert "The ladder is too short" in err and "largest model" in err
    assert "give it more --minutes" in err
    assert scale("--minutes", "120") == 0


def test_a_text_that_is_too_short_for_a_higher_level_gets_a_lower_one(here, capsys, monkeypatch):
    def train(ladder, point, shows_bar):
        return {"loss": loss_of(point, 100), "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    first, second, third = ({p["flops"] for p in result(capsys, "--minutes", "60")["points"]
                             if p["level"] == level} for level in range(3))  # fmt: skip
    assert max(third) < min(first) / 2 < max(second)


def test_a_text_that_is_too_short_for_any_further_level_is_refused(here, capsys, monkeypatch):
    def train(ladder, point, shows_bar):
        return {"loss": loss_of(point, 400), "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    write_tokens(here, "short", 1_000_000)
    assert scale("--dataset", "short") == 2
    err = capsys.readouterr().err
    assert "has 1,000,000 tokens, and a ladder needs " in err or "is too short" in err


# Kills --------------------------------------------------------------------------------------------


def test_ctrl_c_loses_nothing_and_no_point_is_counted_twice(here, trained, capsys, monkeypatch):
    by_formula = Ladder._trained

    def stopped(ladder, point, shows_bar):
        return None if len(trained) == 5 else by_formula(ladder, point, shows_bar)

    with monkeypatch.context() as patch:
        patch.setattr(Ladder, "_trained", stopped)
        assert scale("--minutes", "20") == 130
    assert "gpt.py scaling --minutes 20 continues" in capsys.readouterr().err
    path = here / "out" / "scaling" / "plays" / "points.jsonl"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 5
    path.write_text(text + text.splitlines()[0] + "\n" + '{"point": "cut sh', encoding="utf-8")
    found = result(capsys)  # the ladder that is there goes on
    assert len(trained) == len(set(trained)) == len(found["points"])
    assert result(capsys, "--minutes", "20") == found
    assert len(trained) == len(found["points"])


def test_another_time_or_another_text_gets_another_folder(here, trained, capsys):
    write_tokens(here, "novels", TOKENS)
    assert scale("--minutes", "20") == scale("--minutes", "40") == 0
    assert scale("--dataset", "novels") == 0
    folders = {path.name for path in (here / "out" / "scaling").iterdir()}
    assert folders == {"plays", "plays-2", "novels"}


def test_a_point_that_diverges_is_named_and_left_out(here, capsys, monkeypatch):
    def train(ladder, point, shows_bar):
        if point.level == 1 and point.size.parameters > 3e5:
            return {"diverged": "the loss is nan"}
        return {"loss": loss_of(point), "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    assert scale("--minutes", "60") == 0
    assert "Diverged and left out: " in capsys.readouterr().out


# Budgets and checks -------------------------------------------------------------------------------


def test_the_best_model_for_a_time_is_a_recipe_that_takes_this_time(here, trained, capsys):
    found = result(capsys, "--for_minutes", "8")["best"]
    recipe = read_recipe(here / found["recipe"])
    assert recipe["max_iters"] == found["options"]["max_iters"] and recipe["dataset"] == "plays"
    size = next(s for s in Ladder(here / "x", "plays", 1).sizes
                if s.config.model.n_embd == recipe["n_embd"])  # fmt: skip
    tokens = recipe["max_iters"] * 8 * 128
    assert 400 < tokens * size.flops / 1e10 < 480  # of 480 seconds, at 1e10 FLOP/s
    assert found["guess"] == "" and found["loss"][1] < found["loss"][0] < found["loss"][2]
    assert main(["train", "--config", found["recipe"], "--max_iters", "2", "--quiet"]) == 0
    parameters, smallest, largest = found["parameters"]
    assert smallest <= parameters <= largest
    # no other size of this time is better in the world that made the losses
    exact = {}
    for other in Ladder(here / "x", "plays", 1).sizes:
        steps = 1 + int(recipe["max_iters"] * size.flops / other.flops)
        exact[other.parameters] = loss_of(scaling_sizes.Point(other, steps, 0, 0), noise=0.0)
    assert exact[parameters] < min(exact.values()) + 0.01


def test_what_lies_beyond_four_times_the_compute_is_called_a_guess(here, trained, capsys):
    assert "a guess: it takes" not in scale_out(capsys, "--for_minutes", "8")
    assert "That is a guess: it takes" in scale_out(capsys, "--for_minutes", "600")


def scale_out(capsys, *words):
    assert scale(*words) == 0
    return capsys.readouterr().out


def test_a_check_that_follows_the_law_is_inside_and_is_trained_once(here, trained, capsys):
    found = result(capsys, "--check")["check"]
    assert found["is_inside"] and found["predicted"]["low"] < found["loss"]
    largest = max(p["flops"] for p in result(capsys)["points"])
    assert found["flops"] == pytest.approx(2 * largest, rel=0.01)
    assert trained.count(found["point"]) == 1
    out = scale_out(capsys, "--check")
    assert "The check at the end takes about " in out
    assert "inside the 95% interval" in out and trained.count(found["point"]) == 1
    assert out.rstrip().endswith(f"gpt.py report out/scaling/plays/{found['point']}")


def test_a_check_that_misses_the_law_is_reported(here, capsys, monkeypatch):
    def train(ladder, point, shows_bar):
        worse = 0.1 if point.level is None else 0.0
        return {"loss": loss_of(point) + worse, "tokens_per_second": 1e10 / point.size.flops}

    monkeypatch.setattr(Ladder, "_trained", train)
    out = scale_out(capsys, "--check")
    assert "outside, by +0." in out and "The law does not hold that far" in out


# Real trainings -----------------------------------------------------------------------------------


@pytest.fixture
def short_points(monkeypatch):
    """Points of a few steps, in milliseconds."""
    monkeypatch.setattr(scaling_sizes, "BLOCK_SIZE", 16)
    monkeypatch.setattr(scaling_sizes, "SEQUENCES", 2)


def test_a_point_is_an_ordinary_run_and_a_stopped_one_goes_on(
    here, short_points, capsys, monkeypatch
):
    ladder = Ladder(here / "out" / "scaling" / "plays", "plays", 30)
    ladder.folder.mkdir(parents=True)
    point = scaling_sizes.Point(ladder.sizes[0], 40, 1337, 0)
    recorded, stopped = Metrics.step, []

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 20 and not stopped:
            stopped.append(state.step)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", step)
        assert not ladder.train(point)
    assert ladder.lines() == []
    assert ladder.train(point)
    (line,) = ladder.lines()
    run = Run(ladder.folder / point.key)
    assert run.load()["step"] == line["steps"] == 40
    assert line["tokens"] == 40 * 2 * 16 and line["tokens_per_second"] > 0
    # 16 wide, 2 layers: attention 4 x 16^2, SwiGLU 3 x 16 x 32, 5 norms, and 4 of queries and keys
    assert line["non_embedding"] == 2 * (4 * 256 + 3 * 512) + 5 * 16 + 4 * 8
    assert line["parameters"] == line["non_embedding"] + 2 * 76 * 16
    whole = Ladder(here / "whole", "plays", 30)
    whole.folder.mkdir()
    assert whole.train(point) and whole.lines()[0]["loss"] == line["loss"]
    assert main(["doctor", str(run.folder)]) in (0, 1)
    assert main(["report", str(run.folder)]) == 0
