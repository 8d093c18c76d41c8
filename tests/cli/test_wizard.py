"""The wizard: a few questions, a training, and a command that does the same again."""

import dataclasses
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from gptlab import hardware
from gptlab.cli.main import main, run_command
from gptlab.cli.ui import explanations, questions
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.planning import planner
from gptlab.runs import Run
from gptlab.training.config import read_recipe
from gptlab.training.picture import Picture

REPOSITORY = Path(__file__).resolve().parents[2]
LINES = "".join(f"the {n * n} of them were not {n % 7} but {n * 31}, said he\n" for n in range(300))
# a model of a few thousand parameters, and a training of a second
SMALL = ["custom", "1", "2", "16"]
SHORT = "max_iters 12 batch_size 2 eval_tokens 200 block_size 16 sample_interval 0 log_interval 1"


@pytest.fixture(scope="module")
def this_machine():
    """The report on this machine's processor, made once: there is no device to choose."""
    return hardware.detect("cpu")


@pytest.fixture
def words(home, this_machine, monkeypatch):
    """A home with the prepared text "words"; measurements are short and no picture is drawn."""

    (home / "words.txt").write_text(LINES, encoding="utf-8")
    prepare("words.txt", PrepareOptions(tokenizer="char"))
    monkeypatch.setattr(hardware, "detect", lambda only=None: this_machine)
    monkeypatch.setattr(planner, "MEASURE_SECONDS", 0.02)
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    return home


@pytest.fixture
def ask(monkeypatch, capsys):
    """Type these lines at `gpt.py train`; (exit code, what was shown in one line)."""
    monkeypatch.setattr(questions, "at_terminal", lambda: True)

    def ask(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            code = main(["train"])
        except SystemExit as ended:
            code = ended.code
        ask.out = capsys.readouterr().out
        return code, " ".join(ask.out.split())

    return ask


def printed_command(out):
    """The words of the command that the wizard shows, without `python train.py`."""
    (line,) = [line for line in out.splitlines() if re.match(r"python \S*train.py --dataset", line)]
    return shlex.split(line)[2:]


def test_what_it_trains_the_printed_command_trains_again_with_the_same_loss(words, ask):
    code, shown = ask("", *SMALL, "quick", SHORT, "", "")
    assert code == 0 and "Lowest validation loss" in shown
    first = Run(words / "out" / "words").records()
    command = printed_command(ask.out)
    assert command[command.index("--max_iters") + 1] == "12" and "--seed" in command
    assert command[command.index("--out_dir") + 1] == "out/words_2"
    assert run_command("train", command) == 0
    second = Run(words / "out" / "words_2").records()
    for name in ("loss", "val_loss", "grad_norm", "learning_rate"):
        values = [[r[name] for r in records if name in r] for records in (first, second)]
        assert values[0] == values[1] and len(values[0]) >= 6
    recipes = [(words / "out" / n / "config.py").read_text() for n in ("words", "words_2")]
    assert "# the wizard" in recipes[0] and "# command line" not in recipes[0]
    assert "# command line" in recipes[1] and "# the wizard" not in recipes[1]


def test_a_second_time_the_command_has_a_fresh_folder_again(words, ask):
    (words / "out" / "words").mkdir(parents=True)
    (words / "out" / "words_3").mkdir()
    _, _ = ask("", *SMALL, "quick", SHORT, "", "leave")
    command = printed_command(ask.out)
    assert command[command.index("--out_dir") + 1] == "out/words_2"


def test_train_py_asks_the_same_questions_where_they_are_asked_for(words, capsys, monkeypatch):
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["", *SMALL, "quick", "", "leave"])))
    assert run_command("train", ["--interactive"]) == 0
    shown = capsys.readouterr().out
    assert "1/5" in shown and "5/5" in shown and printed_command(shown)
    assert run_command("train", ["--interactive", "--seed", "2"]) == 2
    assert "leave --seed out" in capsys.readouterr().err


def test_leaving_shows_the_command_and_writes_nothing(words, ask):
    code, shown = ask("", *SMALL, "quick", "", "leave")
    assert code == 0 and "without questions" in shown
    assert not (words / "out").exists() and not (words / "config").exists()


def test_where_no_model_fits_the_memory_none_is_proposed(words, ask, this_machine, monkeypatch):
    full = [dataclasses.replace(device, memory_free=10**6) for device in this_machine.devices]
    report = dataclasses.replace(this_machine, devices=tuple(full))
    monkeypatch.setattr(hardware, "detect", lambda only=None: report)
    _, shown = ask("", "fit", "tiny", "custom", "1", "1", "2")
    assert "No model can be trained here: that model needs at least" in shown
    assert "tiny cannot be trained here" in shown and "This does not fit" in shown
    assert "3/5" not in shown


