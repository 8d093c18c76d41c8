"""lm-eval's questions answered: against sums by hand, and through the package where it is."""

import json

import pytest
import torch

from gptlab.analysis.lm_eval import answer, evaluate_tasks, log_likelihood, scores
from gptlab.checkpoints import model_content
from gptlab.cli.main import main
from gptlab.data.tokenizer import train_bpe
from gptlab.errors import ConfigError, DataError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint

TEXT = "what is the sky? blue. what is the grass? green. what is snow? white. "


@pytest.fixture
def checkpoint(home):
    tokenizer = train_bpe([TEXT * 3], 290)
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=24, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16,
        dropout=0.0, init_std=0.4,
    )  # fmt: skip
    run = Run(home / "out" / "run")
    run.begin()
    run.save_best(model_content(GPT(config), tokenizer, step=3, val_loss=1.5))
    run.end()
    return load_checkpoint(run.folder)


@torch.no_grad()
def by_hand(checkpoint, ids, own):
    """(log-probability, whether greedy) of the last `own` ids behind those before, in a window."""
    logits = checkpoint.model(torch.tensor([ids[-25:-1]]))[0][0].log_softmax(-1)[-own:]
    wanted = torch.tensor(ids[-own:])
    total = logits[torch.arange(own), wanted].sum().item()
    return total, bool((logits.argmax(-1) == wanted).all())


def test_a_continuation_has_the_probability_that_the_model_gives_it(checkpoint):
    encode, end = checkpoint.tokenizer.encode, checkpoint.tokenizer.eot_id
    pairs = [
        ("what is the sky?", " blue."),
        ("what is snow? ", "white."),  # the space is the answer's
        ("", "green."),
        (TEXT, " blue"),  # longer than the window
        ("what", " is"),
    ]
    found = scores(checkpoint, pairs, lambda *_: None)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        bare = context.rstrip()
        ids = encode(context + continuation)
        own = len(ids) - len(encode(bare))
        wanted = by_hand(checkpoint, ids if bare else [end, *ids], own)
        assert total == pytest.approx(wanted[0], abs=1e-4) and greedy == wanted[1]


def test_a_whole_text_is_the_sum_of_its_windows(checkpoint):
    ids = [checkpoint.tokenizer.eot_id, *checkpoint.tokenizer.encode(TEXT)]
    total = 0.0
    for start in range(0, len(ids) - 1, 24):
        window = torch.tensor([ids[start : start + 25]])
        with torch.no_grad():
            loss = checkpoint.model(window[:, :-1], window[:, 1:], reduction="sum")[1]
        total -= loss.item()
    assert log_likelihood(checkpoint, TEXT) == pytest.approx(total, abs=1e-3)
    assert log_likelihood(checkpoint, "") == 0.0


def test_an_answer_is_greedy_and_ends_before_its_mark(checkpoint):
    greedy = SamplingConfig(max_tokens=12, temperature=0)
    whole = Generator(checkpoint.model, checkpoint.tokenizer).generate("what is", greedy)[0].text
    assert answer(checkpoint, "what is", {"max_gen_toks": 12}) == whole
    stop = whole[3:5]
    found = answer(checkpoint, "what is", {"max_gen_toks": 12, "until": [stop]})
    assert found == whole[: whole.index(stop)]


@pytest.fixture
def task(home):
    """A multiple-choice task with its data beside it, as tiny.yaml."""
    rows = [
        {"question": f"what is the {thing}?", "choices": ["blue", "green"], "answer": n % 2}
        for n, thing in enumerate(("sky", "grass", "sea", "leaf"))
    ]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "tiny.yaml").write_text(
        f"""task: tiny
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{home / "rows.jsonl"}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return home / "tiny.yaml"


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_runs_a_task_of_ones_own_and_the_run_keeps_it(checkpoint, task, home, capsys):
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        pairs = [(row["question"], f" {choice}") for choice in row["choices"]]
        totals = [total for total, _ in scores(checkpoint, pairs, lambda *_: None)]
        right += totals.index(max(totals)) == row["answer"]
    found = evaluate_tasks(checkpoint, [str(task)])
    assert found["tiny"]["acc"] == right / 4
    assert main(["evaluate", "run", "--tasks", str(task), "--device", "cpu"]) == 0
    assert "acc" in capsys.readouterr().out
    kept = Run(home / "out" / "run").evaluated()
    assert [row["tasks"]["tiny"]["acc"] for row in kept] == [right / 4]


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_cannot_be_run_is_a_sentence(checkpoint, home):
    with pytest.raises(DataError, match="lm-eval cannot run"):
        evaluate_tasks(checkpoint, [str(home / "nothing.yaml")])


def test_without_the_package_a_sentence_names_the_command(checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        evaluate_tasks(checkpoint, ["arc_easy"])
