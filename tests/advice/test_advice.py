"""Every piece of advice leads out: what commands print is followed to its end where it was printed.

followed.txt has one case a paragraph: the states of the home in brackets, the command that is typed
after `$`, and the commands that its advice leads to: after `>` from the state in which the advice
was printed, after `>>` one after the other. `*` stands for the commands as they are printed. All of
them must succeed. The last test reads the source: a sentence that names a command or an option is
followed if a case prints it and takes up all that it names. ELSEWHERE lists those that another test
follows, or that nothing can follow; any other sentence fails the test.
"""

import ast
import base64
import contextlib
import functools
import gzip
import html
import io
import json
import pickle
import random
import re
import shlex
import shutil
import signal
import string
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gptlab import files, hardware
from gptlab.checkpoints import read_checkpoint, write_checkpoint
from gptlab.cli import wizard
from gptlab.cli.main import main, run_command
from gptlab.cli.ui.after_training import show_result
from gptlab.data import hub
from gptlab.reports.run_view import commands as view_commands
from gptlab.reports.run_view import view_run
from gptlab.training import trainer
from gptlab.training.config import build
from gptlab.training.memory import memory_needed, memory_warning
from gptlab.training.picture import Picture

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?<![\w-])--[a-z]\w+|\b(?:train|gpt|sample|prepare)\.py\b|\bpip install\b")
PRINTED = re.compile(r"(?:python )?\S*?\b((?:train|gpt|sample|prepare)\.py(?: [^\n`;]*)?)")
TINY = (
    "--n_layer 1 --n_head 2 --n_kv_head 1 --n_embd 16 --block_size 64 --batch_size 2 "
    "--gradient_accumulation_steps 1 --eval_tokens 64 --max_iters 2 --device cpu --dtype float32 "
    "--compile_model false --quiet"
).split()


# the report on this machine and its peak are measured once: each takes a good part of a second
detect, peak_flops = functools.cache(hardware.detect), functools.cache(hardware.peak_flops)


@dataclass(frozen=True)
class Case:
    """A paragraph of followed.txt. line: of its command."""

    line: int
    states: tuple[str, ...]
    typed: str
    then: tuple[tuple[str, bool], ...]  # (command, whether it follows the one before)


def read_cases() -> list[Case]:
    """The cases of followed.txt."""
    text = Path(__file__).with_name("followed.txt").read_text(encoding="utf-8")
    cases, states, typed, then = [], (), None, []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        mark, _, rest = line.partition(" ")
        if line.startswith("["):
            states = tuple(line.strip("[]").split(", "))
        elif mark == "$":
            typed = (number, rest)
        elif mark in (">", ">>"):
            then.append((rest, mark == ">>"))
        elif not line and typed:
            cases.append(Case(typed[0], states, typed[1], tuple(then)))
            states, typed, then = (), None, []
    return cases


CASES = read_cases()
IGNORED = {"--name"}  # in "--name value": no option
# what cases have printed so far, and the options and scripts that they took up
SAID: dict[Case, tuple[str, set[str]]] = {}


# Running ------------------------------------------------------------------------------------------


def run(line: str, stdin: str = "") -> tuple[int, str]:
    """(exit code, everything printed) of a command line, in this process."""
    name, *argv = shlex.split(line)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(sys, "argv", [str(ROOT / name), *argv])  # from another folder
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        with contextlib.redirect_stdout(printed):
            try:
                code = main(argv) if name == "gpt.py" else run_command(name[:-3], argv)
            except SystemExit as ended:  # --help
                code = ended.code
    return code, printed.getvalue()


def do(*lines: str) -> None:
    """Run commands; AssertionError for one that fails."""
    for line in lines:
        if line.startswith("rm "):
            Path(line[3:]).unlink()
            continue
        code, said = run(small(line, "--quiet"))
        assert code == 0, f"{line}\n{said}"