def test_every_wrong_answer_is_asked_again(words, ask):
    code, shown = ask(
        "nothing", "0", "9", "my own text", "nowhere.txt", "", "b", "words",  # the text
        "huge", "custom", "x", "-3", "1", "0", "2", "33", "wide", "16",  # the size
        "soon", "minutes", "ten", "-1", "nan", "b", "quick",  # the length
        "dropuot 0.1", "dropout", "dropout 2", "dropout x", "dataset other", "n_head 3",
        "max_iters 1e99", '"', SHORT, "",  # a change
        "maybe", "7", "leave",
    )  # fmt: skip
    assert code == 0 and "Traceback" not in shown
    for sentence in (
        "'nothing' is not one of the answers", "nowhere.txt does not exist",
        "Please type an answer", "'x' is not a whole number", "must lie between 1 and 1,000",
        "Width 33 is not a multiple of 4: type 32 or 36", "'ten' is not a number",
        "did you mean dropout", "dropout needs a value",
        "at least 0 and below 1", "dataset cannot be changed here", "not closed",
        "'maybe' is not one",
    ):  # fmt: skip
        assert sentence in shown, sentence
    command = printed_command(ask.out)
    assert command[command.index("--n_embd") + 1] == "16"


def test_every_question_explains_itself(words, ask):
    code, shown = ask("?", "", "?", *SMALL, "?", "quick", "?", "? muon_momentum", "", "?", "leave")
    assert code == 0
    for words_of_it in ("A model learns from text", "A model is a stack of layers",
                        "In each step the model sees", "Nothing has started yet",
                        "muon_momentum: Muon: decay", "A recipe is a small file"):  # fmt: skip
        assert words_of_it in shown
    explained = " ".join(explanations.SUMMARY.split())
    assert explained in shown
    for word in ("muon", "wsd", "Chinchilla", "dropout", "weight decay", "learning rate"):
        assert word in shown[: shown.index(explained)] and word in explained.replace("D", "d")


@pytest.mark.parametrize("answered", range(5))
def test_b_and_q_work_at_every_question(words, ask, answered):
    lines = [[""], SMALL, ["quick"], [""], []]
    before = [line for part in lines[:answered] for line in part]
    code, shown = ask(*before, "b", "q")
    assert code == 0 and shown.endswith("Stopped.") and not (words / "out").exists()
    if answered == 0:
        assert "This is the first question; q quits." in shown
    else:
        assert shown.count(f"{answered}/5 ") == 2


def test_a_device_is_asked_for_only_where_there_are_several(words, ask, this_machine, monkeypatch):
    assert "Which device" not in ask("", "q")[1]
    cpu = this_machine.device("cpu")
    second = dataclasses.replace(cpu, name="cuda:0", description="A card")
    report = dataclasses.replace(this_machine, devices=(second, cpu))
    monkeypatch.setattr(hardware, "detect", lambda only=None: report)
    code, shown = ask("?", "two", "b", "cpu", "b", "cpu", "", "q")
    assert code == 0 and shown.count("1/6 Which device?") == 2 and "3/6 How large" in shown
    assert "huge number of multiplications" in shown and "This is the first question" in shown


def test_the_widths_that_are_proposed_for_a_custom_size_can_be_built(words, ask):
    """Two layers, three heads, width 50: the first proposal is taken, then the second."""
    for number in (0, 1):
        _, shown = ask("", "custom", "2", "3", "50", "q")
        width = re.search(r"Width 50 is not a multiple of 6: type (\d+) or (\d+)", shown).groups()
        code, shown = ask("", "custom", "2", "3", width[number], "quick", SHORT, "", "leave")
        command = printed_command(ask.out)
        assert code == 0 and command[command.index("--n_embd") + 1] == width[number]


def test_one_can_go_back_to_the_first_question_and_decide_otherwise(words, ask):
    code, shown = ask(
        "", *SMALL, "quick", "", "b", "b", "b", "b", "b",
        "", "custom", "1", "2", "32", "quick", SHORT, "", "leave",
    )  # fmt: skip
    assert code == 0 and shown.count("1/5") == 2
    command = printed_command(ask.out)
    assert command[command.index("--n_embd") + 1] == "32"


@pytest.mark.parametrize("answered", range(5))
def test_the_end_of_the_input_at_any_question_is_a_clean_exit(words, ask, answered):
    lines = [[""], SMALL, ["quick"], [""], ["recipe"]]
    code, shown = ask(*(line for part in lines[:answered] for line in part))
    assert code == 0 and "Traceback" not in shown
    assert not (words / "out").exists() and not (words / "config").exists()


def test_the_fitted_size_is_the_default_and_each_length_has_a_measured_time(words, ask):
    code, shown = ask("", "", "quick", SHORT, "", "leave")
    assert code == 0
    assert len(re.findall(r"steps of a model with [\d.]+M parameters, about \d", shown)) == 4
    assert "tokens per parameter" in shown and "Chinchilla" in shown and "readings" in shown


