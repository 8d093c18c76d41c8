"""The program behind setup.sh and setup.bat: from a bare Python to a trained model.

    setup.sh           create .venv, install, and offer to prepare data
    setup.sh --demo    also train a small model on Shakespeare for three minutes and print a sample
    setup.sh --test    also install what the tests need, and run them

It uses only the standard library, because it runs before anything is installed. Finished stages are
skipped.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from gptlab.files import atomic_write, display, home, out_home  # noqa: E402
from gptlab.hardware.probe import accelerator_driver  # noqa: E402

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)  # torch 2.13 has wheels for these
OLDEST_PIP = (22, 2)  # the first with a report of what it would install
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

PREPARE = ["prepare.py", "shakespeare"]
TRAIN = ["train.py", "--config", "config/shakespeare_char.py", "--minutes", "3"]
SAMPLE = ["sample.py", "--prompt", "ROMEO:", "--max_tokens", "400", "--seed", "1"]

ACTIVATE = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
STARTED = time.monotonic()
# pytest-xdist: one process for each core, at most four; what follows may say otherwise (-n 0)
TESTS_AT_ONCE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


class SetupError(Exception):
    """A problem, as one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code of the first stage that failed, or 0."""
    options, rest = _read_options(sys.argv[1:] if argv is None else argv)
    if os.environ.get("GPTLAB_HOME"):
        os.environ["GPTLAB_HOME"] = str(home().absolute())  # relative to the original folder
    os.chdir(ROOT)
    try:
        python = make_environment(ROOT / ".venv")
        names = ["requirements.txt"] + (["requirements-test.txt"] if options.test else [])
        install(python, [ROOT / name for name in names])
        if options.test:
            say("Running the tests.")
            return run_process([python, "-m", "pytest", *TESTS_AT_ONCE, *rest])
        return demo(python) if options.demo else offer_data(python, options.yes)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: stopped; run it again to continue.", file=sys.stderr)
        return 130


def _read_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options, arguments for pytest)"""
    parser = argparse.ArgumentParser(
        prog="setup.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--demo", action="store_true", help="install, train for minutes, sample")
    what.add_argument("--test", action="store_true", help="install, run pytest with other words")
    parser.add_argument("--yes", action="store_true", help="prepare the data without asking")
    options, rest = parser.parse_known_args(argv)
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if rest and not options.test:
        parser.error(f"there is no option {rest[0]}")
    return options, rest


def say(text: str) -> None:
    """Print a line of progress with the time since the start."""
    minutes, seconds = divmod(int(time.monotonic() - STARTED), 60)
    print(f"[{minutes}:{seconds:02d}] {text}", file=sys.stderr, flush=True)


def run_process(command: Sequence[str | Path]) -> int:
    """Run a command and return its exit code.

    The command shares the terminal, so Ctrl-C reaches it directly; a training then saves, and this
    process only waits. SIGTERM reaches only this process and is passed on.
    """
    process = subprocess.Popen([str(word) for word in command])
    interrupts = []
    former = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: interrupts.append(True)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if interrupts and code:
        return 130
    return code if code >= 0 else 128 - code  # as shells report a death by a signal


def script(python: Path, words: Sequence[str]) -> int:
    """Run one of the project's scripts, and show the command first."""
    say("python " + " ".join(f'"{word}"' if " " in word else word for word in words))
    return run_process([python, *words])


# The environment ----------------------------------------------------------------------------------


def check_python(version: tuple, is_64_bit: bool) -> None:
    """Raise SetupError unless torch has a wheel for this Python."""
    wanted = "Python {}.{} to {}.{}, 64-bit".format(*OLDEST_PYTHON, *NEWEST_PYTHON)
    if not OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        raise SetupError(
            f"this is Python {version[0]}.{version[1]}, but torch needs {wanted}: install one from "
            "https://www.python.org/downloads and run setup again."
        )
    if not is_64_bit:
        raise SetupError(f"this Python is 32-bit, but torch needs {wanted}.")


