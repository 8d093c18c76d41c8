"""A task is trained on, stopped, resumed, measured, and asked, as a text is."""

import json

import numpy as np
import pytest
import torch

from gptlab import hardware
from gptlab.analysis.blame import blame
from gptlab.analysis.evaluation import evaluate_dataset
from gptlab.analysis.trace import training_data
from gptlab.checkpoints import read_checkpoint
from gptlab.cli.main import run_command
from gptlab.data.mixture import open_mixture, open_part
from gptlab.errors import ConfigError, DataError
from gptlab.inference.answers import right_answers
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.reports.run_report import make_report
from gptlab.runs import Run, load_checkpoint
from gptlab.training import trainer
from gptlab.training.picture import Picture

TASK = "task:addition:digits=1:test_digits=2"
SUMS = dict(
    dataset=TASK, block_size=9, batch_size=16, max_iters=150, eval_interval=50, learning_rate=1e-2,
    warmup_iters=2, eval_tokens=1000,
)  # fmt: skip
TIMING = ("time", "tokens_per_second", "mfu", "data_share")


def records_of(folder):
    return [
        {name: value for name, value in record.items() if name not in TIMING}
        for record in Run(folder).records()
    ]


SMALL = dict(
    n_layer=2, n_head=2, n_embd=16, dropout=0.0, log_interval=1, quiet=True, device="cpu",
    dtype="float32", compile_model=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(prepared_home, measured_hardware, tmp_path_factory):
    """The folder of an unbroken run on sums."""
    folder = tmp_path_factory.mktemp("trained") / "sums"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(prepared_home))
        patch.setattr(hardware, "detect", measured_hardware[0])
        patch.setattr(hardware, "peak_flops", measured_hardware[1])
        patch.setattr(Picture, "draw", lambda *_: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        trainer.train(**SMALL, **SUMS, out_dir=str(folder))
        torch.set_num_threads(threads)
    return folder


def test_a_run_on_a_task_that_was_stopped_and_resumed_equals_the_unbroken_one(
    train, trained, tmp_path
):
    train("broken", **SUMS, stop_at=63)
    train("broken", resume=True)
    first, second = (read_checkpoint(f / "ckpt.pt") for f in (trained, tmp_path / "broken"))
    for name, weight in first["model"].items():
        assert weight.equal(second["model"][name]), name
    assert records_of(trained) == records_of(tmp_path / "broken")


def test_a_killed_run_on_a_task_goes_on_from_its_checkpoint(train, trained, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train("killed", **SUMS, die_at=63)
    train("killed", resume=True)
    assert records_of(trained) == records_of(tmp_path / "killed")


def test_the_accuracy_is_that_of_greedy_decoding(trained):
    checkpoint, data = load_checkpoint(trained), open_part(TASK)
    generator = Generator(checkpoint.model, checkpoint.tokenizer)
    generator.reverses = checkpoint.content["reversed_answers"]
    sampling = SamplingConfig(max_tokens=8, top_k=1)
    learned = data.problems(np.arange(40), seed=0)
    problems = [*data.test_problems["unseen"], *data.test_problems["longer"][::4], *learned]
    by_hand = []
    for problem in problems:
        written = generator.generate(problem.prompt, sampling)[0]
        first, second = problem.prompt[:-1].split("+")
        is_right = written.text == str(int(first) + int(second))
        by_hand.append(is_right and written.stopped_by == "end_of_text")
    found = right_answers(checkpoint.model, data.windows_of(problems), "cpu")
    assert found.tolist() == by_hand
    assert 0 < sum(by_hand) < len(by_hand)
    last = [r for r in Run(trained).records() if "val_loss" in r][-1]
    assert last["accuracy"] == np.mean(by_hand[: len(data.test_problems["unseen"])])


def test_processes_that_divide_the_problems_find_what_one_finds(trained):
    model, data = load_checkpoint(trained).model, open_part(TASK)
    windows = data.tests()["longer"]
    whole = right_answers(model, windows, "cpu")
    parts = [right_answers(model, windows, "cpu", share=(rank, 3)) for rank in range(3)]
    assert np.array_equal(sum(parts), whole)


def test_evaluate_finds_what_the_training_recorded(trained):
    found = evaluate_dataset(load_checkpoint(trained / "ckpt.pt"), TASK).to_dict()
    last = [r for r in Run(trained).records() if "val_loss" in r][-1]
    for name in ("accuracy", "accuracy_by_length"):
        assert found[name] == last[name]
    assert found["loss"] == pytest.approx(last["val_loss"], abs=1e-6)


def test_a_prompt_is_answered_as_a_person_writes_it(trained, capsys):
    checkpoint = load_checkpoint(trained)
    generator = Generator(checkpoint.model, checkpoint.tokenizer)
    raw = generator.generate("5+7=", SamplingConfig(max_tokens=8, top_k=1))[0].text
    words = ["--out_dir", str(trained), "--prompt", "5+7=", "--top_k", "1", "--max_tokens", "8"]
    assert run_command("generate", words) == 0
    assert capsys.readouterr().out == f"5+7={raw[::-1]}\n"


def test_a_few_problems_are_also_tested_where_they_are_learned(train):
    run = train(
        "few", dataset="task:modular:modulus=5:share=0.6", block_size=5, batch_size=16,
        max_iters=60, learning_rate=1e-2, eval_interval=30,
    )  # fmt: skip
    last = [r for r in Run(run.folder).records() if "val_loss" in r][-1]
    assert last["train_accuracy"] > last["accuracy"]  # learned by heart


def test_the_report_and_the_picture_show_right_answers(train, pictures):
    folder = train("sums", **SUMS | dict(max_iters=20, eval_interval=10)).folder
    page = make_report([folder])
    assert "Right answers" in page and "of the answers to unseen problems are right" in page
    assert Run(folder).plot.stat().st_size > 1000


def test_commands_about_text_refuse_a_task_in_a_sentence(trained):
    for look in (lambda: blame(trained, 20), lambda: training_data(Run(trained))):
        with pytest.raises(DataError, match=r"is a task, .* needs a text"):
            look()
    assert run_command("evaluate", [str(trained), "--samples", "2"]) == 2
    assert not Run(trained).evaluated()


def test_problems_longer_than_the_window_are_refused(train):
    with pytest.raises(DataError, match=r"longest problem .* use --block_size 9 or more"):
        train("short", **SUMS | dict(block_size=8))


def test_a_task_is_mixed_with_a_text_of_its_tokenizer(train, prepared_home):
    rows = [{"prompt": f"{a} {b} ", "answer": b} for a in ("to", "be", "or") for b in "enorstu"]
    path = prepared_home / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    words = [f"task:{path}:share=0.5", "--tokenizer", str(prepared_home / "data" / "tiny")]
    assert run_command("prepare", [*words, "--dataset", "mixable"]) == 0
    run = train("both", dataset="tiny:1,mixable:1")
    last = [r for r in Run(run.folder).records() if "val_loss" in r][-1]
    assert set(last["val_losses"]) == {"tiny", "mixable"} and "accuracy" in last
    with pytest.raises(ConfigError, match="gives no weights"):
        open_mixture("tiny,mixable")
    with pytest.raises(DataError, match="different tokenizers"):
        open_mixture(f"tiny:1,{TASK}:1")
