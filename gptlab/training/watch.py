"""Watch the processes of a training: when one is lost, all end, and one of them says which.

A process that is killed, stopped or stuck leaves the others waiting for it, and a library of
collectives says at best that a connection broke. So a thread of each process writes to the
launcher's store, about every second, that it lives and how far it is, and looks at the others:

    it is gone       its launcher's other processes see that its pid is no more: within seconds
    it is silent     its thread has written nothing for collective_timeout
    it is stuck      its thread writes, but no process takes a step, and it is the furthest behind
    it failed alone  it says so itself, and its error is everyone's

Only a step of the training counts as stuck: evaluations, checkpoints and preparations take as long
as they take.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from typing import NamedTuple

import torch.distributed as dist

from gptlab.errors import GPTLabError, TrainingError
from gptlab.files import explain_error, runnable

AGREE_SECONDS = 2.0  # in which an error that all processes have reaches all of them
# of errors of the libraries: connections, and operations that waited for too long
_COMMUNICATION = re.compile(r"gloo|nccl|xccl|store|socket|connect|timed? ?out", re.IGNORECASE)


class _Beat(NamedTuple):
    """What a process writes: its number of beats, whether it has left, where it runs and is."""

    number: int
    has_left: bool
    host: str
    agent: str  # the processes of one launcher have one
    pid: int
    step: int
    progress: int  # forward passes and agreements so far; -1 while it may take its time


class _Verdict(NamedTuple):
    """Why all processes end. lost: those that are to blame, and may not answer any more."""

    sentence: str
    exit_code: int = TrainingError.exit_code
    lost: tuple[int, ...] = ()


class Watch:
    """Watches the other processes of a training; without `start`, there are none.

    step: steps that this process has done.
    """

    def __init__(self):
        self.step = 0
        self.rank, self.size = 0, 1
        self._progress = self._pauses = self._number = 0
        self._is_in_steps = self._has_left = False
        self._seen: dict[int, tuple[_Beat, float, float]] = {}  # with times of a beat, of progress
        self._thread = self._store = None
        self._wake, self._ending = threading.Event(), threading.Lock()
        self._is_over = self._is_failing = False
        self._former = None  # what SIGTERM did
        self._shared = None  # an error that all processes raise

    def start(self, rank: int, size: int, store, first_host: str, seconds: float) -> None:
        """Begin to watch. store: of this start of the processes, for this object alone.

        seconds: that a process may be silent, or all may wait for each other in a step.
        """
        self.rank, self.size, self._store, self.seconds = rank, size, store, seconds
        self.first_host, self.host = first_host, socket.gethostname()
        self.interval = min(1.0, seconds / 20)
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._terminate)
        self._beat()
        store.wait([f"beat/{other}" for other in range(size)])
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave: this process ends as it should, and is missed by nobody."""
        if self._thread is None:
            return
        self._is_over = True
        self._wake.set()
        self._thread.join()
        self._thread, self._has_left = None, True
        if self._former is not None:
            # the launcher sends SIGTERM when the first of failing processes has ended
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self._is_failing else self._former)
        with contextlib.suppress(RuntimeError):
            self._beat()

    # What the training tells ---------------------------------------------------------------------

    def after(self, step: int) -> None:
        """So many steps are done; from the first on, a step that does not end is noticed."""
        self.step, self._is_in_steps = step, True

    def rest(self) -> None:
        """No step is under way any more: what comes now takes as long as it takes."""
        self._is_in_steps = False

    def moved(self) -> None:
        """This process has reached another point of its step."""
        self._progress += 1

    @contextlib.contextmanager
    def paused(self):
        """Around what may take long on this process while the others wait."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def shared(self, error: Exception) -> Exception:
        """An error that all processes raise now."""
        self._shared = error
        return error

    # Looking at the others -----------------------------------------------------------------------

    def _beat(self) -> None:
        self._number += 1
        counts = self._is_in_steps and not self._pauses
        agent = os.environ.get("GROUP_RANK", "") and f"{self.host} {os.getppid()}"
        own = _Beat(
            self._number, self._has_left, self.host, agent, os.getpid(), self.step,
            self._progress if counts else -1,
        )  # fmt: skip
        self._store.set(f"beat/{self.rank}", json.dumps(own))

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            if self._wake.wait(min(0.2, self.interval) if self._is_failing else self.interval):
                self._wake.clear()
            if self._is_over:
                return
            now = time.monotonic()
            if now - last > self.interval + self.seconds / 4:  # this process was stopped for a
                self._seen = {}  # while, and perhaps the others too
            last = now
            try:
                self._beat()
                self._look(now)
                verdict = self._verdict(now)
            except RuntimeError:  # the launcher with the store is gone
                verdict = self._verdict_alone(now)
            if verdict is not None:
                self._end(verdict)

    def _terminate(self, number, frame) -> None:
        """SIGTERM outside of the loop: the launcher sends it too when another process has ended.

        Then the thread finds out, and says it.
        """
        if not self._is_failing:
            self._find_out()
            raise KeyboardInterrupt

    def _find_out(self) -> None:
        """Give the thread, which ends this process, the time to find out who is lost."""
        self._is_failing = True
        self._wake.set()
        time.sleep(4 * self.interval + AGREE_SECONDS)

    def _look(self, now: float) -> None:
        """Note what the others wrote, and when that changed."""
        found = self._store.multi_get([f"beat/{rank}" for rank in range(self.size)])
        for rank, text in enumerate(found):
            beat = _Beat(*json.loads(text))
            if rank not in self._seen:
                self._seen[rank] = beat, now, now
            before, beaten, moved = self._seen[rank]
            if beat.number != before.number:
                beaten = now
            if beat.progress != before.progress or beat.progress < 0:
                moved = now
            self._seen[rank] = beat, beaten, moved

    def _verdict(self, now: float) -> _Verdict | None:
        """What is wrong where a process is lost or has failed; None if all is well."""
        if self._store.check(["failed"]):
            return _Verdict(*json.loads(self._store.get("failed")))
        patience = self.seconds - 2 * self.interval  # until it is noticed, it is over
        there = {rank: seen for rank, seen in self._seen.items() if not seen[0].has_left}
        gone = [
            rank for rank, (beat, *_) in there.items()
            if self._is_sibling(rank) and not _is_alive(beat.pid)
        ]  # fmt: skip
        if gone and self._has_left_meanwhile(gone):
            return None
        if gone:
            return self._judged(gone, "ended without a word, as when it is killed", there)
        waited = f"{self.seconds:g} s (collective_timeout)"
        silent = [rank for rank, (_, beaten, _) in there.items() if now - beaten > patience]
        if silent:
            return self._judged(silent, f"gave no sign of life for {waited}", there)
        if there and all(now - moved > patience for _, _, moved in there.values()):
            least = min(beat.progress for beat, *_ in there.values())
            stuck = [rank for rank, (beat, *_) in there.items() if beat.progress == least]
            return self._judged(stuck, f"got no further for {waited}", there)
        return None

    def _is_sibling(self, rank: int) -> bool:
        """Whether another process has this one's launcher, so that its pid means something here."""
        own = self._seen[self.rank][0].agent
        return os.name != "nt" and own != "" and self._seen[rank][0].agent == own

    def _has_left_meanwhile(self, gone: list[int]) -> bool:
        """Whether processes that are gone said so after their beats were read."""
        texts = self._store.multi_get([f"beat/{rank}" for rank in gone])
        return all(_Beat(*json.loads(text)).has_left for text in texts)

    def _verdict_alone(self, now: float) -> _Verdict | None:
        """The same without the store."""
        beat, _, moved = self._seen.get(self.rank, (None, now, now))
        counts = self._is_in_steps and not self._pauses
        if beat is None or not counts or beat.progress != self._progress:
            own = _Beat(0, False, self.host, "", 0, self.step, self._progress)
            self._seen[self.rank] = own, now, now
            return None
        return self._without_store() if now - moved > self.seconds else None

    def _without_store(self) -> _Verdict:
        problem = f"The launcher on {self.first_host} was lost after step {self.step}"
        return _Verdict(f"{problem}: {_how_to_go_on()}.")

    def _judged(self, ranks: list[int], what: str, there) -> _Verdict:
        """The verdict on processes; the first process to reach one speaks for all."""
        names = [f"{rank} on {there[rank][0].host}" for rank in ranks]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        kind = "Process" if len(names) == 1 else "Processes"
        where = f"after step {self.step}" if self._is_in_steps else "before the first step"
        problem = f"{kind} {', '.join(names[:3])}{more} {what}, {where}"
        return self._agreed(f"{problem}: {_how_to_go_on()}.", 1, tuple(ranks))

    def _agreed(self, sentence: str, code: int, lost: tuple[int, ...] = ()) -> _Verdict:
        """A verdict for all processes: the first that any of them has reached."""
        own = json.dumps(_Verdict(sentence, code, lost))
        return _Verdict(*json.loads(self._store.compare_set("failed", "", own)))

    # The end -------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Before this process ends by an error: return where all have it, else end them all."""
        if self._thread is None:
            return
        self._is_failing = True
        if error is self._shared:
            return
        try:
            if not _is_communication(error):
                self._fail_with(error)
                return
            self._find_out()
            first = str(error).strip().splitlines()[0]
            where = f"Process {self.rank} on {self.host}"
            problem = f"{where} lost its connection to the others after step {self.step} ({first})"
            self._end(self._agreed(f"{problem}: {_how_to_go_on()}.", 1))
        except RuntimeError:  # the store is gone
            self._end(self._without_store())

    def _fail_with(self, error: BaseException) -> None:
        """Return where all processes have an error at this moment; else it becomes everyone's."""
        self._store.set(f"error/{self.rank}", "1")
        keys = [f"error/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + AGREE_SECONDS
        while time.monotonic() < deadline:
            if self._store.check(keys):
                return
            time.sleep(0.01)
        where = f"Process {self.rank} on {self.host}"
        if isinstance(error, (GPTLabError, OSError)):
            explained = explain_error(error)
            self._end(self._agreed(f"{where}: {explained}", explained.exit_code))
        if isinstance(error, KeyboardInterrupt):
            self._end(self._agreed(f"{where} was interrupted.", 130))
        traceback.print_exception(error)
        kind = type(error).__name__
        problem = f"{where} failed after step {self.step} with the {kind} above"
        self._end(self._agreed(f"{problem}: {_how_to_go_on()}.", TrainingError.exit_code))

    def _end(self, verdict: _Verdict) -> None:
        """End this process at once, as nothing can be waited for; one of all says why."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # the other thread of this process ends it
        is_said = True
        try:
            if self.rank and 0 not in verdict.lost:  # the first process has the word
                deadline = time.monotonic() + 1 + 0.1 * min(self.rank, 20)
                while not self._store.check(["said"]) and time.monotonic() < deadline:
                    time.sleep(0.05)
            own = str(self.rank)
            is_said = self._store.compare_set("said", "", own).decode() != own
        except RuntimeError:  # without the store, one process of each machine says it
            is_said = os.environ.get("LOCAL_RANK", "0") != "0"
        with contextlib.suppress(OSError, ValueError):
            if not is_said:
                sys.stdout.flush()
                sys.stderr.write(f"\ngptlab: {runnable(verdict.sentence)}\n")
            sys.stderr.flush()
        for rank in verdict.lost:  # one that is stopped would outlive the others
            if rank != self.rank and rank in self._seen and self._is_sibling(rank):
                with contextlib.suppress(OSError):
                    os.kill(self._seen[rank][0].pid, signal.SIGKILL)
        os._exit(verdict.exit_code)


def attempt_of(store, rank: int, size: int) -> str:
    """A word that these processes share and no others had; all call it.

    torchrun starts processes again with the same store, in which the addresses of the former ones
    still stand: torch's own groups hang on them.
    """
    if rank:
        own = uuid.uuid4().hex
        store.set(f"hello/{rank}", own)
        attempt = store.get(f"welcome/{own}").decode()
        store.set(f"{attempt}/joined/{rank}", "1")
        return attempt
    attempt, deadline = uuid.uuid4().hex, time.monotonic() + store.timeout.total_seconds()
    others = range(1, size)
    while not store.check([f"{attempt}/joined/{other}" for other in others]):
        for other in others:
            if store.check([f"hello/{other}"]):  # of an earlier start, it is read by nobody
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", attempt)
        if time.monotonic() > deadline:
            missing = [o for o in others if not store.check([f"{attempt}/joined/{o}"])]
            raise TimeoutError(f"processes {missing} did not come")
        time.sleep(0.02)
    return attempt


def _how_to_go_on() -> str:
    """Whether torchrun starts the processes again by itself."""
    restarts, most = (
        int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    if restarts < most:
        return "torchrun starts all again from the last checkpoint"
    return (
        "go on from the last checkpoint with --resume (torchrun --max-restarts 3 does so by itself)"
    )


def _is_communication(error: BaseException) -> bool:
    """Whether an error comes from talking to the other processes."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and bool(_COMMUNICATION.search(str(error)))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