def small(line: str, *more: str) -> str:
    """A command line with the sizes of a test, and with more words, where it trains a new model."""
    words = shlex.split(line)
    trains = words[0] == "train.py" or (words[:2] == ["gpt.py", "train"] and len(words) > 2)
    if not trains or {"--resume", "--help", "--show-hardware", "--anneal"} & set(words):
        return line
    given, added = {w.split("=")[0] for w in words if w.startswith("--")}, []
    from_model = "--init_from" in given
    for name, value in zip(TINY[:-1:2], TINY[1::2], strict=True):
        if name in given or (name == "--max_iters" and "--minutes" in given):
            continue
        if not (from_model and (name.startswith("--n_") or name == "--block_size")):
            added += [name, value]
    return shlex.join([*words, *added, *more])


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """(home, a copy of it with the dataset data/words and the finished run out/run)."""
    home = tmp_path_factory.mktemp("advice") / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        patch.setattr(Picture, "draw", lambda *_: None)
        lines = [f"{n} to be, or not to be: that is the question {n * n}" for n in range(150)]
        lines[50:50] = [""]
        lines.insert(70, string.ascii_letters + string.digits + string.punctuation)
        Path("words.txt").write_text("\n".join(lines), encoding="utf-8")
        do("prepare.py words.txt", "train.py --dataset words --out_dir out/run")
    return home, shutil.copytree(home, home.with_name("template"))


@pytest.fixture
def follow(template, monkeypatch):
    """Follow a case from the template; AssertionError where it does not lead out."""
    home, original = template
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    monkeypatch.setattr(hardware, "detect", detect)
    monkeypatch.setattr(hardware, "peak_flops", peak_flops)
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setenv("GPTLAB_HOME", str(home))
    printed_in = home.with_name("printed")

    def go_back_to(folder: Path) -> None:
        monkeypatch.chdir(folder)
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(folder, home)
        monkeypatch.chdir(home)

    def follow_case(case: Case) -> None:
        let_go()
        go_back_to(original)
        for state in case.states:
            globals()[re.sub(r"\W", "_", state)]()
        _, said = run(small(case.typed))
        print(said)  # pytest shows it where the case fails
        for script in re.findall(r"python (\S+\.py)", "" if "--help" in said else said):
            assert Path(script).is_file(), f"there is no {script} here"
        shutil.rmtree(printed_in, ignore_errors=True)
        shutil.copytree(home, printed_in)
        typed = [case.typed]
        for line, continues in case.then:
            if not continues:
                go_back_to(printed_in)
            printed = [m[1].strip().removesuffix(".") for m in PRINTED.finditer(said)]
            assert line != "*" or printed, "no command is printed"
            for one in printed if line == "*" else [line]:
                do(one)
                typed.append(one)
        said = said.replace(f"{ROOT}/", "")
        SAID[case] = " ".join(said.split()), set(NAMED.findall(" ".join(typed)))

    yield follow_case
    let_go()


# States of the home, by the names of these functions --------------------------------------------


def write_rows(name: str, rows: list) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def your_text():
    Path("YOUR_TEXT.txt").write_text("to be, or not to be\n" * 200, encoding="utf-8")


def own_recipe():
    Path("config").mkdir()
    Path("config/own.py").write_text("dataset = 'words'\nlearning_rate = 0.002\n")


def corpus():
    Path("data/.corpora").mkdir()
    shutil.copy("words.txt", "data/.corpora/shakespeare.txt")


def damaged_meta():
    Path("data/words/meta.json").write_text("{")


def without_val():
    Path("data/words/val.bin").unlink()


def strange_file():
    Path("data/words/notes.txt").write_text("mine")


def ids_alone():
    Path("data/ids").mkdir()
    for part in ("train", "val"):
        shutil.copy(f"data/words/{part}.bin", "data/ids")


def odd_meta_pkl():
    Path("data/ids/meta.pkl").write_bytes(b"no pickle")


def tokenizer_beside():
    shutil.copy("data/words/tokenizer.json", "data/ids")


def run_on_ids():
    do("train.py --dataset ids --vocab_size 200 --out_dir out/ids")


