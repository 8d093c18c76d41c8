"""Run all benchmarks one after the other, each in its own process.

    python benchmarks/run_all.py [--quick] [--nanogpt ../nanoGPT] [--out FOLDER]

FOLDER gets a NAME.json of each, and benchmarks.md with all tables. A script that fails does not
stop the others, but the exit code is then 1. Benchmarks that cannot run on this machine are skipped
with the reason. With `--quick` all of them end within fifteen minutes on two slow cores.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import report

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
QUICK_SECONDS = 240  # time limit of a script with --quick; beyond it the script has failed


@dataclass(frozen=True)
class Benchmark:
    """A script and what it needs. needs: "nanogpt", "text", "gpu", "smollm2", or a package.

    quick: its arguments with --quick. wants: like `needs`, but optional.
    """

    script: str
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)


ALL = (
    Benchmark("startup.py"),
    Benchmark("against_nanogpt.py", needs=("nanogpt", "text")),
    Benchmark("training.py", needs=("nanogpt",)),
    Benchmark("preparing.py"),
    Benchmark("scaling.py"),
    Benchmark("loss_memory.py"),
    Benchmark("growth.py"),
    Benchmark("decode.py", needs=("smollm2", "transformers", "xllamacpp")),
    Benchmark("speculation.py", needs=("smollm2",)),
    Benchmark("ablation.py", needs=("text",)),
    Benchmark("pretrain_then_finetune.py", needs=("text",)),
    Benchmark("gpu.py", needs=("gpu",), wants=("nanogpt",), quick=()),
)


def has_gpu() -> bool:
    """Whether torch sees an accelerator; checked in a separate process, which releases it."""
    code = "import torch; raise SystemExit(not torch.accelerator.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def missing(benchmark: Benchmark, paths: dict, gpu: Callable[[], bool] = has_gpu) -> str:
    """Why this machine cannot run a benchmark, as a sentence; "" if it can.

    paths: of "nanogpt", "text" and "smollm2"; None for those not given.
    """
    if not (BENCHMARKS / benchmark.script).is_file():
        return f"There is no benchmarks/{benchmark.script} here."
    for need in benchmark.needs:
        path = paths.get(need)
        if need == "nanogpt" and not (path and (path / "model.py").is_file()):
            return "Its peer is missing: clone nanoGPT and name the folder with --nanogpt."
        if need == "text" and not (path and path.is_file()):
            return "It reads tiny Shakespeare: name the file with --text."
        if need == "smollm2" and not (path and path.is_dir()):
            return "It needs a model: python gpt.py import smollm2-135m."
        if need == "gpu" and not gpu():
            return "There is no accelerator that torch can use."
        if need not in (*paths, "gpu") and importlib.util.find_spec(need) is None:
            return f"Its peer is missing: pip install {need}."
    return ""


def arguments(benchmark: Benchmark, paths: dict, quick: bool, json_file: Path) -> list[str]:
    """The command-line arguments of the script."""
    words = list(benchmark.quick) if quick else []
    for name in (*benchmark.needs, *benchmark.wants):
        if name in ("nanogpt", "text") and paths.get(name):
            words += [f"--{name}", str(paths[name])]
    return [*words, "--json", str(json_file)]


def run(command: Sequence[str], seconds: float | None) -> tuple[int, str]:
    """(exit code, stdout) of a command; its stderr passes through. 124 after a timeout."""
    # a process group of its own, so that its children end with it
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=os.name == "posix"
    )
    try:
        output, _ = child.communicate(timeout=seconds)
        return child.returncode, output
    except subprocess.TimeoutExpired:
        return 124, _end(child)
    except BaseException:  # Ctrl-C, or the signal that `main` turns into an exit
        _end(child)
        raise


def _end(child: subprocess.Popen) -> str:
    """End a process and its children; return its output so far."""
    if os.name == "posix":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    return child.communicate()[0] or ""


def run_all(
    benchmarks: Sequence[Benchmark], paths: dict, out: Path, quick: bool, python: str
) -> int:
    """Run the benchmarks and write the files; return the exit code: 1 if any failed."""
    out.mkdir(parents=True, exist_ok=True)
    sections, failed = [], []
    for benchmark in benchmarks:
        name = Path(benchmark.script).stem
        why = missing(benchmark, paths)
        if why:
            print(f"{benchmark.script}: skipped. {why}", flush=True)
            sections.append(f"## {name}\n\nSkipped: {why}\n")
            continue
        json_file = out / f"{name}.json"
        json_file.unlink(missing_ok=True)  # of an earlier run
        words = arguments(benchmark, paths, quick, json_file)
        begin = time.perf_counter()
        code, output = run(
            [python, str(BENCHMARKS / benchmark.script), *words], QUICK_SECONDS if quick else None
        )
        seconds = time.perf_counter() - begin
        how = "done" if code == 0 else "too slow, ended" if code == 124 else f"failed ({code})"
        print(f"{benchmark.script}: {how} in {seconds:.0f} s.", flush=True)
        if code:
            failed.append(benchmark.script)
        sections.append(
            f"## {name}\n\n`python benchmarks/{benchmark.script} {' '.join(words)}`: {how} in "
            f"{seconds:.0f} s.\n\n{output.strip()}\n"
        )
        _write(out, sections)
    _write(out, sections)
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    print(f"Wrote {out / 'benchmarks.md'}")
    return 1 if failed else 0


def _write(out: Path, sections: list[str]) -> None:
    """Write all sections so far, so that an interruption leaves a complete file."""
    text = "# Benchmarks\n\n" + "\n".join(sections)
    (out / "benchmarks.md").write_text(text, encoding="utf-8")


def main(argv: list[str]) -> int:
    """Run all benchmarks that this machine can run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument(
        "--text", type=Path, default=report.SHAKESPEARE, help="a copy of tiny Shakespeare"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "benchmarks")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of them, by name")
    options = parser.parse_args(argv)
    known = {Path(benchmark.script).stem: benchmark for benchmark in ALL}
    wanted = options.only or list(known)
    for name in wanted:
        if name not in known:
            print(f"There is no benchmark {name!r}: choose from {', '.join(known)}.",
                  file=sys.stderr)  # fmt: skip
            return 2
    if options.nanogpt and not (options.nanogpt / "model.py").is_file():
        print(f"{options.nanogpt} holds no model.py: name a clone of nanoGPT.", file=sys.stderr)
        return 2
    paths = {
        "nanogpt": options.nanogpt and options.nanogpt.resolve(),
        "text": options.text.resolve(),
        "smollm2": REPOSITORY / "out" / "smollm2-135m",
    }
    chosen = [known[name] for name in wanted]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running script as well
    return run_all(chosen, paths, options.out.resolve(), options.quick, sys.executable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
