"""Conversations: a template turns messages into ids and marks those that the assistant wrote.

A template is the Jinja program of a chat model (in the format of `transformers`), run in a sandbox,
or PLAIN. It is rendered with placeholders instead of the messages' texts. The template's own
special tokens therefore become special ids, while text that looks like one stays plain text.
"""

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from gptlab.data.spelling import name_characters
from gptlab.data.text_store import Split, TextStore
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.data.turns import NoConversationError
from gptlab.errors import DataError, GenerationError

# For a model without a template: the role on a line, the text, the end of text, a line feed.
PLAIN = (
    "{% if tools %}Tools:\n{{ tools | tojson }}{{ eos_token }}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n"
    "{{ message['content'] or '' }}{% if message['tool_calls'] %}{% if message['content'] %}\n"
    "{% endif %}{{ message['tool_calls'] | tojson }}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_OPEN, _CLOSE = "\ue000", "\ue001"  # a placeholder: the number of the message between these
_BEGIN, _END = "\ue002", "\ue003"  # around what a template marks by {% generation %}
_APART = "\ue004"  # inside what looks like a special token in the name of a tool, for example
_MARKS = re.compile(f"[{_OPEN}-{_APART}]")


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids. loss_mask: True for the assistant's ids, its end mark included."""

    ids: list[int]
    loss_mask: list[bool]


class ChatTemplate:
    """A chat template and the tokenizer that it is for. Raises DataError if it cannot be parsed."""

    def __init__(self, source: str, tokenizer: Tokenizer):
        import jinja2

        self.source, self.tokenizer = source or PLAIN, tokenizer
        self._specials = tokenizer.special_ids
        names = sorted(map(re.escape, self._specials), key=len, reverse=True)
        special = "|".join(names) if names else "(?!)"
        self._special = re.compile(special)
        # the text of a template, cut into its special tokens, placeholders and marks
        self._cut = re.compile(f"({special}|{_OPEN}\\d+{_CLOSE}|[{_BEGIN}{_END}])")
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(
                f"The model's chat template cannot be read ({error})",
                "correct it in the model's folder (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), or prepare with the tokenizer.json alone, which gives "
                "the conversations a plain form",
                sep="; ",
            ) from None

    def check(
        self, messages: Sequence[dict], place: str, tools: Sequence[dict] | None = None
    ) -> None:
        """Raise NoConversationError if a conversation does not fit the template or the tokenizer.

        place: names the conversation in errors.
        """
        if any(message.get("tool_calls") for message in messages) and (
            "tool_calls" not in self.source
        ):
            raise NoConversationError(
                f"{place} has tool calls, for which the chat template has no form"
            )
        if tools and "tools" not in self.source:
            raise NoConversationError(
                f"{place} offers tools, for which the chat template has no form"
            )
        if not isinstance(self.tokenizer, CharTokenizer):
            self._render(messages, False, place, tools)
            return
        known, pieces = set(self.tokenizer.alphabet), self._pieces(messages, False, place, tools)
        texts = "".join(text for text, _ in pieces if isinstance(text, str))
        if unknown := Counter(character for character in texts if character not in known):
            raise NoConversationError(
                f"{place} has characters that the tokenizer lacks: {name_characters(unknown)}",
                "name the tokenizer of a model that can encode any text, such as --tokenizer gpt2",
            )

    def encode(
        self,
        messages: Sequence[dict],
        place: str = "The conversation",
        tools: Sequence[dict] | None = None,
    ) -> Encoded:
        """The ids of a whole conversation, and their loss mask.

        place: names the conversation in errors. tools: the functions that the assistant may call.
        Raises NoConversationError if the conversation does not fit the template.
        """
        ids, loss_mask = [], []
        for text, is_target in self._pieces(messages, False, place, tools):
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
        pieces = list(self._pieces(turns, False, ""))
        first = next((n for n, (_, is_answer) in enumerate(pieces) if is_answer), len(pieces))
        return next((piece for piece, _ in pieces[first:] if isinstance(piece, int)), None)

    def _pieces(
        self,
        messages: Sequence[dict],
        is_prompt: bool,
        place: str,
        tools: Sequence[dict] | None = None,
    ):
        """(text or special id, whether the assistant wrote it), in order.

        What the assistant wrote is a piece of its own, because in use it begins after a prompt.
        Other texts are joined with the template's text around them and tokenized together.
        """
        rendered = self._render(messages, is_prompt, place, tools)
        has_marks = _BEGIN in rendered  # the template's own
        rendered = re.sub(f"{_BEGIN}([^{_BEGIN}]*){_END}", _unmuted(messages), rendered)
        if not has_marks and not is_prompt:
            rendered = self._marked(rendered, messages, tools)
        held, is_held_learned, is_learned = "", False, False
        for part in self._cut.split(rendered):
            if part in (_BEGIN, _END):
                is_learned = part == _BEGIN
                continue
            token, is_answer = self._specials.get(part), False
            if part.startswith(_OPEN):
                message = messages[int(part[1:-1])]
                part = message["content"]
                is_answer = message["role"] == "assistant" and not has_marks
            else:
                part = part.replace(_APART, "")
            if held and (token is not None or is_answer or is_learned != is_held_learned):
                yield held, is_held_learned
                held = ""
            if token is not None:
                yield token, is_learned
            elif is_answer:
                if part:
                    yield part, is_learned
            else:
                held, is_held_learned = held + part, is_learned
        if held:
            yield held, is_held_learned

    def _marked(self, rendered: str, messages: Sequence[dict], tools: Sequence[dict] | None) -> str:
        """The rendered text with marks around what the assistant wrote, as {% generation %} sets.

        That is a message's text up to the special token that ends it, or, with tool calls, all that
        stands behind the prompt.
        """
        spans = []
        for match in re.finditer(f"{_OPEN}(\\d+){_CLOSE}([^{_OPEN}]*)", rendered):
            message = messages[int(match[1])]
            if message["role"] == "assistant" and message.get("weight") != 0:
                end = self._special.search(match[2])
                stop = match.start(2) + (end.end() if end else 0)
                spans.append((match.start(), stop))
        for number, message in enumerate(messages):
            if message.get("tool_calls") and message.get("weight") != 0:
                spans += self._span_of_calls(rendered, messages, number, tools)
        for start, stop in reversed(_joined(spans)):
            rendered = f"{rendered[:start]}{_BEGIN}{rendered[start:stop]}{_END}{rendered[stop:]}"
        return rendered

    def _span_of_calls(self, rendered, messages, number, tools) -> list[tuple[int, int]]:
        """Where a message with tool calls stands: behind the prompt, up to its last special token.

        [] for a template whose prompt is no beginning of the whole conversation.
        """
        try:
            before = self._render(messages[:number], True, "", tools)
            after = self._render(messages[: number + 1], False, "", tools)
        except NoConversationError:  # the template takes whole conversations only
            return []
        if not (rendered.startswith(before) and after.startswith(before)):
            return []
        pairs = enumerate(zip(rendered, after, strict=False))
        stop = next((n for n, (a, b) in pairs if a != b), min(len(rendered), len(after)))
        ends = [m.end() for m in self._special.finditer(rendered, len(before), stop)]
        return [(len(before), ends[-1] if ends else stop)]

    def _render(
        self,
        messages: Sequence[dict],
        is_prompt: bool,
        place: str,
        tools: Sequence[dict] | None = None,
    ) -> str:
        """The text of the template, with a placeholder for each message's text."""
        marked = []
        for number, message in enumerate(messages):
            more = {k: self._apart(v) for k, v in message.items() if k not in ("role", "content")}
            has_text = message["content"] is not None
            content = f"{_OPEN}{number}{_CLOSE}" if has_text else None
            marked.append({"role": message["role"], "content": content, **more})
        end, begin = self.tokenizer.eot_id, self.tokenizer.bos_id
        end = "" if end is None else self.tokenizer.special_token(end)
        begin = end if begin is None else self.tokenizer.special_token(begin)
        try:
            return self._template.render(
                messages=marked,
                tools=self._apart(list(tools)) if tools else None,
                documents=None,
                add_generation_prompt=is_prompt,
                bos_token=begin,
                eos_token=end,
            )
        except Exception as error:  # whatever a template's own code raises
            raise NoConversationError(
                f"{place} does not fit the chat template ({error})",
                "change the conversation, or use the template of another model",
            ) from None

    def _apart(self, value):
        """A value in whose texts nothing is a special token or one of the marks used here."""
        if isinstance(value, str):
            return self._special.sub(lambda m: m[0][0] + _APART + m[0][1:], _MARKS.sub("", value))
        if isinstance(value, dict):
            return {self._apart(key): self._apart(item) for key, item in value.items()}
        return [self._apart(item) for item in value] if isinstance(value, list) else value


def _unmuted(messages: Sequence[dict]) -> Callable[[re.Match], str]:
    """Takes the marks from around a message whose weight is 0, as OpenAI's form has it."""

    def unmuted(match: re.Match) -> str:
        numbers = re.findall(f"{_OPEN}(\\d+){_CLOSE}", match[1])
        is_muted = any(messages[int(number)].get("weight") == 0 for number in numbers)
        return match[1] if is_muted else match[0]

    return unmuted


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap as one."""
    found = []
    for start, stop in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


@functools.cache
def _environment():
    """A sandbox with what transformers gives its chat templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, around what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012 (as jinja wants it)

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("marked")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def marked(self, caller):
            return f"{_BEGIN}{caller()}{_END}"

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                          separators=separators, sort_keys=sort_keys)  # fmt: skip

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


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
) -> tuple[dict[str, int], dict[str, str], list[int]]:
    """Encode the conversations of a split into a token file, and write its loss mask beside it.

    Returns (sizes, SHA-256 in hex by file name, the tokens up to the end of each conversation).
    sizes: tokens and counted_tokens, which the loss mask keeps; characters, bytes and counted_bytes
    of the messages' texts.
    The store holds each conversation's messages as JSON. The mask has one byte per token: 1 for a
    target of the loss. progress: called with the bytes of the store done since the last call.
    Raises DataError if no conversation has an assistant message.
    """
    sizes, digests, ends = Counter(), [hashlib.sha256(), hashlib.sha256()], []
    with open(path, "wb") as file, open(mask_path(path), "wb") as mask:
        for number, (text, _) in enumerate(store.pieces(split, can_be_cut=False), start=1):
            content = json.loads(text)
            is_list = isinstance(content, list)
            messages = content if is_list else content["messages"]
            tools = None if is_list else content["tools"]
            place = f"Conversation {number:,} of {path.stem}"
            found = template.encode(messages, place, tools)
            arrays = np.array(found.ids, dtype), np.array(found.loss_mask, np.uint8)
            for out, digest, array in zip((file, mask), digests, arrays, strict=True):
                out.write(array.tobytes())
                digest.update(array.tobytes())
            sizes["tokens"] += len(found.ids)
            ends.append(sizes["tokens"])
            sizes["counted_tokens"] += sum(found.loss_mask)
            for message in messages:
                written = _text_of(message)
                size = len(written.encode())
                is_learned = message["role"] == "assistant" and message.get("weight") != 0
                sizes["characters"] += len(written)
                sizes["bytes"] += size
                sizes["counted_bytes"] += size * is_learned
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
    hashes = {n: digest.hexdigest() for n, digest in zip(names, digests, strict=True)}
    return dict(sizes), hashes, ends


def _text_of(message: dict) -> str:
    """All that a message says: its text and its calls."""
    calls = message.get("tool_calls")
    return (message["content"] or "") + (json.dumps(calls, ensure_ascii=False) if calls else "")


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