def table():
    rows = [f'{n},"line {n} of b, and more"' for n in range(300)]
    Path("table.csv").write_text("\n".join(["a,b", *rows]))


def bad_json():
    rows = [json.dumps({"text": f"line {n} of many words"}) for n in range(300)]
    rows[100:200:2] = ["{"] * 50
    Path("bad.jsonl").write_text("\n".join(rows))


def lists():
    write_rows("lists.jsonl", [{"text": {"x": n}, "b": f"line {n} of b"} for n in range(300)])


def wide_csv():
    Path("wide.csv").write_text("text,b\n" + "a, b, c, and so on\n" * 300)


def old_file():
    Path("old.txt").write_bytes("Ein Wörtchen für die Gäste\n".encode("cp1252") * 200)


def wide_file():
    Path("wide.txt").write_bytes(("to be, or not to be\n" * 200).encode("utf-16-le"))


def one_line():
    Path("one.txt").write_text("to be, or not to be " * 200)
    Path("lines.txt").write_text("to be, or not to be\n" * 200)


def talks():
    rows = [{"question": f"is {n} so?", "answer": f"{n} is"} for n in range(200)]
    write_rows("talks.jsonl", rows)


def chat_dataset():
    do("prepare.py talks.jsonl --tokenizer out/run")


def folder():
    Path("folder").mkdir()
    for name in ("train.txt", "valid.txt"):
        shutil.copy("words.txt", f"folder/{name}")


def with_notes():
    shutil.copy("words.txt", "folder/other.txt")


def two_kinds():
    words = Path("words.txt").read_text(encoding="utf-8")
    many = [words.replace("question", f"{n} thing") for n in range(8)]
    odd = "\n".join(f"{n * n * 7919:x}{n * 104729:x} {n}" for n in range(3000, 3400))
    Path("kinds").mkdir()
    texts = {"odd": odd, "words2": words, "many": "\n\n".join(many)}
    texts |= {"kinds": "\n\n".join([*many, odd]), "kinds/9": odd}
    texts |= {f"kinds/{n}": text for n, text in enumerate(many)}
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text, encoding="utf-8")
    do("prepare.py many.txt --val odd.txt --dataset odd", "prepare.py kinds.txt")
    do("prepare.py kinds --split tail --dataset files")


def copies():
    paragraphs = [f"paragraph {n}: to be, or not to be {n * n}" for n in range(60)]
    Path("copies.txt").write_text("\n\n".join(paragraphs * 2), encoding="utf-8")
    Path("again.txt").write_text("\n\n".join(paragraphs[:9]), encoding="utf-8")


def marks():
    texts = {
        "marks": "a story\n<|endoftext|>\n" * 200,
        "hidden": "to be\u200b or not\u200b\n" * 200,
        "apart": "cafe\u0301 and caf\u00e9\n" * 200,
        "gutenberg": "to be\n" * 400
        + "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n"
        + "licence\n" * 90,
        "rules": "\n=====\n".join(f"story {n}\nis to be\n" for n in range(200)),
        "names": "".join(f"name {n}\n" for n in range(200)),
        "columns": "front\tback\n" + "".join(f"question {n}\tanswer {n}\n" for n in range(200)),
    }
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text, encoding="utf-8")
    noise = base64.b64encode(random.Random(1).randbytes(60_000)).decode()
    Path("folder2").mkdir()
    for name in ("noise.txt", "folder2/noise.txt"):
        Path(name).write_text("to be\n" * 200 + noise, encoding="utf-8")
    Path("folder3").mkdir()
    Path("folder3/program.json").write_text('[{"a": 1, "b": 2}]', encoding="utf-8")
    for folder in ("folder2", "folder3"):
        shutil.copy("words.txt", folder)


def wrong_words():
    Path("wrong.txt").write_text("Größe 日本 to be\n" * 200, encoding="utf-8")


