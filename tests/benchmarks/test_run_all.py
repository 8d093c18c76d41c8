"""One command for all benchmarks: what runs, what is skipped, what a failure does."""

import json
import sys

import pytest

GOOD = """\
import json, sys
path = sys.argv[sys.argv.index("--json") + 1]
open(path, "w").write(json.dumps(sys.argv[1:]))
print("| a table |")
"""
BAD = 'raise SystemExit("broken")'


@pytest.fixture
def own_scripts(tmp_path, monkeypatch):
    """A folder with a script that fails and one that works."""
    import run_all

    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "bad.py").write_text(BAD)
    (folder / "good.py").write_text(GOOD)
    monkeypatch.setattr(run_all, "BENCHMARKS", folder)
    return run_all


def test_a_failure_stops_nothing_and_is_the_exit_code(own_scripts, tmp_path, capfd):
    names = ("bad.py", "absent.py", "good.py")
    benchmarks = [own_scripts.Benchmark(name) for name in names]
    out = tmp_path / "out"
    assert own_scripts.run_all(benchmarks, {}, out, True, sys.executable) == 1
    printed = capfd.readouterr().out
    assert "bad.py: failed (1)" in printed
    assert "absent.py: skipped. There is no benchmarks/absent.py here." in printed
    assert "good.py: done" in printed and "Failed: bad.py." in printed
    assert json.loads((out / "good.json").read_text())[0] == "--quick"
    page = (out / "benchmarks.md").read_text()
    assert page.index("## bad") < page.index("## absent") < page.index("## good")
    assert "| a table |" in page


def test_without_a_failure_the_exit_code_is_0(own_scripts, tmp_path, capfd):
    benchmarks = [own_scripts.Benchmark("good.py"), own_scripts.Benchmark("absent.py")]
    assert own_scripts.run_all(benchmarks, {}, tmp_path, False, sys.executable) == 0
    assert "--quick" not in json.loads((tmp_path / "good.json").read_text())


def test_figures_of_an_earlier_run_do_not_pass_for_those_of_a_failed_one(own_scripts, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    own_scripts.run_all([own_scripts.Benchmark("bad.py")], {}, tmp_path, True, sys.executable)
    assert not (tmp_path / "bad.json").exists()


def test_a_script_that_takes_too_long_is_ended():
    import run_all

    waits = "import sys; print('begun', flush=True); sys.stdin.read(); open('/dev/null').read()"
    code, _ = run_all.run([sys.executable, "-c", f"while True: {waits}"], 0)
    assert code == 124


@pytest.mark.parametrize(
    ("need", "sentence"),
    [
        ("nanogpt", "--nanogpt"),
        ("text", "--text"),
        ("smollm2", "python gpt.py import smollm2-135m"),
        ("gpu", "no accelerator"),
        ("no_such_package", "pip install no_such_package"),
    ],
)
def test_what_cannot_be_run_is_skipped_with_what_it_needs(own_scripts, need, sentence, tmp_path):
    paths = {"nanogpt": None, "text": tmp_path / "none.txt", "smollm2": tmp_path / "none"}
    benchmark = own_scripts.Benchmark("good.py", needs=(need,))
    assert sentence in own_scripts.missing(benchmark, paths, gpu=lambda: False)


def test_what_is_there_is_run_with_its_paths(own_scripts, tmp_path):
    (tmp_path / "model.py").write_text("")
    text = tmp_path / "text.txt"
    text.write_text("")
    paths = {"nanogpt": tmp_path, "text": text, "smollm2": tmp_path}
    benchmark = own_scripts.Benchmark(
        "good.py", needs=("text", "smollm2", "gpu"), wants=("nanogpt",), quick=("--few",)
    )
    assert own_scripts.missing(benchmark, paths, gpu=lambda: True) == ""
    assert own_scripts.arguments(benchmark, paths, True, tmp_path / "a.json") == [
        "--few", "--text", str(text), "--nanogpt", str(tmp_path), "--json",
        str(tmp_path / "a.json"),
    ]  # fmt: skip


def test_every_benchmark_is_listed_once(scripts):
    import run_all

    listed = [benchmark.script for benchmark in run_all.ALL]
    # no benchmarks by themselves, what docs/experiments.md is written from, and plans
    parts = {"report.py", "processes.py", "run_all.py"}
    parts |= {"experiments.py", "kv_heads.py", "tasks.py", "published_runs.py"}
    assert len(set(listed)) == len(listed)
    assert {path.name for path in scripts.glob("*.py")} - parts <= set(listed)


def test_a_wrong_name_or_path_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    import run_all

    assert run_all.main(["--only", "nothing"]) == 2
    assert "choose from startup" in capsys.readouterr().err
    assert run_all.main(["--nanogpt", str(tmp_path)]) == 2
    assert "holds no model.py" in capsys.readouterr().err
