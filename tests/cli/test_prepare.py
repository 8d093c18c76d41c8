import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptlab.cli.main import run_command
from gptlab.data.prepare_command import prepare_command

TEXT = "To be, or not to be: that is the question.\n" * 60
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(home):
    def write(name, content=TEXT):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


@pytest.fixture
def run(capsys):
    """Run the command: (exit code, stdout, stderr)."""

    def run(*argv):
        code = run_command("prepare", list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_result_is_on_stdout_and_ends_with_the_next_command(write, run, home):
    write("hamlet.txt")
    code, out, err = run("hamlet.txt")
    assert code == 0
    assert out.startswith("hamlet: hamlet.txt\n")
    assert out.endswith("Next: python train.py --dataset hamlet\n")
    size = len(TEXT)
    assert f"{size:,} bytes, {size:,} characters, 1 document\n" in out
    assert f"training    {int(size * 0.9):,} tokens" in out
    assert f"validation  {size - int(size * 0.9):,} tokens (the end of the text, 10.0%)" in out
    assert "nats per token" in out and "data/hamlet" in out
    assert err.startswith("Preparing hamlet.txt as data/hamlet.\nTokenizer: char")


def test_options_reach_the_preparation(write, run, home):
    write("x.csv", "id;body\n" + "".join(f'{i};"row {i}"\n' for i in range(200)))
    argv = "x.csv --column body --dataset rows --tokenizer bpe --vocab-size=3e2 --split tail"
    code, out, _ = run(*argv.split(), "--val_fraction", "0.25", "--seed", "3")
    assert code == 0 and "python train.py --dataset rows" in out
    meta = json.loads((home / "data/rows/meta.json").read_text(encoding="utf-8"))
    options = {"column": "body", "tokenizer": "bpe", "vocab_size": 300, "split": "tail"}
    options |= {"val_fraction": 0.25, "seed": 3}
    assert options.items() <= meta["options"].items()


def test_preparing_again_says_that_there_is_nothing_to_do(write, run):
    write("hamlet.txt")
    run("hamlet.txt")
    code, out, _ = run("hamlet.txt")
    assert code == 0 and out.startswith("hamlet: already prepared, nothing to do")
    assert out.endswith("Next: python train.py --dataset hamlet\n")


def test_several_files_are_one_dataset(write, run):
    write("plays/one.txt")
    write("plays/two.txt", TEXT.upper())
    code, out, _ = run("plays/one.txt", "plays/two.txt")
    assert code == 0 and out.startswith("plays: 2 files\n") and "2 documents" in out


def test_the_list_shows_what_is_prepared_and_what_is_known(write, run, home):
    assert "nothing yet" in run("--list")[1]
    write("hamlet.txt")
    run("hamlet.txt")
    (home / "data/foreign").mkdir()
    (home / "data/foreign/train.bin").write_bytes(b"\1\0")
    code, out, _ = run("--list")
    assert code == 0
    hamlet = next(line for line in out.splitlines() if line.startswith("  hamlet"))
    assert f"{len(TEXT):,} tokens" in hamlet and "char" in hamlet and "hamlet.txt" in hamlet
    assert "foreign" in out and "without a readable meta.json" in out
    assert "shakespeare" in out.split("Known by name")[1]


def test_the_help_opens_with_a_line_to_copy(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command("prepare", ["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("python prepare.py")


def test_the_first_documents_are_shown_and_nothing_is_written(write, run, home):
    write("x.csv", "title,body\n" + "".join(f'T{i},"one\ntwo"\n' for i in range(20)))
    code, out, err = run("x.csv", "--column", "title,body", "--show")
    assert code == 0 and "Read x.csv as comma-separated, with the header title, body" in err
    assert "Document 1 (x.csv line 3):\n  | T0\n  | one\n  | two\nDocument 2" in out
    assert "Document 3" in out and "Document 4" not in out and "More documents follow." in out
    write("hamlet.txt")
    code, out, _ = run("hamlet.txt", "--show")
    assert code == 0 and "further characters)" in out and "These are all." in out
    assert not (home / "data").exists()


def test_a_look_at_the_documents_says_the_counts_that_preparing_says(write, run):
    page = "<html><script>x</script><pre>Nature &amp; nurture, and a licence"
    write("a.html", page + "\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence</pre></html>")
    said = [
        "HTML pages read without their tags: 1",
        "Scripts, styles and drawings in HTML left out: 1",
        "Project Gutenberg: 1 licence cut",
    ]
    code, _, err = run("a.html", "--show")
    assert code == 0 and all(sentence in err for sentence in said)
    code, _, err = run("a.html", "--val_fraction", "0.5")
    assert all(sentence in err for sentence in said)
    for number in range(5):
        write(f"folder/{number}.html", page)
    _, _, err = run("folder", "--show")
    assert re.search(r"HTML pages read without their tags: [34] so far\.", err)
    code, _, err = run("folder/1.html", "--show", "--clean")
    assert code == 2 and "--clean has no effect" in err


def test_options_of_tables_reach_the_preparation(write, run, home):
    rows = [f"{i};row number {i}" for i in range(300)]
    rows[3] = "3;a;b"
    write("x.csv", "\n".join(rows))
    options = "--header no --delimiter semicolon --quoting no --column 2 --max_bad_rows 0.5%"
    code, out, err = run("x.csv", *options.split())
    assert code == 0 and "299 documents" in out and "Odd rows skipped" not in err
    assert "x.csv line 4 has 3 fields where the table has 2" in err
    code, _, err = run("x.csv", *options.replace("0.5%", "0").split(), "--overwrite")
    assert code == 2 and "line 4 has 3 fields" in err
    code, _, err = run("x.csv", "--max_bad_rows", "many")
    assert code == 2 and "max_bad_rows cannot be 'many'" in err


BAD = {
    "no table": (["hamlet.txt", "--column", "text"], "column has no effect"),
    "no csv": (["hamlet.txt", "--header", "no"], "header is for CSV and TSV files"),
    "no name": (["hamlet.txt", "--exclude", "x"], "exclude has no effect"),
    "missing": (["nope.txt"], "nope.txt does not exist"),
    "empty": (["empty.txt"], "empty.txt holds no text"),
    "blank": (["blank.txt"], "blank.txt holds no text"),
    "folder": (["emptydir"], "emptydir holds no text"),
    "binary": (["x.bin"], "x.bin is a binary file"),
    "pdf": (["x.pdf"], "x.pdf is no readable PDF"),
    "docx": (["x.docx"], "x.docx is a Word document"),
    "encoding": (["w.txt"], "w.txt is not UTF-8 at byte 2 (0x92)"),
    "gzip": (["w.txt.gz"], "w.txt.gz is not UTF-8 at byte 2 (0x92)"),
    "broken line": (["x.jsonl"], "x.jsonl line 3 is not valid JSON"),
    "column": (["y.jsonl"], "its fields are a, b"),
    "vocabulary": (["hamlet.txt", "--tokenizer", "bpe", "--vocab_size", "256"], "at least 257"),
    "option": (["hamlet.txt", "--vocabsize", "300"], "did you mean vocab_size?"),
    "number": (["hamlet.txt", "--vocab_size", "many"], "vocab_size"),
    "choice": (["hamlet.txt", "--split", "middle"], "auto, tail, document"),
    "glob": (["*.rst"], "No file matches *.rst"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(write, run, home, case):
    import gzip

    files = {
        "hamlet.txt": TEXT,
        "empty.txt": "",
        "blank.txt": "  \n\n",
        "x.bin": bytes(range(256)),
        "x.pdf": b"%PDF-1.7",
        "x.docx": b"PK\x03\x04",
        "w.txt": b"It\x92s fine, caf\xe9\n" * 500,
        "w.txt.gz": gzip.compress(b"It\x92s fine, caf\xe9\n" * 500),
        "x.jsonl": '{"text": "a"}\n\n{"text"\n',
        "y.jsonl": '{"a": "x", "b": "y"}\n',
    }
    for name, content in files.items():
        write(name, content)
    (home / "emptydir").mkdir()
    argv, sentence = BAD[case]
    code, out, err = run(*argv)
    assert code == 2 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("gptlab: ") and sentence in last and last.endswith((".", "?"))
    assert not (home / "data").exists() or not os.listdir(home / "data")


def test_a_full_disk_is_a_sentence_and_leaves_nothing(home, write):
    write("hamlet.txt", TEXT * 400)
    limited = f"ulimit -f 500; {sys.executable} {REPOSITORY / 'prepare.py'} hamlet.txt"
    environment = os.environ | {"GPTLAB_HOME": str(home)}
    done = subprocess.run(
        ["bash", "-c", limited], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "disk is full" in done.stderr.splitlines()[-1]
    assert os.listdir(home / "data") == []


def test_the_locale_changes_nothing(home, write):
    write("u.txt", "smörgåsbord 😀 naïve\n" * 400)
    results = []
    for name, locale in (
        ("c", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("utf8", {"PYTHONUTF8": "1"}),
    ):
        subprocess.run(
            [sys.executable, str(REPOSITORY / "prepare.py"), "u.txt", "--dataset", name],
            env=os.environ | {"GPTLAB_HOME": str(home)} | locale,
            cwd=home,
            check=True,
            capture_output=True,
        )
        folder = home / "data" / name
        results.append(
            [(folder / f).read_bytes() for f in ("train.bin", "val.bin", "tokenizer.json")]
        )
    assert results[0] == results[1]


def test_ctrl_c_leaves_nothing(home, write):
    write("big.txt", TEXT * 8000)
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "prepare.py"), "big.txt", "--tokenizer", "bpe"],
        env=os.environ | {"GPTLAB_HOME": str(home)},
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (home / "data").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # until it writes
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert os.listdir(home / "data") == []


# What a document is, and what validates -----------------------------------------------------------


def test_one_name_a_line_is_a_document_each(write, run):
    names = [f"name{i}" for i in range(300)]
    write("names.txt", "\n".join(names) + "\n")
    code, out, _ = run("names.txt", "--document", "line")
    assert code == 0 and "300 documents" in out and "(whole documents, " in out


def test_a_text_with_marks_names_the_option_and_the_option_works(write, run):
    write("s.txt", "\n<|endoftext|>\n".join(f"A story, number {i}." for i in range(200)))
    code, _, err = run("s.txt")
    assert code == 0
    said = next(line for line in err.splitlines() if line.startswith("The text contains marks"))
    assert "199 <|endoftext|>" in said
    option = re.search(r"--separator '[^']*'", said)[0]
    code, out, err = run("s.txt", *shlex.split(option))
    assert code == 0 and "200 documents" in out and "Marks" not in err


def test_a_separator_that_never_occurs_is_one_sentence(write, run, home):
    write("s.txt")
    code, out, err = run("s.txt", "--separator", "<|end|>")
    assert code == 2 and not out and os.listdir(home / "data") == []
    assert err.splitlines()[-1].startswith("gptlab: The separator '<|end|>' never occurs in s.txt;")


def test_a_validation_file_is_named_in_the_summary(write, run, home):
    write("train.txt", TEXT)
    write("valid.txt", TEXT[:400])
    code, out, _ = run("train.txt", "--val", "valid.txt")
    assert code == 0 and f"{len(TEXT):,} tokens\n  validation  400 tokens (valid.txt, " in out
    for name, size in (("train", 900), ("valid", 300), ("test", 300)):
        write(f"wiki/{name}.txt", TEXT[:size])
    code, out, err = run("wiki/")
    assert code == 0 and "900 tokens\n  validation  300 tokens (wiki/valid.txt, " in out
    assert "wiki/test.txt left out (test text); --val none trains on all of them." in err
    code, out, _ = run("wiki/", "--val", "none")
    assert code == 0 and "3 documents" in out


def test_a_gutenberg_licence_is_cut_and_said(write, run):
    write("pg.txt", TEXT + "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n" + "licence\n" * 90)
    code, out, err = run("pg.txt")
    assert code == 0 and f"{len(TEXT):,} bytes" in out
    assert "Project Gutenberg: 1 licence cut" in err
    code, out, err = run("pg.txt", "--gutenberg", "keep")
    assert code == 0 and f"{len(TEXT):,} bytes" not in out and "cut (" not in err


def test_the_recorded_command_prepares_the_same_again(write, run, home):
    write("s.txt", "<a>\n" + "<b>\n<a>\n".join(f"story {i}\n" for i in range(60)) + "<b>\n")
    options = ["--separator", "<a>", "--separator", "<b>", "--dataset", "two"]
    assert run("s.txt", *options)[0] == 0
    meta = json.loads((home / "data/two/meta.json").read_text(encoding="utf-8"))
    words = shlex.split(prepare_command(meta))
    assert words[:2] == ["python", "prepare.py"]
    code, out, _ = run(*words[2:])
    assert code == 0 and "already prepared, nothing to do" in out
