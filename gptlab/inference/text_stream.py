"""Turn the bytes of tokens into text: only whole characters, and no part of a stop string."""

import codecs


class TextStream:
    """Turns the bytes of successive tokens into text that can be shown at once.

    An incomplete character waits for its remaining bytes. Text that may begin a stop string waits
    until that is decided. So shown text is never taken back, and it does not depend on how the text
    is cut into tokens.
    """

    def __init__(self, stops: tuple[str, ...] = ()):
        self.stops = stops
        self.stopped = False  # True after a stop string: the text is complete
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that becomes certain with these bytes; it ends exactly before a stop string."""
        if self.stopped:
            return ""
        self._held += self._characters.decode(data)
        met = [
            (start + len(stop), start)
            for stop in self.stops
            if (start := self._held.find(stop)) >= 0
        ]
        if met:
            # the stop string that is complete first wins, however the text is cut into tokens
            self.stopped = True
            text, self._held = self._held[: min(met)[1]], ""
            return text
        certain = len(self._held) - self._undecided()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0

    def close(self) -> str:
        """The text held back so far, for the end; an incomplete character is dropped."""
        text, self._held = self._held, ""
        return text
