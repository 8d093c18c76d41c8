"""Every command in README.md, CONTRIBUTING.md and docs/*.md runs, in the order of the page.

A command is a line of a ```bash block, or inline code that begins with one of `STARTS`. It runs
in-process through the commands' `main(argv)`, in a separate home for each page, with a small text
for every file that it names; trainings get tiny sizes, and `smollm2-135m` is a tiny model in the
file's place. What a line says that it writes is there afterwards. NOT_RUN lists what cannot run
here, with the reason and a check instead. A new page or line needs a change here only if it needs
something that a test does not have.
"""

import bz2
import csv
import gzip
import html
import importlib.util
import io
import itertools
import json
import re
import shlex
import shutil
import string
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gptlab.checkpoints import model_content
from gptlab.cli import bootstrap
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.main import main, run_command
from gptlab.data.tokenizer import train_bpe
from gptlab.interop.read.smollm2 import FILE
from gptlab.interop.write.export import export
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint
from gptlab.training.picture import Picture

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
STARTS = re.compile(r"(python|torchrun|bash|source|pip|gptlab|(gpt|train|prepare|sample)\.py) ")

# The text of a page -> what runs instead. Words in capitals stand for the reader's own names.
SUBSTITUTIONS = {
    r"\bYOUR_TEXT\.txt\b": "diary.txt",
    r"--minutes [\d.]+": "--minutes 0.02",
    r"--step \d+": "--step 2",  # trainings have three steps here
}

# Options that replace those of the page.
TINY = (
    "--n_layer 1 --n_head 2 --n_kv_head 1 --n_embd 32 --block_size 96 --batch_size 2 "
    "--gradient_accumulation_steps 1 --eval_tokens 128 --device cpu --dtype float32 "
    "--compile_model false"
).split()
SHORT = {
    "sample": ["--max_tokens", "8", "--device", "cpu"],
    "compare": ["--max_minutes", "1e-9"],  # trains nothing
}

# Pages that must create everything they use. On the others (a reference, a guide to one subject), a
# `--dataset NAME` or `out/NAME` that the page did not create is provided.
ON_THEIR_OWN = (
    "README.md", "docs/START_HERE.md", "docs/GETTING_STARTED.md", "docs/FINETUNE.md"
)  # fmt: skip

# Exit codes besides 0 that are not an error of the page.
ALSO_FINE = {"doctor": 1}  # it has found something to fix in this machine or in three steps

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

# Files whose content matters; any other text, table or folder gets 20 kB of words.
FILES = {
    "start.txt": "to be or not",
    "stories.txt": "<|endoftext|>\n".join(f"Story {n} is short.\n" for n in range(100)),
}


def help_knows_the_options(words: list[str], page: "Page") -> None:
    """The command's own help knows every option of the line, and its recipe exists."""
    script = next(n for n, word in enumerate(words) if word.endswith(".py"))
    name, *rest = words[script:]
    known = captured_help(name, rest)
    for word in rest:
        if word.startswith("--"):
            option = word[2:].split("=")[0].replace("-", "_")
            assert f"--{option} " in known, f"{name} has no option {word}"
        if word.startswith("config/"):
            assert (ROOT / word).is_file(), f"there is no {word}"


def setup_takes_it(words: list[str], page: "Page") -> None:
    """setup.sh exists and accepts these options; the results of the demo are provided."""
    assert (ROOT / words[1]).is_file()
    if bootstrap._read_options(words[2:])[0].demo:
        page.put("data/shakespeare", "data/shakespeare")
        page.put("out/quick_test", "out/demo")


def script_exists(words: list[str], page: "Page") -> None:
    """The script is there."""
    assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"


def is_the_usual_line(words: list[str], page: "Page") -> None:
    """The line is the one that setup prints at its end."""
    assert " ".join(words) == "source .venv/bin/activate"


def files_exist(words: list[str], page: "Page") -> None:
    """The scripts and requirement files that the line names are there, and know its options."""
    for word in words:
        if word.endswith((".py", ".txt")):
            assert (ROOT / word).is_file(), f"there is no {word}"
        if word.startswith("--") and words[1].endswith(".py"):
            assert word.split("=")[0] in (ROOT / words[1]).read_text(encoding="utf-8")


def sweeps_known_options(words: list[str], page: "Page") -> None:
    """The options of the line are the sweep's own or those of a training."""
    known = captured_help("gpt.py", ["sweep"]) + captured_help("train.py", [])
    for word in words:
        assert not word.startswith("--") or f"{word} " in known, f"sweep has no option {word}"


