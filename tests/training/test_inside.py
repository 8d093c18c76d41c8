"""lens_interval: what a run records of the model's inside, and that the run is the same without."""

import json
import math

import numpy as np
import pytest
import torch

from gptlab.model.arithmetic import Trained
from gptlab.model.lora import merge_adapters, train_only
from gptlab.runs import Run
from gptlab.training import inside

TIMING = ("time", "tokens_per_second", "mfu", "data_share")


def records_of(folder):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in Run(folder).records()]


def looks_of(folder):
    return {r["step"]: r["inside"] for r in Run(folder).records() if "inside" in r}


def weights_of(folder):
    state = Run(folder).load()
    return state["model"] | {f"averaged {name}": w for name, w in state["ema"].items()}


def test_looks_change_nothing_in_the_run(train, tmp_path):
    settings = dict(eval_interval=5, dropout=0.1, ema_decay=0.9, log_interval=3)
    train("without", **settings)
    train("with", lens_interval=3, **settings)
    assert list(looks_of(tmp_path / "with")) == [3, 6, 9, 12, 15, 18, 20]  # and at the end
    others = [record for record in records_of(tmp_path / "with") if "inside" not in record]
    assert others == records_of(tmp_path / "without")
    before, after = (weights_of(tmp_path / name) for name in ("without", "with"))
    assert all(torch.equal(before[name], after[name]) for name in [*before, *after])


def test_a_resumed_run_records_the_same_looks_once(train, tmp_path):
    settings = dict(eval_interval=5, lens_interval=2)
    train("whole", **settings)
    with pytest.raises(ZeroDivisionError):
        train("broken", die_at=9, **settings)  # after the look of step 8, before a checkpoint
    train("broken", resume=True)
    assert records_of(tmp_path / "broken") == records_of(tmp_path / "whole")


def test_a_look_has_a_score_of_each_head_a_norm_of_each_matrix_and_of_the_stream(train, tmp_path):
    train(n_layer=2, n_head=4, n_kv_head=2, intermediate_size=0, lens_interval=10)
    looks = looks_of(tmp_path / "run")
    for look in looks.values():
        assert {kind: np.shape(table) for kind, table in look["heads"].items()} == dict.fromkeys(
            ("previous", "induction", "duplicate"), (2, 4)
        )
        assert len(look["stream"]) == 3
        attention = [f"blocks.{n}.attention.{p}_proj" for n in (0, 1) for p in "qkvo"]
        assert list(look["norms"]) == list(look["ranks"]) == ["token_embedding", *attention]
    assert looks[10] != looks[20]


def test_norms_and_ranks_are_those_of_the_singular_values(random_model):
    model = random_model(tie_weights=False, intermediate_size=0)
    with torch.no_grad():
        torch.nn.init.orthogonal_(model.blocks[0].attention.q_proj.weight)  # 32 equal ones
        model.blocks[0].attention.k_proj.weight.copy_(torch.ones(32, 32))  # a single one
        model.blocks[0].attention.v_proj.weight.zero_()
    found = inside.norms_and_ranks(model)
    q, k, v, o = (f"blocks.0.attention.{letter}_proj" for letter in "qkvo")
    assert found["ranks"][q] == 32 and found["norms"][q] == pytest.approx(math.sqrt(32), rel=1e-3)
    assert found["ranks"][k] == 1 and found["norms"][k] == 32
    assert found["ranks"][v] == found["norms"][v] == 0
    for name, weight in (
        (o, model.blocks[0].attention.o_proj.weight),
        ("lm_head", model.lm_head.weight),
    ):
        values = np.linalg.svd(weight.detach().numpy(), compute_uv=False)
        shares = values / values.sum()
        assert found["ranks"][name] == pytest.approx(
            math.prod(share**-share for share in shares), rel=1e-3
        )
        assert found["norms"][name] == pytest.approx(math.sqrt(sum(values**2)), rel=1e-3)


def test_an_adapter_counts_with_the_matrix_beside_it(random_model):
    model = random_model()
    train_only(model, Trained(lora_rank=2, lora_targets=("q_proj", "down_proj")), alpha=4.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                weight.normal_()
    adapted = inside.norms_and_ranks(model)
    merge_adapters(model)
    assert adapted == inside.norms_and_ranks(model)


def test_weights_that_are_not_finite_are_null(random_model):
    model = random_model()
    with torch.no_grad():
        model.token_embedding.weight[0, 0] = math.nan
    found = inside.norms_and_ranks(model) | inside.heads_and_stream(model, range(37), [0, 1, 2])
    assert found["norms"]["token_embedding"] is found["ranks"]["token_embedding"] is None
    assert found["stream"] == [None, None, None]
    json.dumps(found, allow_nan=False)


def test_a_window_too_short_for_scores_leaves_the_rest(random_model, caplog):
    found = inside.heads_and_stream(random_model(block_size=3), range(37), [0, 1, 2])
    assert "heads" not in found and len(found["stream"]) == 3
    assert "window of four tokens" in caplog.text


def test_the_time_left_counts_the_looks_to_come(train, tmp_path, monkeypatch):
    """A look takes 60 s; every 4 steps: after step 10 of 20 there are three to come."""
    from gptlab.training.metrics import Metrics

    left = {}
    shown = Metrics._show

    def show(metrics, step, loss):
        without = metrics.seconds_left(step)
        metrics.looks[:] = [60.0, 60.0]
        left[step] = metrics.seconds_left(step) - without
        metrics.looks.clear()
        shown(metrics, step, loss)

    monkeypatch.setattr(Metrics, "_show", show)
    train(lens_interval=4)
    assert left[10] == pytest.approx(180)
    assert left[20] == 0


def test_adapters_beside_a_trained_model_are_looked_at_and_trained_the_same(train, tmp_path):
    train("base", max_iters=4)
    settings = dict(init_from=str(tmp_path / "base"), max_iters=4, lora_rank=2, learning_rate=1e-2)
    train("without", **settings)
    train("with", lens_interval=2, **settings)
    looks = looks_of(tmp_path / "with")
    assert not [name for name in looks[4]["norms"] if "lora" in name]
    q = "blocks.0.attention.q_proj"
    assert looks[2]["norms"][q] != looks[4]["norms"][q]
    before, after = (Run(tmp_path / name).load()["model"] for name in ("without", "with"))
    assert all(torch.equal(before[name], after[name]) for name in before)