def test_a_change_can_be_taken_back(words, ask):
    code, shown = ask("", *SMALL, "quick", "", "leave")
    unchanged = printed_command(ask.out)
    code, shown = ask(
        "", *SMALL, "quick", "dropout 0.3 n_layer 2", "minutes 1 seed 9", "minutes none",
        "dropout default seed default n_layer default minutes default", "", "leave",
    )  # fmt: skip
    assert code == 0 and "dropout 0.3" in shown
    assert printed_command(ask.out) == unchanged


def test_minutes_become_steps_in_the_command(words, ask):
    code, _ = ask("", *SMALL, "minutes", "0,1", "", "leave")
    command = printed_command(ask.out)
    assert code == 0 and int(command[command.index("--max_iters") + 1]) > 1
    assert "--minutes" not in command


# What does not fit


def test_a_model_that_does_not_fit_is_reported_with_the_nearest_that_does(
    words, ask, monkeypatch, this_machine
):
    cpu = dataclasses.replace(this_machine.device("cpu"), memory_free=700_000_000)
    small = dataclasses.replace(this_machine, devices=(cpu,))
    monkeypatch.setattr(hardware, "detect", lambda only=None: small)
    code, shown = ask("", "large", "custom", "200", "8", "512")
    assert code == 0  # the input ended
    assert "large cannot be trained here" in shown and "largest preset that fits is small" in shown
    (layers,) = re.findall(r"This does not fit: .+?; (\d+) layers would", shown)
    assert 1 < int(layers) < 200


def test_a_text_that_is_too_short_is_reported_and_another_may_be_chosen(words, ask):
    (words / "tiny.txt").write_text("a word or two, no more\n" * 2, encoding="utf-8")
    code, shown = ask("my own text", "tiny.txt", "words", *SMALL, "quick", SHORT, "", "leave")
    assert code == 0 and "too short" in shown


def test_a_damaged_dataset_is_reported_and_another_may_be_chosen(words, ask):
    shutil.copytree(words / "data" / "words", words / "data" / "broken")
    (words / "data" / "broken" / "train.bin").write_bytes(b"1")
    code, shown = ask("broken", "words", *SMALL, "quick", SHORT, "", "leave")
    assert code == 0 and "broken/train.bin has 1 bytes" in shown


# Recipes


def test_a_recipe_is_saved_under_a_new_name_and_trains_without_questions(words, ask):
    (words / "config").mkdir()
    (words / "config" / "words.py").write_text("seed = 1\n", encoding="utf-8")
    code, shown = ask("", *SMALL, "quick", SHORT, "", "recipe", "words", "a/b", "")
    assert code == 0 and "exists already" in shown and "letters, digits" in shown
    path = words / "config" / "words_2.py"
    recipe = read_recipe(path)
    assert recipe["max_iters"] == 12 and recipe["dataset"] == "words"
    assert "device" not in recipe  # it may be taken to another machine
    assert sorted(p.name for p in path.parent.iterdir()) == ["words.py", "words_2.py"]
    assert run_command("train", ["--config", "config/words_2.py", "--quiet"]) == 0
    assert (words / "out" / "words_2" / "best.pt").exists()


def test_leaving_at_the_name_of_the_recipe_writes_none(words, ask):
    code, _ = ask("", *SMALL, "quick", SHORT, "", "both")
    assert code == 0 and not (words / "config").exists() and not (words / "out").exists()


# Around it


@pytest.mark.parametrize("command", ["train", "generate", "dataset"])
def test_without_a_terminal_it_says_what_to_write(home, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert "a terminal: run python" in error and ("--" in error or "dataset list" in error)
    assert len(error.strip().splitlines()) == 1


def test_the_root_script_asks_nothing(home, monkeypatch, capsys):
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt="": pytest.fail("it asked"))
    assert run_command("train", []) == 2
    assert "No prepared dataset 'shakespeare'" in capsys.readouterr().err


def test_generate_asks_for_run_prompt_and_length(words, ask, monkeypatch, capsys):
    ask("", *SMALL, "quick", SHORT, "", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("?\nthe \nmany\n5\n"))
    assert main(["generate"]) == 0
    shown = capsys.readouterr()
    text = shown.out[shown.out.index("--max_tokens 5") :].split("\n\n", 1)[1]
    # the space counts; the text is drawn anew each time, and may end early or with a newline
    assert text.startswith("the ") and len(text) <= len("the ") + 5 + 1
    assert "--prompt 'the ' --max_tokens 5" in shown.out and "the only one" in shown.out


