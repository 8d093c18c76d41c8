import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.cli.main import run_command
from gptlab.data.batches import Batches
from gptlab.data.mixture import open_mixture, parse_mixture
from gptlab.data.symbol_tasks import are_balanced
from gptlab.data.task_dataset import random_numbers
from gptlab.data.task_files import as_written, open_task, prepare_task
from gptlab.data.tasks import TASKS, make_task, read_name
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import ConfigError, DataError, TokenizerError

# a seed instead of 200 drawn numbers: a list of them takes hypothesis ten times as long
DRAWS = st.integers(0, 2**63).map(lambda seed: random_numbers(seed, np.zeros(1, int), 200)[0])


def some_problem(word, length, draws):
    task = make_task(*read_name(word))
    length = task.lengths[length % len(task.lengths)]
    return task, task.problem(length, draws)


def by_python(expression: str) -> str:
    """What Python makes of a problem of two numbers."""
    left, sign, right = re.fullmatch(r"(\d+)([-+*/])(\d+)", expression).groups()
    if sign == "/":
        quotient, rest = divmod(int(left), int(right))
        return f"{quotient}r{rest}" if rest else str(quotient)
    return str(eval(f"{int(left)}{sign}{int(right)}"))


@given(DRAWS, st.integers(0, 9), st.sampled_from(["", ":digits=6", ":reverse=no"]))
def test_sums_are_those_of_python(draws, length, options):
    task, problem = some_problem(f"task:addition{options}", length, draws)
    prompt, answer = as_written(task, problem).split("=")
    assert answer == by_python(prompt)
    longest = max(map(len, prompt.split("+")))
    assert longest == problem.length <= task.digits
    assert len(problem.prompt + problem.answer) <= task.longest(problem.length)


@given(DRAWS, st.integers(0, 9), st.sampled_from(["", ":digits=4", ":operations=-/:digits=3"]))
def test_results_of_a_calculator_are_those_of_python(draws, length, options):
    task, problem = some_problem(f"task:calculator{options}", length, draws)
    prompt, answer = as_written(task, problem).split("=")
    assert answer == by_python(prompt)
    assert len(problem.prompt + problem.answer) <= task.longest(problem.length)


@settings(max_examples=100)
@given(DRAWS, st.integers(0, 9), st.integers(2, 4))
def test_each_step_of_a_calculation_is_true_and_the_result_is_pythons(draws, length, digits):
    task, problem = some_problem(f"task:calculator:steps=yes:digits={digits}", length, draws)
    steps, result = problem.answer.split(";")
    assert result == by_python(problem.prompt[:-1])
    for step in steps.split(","):
        left, right = step.split("=")
        assert eval(left.replace("/", "//")) == int(right), step
    assert len(problem.prompt + problem.answer) <= task.longest(problem.length)


@given(DRAWS, st.integers(0, 9), st.sampled_from(["sorting", "copying", "reversing", "parity"]))
def test_answers_about_letters_are_right(draws, length, kind):
    _, problem = some_problem(f"task:{kind}", length, draws)
    word = problem.prompt[:-1]
    expected = {
        "sorting": "".join(sorted(word)),
        "copying": word,
        "reversing": "".join(reversed(word)),
        "parity": str(word.count("1") % 2),
    }
    assert problem.answer == expected[kind]
    assert len(word) == problem.length


@given(DRAWS, st.integers(0, 9))
def test_brackets_are_called_balanced_just_where_a_stack_says_so(draws, length):
    _, problem = some_problem("task:brackets", length, draws)
    stack, is_balanced = [], True
    for bracket in problem.prompt[:-1]:
        if bracket in "([{":
            stack.append(bracket)
        elif not stack or stack.pop() + bracket not in ("()", "[]", "{}"):
            is_balanced = False
    assert problem.answer == ("y" if is_balanced and not stack else "n")
    assert are_balanced(problem.prompt[:-1]) == (problem.answer == "y")


@given(DRAWS, st.integers(0, 99))
def test_a_repetition_follows_from_its_first_period(draws, length):
    _, problem = some_problem("task:repeat:length=40", length, draws)
    period = problem.prompt[:-1]
    assert len(set(period)) == len(period) == problem.length
    text = problem.prompt + problem.answer
    assert len(text) == 40 and all(text[i] == period[i % len(period)] for i in range(len(text)))


def test_modular_problems_are_all_sums_of_two_residues():
    problems = make_task("modular", {"modulus": 13}).all()
    expected = {(f"{a}+{b}=", str((a + b) % 13)) for a in range(13) for b in range(13)}
    assert {(p.prompt, p.answer) for p in problems} == expected


