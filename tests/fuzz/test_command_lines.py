"""Command lines: options of every command with words of every kind, in any order."""

import importlib

import pytest
from hypothesis import strategies as st

from gptlab.cli.declarations import COMMANDS, Command
from gptlab.errors import ConfigError

WORDS = [
    "", " ", "-", "--", "---", "-x", "=", "--=", "--=3", "0", "-1", "1", "3", "1e3", "1e400", "nan",
    "inf", "9" * 400, "0x10", "1_0", "none", "None", "true", "auto", "cpu", "cuda:99", "mps", "x",
    "plays", "out/plays", "../x", "/nowhere/x", "~nobody", "a" * 5000, "\ud800", "é", "*", "[",
    "hf:", "hf:../../x", "hf:a/b/c:d:e:f", "a.txt", "texts/a.txt", "\n", "%s", "{}", "@file",
]  # fmt: skip
STRAY = ["--help_me", "--n-layer", "--batch_siez", "--no-such", "--dataset=", "--seed=1=2", "--top"]
PROGRAMS = {name: command.module for name, command in COMMANDS.items()}
# what reads no more than files, and may be run as a whole
WHOLE = {
    "info": ["--runs", "--rename", "--to", "--delete"],
    "doctor": [],
    "dataset": ["list", "view", "delete", "--top", "--excerpts", "--dataset", "--column"],
    "config": ["show", "diff", "--json", "--n_layer", "--model_preset"],
    "report": ["--output"],
    "blame": ["--step", "--top", "--checkpoint", "--device", "--html"],
    "trace": ["--file", "--prompt", "--min_chars", "--max_tokens=3", "--html", "--seed"],
    "replay": ["--steps=x"],
    "export": ["--format", "--out_dir"],
    "import": ["--out_dir", "--meta"],
    "plan": ["--n_layer", "--n_head", "--batch_size", "--model_preset", "--json"],
    "generate": ["--prompt", "--temperature", "--top_k", "--top_p", "--max_tokens=3", "--stop",
                 "--beam_width", "--num_samples", "--out_dir", "--checkpoint", "--prompt_file"],
    "prepare": ["--dataset", "--tokenizer", "--vocab_size", "--val_fraction", "--split", "--seed",
                "--column", "--encoding", "--max_bytes", "--document", "--separator", "--val",
                "--normalize", "--clean", "--gutenberg", "texts/a.txt"],
}  # fmt: skip


@pytest.fixture
def only_parsing(monkeypatch):
    """Every command stops when its command line is read."""

    class ReadError(ConfigError):
        pass

    real = Command.parse

    def parse(command, argv):
        options = real(command, argv)
        raise ReadError(f"read {len(options)} options.")

    monkeypatch.setattr(Command, "parse", parse)


def test_every_command_line_is_read_or_refused_in_a_sentence(fuzz, only_parsing):
    names = {}
    for command in PROGRAMS:
        names[command] = _options_of(fuzz, command)
    soup = st.sampled_from(sorted(PROGRAMS)).flatmap(
        lambda command: st.tuples(
            st.just(command),
            st.lists(
                st.one_of(
                    st.sampled_from(names[command] + STRAY),
                    st.sampled_from(WORDS),
                    st.builds(
                        "{}={}".format, st.sampled_from(names[command]), st.sampled_from(WORDS)
                    ),
                ),
                min_size=1,
                max_size=6,
            ),
        )
    )
    fuzz.run("command lines, read", soup, lambda case: fuzz.command(case[0], *case[1]), 250)


def _options_of(fuzz, command: str) -> list[str]:
    """The option names in a command's help."""
    import contextlib
    import io
    import re

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(PROGRAMS[command]).main(["--help"])
    return sorted(set(re.findall(r"^  (--\w+)", shown.getvalue(), re.M))) or ["--help"]


def test_every_command_answers_odd_words_in_a_sentence(fuzz):
    soup = st.sampled_from(sorted(WHOLE)).flatmap(
        lambda command: st.tuples(
            st.just(command),
            st.lists(st.sampled_from(WHOLE[command] * 3 + WORDS), min_size=1, max_size=4),
        )
    )

    def attempt(case):
        command, words = case
        code = fuzz.command(command, *words, writes=True)
        if code == 0:
            fuzz.restore()

    fuzz.run("command lines, run", soup, attempt, 50)
