"""What a run records about its first steps: complete, exact, cheap, and true after a resume."""

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gptlab
from gptlab.checkpoints import read_checkpoint
from gptlab.errors import RunError
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, read_sources
from gptlab.training import provenance
from gptlab.training.config import START_OPTIONS, build
from gptlab.training.metrics import Metrics
from gptlab.training.provenance import Trace, digests, read_provenance, read_trace

PACKAGE = Path(gptlab.__file__).parent


def trace_of(folder):
    return read_trace(Run(folder))


def steps_of(folder):
    return [record["step"] for record in trace_of(folder)]


# What is written ----------------------------------------------------------------------------------


def test_the_code_that_decides_the_numbers_is_kept_with_its_hashes(train, tmp_path):
    train(max_iters=1)
    run = Run(tmp_path / "run")
    texts, hashes = read_sources(run), read_provenance(run)["sources"]
    assert {"gptlab/model/transformer.py", "gptlab/data/batches.py"} < set(texts)
    assert {"gptlab/training/loop.py", "gptlab/inference/evaluate.py"} < set(texts)
    for path, text in texts.items():
        assert (PACKAGE.parent / path).read_text(encoding="utf-8") == text
        assert hashes[path] == hashlib.sha256(text.encode()).hexdigest()
    assert run.sources.stat().st_size < 300_000


def test_every_option_is_written_as_it_was_resolved(train, tmp_path):
    train(max_iters=3, n_head=2, gradient_accumulation_steps=2)
    stored = read_provenance(Run(tmp_path / "run"))["settings"]
    resolved = read_checkpoint(tmp_path / "run" / "ckpt.pt")["train_config"]["resolved"]
    for name, value in resolved.items():
        if name not in START_OPTIONS | {"minutes", "parallelism", "collective_timeout"}:
            assert stored[name] == value, name
    assert stored["max_iters"] == 3 and "out_dir" not in stored


def test_the_conditions_and_the_data_are_named(train, tmp_path, prepared_home):
    train(max_iters=1)
    stored = read_provenance(Run(tmp_path / "run"))
    assert stored["format_version"] == 1
    assert stored["conditions"]["torch"] == torch.__version__
    assert stored["conditions"]["threads"] == torch.get_num_threads()
    assert stored["conditions"]["CPU capability"] == torch.backends.cpu.get_cpu_capability()
    content = (prepared_home / "data" / "tiny" / "train.bin").read_bytes()
    assert stored["data"]["train.bin"] == hashlib.sha256(content).hexdigest()


def test_the_trace_has_each_of_the_first_fifty_steps_and_its_numbers_are_exact(train, tmp_path):
    train(max_iters=55)
    trace, records = trace_of(tmp_path / "run"), Run(tmp_path / "run").records()
    assert steps_of(tmp_path / "run") == list(range(51))
    recorded = {r["step"]: r for r in records if "grad_norm" in r}  # at every step
    for record in trace[1:]:
        for name in ("loss", "grad_norm"):
            assert float.fromhex(record[name]) == recorded[record["step"]][name]
    assert [r["step"] for r in trace if "weights" in r] == [0, 1, 2, 5, 10, 20, 50]


def test_the_digests_are_of_the_weights_after_the_step(train, tmp_path):
    train(max_iters=5)
    content = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    trace = trace_of(tmp_path / "run")
    assert set(trace[5]["weights"]) == set(content["model"])
    for name, weight in content["model"].items():
        expected = hashlib.sha256(weight.numpy().tobytes()).hexdigest()[:16]
        assert trace[5]["weights"][name] == expected
    assert trace[5]["weights"] != trace[2]["weights"]