def without_ensurepip(version: tuple, has_apt: bool) -> str:
    """The message for a Python that cannot create environments."""
    name = f"python{version[0]}.{version[1]}"
    if has_apt:
        return (
            f"{name} has no ensurepip, which creates environments: install it with "
            f"`sudo apt install {name}-venv` and run setup again."
        )
    return (
        f"{name} has no ensurepip, which creates environments: install its package for venv, or "
        "Python from https://www.python.org/downloads, and run setup again."
    )


def make_environment(folder: Path) -> Path:
    """The Python of the virtual environment `folder`, which is created if missing or broken."""
    check_python(sys.version_info, sys.maxsize > 2**32)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _runs(python, "import sys; sys.exit(sys.version_info[:2] < (3, 10))"):
        if not _runs(python, "import pip") and run_process([python, "-m", "ensurepip"]):
            raise SetupError(f"{folder} has no pip: delete this folder and run setup again.")
        return python
    if not _runs(sys.executable, "import ensurepip, venv"):
        raise SetupError(without_ensurepip(sys.version_info, bool(shutil.which("apt-get"))))
    again = " again, because the existing one does not run" if folder.exists() else ""
    say(f"Creating .venv{again}, with Python {sys.version.split()[0]}.")
    if run_process([sys.executable, "-m", "venv", "--clear", folder]):
        raise SetupError(f"the environment {folder} could not be created: the reason is above.")
    return python


def _runs(python: str | Path, code: str) -> bool:
    """Whether this Python exists and runs `code` without an error."""
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


# Installing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A build of torch that an index offers."""

    version: str
    is_large: bool  # with gigabytes of libraries for an accelerator


def install(python: Path, files: Sequence[Path]) -> None:
    """Install requirement files into the environment of `python`, unless they are installed."""
    stamp = python.parent.parent / "installed.json"
    if is_installed(stamp, files):
        say("All requirements are installed already.")
        return
    if pip_version(python) < OLDEST_PIP:
        say("Updating pip.")
        _pip(python, "install", "--quiet", "--upgrade", "pip")
    torch = requirement("torch", files[0].read_text(encoding="utf-8"))
    say("Asking the package index for its build of torch.")
    source, sentence = torch_source(
        accelerator_driver(),
        lambda: ask_offer(python, torch),
        lambda: ask_offer(python, torch, *_index(CPU_INDEX), "--timeout", "10", "--retries", "0"),
    )
    say(sentence)
    if source:
        # its dependencies come from the default index with the rest
        _pip(python, "install", "--no-deps", *_index(source), torch)
    say(f"Installing {' and '.join(file.name for file in files)}.")
    _pip(python, "install", *(word for file in files for word in ("-r", file)))
    write_stamp(stamp, files)
    say("Installed.")


def torch_source(
    driver: str, ask_default: Callable[[], Offer | None], ask_cpu: Callable[[], Offer | None]
) -> tuple[str, str]:
    """(index for torch, or "" for the configured one; message): a small build if that is enough.

    driver: of an accelerator, or "". The two queries take seconds, so each is made only if its
    answer matters. An answer of None means that there is nothing to install or no answer.
    """
    if driver:
        return "", f"Found a driver for {driver}: using torch from the default index."
    offer = ask_default()
    if offer is None:
        return "", "Using torch from the default index."
    if not offer.is_large:
        return "", f"The index has torch {offer.version}, which is small: using that."
    smaller = ask_cpu()
    if smaller is not None and not smaller.is_large:
        return CPU_INDEX, f"No accelerator here: using torch {smaller.version} from {CPU_INDEX}."
    return "", (
        f"No accelerator here, but only the large torch {offer.version} is available: it downloads "
        "several GB once."
    )


