"""Remember Ctrl-C, a closed terminal and the signals of schedulers until the run is saved."""

import contextlib
import os
import signal
import threading

# 128 + the signal's number, as shells have it (some numbers are those of Linux, others elsewhere).
# SIGHUP: the terminal was closed, or ssh broke. SIGUSR1 and SIGUSR2: clusters send one of them some
# time before they stop a job (Slurm as asked, Grid Engine both, LSF the second). SIGXCPU: the soft
# limit of processor time. SIGBREAK: Ctrl-Break, with which programs on Windows end their children.
# Not SIGQUIT: Ctrl-\ is how a person ends a program that does not answer.
EXIT_CODES = {
    "SIGINT": 130,
    "SIGTERM": 143,
    "SIGHUP": 129,
    "SIGUSR1": 138,
    "SIGUSR2": 140,
    "SIGXCPU": 152,
    "SIGBREAK": 149,
}
# Only these leave at once when they come again. A closed terminal sends SIGHUP twice (the system
# and the shell), SIGXCPU comes every second, and schedulers send one signal after another.
LEAVING = ("SIGINT", "SIGTERM")


LAUNCHER_ENDED = "the end of torchrun"


class Interruption:
    """While active, the first of these signals is remembered; Ctrl-C again leaves at once.

    Leaving at once is a KeyboardInterrupt: a file being written is dropped, the one before stays.
    SIGHUP stays ignored where it was, as nohup has it. Under torchrun, what it got and what it
    passes on are one signal, and its end counts as one: SIGUSR1 ends it without a word to its
    processes.
    """

    def __init__(self):
        self._received = ""
        self._repeats = 0
        self._launcher = os.getppid() if is_under_torchrun() else None
        self._former = {}
        self._terminals = ()  # descriptors of stdout and stderr that are one

    def __enter__(self):
        self._terminals = tuple(fd for fd in (1, 2) if _is_terminal(fd))
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for name in EXIT_CODES:
                number = getattr(signal, name, None)
                if number is None:  # Windows has few of them
                    continue
                if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        name = signal.Signals(number).name
        if name == "SIGHUP":
            self._leave_lost_terminals()
        if self._received == name and name in LEAVING:
            self._repeats += 1
            if self._repeats > (self._launcher is not None):
                raise KeyboardInterrupt
        self._received = self._received or name

    def _leave_lost_terminals(self) -> None:
        """Let output to a terminal that is gone go nowhere: writing to it is an error."""
        for descriptor in self._terminals:
            if not _is_terminal(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    @property
    def received(self) -> str:
        """The name of the signal, or that the launcher has ended; "" where nothing came."""
        if not self._received and self._launcher not in (None, os.getppid()):
            self._received = LAUNCHER_ENDED
        return self._received

    @property
    def exit_code(self) -> int:
        """What the process should return: 128 + the signal's number, or 0 without a signal.

        Under torchrun 0 as well: it would take another code for a failure, and start again what
        was asked to stop.
        """
        return 0 if self._launcher is not None else EXIT_CODES.get(self.received, 0)


def is_under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_terminal(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(descriptor)
    return False