def test_generate_asks_for_the_run_where_there_are_several(words, ask, monkeypatch, capsys):
    for _ in range(2):
        ask("", *SMALL, "quick", SHORT, "", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("b\nnope\n?\nwords_2\nb\nwords_2\nq\n"))
    with pytest.raises(SystemExit):
        main(["generate"])
    shown = capsys.readouterr().out
    assert "'nope' is not one" in shown and "This is the first question" in shown
    assert shown.count("Which model?") == 2


def test_generate_without_a_model_says_how_to_get_one(home, monkeypatch, capsys):
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    assert main(["generate"]) == 2
    assert "gpt.py train" in capsys.readouterr().err


# In a real terminal -------------------------------------------------------------------------------

pexpect = pytest.importorskip("pexpect")


@pytest.fixture
def terminal(tmp_path):
    """Start a command in a window of 60 columns, from a folder with a space in its name."""
    started = []
    (tmp_path / "else where").mkdir()

    def start(*argv, timeout=120):
        environment = {**os.environ, "GPTLAB_HOME": str(tmp_path / "home"), "TERM": "xterm"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        environment.pop("COLUMNS", None)
        child = pexpect.spawn(
            sys.executable, [str(REPOSITORY / "gpt.py"), *argv], cwd=str(tmp_path / "else where"),
            env=environment, dimensions=(40, 60), encoding="utf-8", timeout=timeout,
        )  # fmt: skip
        child.logfile_read = io.StringIO()
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def reply(child, question, line):
    child.expect_exact(question)
    child.expect_exact("> ")
    child.sendline(line)


def ended(child):
    child.expect(pexpect.EOF)
    child.close()
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", child.logfile_read.getvalue())
    assert "Traceback" not in shown
    return child.exitstatus, shown.replace("\r", "")


def test_in_a_narrow_terminal_the_whole_way_from_a_dropped_file_to_a_sample(terminal, tmp_path):
    before = sorted(path.name for path in REPOSITORY.iterdir())
    (tmp_path / "my text.txt").write_text(LINES, encoding="utf-8")
    child = terminal("train")
    reply(child, "1/5", "my own text")
    reply(child, "Which text?", f"'{tmp_path}/my t\t")  # the Tab key completes it
    reply(child, "2/5", "custom")
    reply(child, "Layers", "1")
    reply(child, "heads", "2")
    reply(child, "Width", "16")
    reply(child, "3/5", "quick")
    reply(child, "4/5", "max_iters 10 batch_size 2 eval_tokens 200 block_size 16")
    reply(child, "4/5", "")
    reply(child, "5/5", "")
    code, shown = ended(child)
    assert code == 0
    for words_of_it in ("Lowest validation loss", "It beats", "A sample (step",
                        "Next, for example", "sample.py --out_dir", "report"):  # fmt: skip
        assert words_of_it in shown, words_of_it
    assert shown.count("Next") == 1
    questions_shown = shown[: shown.index("The same training")]
    asked = [line for line in questions_shown.splitlines() if re.match(r"\d/5|[│┌└]| \d  ", line)]
    assert asked and max(map(len, asked)) <= 60
    assert (tmp_path / "home" / "out" / "my_text" / "best.pt").exists()
    assert sorted(path.name for path in REPOSITORY.iterdir()) == before


@pytest.mark.parametrize("argv", [["dataset"], ["info", "--runs"]])
@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 0)])
def test_ctrl_c_and_ctrl_d_leave_cleanly(terminal, tmp_path, argv, key, code):
    run = Run(tmp_path / "home" / "out" / "some")
    run.folder.mkdir(parents=True)
    run.append({"step": 1, "loss": 1.0})
    child = terminal(*argv)
    child.expect_exact("> ")
    child.send(key)
    found, shown = ended(child)
    assert found == code
    assert ("Interrupted." if code else "Stopped.") in shown


@pytest.mark.slow
def test_with_enter_at_every_question_it_trains_on_shakespeare_and_the_command_repeats_it(
    terminal, tmp_path, tiny_shakespeare
):
    child = terminal("train", timeout=1500)
    (tmp_path / "else where" / "shakespeare").write_bytes(tiny_shakespeare.read_bytes())
    for number in range(1, 6):
        reply(child, f"{number}/5", "")
    code, shown = ended(child)
    assert code == 0 and "A sample (step" in shown
    (line,) = [
        line for line in shown.splitlines() if "train.py --dataset" in line and "seed" in line
    ]
    loss = re.search(r"Lowest validation loss ([\d.]+)", shown)[1]
    words = shlex.split(line)
    again = pexpect.spawn(
        sys.executable, words[1:], cwd=str(tmp_path / "else where"), encoding="utf-8", timeout=1500,
        env={**os.environ, "GPTLAB_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    again.expect(r"Lowest validation loss ([\d.]+)")
    assert again.match[1] == loss
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
