"""Conversations: a template turns messages into ids and marks those that the assistant wrote.

A template is the Jinja program of a chat model (in the format of `transformers`), run in a sandbox,
or PLAIN. It is rendered with placeholders instead of the messages' texts. The template's own
special tokens therefore become special ids, while text that looks like one stays plain text.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.data.text_store import Split, TextStore
from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import DataError, GenerationError

# For a model without a template: the role on a line, the text, the end of text, a line feed.
PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_OPEN, _CLOSE = "\ue000", "\ue001"  # a placeholder: the number of the message between these


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids. loss_mask: True for the assistant's ids, its end mark included."""

    ids: list[int]
    loss_mask: list[bool]


class ChatTemplate:
    """A chat template and the tokenizer that it is for. Raises DataError if it cannot be parsed."""

    def __init__(self, source: str, tokenizer: Tokenizer):
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source, self.tokenizer = source or PLAIN, tokenizer
        self._specials = tokenizer.special_ids
        names = sorted(map(re.escape, self._specials), key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(names)})") if names else re.compile("(?!)()")
        # the same settings as in transformers
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(f"The model's chat template cannot be read ({error}).") from None

    def encode(self, messages: Sequence[dict], place: str = "The conversation") -> Encoded:
        """The ids of a whole conversation, and their loss mask.

        place: names the conversation in errors. Raises DataError if it does not fit the template.
        """
        ids, loss_mask = [], []
        for text, is_target in self._pieces(messages, False, place):
            own = [text] if isinstance(text, int) else self.tokenizer.encode(text)
            ids += own
            loss_mask += [is_target] * len(own)
        return Encoded(ids, loss_mask)

    def prompt_ids(self, messages: Sequence[dict]) -> list[int]:
        """The ids of a prompt: the assistant's next message begins after them."""
        ids = []
        for text, _ in self._pieces(messages, True, "The conversation"):
            ids += [text] if isinstance(text, int) else self.tokenizer.encode(text)
        return ids

    def end_id(self) -> int | None:
        """The special id that ends an assistant message; None if the template has none."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        answers = [piece for piece, is_answer in self._pieces(turns, False, "") if is_answer]
        return next((piece for piece in answers if isinstance(piece, int)), None)

    def _pieces(self, messages: Sequence[dict], is_prompt: bool, place: str):
        """(text or special id, whether the assistant wrote it), in order.

        The assistant's text is a piece of its own, because in use it begins after a prompt. Other
        texts are joined with the template's text around them and tokenized together.
        """
        held, after_assistant = "", False
        for text, message in self._parts(messages, is_prompt, place):
            if message is None:
                for number, part in enumerate(self._special.split(text)):
                    if number % 2 == 0:
                        held += part
                        continue
                    ends_turn = after_assistant and number == 1
                    if held:
                        yield held, ends_turn
                    held = ""
                    yield self._specials[part], ends_turn
            elif message["role"] == "assistant":
                if held:
                    yield held, False
                held = ""
                if text:
                    yield text, True
            else:
                held += text
            after_assistant = message is not None and message["role"] == "assistant"
        if held:
            yield held, False

    def _parts(self, messages: Sequence[dict], is_prompt: bool, place: str):
        """(text, its message, or None for the template's own text), in order."""
        marked = [
            {**message, "content": f"{_OPEN}{number}{_CLOSE}"}
            for number, message in enumerate(messages)
        ]
        end, begin = self.tokenizer.eot_id, self.tokenizer.bos_id
        end = "" if end is None else self.tokenizer.special_token(end)
        begin = end if begin is None else self.tokenizer.special_token(begin)
        try:
            rendered = self._template.render(
                messages=marked, add_generation_prompt=is_prompt, bos_token=begin, eos_token=end
            )
        except Exception as error:  # whatever a template's own code raises
            raise DataError(f"{place} does not fit the chat template ({error}).") from None
        for number, part in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", rendered)):
            if number % 2:
                message = messages[int(part)]
                yield message["content"], message
            elif part:
                yield part, None


def _raise(message: str):
    import jinja2

    raise jinja2.TemplateError(message)


# Into token files ---------------------------------------------------------------------------------


def write_conversations(
    store: TextStore,
    split: Split,
    template: ChatTemplate,
    path: Path,
    dtype: np.dtype,
    progress: Callable[[int], None],
) -> tuple[dict[str, int], dict[str, str]]:
    """Encode the conversations of a split into a token file, and write its loss mask beside it.

    Returns (sizes, SHA-256 in hex by file name): tokens and counted_tokens, which the loss mask
    keeps; characters, bytes and counted_bytes of the messages' texts.
    The store holds each conversation's messages as JSON. The mask has one byte per token: 1 for a
    target of the loss. progress: called with the bytes of the store done since the last call.
    Raises DataError if no conversation has an assistant message.
    """
    sizes, digests = Counter(), [hashlib.sha256(), hashlib.sha256()]
    with open(path, "wb") as file, open(mask_path(path), "wb") as mask:
        for number, (text, _) in enumerate(store.pieces(split, can_be_cut=False), start=1):
            messages = json.loads(text)
            found = template.encode(messages, f"Conversation {number:,} of {path.stem}")
            arrays = np.array(found.ids, dtype), np.array(found.loss_mask, np.uint8)
            for out, digest, array in zip((file, mask), digests, arrays, strict=True):
                out.write(array.tobytes())
                digest.update(array.tobytes())
            sizes["tokens"] += len(found.ids)
            sizes["counted_tokens"] += sum(found.loss_mask)
            for message in messages:
                size = len(message["content"].encode())
                sizes["characters"] += len(message["content"])
                sizes["bytes"] += size
                sizes["counted_bytes"] += size * (message["role"] == "assistant")
            progress(len(text.encode()))
        for out in (file, mask):
            out.flush()
            os.fsync(out.fileno())
    if not sizes["counted_tokens"]:
        raise DataError(
            f"The {path.stem} part has no assistant message, so there is nothing to learn",
            "add more conversations",
        )
    names = path.name, mask_path(path).name
    return dict(sizes), {n: digest.hexdigest() for n, digest in zip(names, digests, strict=True)}


def mask_path(path: Path) -> Path:
    """The loss mask of a token file."""
    return path.with_name(f"{path.stem}.mask.bin")


# Talking ------------------------------------------------------------------------------------------


class Conversation:
    """The messages so far, and the ids of as many of them as fit the window."""

    def __init__(self, template: ChatTemplate, window: int, system: str | None = None):
        self.template, self.window = template, window
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, room: int) -> tuple[list[int], int]:
        """(ids up to the assistant's next message, number of old messages left out).

        room: tokens of the window to keep free for the answer, at most half of it. Raises
        GenerationError if the new message alone does not fit.
        """
        self.messages.append({"role": "user", "content": text})
        most = self.window - min(room, self.window // 2)
        first = len([m for m in self.messages[:1] if m["role"] == "system"])
        left_out = 0
        while True:
            kept = self.messages[:first] + self.messages[first + left_out :]
            ids = self.template.prompt_ids(kept)
            if len(ids) <= most:
                return ids, left_out
            if first + left_out + 2 >= len(self.messages):
                self.messages.pop()
                raise GenerationError(
                    f"This message needs {len(ids):,} tokens, but the model has room for {most:,}",
                    "shorten it",
                )
            left_out += 2  # a question and its answer

    def answered(self, text: str) -> None:
        """Add the assistant's answer to the conversation."""
        self.messages.append({"role": "assistant", "content": text})
