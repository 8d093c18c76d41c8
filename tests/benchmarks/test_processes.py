"""Processes as the benchmarks see them."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
MEGABYTES = 64


def test_the_output_of_a_process_that_works_and_the_error_of_one_that_does_not(capsys):
    import processes

    ended = processes.run([sys.executable, "-c", "print('hello')"])
    assert ended.output == "hello\n" and ended.seconds > 0
    with pytest.raises(RuntimeError, match="exit code 3"):
        processes.run([sys.executable, "-c", "import sys; print('why', file=sys.stderr); exit(3)"])
    assert "why" in capsys.readouterr().err


def test_the_clock_stops_at_the_output_and_the_process_is_ended(tmp_path):
    import processes

    mark = tmp_path / "mark"
    code = (  # waits for a byte that nobody writes
        "import os, pathlib; print('first', flush=True); os.read(os.pipe()[0], 1)\n"
        f"pathlib.Path({str(mark)!r}).touch()"
    )
    processes.seconds_until(lambda seen: b"first" in seen, [sys.executable, "-c", code])
    assert not mark.exists()
    with pytest.raises(RuntimeError, match="ended too early"):
        processes.seconds_until(lambda seen: False, [sys.executable, "-c", "print('end')"])


def test_the_memory_of_a_tree_counts_the_children_of_children():
    import processes

    inner = f"x = bytearray({MEGABYTES} << 20); print('ready', flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        tree = processes._tree(child.pid)
        assert len(tree) == 2 and tree[0] == child.pid
        sizes = [processes._memory(number) for number in tree]
        child.stdin.write(b"\n")
    assert sizes[1] > MEGABYTES << 20 > sizes[0] > 0


def test_the_peak_of_this_process_begins_anew():
    import processes

    before = processes.own_peak()
    # not a bytearray: a training in an earlier test lets malloc keep what is freed
    with mmap.mmap(-1, MEGABYTES << 20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        high = processes.own_peak()
        assert high >= len(block)
    processes.forget_peak()
    assert processes.own_peak() < high
    assert before > 0