def wsd_run(eval_interval: int = 4) -> str:
    """Train until the first evaluation; what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "draw", lambda *_: signal.raise_signal(signal.SIGTERM))
        line = "train.py --dataset words --out_dir out/wsd --schedule wsd --max_iters 40"
        code, said = run(small(f"{line} --eval_interval {eval_interval} --warmup_iters 0"))
    assert code == 143, said
    return said


def decaying_run():
    wsd_run(34)


def bpe():
    do("prepare.py words.txt --tokenizer bpe --vocab_size 280 --dataset bpe")
    do("train.py --dataset bpe --out_dir out/bpe")


def piped():
    bpe()
    assert run("prepare.py - --dataset piped", Path("words.txt").read_text())[0] == 0


def another_text():
    your_text()
    do("prepare.py YOUR_TEXT.txt --dataset words --overwrite")


def weights_alone():
    Path("out/run/ckpt.pt").unlink()
    Path("out/run/ckpt.prev.pt").unlink(missing_ok=True)


def weights_as_checkpoint():
    shutil.copy("out/run/best.pt", "out/run/ckpt.pt")
    Path("out/run/ckpt.prev.pt").unlink(missing_ok=True)


def damaged_best():
    Path("out/run/best.pt").write_bytes(b"PK")


def without_weights():
    for path in Path("out/run").glob("*.pt"):
        path.unlink()


def damaged_checkpoints():
    do("train.py --out_dir out/run --resume --max_iters 3")
    for name in ("ckpt", "best"):
        path = Path(f"out/run/{name}.pt")
        path.write_bytes(path.read_bytes()[:1000])


def only_best_damaged():
    weights_alone()
    damaged_best()


def many_runs():
    for n in range(12):
        shutil.copytree("out/run", f"out/run{n}")


def empty_home():
    shutil.rmtree("out")


def exported():
    do("gpt.py export out/run --output model")
    do("gpt.py export out/run --format gguf --output model.gguf")


def chat_model():
    your_text()
    Path("model/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )


def taken_name():
    exported()
    shutil.copytree("out/run", "out/model")


def adapter():
    do("train.py --dataset words --init_from out/run --lora_rank 2 --out_dir out/tuned")


def imported():
    do("gpt.py import model")


def odd_checkpoint():
    torch.save({"weights": 3}, "odd.pt")


def nanogpt():
    width, letters = 16, "\n !abcdefghijklmnopqrstuvwxyz"
    shapes = {
        "ln_1.weight": (width,), "attn.c_attn.weight": (3 * width, width),
        "attn.c_proj.weight": (width, width), "ln_2.weight": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_proj.weight": (width, 4 * width),
    }  # fmt: skip
    weights = {f"transformer.h.0.{name}": torch.randn(shape) for name, shape in shapes.items()}
    weights["transformer.wte.weight"] = weights["lm_head.weight"] = torch.randn(29, width)
    weights["transformer.wpe.weight"] = torch.randn(64, width)
    weights["transformer.ln_f.weight"] = torch.ones(width)
    sizes = dict(n_layer=1, n_head=2, n_embd=width, block_size=64, bias=False, vocab_size=29)
    Path("nano").mkdir()
    torch.save({"model": weights, "model_args": sizes, "config": {}}, "nano/ckpt.pt")
    for name, alphabet in (("letters", letters), ("digits", string.digits)):
        write_characters(f"{name}.pkl", alphabet)


def write_characters(path: str, alphabet: str) -> None:
    """Write nanoGPT's meta.pkl of an alphabet."""
    ids = {character: i for i, character in enumerate(alphabet)}
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": {i: c for c, i in ids.items()}}
    Path(path).write_bytes(pickle.dumps(meta))


def change_weights(path: str, change) -> None:
    """Apply a function to each tensor of a checkpoint's model."""
    content = read_checkpoint(path)
    content["model"] = {name: change(name, w) for name, w in content["model"].items()}
    write_checkpoint(content, path)


def large_weights():
    change_weights("out/run/best.pt", lambda name, w: w + 1e5 if "norm" in name else w)


def overflowing_best():
    change_weights("out/run/best.pt", lambda name, w: w + 1e38 if "norm" in name else w)


