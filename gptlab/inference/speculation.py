"""Guessing the next tokens from the text itself, so that one step can check several of them.

Prompt lookup (Saxena 2023): what followed the last few tokens where they stood before may follow
again. A model then computes the guesses in one pass, which costs little more than one token, and
those that it would have chosen itself count (Leviathan et al. 2023). Pure Python: no model here.
"""

NGRAMS = (3, 2)  # so many last tokens are looked up, the longer first
LONGEST = 16  # agreeing tokens that are told apart: a longer match is as certain as this
MEMORY = 0.1  # the share of the newest try in a rate


class PromptLookup:
    """The likely continuation of a text, and whether checking it pays.

    A match is a place before whose next token the text agrees with its own end. How often the next
    token of a match was the text's as well is learned for each number of agreeing tokens, from
    every token that is added, guessed or not: a text that does not repeat soon costs nothing, and
    one that begins to repeat is noticed. most: tokens in one guess. cost: what one more token in a
    step takes, as a share of a step of one token.
    """

    def __init__(self, ids: list[int], most: int, cost: float):
        self.most, self.cost = most, cost
        self.ids = []
        self._next = {}  # n-gram -> where the token lies that followed it the last time
        self._match = None  # where the token lies that may come next
        self._agreeing = 0  # tokens before it that agree with the end of the text
        self._rates = [0.0] * (LONGEST + 1)
        for token in ids:
            self.add(token)
        # how often a match goes on, by its length: a careful guess until the text has shown it
        self._rates = [(n - 1) / (n + 2) for n in range(LONGEST + 1)]

    def add(self, token: int) -> None:
        """The text's next token, whoever chose it."""
        if self._match is not None:
            goes_on = self.ids[self._match] == token
            length = min(self._agreeing, LONGEST)
            self._rates[length] += MEMORY * (goes_on - self._rates[length])
            self._match = self._match + 1 if goes_on else None
            self._agreeing += 1
        self.ids.append(token)
        ends = [tuple(self.ids[-n:]) for n in NGRAMS if len(self.ids) >= n]
        if self._match is None:
            known = next((end for end in ends if end in self._next), ())
            self._match, self._agreeing = self._next.get(known), len(known)
        self._next.update((end, len(self.ids)) for end in ends)

    def draft(self, room: int) -> list[int]:
        """The tokens to check behind the text, at most `room`: as many as are expected to pay.

        With each more the step takes `cost` more and writes as many tokens more as the chance is
        that all guesses up to it are right; it pays while that raises the tokens per time.
        """
        draft, chance, written, time = [], 1.0, 1.0, 1.0
        if self._match is None:
            return draft
        for ahead in range(min(room, self.most)):
            chance *= self._rates[min(self._agreeing + ahead, LONGEST)]
            if chance * time <= self.cost * written:
                break
            written, time = written + chance, time + self.cost
            place = self._match + ahead
            known = len(self.ids)  # behind it the guess repeats itself
            draft.append(self.ids[place] if place < known else draft[place - known])
        return draft