def names_a_patch(words: list[str], page: "Page") -> None:
    """The patch is there."""
    assert (ROOT / words[-1]).is_file(), f"there is no {words[-1]}"


def module_exists(words: list[str], page: "Page") -> None:
    """`python -m NAME` names a module."""
    assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"


# (what the line looks like, why it is not run, what is checked instead)
NOT_RUN = [
    (r".*--tasks ", "needs lm-eval: tests/analysis/test_lm_eval.py", help_knows_the_options),
    (r"python benchmarks/", "measures for minutes", files_exist),
    (r"git apply ", "edits the code: tests/benchmarks/test_experiments.py", names_a_patch),
    (r"python docs/pictures/", "trains for minutes: tests/docs/test_pictures.py", files_exist),
    (r"bash setup\.sh", "installs packages: tests/cli/test_bootstrap.py", setup_takes_it),
    (r"bash \.ci/run", "runs this suite: tests/test_workflows.py", files_exist),
    (r"pre-commit install", "writes into .git: tests/test_workflows.py", files_exist),
    (r"source ", "the shell's own, after setup", is_the_usual_line),
    (r"pip install", "installs packages", files_exist),
    (r"bash config/launch", "many GPUs: tests/test_launch_files.py", script_exists),
    (r"torchrun ", "several processes: tests/training/test_parallel.py", help_knows_the_options),
    (r".*\bhf:", "needs the hub: tests/data/test_hub.py", help_knows_the_options),
    (
        r".*gpt\.py import (?!smollm2)",
        "needs a model: tests/interop",
        help_knows_the_options,
    ),
    (r".*--tokenizer gpt2", "fetches GPT-2's vocabulary: tests/data", help_knows_the_options),
    (r".*gpt\.py sweep", "trains for minutes: tests/cli/test_sweep.py", sweeps_known_options),
    (r".*gpt\.py scaling", "trains for minutes: tests/cli/test_scaling.py", help_knows_the_options),
    (r".*--against ", "needs a clone: tests/analysis/test_check.py", help_knows_the_options),
    (r"python -m ", "run where it is tested: tests/model, tests/cli", module_exists),
]


# What a command leaves behind ---------------------------------------------------------------------


def wrote_what_it_names(name: str, argv: list[str], comment: re.Match | None) -> None:
    """What a line of the page says that it writes is there, by its options and its comment."""
    options = dict(itertools.pairwise(argv))
    wanted = [options[option] for option in ("--output", "--html") if option in options]
    if name == "prepare.py" and "--dataset" in options and "--show" not in argv:
        wanted.append(f"data/{options['--dataset']}/meta.json")
    if name == "train.py" and "--out_dir" in options and "--dry_run" not in argv:
        wanted.append(f"{options['--out_dir']}/best.pt")
    wanted += [comment[1]] if comment else []
    for path in wanted:
        assert Path(path).exists(), f"it wrote no {path}"


# Reading a page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command and its place: the number of its first line."""

    line: int
    text: str