def gpt2_with_relu():
    do(
        "train.py --dataset words --out_dir out/relu --use_swiglu false --activation relu "
        "--position_encoding learned --use_rms_norm false --bias true --n_kv_head 2"
    )


def tokenizer_of_words():
    do("gpt.py export out/bpe --output model")
    path = Path("model/tokenizer.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"pre_tokenizer": {"type": "Whitespace"}}))
    imported()


def nfd():
    Path("nfd.txt").write_text("un cafe\u0301, du the\u0301\n" * 200, encoding="utf-8")
    do("prepare.py nfd.txt", "train.py --dataset nfd --out_dir out/nfd")


def edited_config():
    path = Path("out/run/config.py")
    path.write_text(path.read_text(encoding="utf-8") + "import math\n", encoding="utf-8")


# until the next case: open files that hold a lock, in a folder that is copied before its advice is
# followed, and what stands in for the hub
HELD = []


def let_go() -> None:
    while HELD:
        HELD.pop().close()


def busy_run():
    HELD.append(open("out/run/.lock", "a+"))
    files.lock_file(HELD[-1])


def broken_csv():
    rows = [f'{n},"row {n} of words"' for n in range(300)]
    rows[100:] = [f'{n},"row" {n}" of words' for n in range(200)]
    Path("broken.csv").write_text("\n".join(["n,text", *rows]))


def long_field():
    rows = [f'{i},"row {i}"' for i in range(200)]
    rows += ['200,"a loose mark', *(f"{i},row {i}" for i in range(201, 500)), '500,closed"']
    rows += [f'{i},"row {i}"' for i in range(501, 600)]
    Path("long.csv").write_text("n,text\n" + "\n".join(rows))


def xml():
    words = "<p>to be, or not to be</p>\n" * 200
    Path("x.xml").write_text(f'<?xml version="1.0"?>\n<pages>{words}</pages>')
    Path("broken.xml").write_text(f'<?xml version="1.0"?>\n<pages>{words}</page>')
    Path("broken.rss").write_text(f"<rss><channel><item>{words}</rss>")


def jis():
    Path("jis.txt").write_bytes("日本語の文章です。\n".encode("iso2022_jp") * 200)


def bad_member():
    Path("folder4").mkdir()
    shutil.copy("words.txt", "folder4")
    Path("folder4/broken.txt.gz").write_bytes(gzip.compress(b"to be " * 9999)[:60])


def parquet():
    import pyarrow.parquet

    table = {"a": list(range(300)), "b": [f"line {n} of b" for n in range(300)]}
    pyarrow.parquet.write_table(pyarrow.table(table), "x.parquet")


def odd_talks():
    rows = [{"question": f"is {n} 真?", "answer": f"{n} 是"} for n in range(200)]
    write_rows("odd.jsonl", rows)


def run_on_characters():
    ids_alone()
    letters = json.loads(Path("data/words/tokenizer.json").read_text(encoding="utf-8"))
    write_characters("data/ids/meta.pkl", "".join(letters["model"]["vocab"])[:97])
    do("train.py --dataset ids --out_dir out/ids")


def long_questions():
    rows = [{"question": f"{n} to be " * 400, "answer": f"{n} is"} for n in range(40)]
    write_rows("long.jsonl", rows)
    do("prepare.py long.jsonl --tokenizer out/run")


def grown():
    with open("words.txt", "a", encoding="utf-8") as file:
        file.write("\nand a new line of words\n" * 9)


def two_templates():
    do("prepare.py talks.jsonl --tokenizer out/run")
    do("prepare.py talks.jsonl --tokenizer model --dataset others")


def tiny_recipe():
    options = zip(TINY[:-1:2], TINY[1::2], strict=True)
    lines = [f"{name.removeprefix('--')} = {value!r}" for name, value in options]
    text = "\n".join(["dataset = 'words'", *lines])
    Path("a.py").write_text(text)
    Path("timed.py").write_text(text.replace("max_iters = '2'", "minutes = 1"))


def another_dataset():
    your_text()
    do("prepare.py YOUR_TEXT.txt --tokenizer out/run --dataset more")


def compared():
    do("gpt.py compare a.py --set n_layer=2 --seeds 2")


def on_hub(rows: list[dict]) -> None:
    """Let every hf: name stand for these rows."""
    import datasets

    held = contextlib.ExitStack()
    patch = held.enter_context(pytest.MonkeyPatch.context())
    HELD.append(held)
    patch.setattr(hub, "why_unreachable", lambda: "")
    patch.setattr(hub, "newest_revision", lambda repository: "b" * 40)
    table = datasets.Dataset.from_list(rows)
    patch.setattr(hub, "open_stream", lambda name, revision: table.to_iterable_dataset())


def stories_on_hub():
    bpe()
    on_hub([{"text": f"{n} to be, or not to be: the question {n * n}"} for n in range(300)])


def talks_on_hub():
    bpe()
    on_hub([{"question": f"is {n} so?", "answer": f"{n} is"} for n in range(200)])


def task():
    do("prepare.py task:copying --dataset letters")


def few_letters():
    your_text()
    do("prepare.py YOUR_TEXT.txt --dataset few")


def few_problems():
    for name, count in (("few", 2), ("more", 200)):
        write_rows(
            f"{name}.jsonl", [{"prompt": f"{n}+1=", "answer": f"{n + 1}"} for n in range(count)]
        )


def sums():
    do("train.py --dataset task:addition --out_dir out/sums")


# What the source says -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A text of the source that names a command or an option. text: "\\0" stands for a value."""

    module: str
    text: str

    def is_followed(self) -> bool:
        """Whether a case prints this text and takes up all that it names."""
        text = re.sub(r"%[\d.]*[sdf]|\{\w*\}", "\0", self.text)
        parts = [re.escape(" ".join(part.split())) for part in text.split("\0")]
        pattern = re.compile(r"\s*.*?\s*".join(parts), re.IGNORECASE)
        named = set(NAMED.findall(text)) - IGNORED
        return any(named <= typed and pattern.search(said) for said, typed in SAID.values())


def text_of(node) -> str | None:
    """The text of a literal, an f-string or their sum; None for any other expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(node.left), text_of(node.right)]
        if parts != [None, None]:
            return "".join("\0" if part is None else part for part in parts)
    return None


def pieces_in(node, module: str):
    """The pieces below a node, without docstrings and without the sentences of options."""
    if isinstance(node, ast.AnnAssign):
        node = node.value or ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    text = text_of(node)
    if text is not None:
        # a name alone is an argument, and no sentence
        if NAMED.search(text) and not re.fullmatch(r"--[\w-]+|\w+\.py", text.strip()):
            yield Piece(module, text)
        return
    for child in ast.iter_child_nodes(node):
        yield from pieces_in(child, module)


# modules whose words are no advice: arguments of other programs, style sheets, help and reference
NO_ADVICE = {
    "cli/declarations.py", "cli/reference.py", "data/downloads.py", "reports/blame_page.py",
    "reports/page.py", "reports/trace_page.py",
}  # fmt: skip
PIECES = [
    piece
    for path in sorted((ROOT / "gptlab").rglob("*.py"))
    if (name := path.relative_to(ROOT / "gptlab").as_posix()) not in NO_ADVICE
    for piece in pieces_in(ast.parse(path.read_text(encoding="utf-8")), name)
]


def read_elsewhere() -> dict[str, str]:
    """{beginning of a piece: the test file that produces it, or why nothing follows it here}."""
    lines = Path(__file__).with_name("elsewhere.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" | ") for line in lines if line and not line.startswith("#"))
    return {text.replace("...", "\0"): where for where, text in pairs}


# The promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.line} {case.typed}"[:60])
def test_advice_leads_out(case, follow):
    follow(case)


def commands_in(said: str) -> list[str]:
    """The commands in a text, each on a line of its own."""
    return [m[1].strip() for m in PRINTED.finditer(said)]


def test_the_three_commands_after_a_training_work(follow, capsys):
    follow(CASES[0])
    code = trainer.train(out_dir="out/run", resume=True, max_iters=3, quiet=True)
    capsys.readouterr()
    show_result(code)
    commands = commands_in(capsys.readouterr().out)
    assert [line.split()[0] for line in commands] == ["sample.py", "train.py", "gpt.py"]
    do(*commands)


def test_the_commands_of_a_training_that_was_stopped_work(follow, template):
    follow(CASES[0])
    said = wsd_run()
    shutil.copytree(template[0], template[0].with_name("stopped"))
    commands = commands_in(said)
    assert len(commands) == 2 and "--anneal" in commands[1]
    for command in commands:
        shutil.rmtree("out")
        shutil.copytree(template[0].with_name("stopped") / "out", "out")
        do(command)


def test_the_commands_on_pages_work_and_a_run_writes_the_samples_that_a_page_misses(follow):
    follow(CASES[0])
    do("gpt.py report out/run")
    page = Path("out/run/report.html").read_text(encoding="utf-8")
    assert "recorded no samples" in page and "--sample_interval" in page
    do("train.py --dataset words --out_dir out/new --sample_interval 1", "gpt.py report out/new")
    page = Path("out/new/report.html").read_text(encoding="utf-8")
    assert "recorded no samples" not in page
    commands = commands_of_page(page)
    assert any("gpt.py trace" in command for command in commands)
    tiny_recipe()
    do("gpt.py compare a.py --set n_layer=2 --seeds 2")
    commands += commands_of_page(Path("out/compare/a-n_layer=2/report.html").read_text("utf-8"))
    assert len(commands) > 5
    for command in commands:
        do(command.removeprefix("python "))


def test_the_wizard_names_a_command_that_trains_on_ids_alone(follow):
    follow(CASES[0])
    ids_alone()
    (command,) = commands_in(wizard._dataset_choice("ids", None).refusal)
    do(command.replace("N.", "200"))


def commands_of_page(page: str) -> list[str]:
    """The commands that an HTML page shows, but those that begin what is there."""
    shown = re.findall(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)
    lines = [html.unescape(re.sub("<[^>]*>", "", line)) for line in shown]
    again = re.compile(r"prepare\.py|train\.py(?!.*--resume)")
    return [line for line in lines if not again.search(line)]


def test_the_options_for_less_memory_train_on_the_same_tokens_and_fit_in_the_end():
    named = dict(n_layer=24, n_embd=2048, n_head=16, block_size=4096, batch_size=24)
    config = build(named | {"device": "cuda", "dtype": "bfloat16"})
    least = config.replace(block_size=256, batch_size=1, gradient_accumulation_steps=9)
    free, rounds = int(1.2 * memory_needed(least.replace(gradient_checkpointing=True))), 0
    tokens = config.tokens_per_step
    while warning := memory_warning(config, free):
        options = dict(re.findall(r"--(\w+) (\w+)", warning.fix))
        config = config.replace(**{n: v == "true" or int(v) for n, v in options.items()})
        assert config.tokens_per_step == tokens
        rounds += 1
    assert 4 < rounds < 12


def test_the_commands_of_a_report_work(follow):
    follow(CASES[0])
    commands = [line for _, line in view_commands(view_run("out/run"))]
    assert len(commands) == 5
    prepare, start, *later = (line.removeprefix("python ") for line in commands)
    do(*later)
    shutil.rmtree("out/run")
    do(prepare, start)


def test_every_piece_of_advice_in_the_source_is_followed(follow):
    for case in CASES:
        if case not in SAID:
            follow(case)
    elsewhere = read_elsewhere()
    left = [
        f"{piece.module}: {piece.text!r}"
        for piece in PIECES
        if not piece.text.startswith(tuple(elsewhere)) and not piece.is_followed()
    ]
    assert not left, "\n".join(left)


def test_the_list_of_what_is_followed_elsewhere_is_true():
    for text, where in read_elsewhere().items():
        assert any(piece.text.startswith(text) for piece in PIECES), f"nothing says {text!r}"
        if where.startswith("tests/"):
            path, _, name = where.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), where