def read_offer(report: str) -> Offer | None:
    """The build of torch in pip's installation report; None if there is none."""
    for item in json.loads(report)["install"]:
        metadata = item["metadata"]
        if metadata["name"].lower() != "torch":
            continue
        needed = [line for line in metadata.get("requires_dist", []) if "extra ==" not in line]
        if sys.platform != "linux":  # the libraries come as packages on Linux only
            needed = [line for line in needed if "Linux" not in line]
        is_large = any(line.startswith(("nvidia-", "cuda-", "triton")) for line in needed)
        return Offer(metadata["version"], is_large)
    return None


def ask_offer(python: Path, torch: str, *options: str) -> Offer | None:
    """Ask pip what it would install for the requirement `torch`; None if it fails."""
    command = [python, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet"]
    command += ["--report", "-", *options, torch]
    done = subprocess.run([str(word) for word in command], capture_output=True, encoding="utf-8")
    try:
        return read_offer(done.stdout) if done.returncode == 0 else None
    except (ValueError, KeyError):
        return None


def _index(url: str) -> list[str]:
    return ["--index-url", url]


def _pip(python: Path, *words: str | Path) -> None:
    """Run pip and let it show its progress. Raises SetupError if it fails."""
    code = run_process([python, "-m", "pip", "--disable-pip-version-check", *words])
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise SetupError(
            "pip could not install the requirements (its reason is above): check the connection "
            "and the free disk space, and run setup again; finished stages are kept."
        )


def pip_version(python: Path) -> tuple[int, ...]:
    """The first two numbers of pip's version."""
    code = "import pip; print(pip.__version__)"
    done = subprocess.run([str(python), "-c", code], capture_output=True, encoding="utf-8")
    numbers = done.stdout.strip().split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def requirement(name: str, text: str) -> str:
    """The line of a requirements file for the package `name`."""
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        rest = line.removeprefix(name)
        if rest != line and not rest[:1].isalnum() and rest[:1] not in ("-", "_"):
            return line
    raise SetupError(f"requirements.txt does not name {name}.")


def is_installed(stamp: Path, files: Sequence[Path]) -> bool:
    """Whether the environment's stamp shows that exactly these files were installed."""
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
        return all(known.get(file.name) == _digest(file) for file in files)
    except (OSError, ValueError, AttributeError):
        return False


def write_stamp(stamp: Path, files: Sequence[Path]) -> None:
    """Record that these files were installed."""
    with atomic_write(stamp, "w") as file:
        json.dump({path.name: _digest(path) for path in files}, file, indent=2)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# After installing ---------------------------------------------------------------------------------


def offer_data(python: Path, yes: bool) -> int:
    """Prepare Shakespeare if the user agrees, and show what to type next."""
    if yes or _agrees("Prepare Shakespeare's plays now, a text of about 1 MB to train on?"):
        code = script(python, PREPARE)
        if code:
            return code
        following = TRAIN
    else:
        following = PREPARE
    say(f"Ready. Next:\n  {ACTIVATE}\n  python {' '.join(following)}")
    return 0


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("", "y", "yes") and answer != ""  # "": end of input


def demo(python: Path) -> int:
    """Show the hardware, prepare, train and sample; returns the first nonzero exit code, or 0."""
    folder = out_home() / "demo"
    out_dir = ["--out_dir", display(folder)]
    finished = folder / ".demo_finished"
    if finished.exists() and (folder / "best.pt").exists():
        say(f"The model in {display(folder)} is already trained.")
    else:
        begun = (folder / "ckpt.pt").exists()
        train = ["train.py", *out_dir, "--resume"] if begun else [*TRAIN, *out_dir]
        for words in (["train.py", "--show-hardware"], PREPARE, train):
            code = script(python, words)
            if code:
                say("Stopped. Run setup again to continue from here.")
                return code
        finished.touch()
    code = script(python, [*SAMPLE, *out_dir])
    if code == 0:
        more = " ".join(["python", "sample.py", *out_dir, "--interactive"])
        say(f"That was your own model. It can write more:\n  {ACTIVATE}\n  {more}")
    return code


if __name__ == "__main__":
    sys.exit(main())