def commands_of(page: str) -> list[Command]:
    """The commands of a Markdown page, in order; continued lines are joined."""
    found, fence, pending = [], None, ""
    for number, line in enumerate(page.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fence = line.strip().strip("`") or "text" if fence is None else None
        elif fence == "bash":
            line = pending + line.strip().removeprefix("$ ")
            pending = line[:-1] if line.endswith("\\") else ""
            if line and not pending and not line.startswith("#"):
                found.append(Command(number, line))
        elif fence is None:
            spans = re.findall(r"`([^`]+)`", line.replace("\\|", "|"))
            found += [Command(number, span) for span in spans if STARTS.match(span)]
    return found


def programs_of(page: str) -> list[str]:
    """The Python programs of a page: blocks that begin with an import."""
    return re.findall(r"```python\n((?:import|from) .*?)```", page, flags=re.DOTALL)


def captured_help(script: str, words: list[str]) -> str:
    """The help of a root script, or of the gpt.py command that the words begin with."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "stdout", out)
        if Path(script).name == "gpt.py":
            main([words[0], "--help"])
        else:
            run_command(Path(script).stem, ["--help"])
    return re.sub(r"[^\w-]", " ", out.getvalue()) + " "


# Running a command --------------------------------------------------------------------------------


class Page:
    """A reader who types the commands of one page, one after the other."""

    def __init__(self, name: str, home: Path, prepared: Path, patch):
        self.name, self.on_its_own = name, name in ON_THEIR_OWN
        self.home, self._prepared, self._patch, self._steps = home, prepared, patch, 0

    def put(self, what: str, where: str) -> None:
        """Copy a prepared dataset or run into the home, unless there is one of that name."""
        if not (self.home / where).exists():
            shutil.copytree(self._prepared / what, self.home / where)

    def run(self, text: str, capsys) -> None:
        """Run one command; AssertionError with its message if it fails."""
        for pattern, instead in SUBSTITUTIONS.items():
            text = re.sub(pattern, instead, text)
        words = shlex.split(text, comments=True)
        for pattern, _, check in NOT_RUN:
            if re.match(pattern, text):
                return check(words, self)
        typed, output = b"", None
        if "|" in words:  # what is typed into a program comes from echo or printf
            assert words[0] in ("echo", "printf") and words.count("|") == 1, "cannot run this pipe"
            typed = " ".join(words[1 : words.index("|")]).encode()
            words = words[words.index("|") + 1 :]
        if ">" in words:
            words, output = words[: words.index(">")], words[-1]
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            self._patch.setenv(*words.pop(0).split("=", 1))
        words = words[1:] if words[0] == "python" else words
        words = ["gpt.py", *words[1:]] if words[0] == "gptlab" else words
        name, argv = Path(words[0]).name, words[1:]
        assert name in ("gpt.py", "train.py", "prepare.py", "sample.py"), "add a row to NOT_RUN"
        self._provide(name, argv)
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        code = self._call(name, replaced(argv, self._tiny(name, argv)))
        printed = capsys.readouterr()
        if output:
            Path(output).write_text(printed.out, encoding="utf-8")
        if code == 2 and "needs a terminal: " in printed.err:
            return None  # it asks, which tests/cli proves at a terminal, and says what to pass
        command = argv[0] if name == "gpt.py" and argv else ""
        assert code in (0, ALSO_FINE.get(command, 0)), f"exit code {code}: {printed.err.strip()}"
        assert "Traceback" not in printed.err
        wrote_what_it_names(name, argv, re.search(r"# -> (\S+)", text))
        return None

    def _call(self, name: str, argv: list[str]) -> int:
        try:
            return main(argv) if name == "gpt.py" else run_command(Path(name).stem, argv)
        except SystemExit as ended:  # --help
            return ended.code

    def _tiny(self, name: str, argv: list[str]) -> list[str]:
        """Options that make the command small."""
        command = argv[0] if name == "gpt.py" and argv else Path(name).stem
        command = {"generate": "sample"}.get(command, command)
        trains = command == "train" and len(argv) > (name == "gpt.py") and "--help" not in argv
        if trains and "--show-hardware" not in argv:
            self._steps += 3  # a resumed run must have something left to do
            return TINY + ([] if "--minutes" in argv else ["--max_iters", str(self._steps)])
        if command == "plan" and "--measure" in argv:
            return TINY
        if command == "trace" and "--file" not in argv:
            return ["--seed", "1"]  # with some seeds a model of three steps writes nothing at all
        return SHORT.get(command, []) if argv != ["generate"] else []

    def _provide(self, name: str, argv: list[str]) -> None:
        """Create the files that the command reads and, for a page not on its own, runs and data."""
        column = argv[argv.index("--column") + 1] if "--column" in argv else "text"
        reads_folders = name == "prepare.py" or argv[:1] == ["dataset"]
        for word in argv:
            if word.endswith(WRITTEN):
                write_text(Path(word.replace("*", "one")), column)
            elif reads_folders and word.endswith("/"):
                write_text(Path(word, "monday.txt"), column)
                write_text(Path(word, "tuesday.txt"), column)
        if self.on_its_own:
            return
        typed = " ".join(argv)
        for dataset in re.findall(r"--dataset[ =]([\w-]+)", typed) if not reads_folders else []:
            self.put("data/shakespeare", f"data/{dataset}")
        begins = name == "train.py" and "--resume" not in argv
        for run in re.findall(r"(?:--out_dir[ =])?out/[\w.-]+", typed):
            if not (begins and run.startswith("--out_dir")):
                where = run[run.index("out/") :]
                self.put("out/quick_test", where)


WRITTEN = (".txt", ".gz", ".jsonl", ".csv", ".tsv", ".parquet", ".html", ".zip", ".epub")
WRITTEN += (".mbox", ".rtf", ".bz2")


def write_text(path: Path, column: str) -> None:
    """Write a file of words in the format of its name, unless there is a file already."""
    if path.exists() or path.is_absolute():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{n} to be, or not to be: that is the question of {path.stem}" for n in range(300)]
    lines.append(string.ascii_letters + string.digits + string.punctuation)  # for any prompt
    text = FILES.get(path.name, "\n".join(lines) + "\n")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".jsonl":
        rows = [json.dumps({"title": "day", column: line}) for line in lines]
        if path.stem == "talks":
            rows = [json.dumps({"messages": talk(line)}) for line in lines]
        path.write_text("\n".join(rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerows([["title", column], *(["day", line] for line in lines)])
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"title": lines, column: lines}), path)
    elif path.suffix == ".html":
        body = "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)
        path.write_text(f"<!doctype html>\n{body}", encoding="utf-8")
    elif path.suffix == ".epub":
        with zipfile.ZipFile(path, "w") as archive:
            rootfile = '<rootfiles><rootfile full-path="a.opf"/></rootfiles>'
            archive.writestr("META-INF/container.xml", f"<container>{rootfile}</container>")
            chapter = '<item id="a" href="a.xhtml"/><itemref idref="a"/>'
            archive.writestr("a.opf", f"<package>{chapter}</package>")
            archive.writestr("a.xhtml", f"<html><pre>{html.escape(text)}</pre></html>")
    elif path.suffix == ".mbox":
        path.write_text(f"From a@b Fri Jan 1\nFrom: a@b\nMessage-ID: <1>\n\n{text}", "utf-8")
    elif path.suffix == ".rtf":
        escaped = re.sub(r"([\\{}])", r"\\\1", text).replace("\n", "\\par\n")
        path.write_text(f"{{\\rtf1 {escaped}}}", encoding="utf-8")
    elif path.suffix == ".bz2":
        page = f"<page><title>x</title><revision><text>{html.escape(text)}</text></revision></page>"
        path.write_bytes(bz2.compress(f"<mediawiki>{page}</mediawiki>".encode()))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("one.txt", text)
    else:
        path.write_text(text, encoding="utf-8")


def talk(line: str) -> list[dict]:
    """A short conversation."""
    return [{"role": "user", "content": "so?"}, {"role": "assistant", "content": line}]


def write_corpus(home: Path) -> None:
    """The recipes, and a short "shakespeare" as if it had been downloaded."""
    lines = [f"ROMEO:\nWhat light is this, number {n}?\nJULIET:\nA poor one.\n" for n in range(400)]
    corpus = home / "data" / ".corpora" / "shakespeare.txt"
    corpus.parent.mkdir(parents=True)
    text = "\n".join([*lines, string.ascii_letters + string.punctuation])
    corpus.write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "config", home / "config")


def write_pretrained(home: Path) -> None:
    """A tiny chat model in the file of `smollm2-135m`, as if it had been downloaded."""
    tokenizer = train_bpe([str(talk("to be, or not to be")), string.printable], 300)
    config = GPTConfig(
        block_size=256, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=1,
        n_embd=32, dropout=0.0,
    )  # fmt: skip
    content = model_content(GPT(config), tokenizer, step=1, val_loss=1.0)
    run = Run(home / "pretrained")
    run.begin()
    run.save_best({**content, "chat_template": TEMPLATE})
    run.end()
    export(load_checkpoint(run.folder), "gguf", home / "data" / ".corpora" / FILE)


def replaced(argv: list[str], options: list[str]) -> list[str]:
    """A command line with other values of options; none may be given twice."""
    given, kept, words = {word for word in options if word.startswith("--")}, [], iter(argv)
    for word in words:
        if word in given:
            next(words)  # its value
        elif word.split("=")[0] not in given:
            kept.append(word)
    return [*kept, *options]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A home with the dataset data/shakespeare and the run out/quick_test."""
    home = tmp_path_factory.mktemp("prepared")
    write_corpus(home)
    write_pretrained(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        patch.setattr(Picture, "draw", lambda *_: None)
        assert run_command("prepare", ["shakespeare"]) == 0
        train = ["--config", "config/quick_test.py", *TINY, "--max_iters", "3", "--quiet"]
        assert run_command("train", train) == 0
    return home


@pytest.fixture
def page(request, prepared, tmp_path, monkeypatch) -> Page:
    """A reader at the beginning of a page, in a home and working directory of its own."""
    write_corpus(tmp_path)
    shutil.copy(prepared / "data" / ".corpora" / FILE, tmp_path / "data" / ".corpora")
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")  # help without wrapped options
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Picture, "draw", lambda *_: None)  # a picture takes a second
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    reader = Page(request.param, tmp_path, prepared, monkeypatch)
    if not reader.on_its_own:
        reader.put("data/shakespeare", "data/shakespeare")
        reader.put("out/quick_test", "out/quick_test")
    yield reader
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


# The promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, indirect=True)
def test_every_command_of_the_page_works(page, capsys):
    for command in commands_of((ROOT / page.name).read_text(encoding="utf-8")):
        capsys.readouterr()
        try:
            page.run(command.text, capsys)
        except Exception as error:
            problem = f"{page.name}:{command.line}: {command.text}\n{error}"
            raise pytest.fail.Exception(problem, pytrace=False) from None


STOPS = sorted(
    {
        command.text
        for name in PAGES
        for command in commands_of((ROOT / name).read_text(encoding="utf-8"))
        if "--stop" in command.text
    }
)


@pytest.mark.parametrize("text", STOPS)
def test_the_stop_text_of_a_page_stops(text, home, capsys, monkeypatch):
    words = shlex.split(text)
    stop = COMMANDS["generate"].parse(words[words.index("--stop") :][:2])["stop"][0]
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    Path("circle.txt").write_text(f"abcd{stop}" * 400, encoding="utf-8")
    assert run_command("prepare", ["circle.txt"]) == 0
    train = replaced(TINY, ["--dataset", "circle", "--max_iters", "60", "--learning_rate", "1e-2"])
    assert run_command("train", [*train, "--quiet", "--out_dir", "out/circle"]) == 0
    argv = ["--out_dir", "out/circle", "--prompt", "ab", "--temperature", "0", "--max_tokens", "20"]
    written = []
    for more in ([], words[words.index("--stop") :][:2]):
        capsys.readouterr()
        assert run_command("sample", [*argv, *more]) == 0
        written.append(capsys.readouterr().out)
    assert written[0].startswith(f"abcd{stop}abcd") and written[1] == "abcd\n"


@pytest.mark.parametrize("page", PAGES, indirect=True)
def test_every_program_of_the_page_works(page):
    for program in programs_of((ROOT / page.name).read_text(encoding="utf-8")):
        exec(compile(program, page.name, "exec"), {})


@pytest.mark.parametrize("name", PAGES)
def test_every_option_that_the_page_mentions_exists(name):
    reference = (ROOT / "docs/QUICK_REFERENCE.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `--(\w+)`", reference, flags=re.MULTILINE))
    known |= {"help", "version", "demo", "test"}
    page = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    mentioned = {word.replace("-", "_") for word in re.findall(r"`--([\w-]+)", page)}
    assert mentioned <= known


