"""A run directory: whole files at every instant, one owner, and nothing foreign is executed."""

import errno
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch

from gptlab import files, runs
from gptlab.checkpoints import content_sha256, model_content, read_checkpoint, write_checkpoint
from gptlab.errors import CheckpointError, RunError
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint, newest_run


@pytest.fixture
def model():
    return GPT(GPTConfig(vocab_size=11, n_layer=1, n_head=2, n_embd=8, block_size=8, dropout=0.0))


@pytest.fixture
def state(model):
    """A function: the training state of a step, as small as one can be."""
    return lambda step: model_content(model, None, step=step, optimizer={}, val_loss=2.0 / step)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.begin()
    yield run
    run.end()


# Writing ------------------------------------------------------------------------------------------


class Faults:
    """Lets the n-th of the calls that write, sync, link or rename fail, all others work."""

    def __init__(self, patch, number, fault, partial=False):
        self.left, self.fault, self.partial = number, fault, partial
        self.failed_in = None
        patch.setattr(files, "open", self.open, raising=False)
        for name in ("fsync", "replace", "link", "unlink"):
            patch.setattr(os, name, self.failing(name, getattr(os, name)))

    def count(self, name):
        self.left -= 1
        if self.left == 0:
            self.failed_in = name
            return True
        return False

    def error(self, *names):
        return OSError(self.fault, os.strerror(self.fault), *names)

    def failing(self, name, function):
        def call(*args, **options):
            if self.count(name):
                raise self.error(*(str(a) for a in args[:1] if not isinstance(a, int)))
            return function(*args, **options)

        return call

    def open(self, *args, **options):
        file = open(*args, **options)
        faults, write = self, file.write

        class Proxy:
            def write(self, data):
                if faults.count("write"):
                    if faults.partial:
                        write(bytes(data)[: len(data) // 2])
                    raise faults.error()
                return write(data)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

        return Proxy()


@pytest.mark.parametrize(
    ("fault", "partial", "keep"),
    [(errno.ENOSPC, False, 0), (errno.EIO, False, 2), (errno.ENOSPC, True, 0)],
)
def test_whichever_call_of_a_save_fails_the_newest_checkpoint_is_the_old_one_or_the_new_one(
    tmp_path, state, monkeypatch, fault, partial, keep
):
    failed_in = []
    for number in range(1, 1000):
        run = Run(tmp_path / f"run{number}")
        run.folder.mkdir()
        run.save(state(1), keep)
        run.save(state(2), keep)
        with monkeypatch.context() as patch:
            faults = Faults(patch, number, fault, partial)
            try:
                run.save(state(3), keep)
                saved = True
            except OSError as error:
                saved = False
                assert error.errno == fault and error.filename
        newest = run.load()["step"]
        assert newest == 3 if saved else newest in (2, 3)
        assert read_checkpoint(run.previous)["step"] in (1, 2)
        if faults.failed_in != "unlink":
            assert list(run.folder.glob(".*.tmp")) == []
        if faults.failed_in is None:
            break
        failed_in.append(faults.failed_in)
    assert failed_in.count("write") > 3 and {"fsync", "replace", "link"} <= set(failed_in)


def test_the_checkpoint_before_the_newest_is_kept(run, state):
    for step in (1, 2, 3):
        run.save(state(step))
    assert read_checkpoint(run.checkpoint)["step"] == 3
    assert read_checkpoint(run.previous)["step"] == 2


def test_a_save_after_a_kill_between_both_names_leaves_no_stray_file(run, state):
    run.save(state(1))
    os.link(run.checkpoint, run.previous)  # the kill came before the new state had its name
    run.save(state(2))
    assert read_checkpoint(run.previous)["step"] == 1
    assert list(run.folder.glob(".*.tmp")) == []


def test_a_file_system_without_hard_links_keeps_both_checkpoints_too(run, state, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(runs.os, "link", refuse)
    for step in (1, 2, 3):
        run.save(state(step))
    assert read_checkpoint(run.checkpoint)["step"] == 3
    assert read_checkpoint(run.previous)["step"] == 2


def test_files_of_a_run_hold_tensors_and_plain_types_only(run, state):
    run.save(state(1))
    assert torch.load(run.checkpoint, weights_only=True)["format_version"] == 3


# Owning -------------------------------------------------------------------------------------------


def test_a_directory_has_one_owner_at_a_time(run, tmp_path):
    second = Run(tmp_path / "run")
    with pytest.raises(
        RunError, match=rf"Another process is training in .*run \(process {os.getpid()} on "
    ):
        second.begin()
    run.end()
    second.begin()
    second.end()


def test_a_live_process_keeps_its_directory_and_a_killed_one_frees_it(tmp_path):
    code = "import sys; from gptlab.runs import Run; run = Run(sys.argv[1]); run.begin();"
    owner = subprocess.Popen(
        [sys.executable, "-c", code + "print('mine', flush=True); sys.stdin.read()", tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match="Another process is training"):
            Run(tmp_path).begin(overwrite=True)
    finally:
        owner.kill()
        owner.communicate()
    freed = Run(tmp_path)
    freed.begin()
    freed.end()


def test_a_new_start_over_a_run_is_refused_and_overwrite_forgets_all_of_it(run, state):
    run.save(state(1))
    run.append({"step": 1, "loss": 1.0})
    run.end()
    with pytest.raises(RunError, match=r"--resume.*--out_dir.*--overwrite"):
        run.begin()
    run.end()
    run.begin(overwrite=True)
    assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_records_of_a_run_that_died_before_its_first_checkpoint_do_not_mix_with_the_next(run):
    run.append({"step": 1, "loss": 1.0})
    run.end()
    run.begin()
    assert run.records() == []


def test_a_resume_clears_away_what_a_kill_left_half_written_and_nothing_else(run, state):
    run.save(state(1))
    run.append({"step": 1, "loss": 1.0})
    half = run.folder / ".ckpt.pt.4321.tmp"
    half.write_bytes(b"half")
    run.end()
    run.begin(resume=True)
    assert not half.exists() and run.load()["step"] == 1 and len(run.records()) == 1


# Records ------------------------------------------------------------------------------------------


def test_a_record_cut_short_by_a_kill_is_left_out(run):
    run.append({"step": 1, "loss": 1.0})
    run.append({"step": 2, "loss": 0.5})
    with open(run.metrics, "ab") as file:
        file.truncate(run.metrics.stat().st_size - 5)
    assert run.records() == [{"step": 1, "loss": 1.0}]
    run.cut(1)
    run.append({"step": 2, "loss": 0.25})
    assert [record["loss"] for record in run.records()] == [1.0, 0.25]


def test_cutting_keeps_the_step_of_the_checkpoint_without_its_evaluation(run):
    for record in ({"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "val_loss": 2}):
        run.append(record)
    run.append({"step": 3, "loss": 1})
    assert run.was_evaluated(2) and not run.was_evaluated(1)
    run.cut(2)
    assert run.records() == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}]


def test_a_loss_that_is_not_a_number_is_null_which_any_reader_of_json_takes(run):
    run.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    line = run.metrics.read_text(encoding="utf-8").splitlines()[1]
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
    }


@pytest.mark.parametrize(
    "odd",
    ["5", '{"loss": 1.0}', '{"step": 2.0}', '{"step": -1}', '{"step": true}',
     *(f'{{"step": 2, "loss": {value}}}'
       for value in ('"1"', "true", "[1]", "NaN", "1e400", 1 << 63)),
     '{"step": 2, "sequences_seen": "8"}', '{"step": 2, "sample": null}'],
)  # fmt: skip
def test_a_line_of_metrics_that_no_run_writes_is_left_out(run, odd):
    whole = [{"step": 1, "loss": 1, "val_loss": None, "sample": "a", "later": {"x": [1]}}]
    run.metrics.write_text(f"{odd}\n{json.dumps(whole[0])}\n", encoding="utf-8")
    assert run.records() == whole


TEXT_RESULT = {
    "step": 0, "time": "now", "data": "a.txt", "loss": 1.5, "perplexity": 1e30,
    "bits_per_byte": 2, "tokens": 9, "stride": 64,
}  # fmt: skip
TASKS_RESULT = {"step": 0, "time": "now", "data": "arc", "tasks": {"arc": {"acc": 1, "err": 0.5}}}


@pytest.mark.parametrize(
    "odd",
    [
        *({**TEXT_RESULT, name: value} for name in ("loss", "perplexity", "bits_per_byte", "tokens")
          for value in (None, "1", True, float("nan"))
          if (name, value) != ("bits_per_byte", None)),  # of a text whose bytes are not known
        *({**TASKS_RESULT, "tasks": tasks} for tasks in ([], {"arc": 1}, {"arc": {"acc": None}})),
        *({**TASKS_RESULT, name: value} for name in ("time", "data") for value in (None, 5)),
        {"time": "now", "data": "arc", "tasks": {}},
    ],
)  # fmt: skip
def test_a_line_of_evaluations_that_is_no_result_is_left_out(run, odd):
    for result in (odd, TEXT_RESULT, TASKS_RESULT):
        run.add_evaluation(result)
    assert run.evaluated() == [TEXT_RESULT, TASKS_RESULT]


def test_records_of_a_newer_format_are_refused_by_their_version(run):
    run.append({"step": 1, "loss": 1.0})
    content = run.metrics.read_text(encoding="utf-8")
    assert content.startswith('{"format_version": 1}\n')
    run.metrics.write_text(content.replace("1}", "7}", 1), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl is a metrics of format version 7"):
        run.records()


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "noise"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    run, state, caplog, damage
):
    run.save(state(1))
    run.save(state(2))
    content = run.checkpoint.read_bytes()
    if damage == "missing":
        run.checkpoint.unlink()
    else:
        run.checkpoint.write_bytes(
            {"truncated": content[:-100], "empty": b"", "noise": b"noise" * 99}[damage]
        )
    assert run.load()["step"] == 1
    assert "ckpt.pt" in caplog.text and "ckpt.prev.pt at step 1 instead" in caplog.text


def test_a_fallback_says_how_many_steps_it_costs(run, state, caplog):
    run.save(state(10))
    run.save(state(20))
    run.append({"step": 23, "loss": 1.0})
    run.checkpoint.write_bytes(b"")
    assert run.load()["step"] == 10
    assert "at step 10 instead, which costs 13 steps." in caplog.text


def test_a_truncated_only_checkpoint_is_a_sentence(run, state):
    run.save(state(1))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ckpt\.pt is damaged"):
        run.load()


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(run, state):
    run.save(state(1))
    content, whole = run.checkpoint.read_bytes(), read_checkpoint(run.checkpoint)
    places = range(0, len(content), 37)
    noticed = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1
        run.best.write_bytes(bytes(damaged))
        try:
            found = read_checkpoint(run.best)
        except CheckpointError:
            noticed += 1
        else:  # in the padding, or in what the archive says twice
            assert content_sha256(found) == content_sha256(whole)
    assert noticed > len(places) / 2
    weights = whole["model"]["token_embedding.weight"].numpy().tobytes()
    damaged = bytearray(content)
    damaged[content.index(weights) + 10] ^= 1
    run.best.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match="damaged: its SHA-256 does not fit"):
        read_checkpoint(run.best)


def test_the_hash_is_that_of_names_types_and_bytes():
    one = {"a": torch.arange(4.0), "b": [1, "x", None], "c": {"d": torch.tensor(2.5)}}
    same = {"a": torch.arange(8.0)[:4], "b": [1, "x", None], "c": {"d": torch.tensor(2.5)}}
    assert content_sha256(one) == content_sha256(same | {"sha256": "anything"})
    others = [
        one | {"a": torch.arange(4)}, one | {"a": torch.arange(4.0).reshape(2, 2)},
        one | {"a": torch.tensor([0.0, 1, 2, 3.0000002])}, one | {"b": [1, "x"]},
        one | {"b": [True, "x", None]}, one | {"c": {"e": torch.tensor(2.5)}}, {"a": one["a"]},
    ]  # fmt: skip
    assert len({content_sha256(each) for each in [one, *others]}) == 8


def test_the_last_checkpoints_are_kept_under_the_numbers_of_their_steps(run, state):
    for step in (5, 10, 15):
        run.save(state(step), keep=2)
    kept = run.kept_checkpoints()
    assert [path.name for path in kept] == ["ckpt.step00000010.pt", "ckpt.step00000015.pt"]
    assert [read_checkpoint(path)["step"] for path in kept] == [10, 15]
    run.save(state(20))
    assert run.kept_checkpoints() == []


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["ckpt.pt", "best.pt"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_would_run_a_command_is_refused_and_not_executed(tmp_path, name, form):
    path, trace = tmp_path / name, tmp_path / "executed"
    content = {"model": {}, "model_config": {}, "format_version": 1, "x": Exploit(trace)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=f"{name}.*(refused|damaged)"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"format_version": None}, "not a checkpoint of gptlab"),
        ({"model": None}, "not a checkpoint of gptlab"),
        ({"model_config": {"n_layer": 1, "colour": 3}}, "settings that this model cannot have"),
        ({"model_config": {"n_head": 3, "n_embd": 8}}, "settings that this model cannot have"),
        ({"model": {}}, r"no such tensor"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_what_is_wrong_with_it(run, state, change, sentence):
    write_checkpoint(state(1) | change, run.checkpoint)
    with pytest.raises(CheckpointError, match=rf"ckpt\.pt.*{sentence}"):
        load_checkpoint(run.checkpoint)


def test_a_file_that_is_no_dict_is_not_a_checkpoint(run):
    torch.save([1, 2], run.checkpoint)
    with pytest.raises(CheckpointError, match="not a checkpoint of gptlab"):
        load_checkpoint(run.checkpoint)


def test_weights_alone_cannot_be_continued_and_the_sentence_says_what_can_be_done(run, model):
    write_checkpoint(model_content(model, None), run.checkpoint)
    with pytest.raises(CheckpointError, match=r"--init_from .*ckpt\.pt"):
        run.load()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_compile_and_ddp_are_removed(run, model, state, prefix):
    content = state(1)
    content["model"] = {prefix + name: value for name, value in content["model"].items()}
    write_checkpoint(content, run.checkpoint)
    loaded = load_checkpoint(run.checkpoint).model
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_compiled_model_is_written_under_plain_names(model):
    for block in model.blocks:
        block.compile(backend="eager")
    assert model_content(model, None)["model"].keys() == model.state_dict().keys() - {
        "lm_head.weight"
    }
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_tied_weights_are_stored_once_and_tied_again(run, state):
    run.save(state(1))
    stored = read_checkpoint(run.checkpoint)["model"]
    assert "lm_head.weight" not in stored
    loaded = load_checkpoint(run.folder).model
    assert loaded.lm_head.weight is loaded.token_embedding.weight


def test_a_loaded_model_computes_what_the_saved_one_did(run, state, model):
    run.save(state(1))
    ids = torch.arange(8)[None]
    assert torch.equal(load_checkpoint(run.folder).model(ids)[0], model.eval()(ids)[0])


@pytest.mark.parametrize("encoding", ["rope", "learned", "sinusoidal"])
def test_a_shorter_window_than_the_stored_one_works_and_a_longer_is_refused(tmp_path, encoding):
    settings = dict(vocab_size=11, n_layer=1, n_head=2, n_embd=8, position_encoding=encoding)
    model = GPT(GPTConfig(**settings, block_size=8, dropout=0.0)).eval()
    path = tmp_path / "best.pt"
    write_checkpoint(model_content(model, None), path)
    ids = torch.arange(5)[None]
    shorter = load_checkpoint(path, block_size=5).model
    assert shorter.config.block_size == 5
    torch.testing.assert_close(shorter(ids)[0], model(ids)[0])
    with pytest.raises(CheckpointError, match="block_size 8, and 9 is longer"):
        load_checkpoint(path, block_size=9)


def test_a_run_is_read_from_best_pt_else_from_the_newest_state(run, state):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        load_checkpoint(run.folder)
    run.save(state(4))
    assert load_checkpoint(run.folder).step == 4
    run.save_best(state(2))
    best = load_checkpoint(run.folder)
    assert (best.step, best.val_loss, best.path.name) == (2, 1.0, "best.pt")
    assert not best.model.training


def test_a_missing_checkpoint_or_run_is_a_sentence(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nothing\.pt: train a model"):
        load_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(RunError, match=r"no run to resume in .*run: leave --resume out"):
        run.load()


def test_the_newest_run_is_the_one_written_to_last(tmp_path, monkeypatch, state):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    with pytest.raises(RunError, match="no trained model"):
        newest_run()
    for time, name in enumerate(("first", "second", "third")):
        run = Run(tmp_path / "out" / name)
        run.begin()
        run.save(state(1))
        run.end()
        os.utime(run.checkpoint, (time, time))
    (tmp_path / "out" / "empty").mkdir()
    assert newest_run().name == "third"
    os.utime(tmp_path / "out" / "first" / "ckpt.pt", (9, 9))
    assert newest_run().name == "first"
