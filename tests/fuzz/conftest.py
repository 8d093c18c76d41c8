"""What the fuzzing shares: a prepared text with a run, mutations of files, and the promise.

The promise: whatever a file or a command line holds, gptlab works or refuses in one sentence that
names it; within seconds, within some memory, and with nothing written by a refusal.

GPTLAB_FUZZ=N takes N times as many examples, drawn anew each time; the default ones are fixed.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gptlab.cli.main import run_command
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import GPTLabError
from gptlab.training.trainer import train

TIMES = int(os.environ.get("GPTLAB_FUZZ", "1"))
LONG = 5  # what the slow form multiplies by
SECONDS = 20  # of one example, of processor time
MEMORY = 2 << 30  # address space beyond what the process has before
GROWTH = 400_000  # kB of resident memory beyond what the process has before
TEXTS = {
    "a.txt": "to be or not to be\nthat is the question\n" * 20,
    "b.txt": "whether tis nobler\nin the mind to suffer\n" * 20,
    "c.txt": "the slings and arrows\nof outrageous fortune\n" * 20,
}
COUNTS: Counter = Counter()
# values as JSON spells them, of every kind that a field may not expect
ODD = [
    "null", "true", "false", "0", "-1", "1", "2147483648", "18446744073709551616", "1" + "0" * 400,
    "0.5", "1e400", "-1e400", "NaN", "Infinity", '""', '" "', '"x"', '"7"', '"\\ud800"',
    '"\\u0000"', '"../../x"', '"/"', '"gpt2"', '"' + "y" * 3000 + '"', "[]", "{}", "[[]]",
    '[null, 1, "x"]', '{"": {}}', "DEEP", "DEEPER",
]  # fmt: skip
SPELLED = {"DEEP": "[" * 200 + "]" * 200, "DEEPER": "[" * 100_000}  # short in a report


class TooLong(BaseException):
    """An example takes longer than it may; no Exception, so that nothing takes it for damage."""


@contextlib.contextmanager
def time_limit():
    def stop(number, _):
        raise TooLong(f"longer than it may take (signal {number})")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    timers = {  # of work, and of waiting on a machine that does other things as well
        signal.SIGPROF: (signal.ITIMER_PROF, SECONDS),
        signal.SIGALRM: (signal.ITIMER_REAL, 10 * SECONDS),
    }
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds, 1)  # and again, where nothing could be raised
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_limit():
    """Allocations far beyond what small files need fail; Linux only."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module", autouse=True)
