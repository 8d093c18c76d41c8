"""Remember Ctrl-C and the signals of schedulers until the step is finished and saved."""

import signal
import threading

# 128 + the signal's number, as in shells (SIGUSR1 is 10 on Linux, another number elsewhere);
# clusters send SIGUSR1 some time before they take a machine away
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}


class Interruption:
    """While active, remembers the first of these signals; a second one stops at once.

    It raises KeyboardInterrupt: a file that is being written is dropped, the former one stays.
    """

    def __init__(self):
        self.received = ""  # the name of the signal
        self._former = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for name in EXIT_CODES:
                number = getattr(signal, name, None)
                if number is None:  # Windows has no SIGUSR1
                    continue
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    @property
    def exit_code(self) -> int:
        """What the process should return: 130, 143, 138, or 0 without a signal."""
        return EXIT_CODES.get(self.received, 0)
