"""Draft the next tokens from the text itself, so that one step can check several of them.

Prompt lookup (Saxena 2023): the tokens that followed the last few tokens earlier in the text may
follow again. The model checks these draft tokens in one pass, which costs little more than one
token, and accepts those that it would have chosen itself (Leviathan et al. 2023). Pure Python, no
model here.
"""

NGRAMS = (3, 2)  # how many of the last tokens to look up, the longer n-gram first
LONGEST = 16  # longest match length with its own acceptance rate; longer ones share it
MEMORY = 0.1  # weight of the newest outcome in an acceptance rate


class PromptLookup:
    """Drafts the likely continuation of a text if checking it is expected to pay.

    A match is an earlier place in the text after the same tokens as at its end. For each match
    length, the acceptance rate (how often the next token of a match is also that of the text) is
    learned from every added token, whether it was drafted or not. So a text without repetitions
    soon costs nothing, and one that begins to repeat is noticed.

    ids: the text so far. most: largest number of draft tokens. cost: time of one more token in a
    step, as a share of a step with one token.
    """

    def __init__(self, ids: list[int], most: int, cost: float):
        self.most, self.cost = most, cost
        self.ids = []
        self._next = {}  # n-gram -> index of the token that followed it the last time
        self._match = None  # index of the token that may come next
        self._agreeing = 0  # length of the match: tokens before it that equal the end of the text
        self._rates = [0.0] * (LONGEST + 1)
        for token in ids:
            self.add(token)
        # acceptance rate by match length: a careful estimate until the text has shown it
        self._rates = [(n - 1) / (n + 2) for n in range(LONGEST + 1)]

    def add(self, token: int) -> None:
        """Append the next token of the text, whether it was drafted or not."""
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
        """The draft tokens to check next, at most `room`: as many as are expected to pay.

        One more draft token makes the step longer by `cost`. It adds as many expected tokens as the
        probability that all draft tokens up to it are accepted. It pays while this raises the
        number of tokens per time.
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
            known = len(self.ids)  # beyond the text the draft repeats itself
            draft.append(self.ids[place] if place < known else draft[place - known])
        return draft