def test_a_large_model_is_digested_by_evenly_spread_values(monkeypatch):
    model = GPT(GPTConfig(vocab_size=50, n_layer=1, n_head=2, n_kv_head=2, n_embd=16))
    total = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(provenance, "DIGESTED_VALUES", -(-total // 10))
    before = digests(model)
    weight = model.token_embedding.weight
    expected = weight.detach().numpy().ravel()[::10].tobytes()
    assert before["token_embedding.weight"] == hashlib.sha256(expected).hexdigest()[:16]
    with torch.no_grad():
        weight.view(-1)[10] += 1
    after = digests(model)
    assert [name for name in before if before[name] != after[name]] == ["token_embedding.weight"]


class OnDevice:
    """A number on an accelerator; reading it waits for the device."""

    reads = 0

    def __float__(self):
        OnDevice.reads += 1
        return 1.5


RESULT = SimpleNamespace(loss=OnDevice(), grad_norm=OnDevice())


def after(step):
    """The state after a step of four sequences."""
    return SimpleNamespace(step=step, sequences_seen=4 * step, model=torch.nn.Linear(1, 1))


def test_numbers_are_read_from_the_device_at_log_interval_only(tmp_path):
    config = build({"log_interval": 10, "batch_size": 4})
    setup = SimpleNamespace(config=config)
    trace = Trace()
    trace.run, trace.last = Run(tmp_path), 50
    reads = []
    for step in range(1, 26):
        trace.step(setup, after(step), RESULT)
        reads.append(OnDevice.reads)
    assert reads[8] == 0 and reads[9] == reads[18] == 20 and reads[19] == reads[24] == 40
    trace.flush()
    assert steps_of(tmp_path) == list(range(1, 26))


def test_a_trace_that_has_not_begun_and_one_that_is_over_keep_nothing(tmp_path):
    trace = Trace()
    trace.step(None, after(1), RESULT)
    trace.flush()
    trace.last = 2
    trace.step(None, after(3), RESULT)
    assert trace.unread == []


def test_the_trace_ends_where_a_roll_back_skipped_text(train, tmp_path, monkeypatch):
    recorded = Metrics.step

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 7:  # as if the text of two steps had been left out
            state.sequences_seen += 2 * metrics.config.sequences_per_step

    monkeypatch.setattr(Metrics, "step", step)
    train(max_iters=12)
    assert steps_of(tmp_path / "run") == list(range(7))


# Resumes ------------------------------------------------------------------------------------------


def test_a_stopped_and_resumed_run_has_the_trace_of_the_unbroken_one(train, tmp_path):
    settings = dict(max_iters=30, eval_interval=10, log_interval=7, dropout=0.1)
    train("whole", **settings)
    train("broken", stop_at=14, **settings)
    assert steps_of(tmp_path / "broken") == list(range(15))
    train("broken", resume=True)
    assert trace_of(tmp_path / "broken") == trace_of(tmp_path / "whole")


def test_a_kill_after_the_newest_checkpoint_leaves_each_step_once(train, tmp_path):
    settings = dict(max_iters=16, eval_interval=5)
    train("whole", **settings)
    with pytest.raises(ZeroDivisionError):
        train("broken", die_at=8, **settings)
    assert steps_of(tmp_path / "broken")[-1] > 5
    train("broken", resume=True)
    assert trace_of(tmp_path / "broken") == trace_of(tmp_path / "whole")


def test_no_checkpoint_is_ahead_of_the_trace(train, tmp_path):
    with pytest.raises(ZeroDivisionError):  # numbers are due at step 100 only
        train(max_iters=16, eval_interval=5, log_interval=100, die_at=8)
    assert steps_of(tmp_path / "run") == list(range(6))


def test_the_trace_ends_where_a_resume_changed_an_option(train, tmp_path):
    train(max_iters=30, eval_interval=10, stop_at=10)
    train(resume=True, batch_size=2)
    assert steps_of(tmp_path / "run") == list(range(11))
    assert read_provenance(Run(tmp_path / "run"))["settings"]["batch_size"] == 4


def test_the_trace_ends_where_a_resume_has_other_threads(train, tmp_path):
    train(max_iters=20, stop_at=10)
    torch.set_num_threads(2)
    train(resume=True)
    assert steps_of(tmp_path / "run") == list(range(11))


def test_a_run_that_has_lost_its_provenance_goes_on_without_a_trace(train, tmp_path):
    train(max_iters=20, stop_at=10)
    (tmp_path / "run" / "provenance.json").unlink()
    assert train(resume=True).step == 20
    (tmp_path / "run" / "trace.jsonl").unlink()
    assert train(resume=True, max_iters=25).step == 25
    assert not (tmp_path / "run" / "trace.jsonl").exists()


def test_a_new_run_in_the_folder_writes_everything_again(train, tmp_path):
    train(max_iters=8)
    train(max_iters=4, overwrite=True, seed=5)
    assert steps_of(tmp_path / "run") == list(range(5))
    assert read_provenance(Run(tmp_path / "run"))["settings"]["seed"] == 5


# Reading ------------------------------------------------------------------------------------------


def test_a_missing_damaged_or_newer_provenance_is_one_sentence(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RunError, match=r"no provenance\.json.*train again"):
        read_provenance(run)
    run.provenance.write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        read_provenance(run)
    run.provenance.write_text(json.dumps({"format_version": 2}))
    with pytest.raises(RunError, match="format version 2"):
        read_provenance(run)


def test_lost_sources_are_no_sources(tmp_path):
    run = Run(tmp_path)
    assert read_sources(run) == {}
    run.sources.write_bytes(b"PK nothing")
    assert read_sources(run) == {}
    with zipfile.ZipFile(run.sources, "w") as archive:
        archive.writestr("a.py", "x = 1\n")
    assert read_sources(run) == {"a.py": "x = 1\n"}


def test_paths_do_not_depend_on_the_working_directory(train, tmp_path, monkeypatch):
    train("first", max_iters=1)
    monkeypatch.chdir(tmp_path)
    train("second", max_iters=1, init_from="first")
    stored = read_provenance(Run(tmp_path / "second"))
    assert stored["settings"]["init_from"] == str(tmp_path / "first")
    assert stored["settings"]["dataset"] == "tiny"


@pytest.mark.parametrize("part", ["conditions", "data", "settings", "sources"])
def test_a_provenance_that_lacks_a_part_is_damaged(train, tmp_path, part):
    train(max_iters=1)
    run = Run(tmp_path / "run")
    content = json.loads(run.provenance.read_text())
    run.provenance.write_text(json.dumps({**content, part: []}))
    with pytest.raises(RunError, match=r"provenance\.json is damaged"):
        read_provenance(run)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1}',
        '{"step": 1, "loss": 2.0, "grad_norm": "0x1p0"}',
        '{"step": 1, "loss": "0x1p0", "grad_norm": "much"}',
        '{"step": 0, "weights": 5}',
        '{"step": "1"}',
        "[1]",
        '{"step": 1, "l',
    ],
)
def test_an_incomplete_line_of_the_trace_is_left_out(tmp_path, line):
    whole = '{"step": 2, "loss": "0x1p0", "grad_norm": "0x1p0"}'
    Run(tmp_path).trace.write_text(f"{line}\n{whole}\n")
    assert steps_of(tmp_path) == [2]
