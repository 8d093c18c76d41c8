"""Bytes of tokens in, text out: whole characters only, and nothing of a stop string."""

import codecs


class TextStream:
    """Turns the bytes of one token after the other into text that may be shown at once.

    Bytes that may be the beginning of a character wait for the rest of it; text that may be the
    beginning of a stop string waits until it is decided. What was shown is therefore never taken
    back, and does not depend on how the text was cut into tokens.
    """

    def __init__(self, stops: tuple[str, ...] = ()):
        self.stops = stops
        self.stopped = False  # a stop string was met: the text is complete
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """The text that is certain after these bytes; ends exactly before a stop string."""
        if self.stopped:
            return ""
        self._held += self._characters.decode(data)
        met = [
            (start + len(stop), start)
            for stop in self.stops
            if (start := self._held.find(stop)) >= 0
        ]
        if met:
            # the stop string that is complete first counts, whatever the tokens were
            self.stopped = True
            text, self._held = self._held[: min(met)[1]], ""
            return text
        certain = len(self._held) - self._undecided()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0

    def close(self) -> str:
        """What was held back, now that nothing follows; bytes of half a character are dropped."""
        text, self._held = self._held, ""
        return text
