import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptlab.checkpoints import model_content
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.main import run_command
from gptlab.data.tokenizer import char_tokenizer
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.options import unescaped
from gptlab.runs import Run, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
# the 65 characters of tiny Shakespeare
ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home that is also the working directory, and standard input that is at its end."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    type_in(monkeypatch, b"")
    return tmp_path


def type_in(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def make_run(folder: Path, seed: int = 0, tokenizer=None, **content) -> Path:
    """A run with the weights of a random model that writes on and on."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or char_tokenizer(ALPHABET)
    size = dict(block_size=32, n_layer=1, n_head=2, n_embd=16, init_std=0.3, tie_weights=False)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, dropout=0.0, **size))
    with torch.no_grad():  # decided about everything, and against an end of the text
        model.lm_head.weight.normal_(std=2.0)
        model.lm_head.weight[tokenizer.eot_id] = 0
    run = Run(folder)
    run.begin()
    run.save_best(model_content(model, tokenizer, **(dict(step=250, val_loss=1.5) | content)))
    run.end()
    return folder


@pytest.fixture
def run(home):
    return make_run(home / "out" / "mine")


@pytest.fixture
def sample(capsys):
    """A function: run sample.py with these words -> (exit code, stdout, stderr)."""

    def call(*words):
        code = run_command("sample", [str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def expected(run, prompt, **settings):
    checkpoint = load_checkpoint(run)
    generator = Generator(checkpoint.model, checkpoint.tokenizer)
    return [c.text for c in generator.generate(prompt, SamplingConfig(**settings))]


def assert_one_sentence(result, *parts):
    """Exit code 2, nothing on stdout, and as the last line one sentence with these parts."""
    code, out, err = result
    assert code == 2 and out == "" and "Traceback" not in err
    sentence = err.splitlines()[-1]
    assert sentence.startswith("gptlab: ") and sentence.endswith((".", "?"))
    for part in parts:
        assert part in sentence


# Which model --------------------------------------------------------------------------------------


def test_the_newest_run_is_taken_and_named_in_the_first_line_on_stderr(home, sample):
    make_run(home / "out" / "new", seed=1, step=1234, val_loss=1.2345)
    old = make_run(home / "out" / "old", seed=2)
    os.utime(old / "best.pt", (1, 1))
    code, out, err = sample("--prompt", "ROMEO:", "--seed", 1)
    first = err.splitlines()[0]
    assert code == 0
    assert first.startswith(os.path.join("out", "new", "best.pt"))
    assert "step 1,234" in first and "validation loss 1.2345" in first and "cpu" in first
    assert out == "ROMEO:" + expected(home / "out" / "new", "ROMEO:", seed=1)[0] + "\n"


def test_a_run_or_a_checkpoint_can_be_named(run, home, sample):
    make_run(home / "out" / "other", seed=5)
    text = "ROMEO:" + expected(run, "ROMEO:", seed=1)[0] + "\n"
    for words in (("--out_dir", run), ("--checkpoint", run / "best.pt")):
        assert sample("--prompt", "ROMEO:", "--seed", 1, *words)[:2] == (0, text)


def test_a_run_can_be_named_as_everywhere(run, sample):
    named, by_path = (sample("--out_dir", w, "--prompt=A", "--seed=1") for w in ("mine", run))
    assert named == by_path and named[0] == 0
    assert_one_sentence(sample("--out_dir", "mime"), "out holds mine")


def test_averaged_weights_are_named(home, sample):
    make_run(home / "out" / "mine", weights="averaged")
    assert "averaged weights" in sample()[2].splitlines()[0]


def test_a_run_that_was_moved_writes_the_same_text_without_its_data(run, home, sample):
    before = sample("--out_dir", run, "--seed", 3)[1]
    assert not (home / "data").exists()
    shutil.move(run, home / "elsewhere")
    assert sample("--out_dir", home / "elsewhere", "--seed", 3)[1] == before


def test_without_a_run_a_sentence_says_how_to_get_one(sample):
    assert_one_sentence(sample(), "no trained model", "train.py")
    assert_one_sentence(sample("--out_dir", "out/none"), os.path.join("out", "none"), "train")


def test_a_checkpoint_without_a_tokenizer_is_refused_by_name(home, sample):
    folder = make_run(home / "out" / "bare")
    content = load_checkpoint(folder).content | {"tokenizer": None}
    Run(folder).save_best(content)
    assert_one_sentence(sample(), "best.pt", "without a tokenizer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused_with_those_that_are(run, sample):
    assert_one_sentence(sample("--device", "cuda"), "cuda", "cpu")


# The prompt ---------------------------------------------------------------------------------------


def test_without_a_prompt_a_document_begins(run, sample, monkeypatch):
    text = expected(run, "", seed=1)[0]
    assert sample("--seed", 1)[1] == text + "\n"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert sample("--seed", 1)[1] == text + "\n"


@pytest.mark.parametrize("words", [(), ("--prompt", "-")])
def test_a_prompt_can_be_piped_in_and_is_taken_as_it_is(run, sample, monkeypatch, words):
    type_in(monkeypatch, b"\xef\xbb\xbfROMEO:\r\nO\r\n")
    text = "ROMEO:\nO\n"
    assert sample("--seed", 1, *words)[1] == text + expected(run, text, seed=1)[0] + "\n"


def test_a_prompt_that_is_given_wins_over_piped_input(run, sample, monkeypatch):
    type_in(monkeypatch, b"other")
    assert sample("--prompt", "ROMEO:")[1].startswith("ROMEO:")


def test_a_prompt_file_is_taken_as_it_is_with_its_final_newline(run, home, sample):
    for data, text in ((b"ROMEO:\n", "ROMEO:\n"), (b"ROMEO:", "ROMEO:"), (b"", "")):
        (home / "p.txt").write_bytes(data)
        out = sample("--prompt_file", "p.txt", "--seed", 1)[1]
        assert out == text + expected(run, text, seed=1)[0] + "\n"


def test_a_prompt_file_that_cannot_be_read_is_one_sentence(run, home, sample):
    (home / "latin.txt").write_bytes(b"caf\xe9")
    assert_one_sentence(sample("--prompt_file", "latin.txt"), "latin.txt", "byte 3", "UTF-8")
    assert_one_sentence(sample("--prompt_file", "none.txt"), "none.txt", "does not exist")


def test_an_unseen_character_is_named_with_its_place_before_anything_is_printed(run, sample):
    result = sample("--prompt", "Price: 5€ ½ 😀")
    assert_one_sentence(result, "'5'", "U+0035", "position 7", "65 characters")


def test_the_spelling_of_the_end_of_text_is_plain_text(home, sample):
    make_run(home / "out" / "mine", tokenizer=char_tokenizer("<|endoftext|> "))
    code, out, _ = sample("--prompt", "<|endoftext|>", "--seed", 1)
    assert code == 0 and out.startswith("<|endoftext|>")


def test_a_prompt_longer_than_the_window_is_cut_and_reported(run, sample):
    _, out, err = sample("--prompt", "ab" * 50, "--max_tokens", 40, "--seed", 1)
    assert out == "ab" * 50 + expected(run, "ab" * 16, max_tokens=40, seed=1)[0] + "\n"
    assert err.count("the model sees 32") == 1


# The settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--temperature 0", "--temperature 1e-6", "--top_k 0",
                                   "--top_k 1", "--top_k 200", "--top_p 1", "--min_p 0.1",
                                   "--repetition_penalty 1.3", "--beam_width 3",
                                   "--dtype float32", "--device cpu"])  # fmt: skip
def test_settings_work_and_a_seed_makes_the_text_repeatable(run, sample, words):
    first, second = (sample("--prompt", "A", "--seed", 4, *words.split()) for _ in range(2))
    assert first[0] == 0 and first[1] == second[1]


@pytest.mark.parametrize(
    "words",
    ["--temperature -1", "--temperature nan", "--temperature inf", "--top_k -1", "--top_p 0",
     "--top_p 1.5", "--min_p 2", "--max_tokens 0", "--num_samples 0", "--beam_width 0",
     "--repetition_penalty 0", "--seed -1", "--max_tokens many", "--prompt_lookup -1",
     "--prompt_lookup 16"],
)  # fmt: skip
def test_a_setting_out_of_range_is_one_sentence_that_names_it(run, sample, words):
    assert_one_sentence(sample(*words.split()), words.split()[0][2:])


def test_a_stop_string_may_be_given_several_times(run, sample):
    whole = expected(run, "ROMEO:", seed=1)[0]
    stops = [whole[60:62], whole[20:23]]
    out = sample("--prompt", "ROMEO:", "--seed", 1, "--stop", stops[0], "--stop", stops[1])[1]
    end = min(whole.index(stop) for stop in stops)
    assert out == f"ROMEO:{whole[:end]}\n"


def test_escapes_in_a_stop_text_and_a_prompt_are_read_as_the_shell_user_means_them(run, sample):
    whole = expected(run, "A:\nB", seed=5, max_tokens=300, temperature=5.0)[0]
    end = whole.index("\n")
    words = ("--prompt", r"A:\nB", "--seed", 5, "--max_tokens", 300, "--temperature", 5.0)
    assert sample(*words, "--stop", r"\n")[1] == f"A:\nB{whole[:end]}\n"
    assert [unescaped(word) for word in (r"\t", r"\\n", r"\\", r"C:\dir", "\n", r"\\\n")] == [
        "\t", r"\n", "\\", r"C:\dir", "\n", "\\\n"
    ]  # fmt: skip
    for command, option in (("generate", "system"), ("train", "sample_prompt")):
        assert COMMANDS[command].parse([f"--{option}", r"a\nb"])[option] == "a\nb"


@pytest.mark.parametrize("option", ["stop", "bad_words"])
def test_text_that_the_model_cannot_write_is_refused_instead_of_ignored(run, sample, option):
    assert_one_sentence(sample("--prompt", "A", f"--{option}", r"\\n"), option, "cannot write")


def test_many_prompts_from_a_file_give_each_the_text_that_it_has_alone(run, home, sample):
    lines = ["ROMEO:", "", "JULIET:", "A"]
    (home / "p.txt").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    (home / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": line}) + "\n" for line in lines if line), encoding="utf-8"
    )
    prompts = ["ROMEO:", "JULIET:", "A"]
    texts = [expected(run, prompt, seed=1)[0] for prompt in prompts]
    code, out, err = sample("--prompts", "p.txt", "--seed", 1, "--json", "--output", "x.jsonl")
    assert (code, out) == (
        0,
        "",
    ) and "3 prompts in p.txt (one per line, 1 empty line left out)" in err
    found = [json.loads(line) for line in (home / "x.jsonl").read_text("utf-8").splitlines()]
    assert [one["prompt"] for one in found] == prompts and [one["text"] for one in found] == texts
    for one in found:
        assert len(one["tokens"]) == len(one["logprobs"]) == 100
        assert one["finish_reason"] == "length" and max(one["logprobs"]) <= 0
    code, out, err = sample("--prompts", "p.jsonl", "--seed", 1)
    assert code == 0 and "JSON Lines" in err
    assert out == "".join(
        f"=== prompt {n} of 3 ===\n{(prompt + text).removesuffix(chr(10))}\n"
        for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1)
    )


def test_a_program_reads_why_a_text_ended(run, sample):
    whole = expected(run, "A", seed=1)[0]
    code, out, _ = sample("--prompt", "A", "--seed", 1, "--json", "--stop", whole[30:34])
    one = json.loads(out)
    assert (code, one["finish_reason"]) == (0, "stop")
    assert one["text"] == whole[: whole.index(whole[30:34])]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("A\nB\né\n", ("Line 3 of p.txt", "U+00E9")),
        ('{"prompt": "A"}\n{"text": "B"}\n', ("Line 2 of p.txt", '"prompt"')),
        ('{"prompt": "A"}\n\nB\n', ("Line 3 of p.txt", '"prompt"')),
        ('{"prompt": 5}\n', ("Line 1 of p.txt", '"prompt"')),
        ("\n\n", ("p.txt holds no prompt",)),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_by_its_line(run, home, sample, content, parts):
    (home / "p.txt").write_text(content, encoding="utf-8")
    assert_one_sentence(sample("--prompts", "p.txt", "--output", "x.txt"), *parts)
    assert not (home / "x.txt").exists()  # nothing is half written


def test_banned_words_and_tokens_do_not_appear(run, sample):
    plain = sample("--prompt", "A", "--seed", 1, "--max_tokens", 300)[1]
    twice = plain[50:52]
    words = ("--prompt", "A", "--seed", 1, "--max_tokens", 300)
    out = sample(*words, "--bad_words", twice)[1]
    assert twice in plain and twice not in out and twice[0] in out and twice[1] in out
    letter = next(character for character in plain[20:] if character.isalpha())
    assert letter not in sample(*words, "--logit_bias", f"{letter}=-inf")[1].removeprefix("A")
    out = sample(*words, "--logit_bias", "x=100", "--logit_bias", "<|endoftext|>=-inf")[1]
    assert out == "A" + 300 * "x" + "\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--logit_bias x", ("TEXT=NUMBER",)),
        ("--logit_bias x=inf", ("TEXT=NUMBER",)),
        ("--logit_bias x=much", ("TEXT=NUMBER",)),
        ("--logit_bias xy=1", ("2 tokens", "--bad_words")),
        ("--logit_bias id:999=1", ("999", "the largest is")),
        ("--logit_bias é=1", ("cannot write",)),
        ("--bad_words=", ("bad_words is empty",)),
        ("--bad_words x --beam_width 2", ("beam_width", "bad_words")),
    ],
)
def test_a_ban_that_makes_no_sense_is_one_sentence(run, sample, words, parts):
    assert_one_sentence(sample("--prompt", "A", *words.split()), *parts)


def test_several_samples_are_separated_and_numbered(run, sample):
    out = sample("--prompt", "ROMEO:", "--seed", 1, "--num_samples", 3)[1]
    texts = expected(run, "ROMEO:", seed=1, num_samples=3)
    blocks = [
        f"=== sample {n} of 3 ===\nROMEO:{text}".removesuffix("\n") + "\n"
        for n, text in enumerate(texts, 1)
    ]
    assert out == "".join(blocks)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--prompt a --prompt_file b", ("--prompt", "--prompt_file")),
        ("--prompt a --prompts b", ("--prompt", "--prompts")),
        ("--prompts a --interactive", ("--prompts", "--interactive")),
        ("--json --chat", ("--json", "--chat")),
        ("--out_dir a --checkpoint b", ("--out_dir", "--checkpoint")),
        ("--interactive --num_samples 2", ("--interactive", "--num_samples")),
        ("--interactive --prompt -", ("--interactive", "--prompt -")),
        ("--beam_width 3 --temperature 0.5", ("--beam_width 3", "--temperature")),
        ("--beam_width 3 --num_samples 4", ("beam_width 3", "num_samples 4")),
        ("--tempreture 1", ("did you mean temperature",)),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, sample, words, parts):
    assert_one_sentence(sample(*words.split()), *parts)


def test_text_is_all_that_goes_to_stdout(run, sample):
    out = sample("--prompt", "ROMEO:", "--seed", 1)[1]
    assert set(out) <= set(ALPHABET)


# Interactive --------------------------------------------------------------------------------------


def test_each_line_is_a_prompt_and_a_bad_one_does_not_end_the_loop(run, sample, monkeypatch):
    type_in(monkeypatch, "ROMEO:\n€\n\nJULIET:".encode())
    code, out, err = sample("--interactive", "--seed", 1)
    texts = [p + expected(run, p, seed=1)[0] for p in ("ROMEO:", "", "JULIET:")]
    assert code == 0 and out == "".join(t.removesuffix("\n") + "\n" for t in texts)
    assert "U+20AC" in err


def test_a_prompt_that_is_given_is_the_first_of_the_loop(run, sample, monkeypatch):
    type_in(monkeypatch, b"JULIET:\n")
    out = sample("--interactive", "--prompt", "ROMEO:", "--seed", 1)[1]
    assert out.startswith("ROMEO:") and "\nJULIET:" in out


# Processes ----------------------------------------------------------------------------------------


def environment(home):
    return {**os.environ, "GPTLAB_HOME": str(home), "OMP_NUM_THREADS": "1"}


def test_help_comes_without_torch(home):
    code = (
        "import sys\nfrom gptlab.cli.main import run_command\n"
        "try:\n    run_command('sample', ['--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--temperature" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_reader_that_has_seen_enough_causes_no_complaint(run, home):
    script = f'"{sys.executable}" sample.py --prompt A --max_tokens 100000 | head -c 20'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert len(done.stdout) == 20 and done.returncode == 0
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")
def test_ctrl_c_stops_the_text_and_ctrl_d_the_program(run, home):
    pexpect = pytest.importorskip("pexpect")
    words = ["sample.py", "--interactive", "--max_tokens", "1000000"]
    child = pexpect.spawn(
        sys.executable, words, cwd=str(ROOT), env=environment(home), encoding="utf-8", timeout=60
    )
    child.expect("best.pt: step 250")
    child.expect("> ")
    for _ in range(2):
        child.sendline("ROMEO:")
        child.expect("ROMEO:.*ROMEO:.{20}")  # the echo of the terminal, then the text
        child.sendintr()
        child.expect("> ")
    child.sendintr()  # at the prompt: an empty line
    child.expect("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_several_models_write_together_from_the_average_of_their_probabilities(run, home, sample):
    make_run(home / "out" / "other", seed=1)
    words = ("--out_dir", "mine,out/other", "--prompt", "ROMEO:", "--seed", 1, "--max_tokens", 40)
    code, out, err = sample(*words)
    assert code == 0 and "average of the probabilities of 2 models" in err
    first, second = (load_checkpoint(home / "out" / name) for name in ("mine", "other"))
    assert "other/best.pt: step 250" in err
    code, lines, _ = sample(*words, "--json")
    found = json.loads(lines)
    assert out == f"ROMEO:{found['text']}\n"
    ids = first.tokenizer.encode("ROMEO:")[-1:] + found["tokens"][:5]
    text = torch.tensor([first.tokenizer.encode("ROMEO:")[:-1] + ids])
    with torch.no_grad():
        each = [one.model(text)[0].softmax(-1) for one in (first, second)]
    averaged = (sum(each) / 2).log()[0, 5:-1].gather(1, text[0, 6:, None])[:, 0]
    assert found["logprobs"][:5] == pytest.approx(averaged.tolist(), abs=1e-5)


def test_models_that_cannot_write_together_are_one_sentence(run, home, sample):
    make_run(home / "out" / "other", tokenizer=char_tokenizer("abc"))
    together = ("--prompt", "a", "--out_dir")
    assert_one_sentence(sample(*together, "mine,other"), "another tokenizer")
    assert_one_sentence(sample(*together, "mine,mine", "--dtype", "int8"), "int8 is for one model")
    assert_one_sentence(sample(*together, "mine,nowhere"), "There is no run 'nowhere'")