def slow_growth(template):
    """All examples together leave little behind, and none needed much for a moment."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    had = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - had < GROWTH


@pytest.fixture(scope="package")
def template(tmp_path_factory):
    """A home with the dataset "plays" of three documents and the run "plays" of four steps."""
    home = tmp_path_factory.mktemp("fuzz")
    for name, text in TEXTS.items():
        (home / "texts").mkdir(exist_ok=True)
        (home / "texts" / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        patch.chdir(home)
        options = PrepareOptions("plays", tokenizer="char", split="document", val_fraction=0.3)
        prepare("texts", options)
        train(
            dataset="plays", out_dir=str(home / "out" / "plays"), device="cpu", quiet=True,
            max_iters=4, eval_interval=2, log_interval=1, batch_size=2, block_size=16,
            n_layer=1, n_head=2, n_embd=16, compile_model=False, dtype="float32",
        )  # fmt: skip
    return home


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """A copy of the template that is the home and the working directory, without a network."""
    home = tmp_path / "home"
    shutil.copytree(template, home)
    monkeypatch.setenv("GPTLAB_HOME", str(home))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # which remembers the proxies
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(home)
    return home


class Fuzz:
    """Runs examples of one kind and keeps the promise."""

    json_file = staticmethod(lambda valid: st.one_of(changed_json(valid), changed_bytes(valid)))
    bytes_file = staticmethod(lambda valid: changed_bytes(valid))
    odd = st.sampled_from(ODD)

    def __init__(self, home: Path, template: Path, times: int):
        self.home, self.template, self.times = home, template, times

    def restore(self) -> None:
        """Let the home be as it was."""
        for path in self.home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.template, self.home, dirs_exist_ok=True)

    def run(self, kind: str, strategy, attempt, examples: int) -> None:
        """`attempt(case)` for so many cases, times GPTLAB_FUZZ."""

        @settings(
            max_examples=examples * self.times,
            deadline=None,
            database=None,
            derandomize=TIMES == 1,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
        )
        @given(strategy)
        def one(case):
            COUNTS[kind] += 1
            with memory_limit(), time_limit():
                attempt(case)

        one()

    def survives(self, call, *names: str) -> None:
        """The call works, or refuses in one sentence that has one of these names in it."""
        before = self._files()
        try:
            call()
        except GPTLabError as error:
            sentence = str(error)
            assert "\n" not in sentence and sentence.rstrip().endswith((".", "`", "?")), sentence
            assert not names or any(name in sentence for name in names), sentence
        except OSError as error:
            assert names and str(error.filename).endswith(names), error
        assert self._files() == before

    def command(self, *argv: str, names: tuple[str, ...] = (), writes: bool = False) -> int:
        """The command ends with 0, 1 or 2; a refusal is one sentence, and writes nothing."""
        before = self._files()
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        stdin = io.TextIOWrapper(io.BytesIO(b"to be"), encoding="utf-8")
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr("sys.stdin", stdin)
            try:
                code = run_command(argv[0], list(argv[1:]))
            except SystemExit as leaving:  # --help
                code = leaving.code
            err.flush()
            printed = err.buffer.getvalue().decode()
        assert code in (0, 1, 2), (argv, code, printed)
        assert "Traceback" not in printed
        if code == 2:
            last = printed.rstrip("\n").split("\n")[-1]
            assert last.startswith("gptlab: ") and last.endswith((".", "`", "?")), printed
            assert not names or any(name in last for name in names), last
        if code or not writes:
            assert self._files() == before, argv
        return code

    def _files(self) -> dict:
        return {
            str(path): path.stat().st_size
            for path in self.home.rglob("*")
            if path.is_file() and path.name != ".lock"
        }


@pytest.fixture(params=[1, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def fuzz(world, template, request) -> Fuzz:
    return Fuzz(world, template, request.param * TIMES)


@pytest.fixture
def fuzz_once(world, template) -> Fuzz:
    """For single cases, in which the promise is kept as well."""
    with memory_limit(), time_limit():
        yield Fuzz(world, template, 1)


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.section("malformed cases")
        for kind, number in sorted(COUNTS.items()):
            terminalreporter.write_line(f"{number:>8,}  {kind}")


# Mutations ----------------------------------------------------------------------------------------


def paths_of(value, path=()) -> list[tuple]:
    """Every place in a JSON value, as the keys that lead there; of long lists the first few."""
    found = [path] if path else []
    items = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:4]
    for key, inner in items[:40]:
        found += paths_of(inner, (*path, key))
    return found


def changed_json(valid: bytes):
    """JSON (or lines of it) in which values are replaced, lost, doubled or renamed."""
    lines = [json.loads(line) for line in _json_lines(valid)]
    places = [(i, path) for i, line in enumerate(lines) for path in paths_of(line)] or [(0, ())]
    what = st.sampled_from(["set", "set", "set", "delete", "rename", "double"])
    change = st.tuples(what, st.sampled_from(places), st.sampled_from(ODD))
    whole = st.sampled_from(ODD).map(lambda odd: SPELLED.get(odd, odd).encode())
    changed = st.lists(change, min_size=1, max_size=3).map(lambda c: _apply(lines, c))
    return st.one_of(changed, changed, changed, whole)


def _json_lines(valid: bytes) -> list[str]:
    text = valid.decode()
    try:
        json.loads(text)
        return [text]
    except ValueError:
        return list(filter(None, text.splitlines()))


def _apply(lines: list, changes) -> bytes:
    lines, raw = json.loads(json.dumps(lines)), {}
    for number, (what, (i, path), odd) in enumerate(changes):
        parent = lines[i]
        for key in path[:-1]:
            try:
                parent = parent[key]
            except (KeyError, IndexError, TypeError):
                parent = None
                break
        mark = f"@{number}@"
        raw[json.dumps(mark)] = odd
        try:
            if not path:
                lines[i] = mark
            elif what == "set":
                parent[path[-1]] = mark
            elif what == "delete":
                del parent[path[-1]]
            elif what == "rename":
                parent[f"{path[-1]}{number}"] = parent.pop(path[-1])
            else:  # the same key a second time, with another value
                parent[f"@key{number}@"] = mark
                raw[f'"@key{number}@"'] = json.dumps(str(path[-1]))
        except (KeyError, IndexError, TypeError, AttributeError):
            lines[i] = mark
    text = "\n".join(json.dumps(line) for line in lines)
    for mark, odd in raw.items():
        text = text.replace(mark, SPELLED.get(odd, odd))
    return text.encode("utf-8", "surrogatepass")


def changed_bytes(valid: bytes):
    """Bytes that are flipped, cut, doubled, or replaced by noise."""

    def change(case) -> bytes:
        what, place, seed, size = case
        at, source = int(place * len(valid)), random.Random(seed)
        noise = source.randbytes(size)
        match what:
            case "flip":
                content = bytearray(valid)
                for _ in range(min(size, 8)):
                    if content:
                        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
                return bytes(content)
            case "cut":
                return valid[:at]
            case "insert":
                return valid[:at] + noise + valid[at:]
            case "lose":
                return valid[:at] + valid[at + size :]
            case "overwrite":
                return valid[:at] + noise + valid[at + size :]
            case "double":
                return valid + valid[at:]
        return noise

    what = st.sampled_from("flip flip cut insert lose overwrite double noise".split())
    place = st.floats(0, 1)
    return st.tuples(what, place, st.integers(0, 1 << 32), st.integers(0, 64)).map(change)