@pytest.mark.parametrize("name", PAGES)
def test_every_link_to_a_file_leads_somewhere(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", page):
        if "://" not in target:
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_every_file_that_contributing_names_exists():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:gptlab|docs|tests|\.ci)/[\w./]+|\w+\.toml)`", page):
        assert (ROOT / name).exists(), name


def test_every_command_is_on_some_page():
    pages = "".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    names = [command.name for command in COMMANDS.values() if command.group]
    assert [name for name in names if f"gpt.py {name}" not in pages] == []


# The checks themselves: new commands are found, and wrong ones fail -------------------------------


def test_commands_are_found_in_blocks_and_in_sentences():
    page = (
        "Say `python gpt.py info` or `--dropout 0.2`.\n```bash\n# a remark\npython train.py \\\n"
        "    --quiet   # short\n$ python sample.py\n```\n```text\npython not.py\n```\n"
        "| row | `python gpt.py plan \\| less` |\n"
    )
    found = [(command.line, command.text) for command in commands_of(page)]
    assert found == [
        (1, "python gpt.py info"),
        (5, "python train.py --quiet   # short"),
        (6, "python sample.py"),
        (11, "python gpt.py plan | less"),
    ]


@pytest.mark.parametrize("page", ["docs/HARDWARE.md"], indirect=True)
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("python train.py --config config/quick_test.py --droput 0.2", "did you mean dropout"),
        ("torchrun --standalone train.py --droput 0.2", "no option --droput"),
        ("python prepare.py hf:a/b --colunm text", "no option --colunm"),
        ("python gpt.py import model.gguf --outdir out/x", "no option --outdir"),
        ("python train.py --config config/none.py", "no recipe"),
        ("python gpt.py reprot", "did you mean report"),
        ("python sample.py --out_dir nowhere", "nowhere"),
        ("python gpt.py info | less", "cannot run this pipe"),
        ("bash setup.sh --dmo", "no option"),
    ],
)
def test_a_wrong_line_fails(page, line, complaint, capsys):
    with pytest.raises((AssertionError, SystemExit)) as failure:
        page.run(line, capsys)
    assert complaint in str(failure.value) + capsys.readouterr().err