@pytest.mark.parametrize("kind", [name for name in TASKS if name != "own"])
def test_no_problem_of_the_test_is_ever_trained_on(home, kind):
    share = ":share=0.5" if kind != "repeat" else ":symbols=5:length=8:least_period=2:share=0.5"
    data = prepare_task(f"task:{kind}{share}").dataset
    trained = {p.key for p in data.problems(np.arange(4000), seed=3)}
    tested = {p.key for p in data.test_problems["unseen"]}
    assert len(tested) > 5 and len(trained) > 5
    assert not trained & tested


def test_a_sum_and_its_mirror_image_are_on_one_side(home):
    data = prepare_task("task:addition:digits=2:share=0.5").dataset
    pairs = {tuple(sorted(map(int, p.prompt[:-1].split("+")))) for p in data.problems(
        np.arange(20_000), seed=1
    )}  # fmt: skip
    for problem in data.test_problems["unseen"]:
        assert tuple(sorted(map(int, problem.prompt[:-1].split("+")))) not in pairs


def test_problems_of_a_few_are_read_once_an_epoch(home):
    data = prepare_task("task:modular:modulus=11:share=0.4").dataset
    size = len(data.finite[0])
    assert size == pytest.approx(0.4 * 121, abs=20)
    for epoch in range(3):
        numbers = np.arange(epoch * size, (epoch + 1) * size)
        prompts = [p.prompt for p in data.problems(numbers, seed=5)]
        assert sorted(prompts) == sorted(p.prompt for p in data.finite[0])
    assert data.epochs(3 * size, block_size=data.longest - 1) == pytest.approx(3)


def rows_of(data, numbers, block_size=40, seed=7):
    return data.sequences(block_size, seed).windows(np.asarray(numbers))


def test_a_row_is_whole_problems_and_its_targets_are_their_answers(home):
    data = prepare_task("task:addition:digits=3").dataset
    tokens, targets = rows_of(data, range(5))
    end = data.tokenizer.eot_id
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        text = "".join(
            "." if t == end else data.tokenizer.decode([t]) for t in [*row, max(0, wanted[-1])]
        )
        found = re.match(r"((?:\d+\+\d+=\d+\.){3,6})\.*.$", text)
        assert found, text
        by_hand = []
        for problem in re.findall(r"\d+\+\d+=\d+\.", found[1]):
            prompt, answer = re.fullmatch(r"(.*=)(.*)", problem).groups()
            by_hand += [-1] * len(prompt) + [
                end if c == "." else data.tokenizer.encode(c)[0] for c in answer
            ]
        by_hand += [-1] * (41 - len(by_hand))
        assert wanted == by_hand[1:]


@pytest.mark.parametrize("word", ["addition:digits=3", "modular:modulus=7", "sorting"])
def test_a_row_depends_on_the_seed_and_its_number_only(home, word):
    data = prepare_task(f"task:{word}").dataset
    expected = rows_of(data, range(24))
    for parts in ([range(k, k + 1) for k in range(24)], [range(0, 5), range(5, 24)], [range(24)]):
        found = [rows_of(data, part) for part in parts]
        for k in (0, 1):
            assert np.array_equal(np.concatenate([pair[k] for pair in found]), expected[k])
    assert not np.array_equal(rows_of(data, range(24), seed=8)[0], expected[0])


def test_processes_divide_the_rows_of_a_step_and_count_the_same_targets(home):
    data = open_mixture("task:addition:digits=2").sequences(20, 1)
    whole = Batches(data, batch_size=12, sequences_per_step=12)
    expected = next(iter(whole.micro_batches(24)))
    found = []
    for rank in range(2):
        own = open_mixture("task:addition:digits=2").sequences(20, 1)
        part = Batches(own, batch_size=3, sequences_per_step=12, rank=rank, world_size=2)
        assert part.count_targets(24) == whole.count_targets(24)
        found += [micro.tokens for micro in part.micro_batches(24)]
    assert np.array_equal(np.concatenate(found), expected.tokens.numpy())
    assert whole.count_targets(24) == int((expected.targets != -1).sum())


def test_random_numbers_stay_what_they_are():
    assert random_numbers(7, np.array([0, 1]), 2) == random_numbers(7, np.array([0, 1]), 2)
    rows = random_numbers(1, np.arange(4000), 3)
    assert len({tuple(row) for row in rows}) == 4000
    assert np.mean([n / 2**64 for row in rows for n in row]) == pytest.approx(0.5, abs=0.01)


def test_longer_problems_are_tested_and_never_trained_on(home):
    data = prepare_task("task:addition:digits=2:test_digits=4").dataset
    assert max(p.length for p in data.problems(np.arange(3000), 1)) == 2
    assert {p.length for p in data.test_problems["longer"]} == {3, 4}
    with pytest.raises(DataError, match=r"longest problem .* --block_size 15"):
        data.sequences(14, 1)
    assert data.sequences(15, 1)


def test_ones_own_problems_are_divided_and_learned(home, tmp_path):
    lines = [json.dumps({"prompt": f"{n} in words?", "answer": f"w{n}"}) for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n\n")
    data = prepare_task(f"task:{tmp_path / 'mine.jsonl'}:share=0.5").dataset
    (tmp_path / "mine.jsonl").unlink()  # the dataset has a copy
    again = open_task(data.folder)
    assert again.finite == data.finite
    assert sum(map(len, again.finite)) == 60
    targets = rows_of(again, range(3))[1]
    assert (targets != -1).any() and (targets == -1).any()


BAD_NAMES = {
    "task:addition:digits=x": "digits cannot be 'x'",
    "task:addition:digit=3": "did you mean digits",
    "task:adition": "There is no task 'adition'",
    "task:addition:digits=0": "digits cannot be 0",
    "task:addition:digits=5:test_digits=4": "test_digits cannot be 4",
    "task:addition:share=1": "share cannot be 1",
    "task:calculator:steps=yes:reverse=yes": "reverse has no effect",
    "task:calculator:operations=^": "operations cannot be",
    "task:modular:modulus=1": "modulus cannot be 1",
    "task:repeat:length=4": "do not fit",
    "task:repeat:symbols=1": "symbols cannot be 1",
    "task:own": "There is no task 'own'",
    "task:nowhere.jsonl": "nowhere.jsonl",
}


@pytest.mark.parametrize("word", BAD_NAMES)
def test_a_task_that_cannot_be_is_refused_in_a_sentence(home, word, capsys):
    assert run_command("prepare", [word]) == 2
    message = capsys.readouterr().err
    assert BAD_NAMES[word] in message and len(message.strip().splitlines()) == 1
    assert not list(home.glob("data/*"))


@pytest.mark.parametrize(
    "line", ["{", '"text"', '{"prompt": "a"}', '{"prompt": "a", "answer": 1}', '{"answer": "b"}']
)
def test_a_line_that_is_no_problem_is_named(home, tmp_path, line):
    good = '{"prompt": "a", "answer": "b"}'
    (tmp_path / "mine.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(DataError, match=r"Line 3 of .*mine.jsonl is no problem"):
        prepare_task(f"task:{tmp_path / 'mine.jsonl'}")


def test_a_task_in_a_mix_is_told_from_a_weight(home):
    prepare_task("task:addition")
    named = parse_mixture("task:addition:share=0.5:0.25,task:addition:2")
    assert named == [("task:addition:share=0.5", 0.25), ("task:addition", 2.0)]
    assert parse_mixture("task:addition:share=0.5,plays") == [
        ("task:addition:share=0.5", None), ("plays", None),
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["task:addition"], ["--dataset", "task:nothing"]])
def test_train_says_how_a_task_is_named(home, words, capsys):
    assert run_command("train", words) == 2
    message = capsys.readouterr().err
    assert "--dataset task:addition" in message or "write task:NAME:OPTION=VALUE" in message


def test_the_commands_of_datasets_take_a_task(home, capsys):
    assert run_command("dataset", ["prepare", "task:addition:digits=2"]) == 0
    assert run_command("dataset", ["view", "addition-digits-2"]) == 0
    assert capsys.readouterr().out.count("test        ") == 2
    assert run_command("prepare", ["--list"]) == 0
    assert "the task addition:digits=2, 13 ids" in capsys.readouterr().out
    assert run_command("dataset", ["delete", "addition-digits-2", "--yes"]) == 0
    assert not list(home.glob("data/*"))


def test_options_of_texts_are_refused_for_a_task(home, capsys):
    assert run_command("prepare", ["task:addition", "--val_fraction", "0.2"]) == 2
    assert "--val_fraction has no effect on a task" in capsys.readouterr().err


def test_a_vocabulary_that_cannot_spell_the_task_is_refused(home, tmp_path):
    from gptlab.data.prepare import PrepareOptions

    char_tokenizer("abc").save(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="cannot spell task:addition"):
        prepare_task("task:addition", PrepareOptions(tokenizer=str(tmp_path)))
    assert not list(home.glob("data/*"))


def test_a_task_is_made_once_and_another_one_is_not_put_in_its_place(home):
    from gptlab.data.prepare import PrepareOptions

    first = prepare_task("task:addition", PrepareOptions(dataset="sums"))
    assert not first.skipped
    assert prepare_task("task:addition:digits=3", PrepareOptions(dataset="sums")).skipped
    with pytest.raises(ConfigError, match="another task"):
        prepare_task("task:addition:digits=2", PrepareOptions(dataset="sums"))
    other = PrepareOptions(dataset="sums", overwrite=True)
    other = prepare_task("task:addition:digits=2", other).dataset
    assert other.fingerprint != first.dataset.fingerprint
