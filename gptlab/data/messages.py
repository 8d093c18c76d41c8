"""Conversations in the forms that people keep them in, read as messages with a role and a text.

A row is read as OpenAI's `messages`, as ShareGPT's `conversations` (from, value), as turns named by
who speaks (human, assistant), as a question with its answer (Alpaca, prompt and completion; of
preference data the chosen one), or as an entry of ChatGPT's or Claude's export.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gptlab.data.turns import (
    FoundConversation,
    NoConversationError,
    Turns,
    has_role,
    is_turn,
    parsed,
    speakers,
)

_LISTS = (
    "messages", "conversations", "conversation", "chat_messages", "dialogue", "dialog", "turns"
)  # fmt: skip
# A question and its answer, the more telling names first. Alpaca: instruction, input, output;
# Dolly: instruction, context, response.
_QUESTIONS = ("instruction", "prompt", "question", "query", "input", "inputs", "problem")
_ANSWERS = ("output", "completion", "response", "answer", "reply", "target", "targets", "solution")
_CONTEXTS = ("input", "context")
# "\n\nHuman: ...\n\nAssistant: ...": a text of turns
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant): ?")
_MORE = ("system", "history", "tools", "functions")  # of a row


@dataclass
class ConversationCounts:
    """What was read as conversations."""

    forms: Counter = field(default_factory=Counter)
    roles: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)

    def add(self, found: FoundConversation) -> None:
        """Count a conversation that was read."""
        self.forms[found.form] += 1
        self.roles += found.roles
        self.left_out += found.left_out

    def __str__(self) -> str:
        """What to tell the user: forms, roles and omissions with their counts."""
        parts = ["Conversations: " + ", ".join(f"{n:,} {w}" for w, n in self.forms.items())]
        renamed = [
            f"{name!r} as {role} ({number:,})"
            for (name, role), number in self.roles.items()
            if name != role
        ]
        if renamed:
            parts.append("roles read: " + ", ".join(renamed))
        if self.left_out:
            fields = (f"{name} ({number:,})" for name, number in self.left_out.items())
            parts.append("left out of messages: " + ", ".join(fields))
        return "; ".join(parts) + "."


# Which columns ------------------------------------------------------------------------------------


def conversation_columns(fields: Iterable[str], column: str | None) -> list[str]:
    """The fields of a table that hold its conversations, by their names; [] if none do.

    column: as for `conversation_of`.
    """
    fields = list(fields)
    if column in _LISTS or column is None:
        found = [name for name in _LISTS if name in fields and column in (None, name)]
        if found:
            return [found[0], *(name for name in _MORE if name in fields)]
    if column is None and _has_chosen(fields):
        questions = [name for name in _QUESTIONS if name in fields]
        return [*questions, "chosen", "rejected", *(name for name in _MORE if name in fields)]
    if pair := _pair(fields, column):
        return [*pair, *(name for name in _MORE if name in fields)]
    is_export = column is None and "mapping" in fields
    return [name for name in ("mapping", "current_node") if is_export and name in fields]


def conversation_of(
    row: dict, column: str | None, place: str, keep_line_endings: bool = False
) -> FoundConversation | None:
    """The conversation that a row holds, or None if it has none of the known forms.

    column: the user's choice of a field: one of a list of messages, or a question's and an
    answer's with a comma; None means to look. place: names the row in errors. Line ends become line
    feeds unless they are kept. Raises NoConversationError for a row that has one of the forms but
    cannot be read.
    """
    read = Turns(place, keep_line_endings)
    for name in _LISTS if column is None else (column,):
        messages = parsed(row.get(name))
        # `messages` always means a conversation; other lists do if their items have roles
        if isinstance(messages, list) and (
            name == "messages" or any(is_turn(message) for message in messages)
        ):
            if not messages:
                raise NoConversationError(f"{place} has no messages")
            read.messages(messages)
            return read.found(row, _form_of(name, messages))
    if column is None and _has_chosen(row):
        return _chosen(row, read)
    if pair := _pair(row, column):
        return _question_and_answer(row, pair, read)
    if column is None and isinstance(row.get("mapping"), dict):
        read.messages(_of_tree(row["mapping"], row.get("current_node")))
        return read.found({}, "of ChatGPT's export")
    return None


def _form_of(name: str, messages: list) -> str:
    first = next(message for message in [*messages, {}] if isinstance(message, dict))
    if "from" in first and "value" in first:
        return f"in ShareGPT's form ({name})"
    return f"with {name}"


def _pair(fields, column: str | None) -> list[str]:
    """[question, context or none, answer] among the names of a row's fields; [] if it has none."""
    named = None if column is None else [name.strip() for name in column.split(",")]
    if named is None and "text" in fields:
        return []  # a table of texts, whatever else it holds
    wanted = list(fields) if named is None else [name for name in named if name in fields]
    answer = next((name for name in _ANSWERS if name in wanted), None)
    question = next((name for name in _QUESTIONS if name in wanted), None)
    if (answer is None or question is None) and (pair := speakers(wanted)):
        question, answer = pair
    if answer is None or question is None or (named and len(wanted) < len(named)):
        return []
    context = [name for name in _CONTEXTS if name in wanted and name != question]
    context = context[:1] if question == "instruction" else []
    pair = [question, *context, answer]
    return pair if named is None or sorted(named) == sorted(pair) else []


def _question_and_answer(row: dict, pair: list[str], read: "Turns") -> FoundConversation:
    form = f"with {' and '.join(pair[:-1])} as the question, {pair[-1]} as the answer"
    question, answer = _parsed_messages(row[pair[0]]), _parsed_messages(row[pair[-1]])
    for past in parsed(row.get("history")) or []:
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise NoConversationError(f"{read.place} has a history that is not a list of pairs")
        read.message({"role": "user", "content": past[0]}, "history")
        read.message({"role": "assistant", "content": past[1]}, "history")
    if isinstance(question, list):
        read.messages(question)
    else:
        context = row[pair[1]] if len(pair) == 3 else None
        if isinstance(question, str) and isinstance(context, str) and context.strip():
            question = f"{question}\n\n{context}"
        read.message({"role": "user", "content": question}, f"field {pair[0]!r},")
    if isinstance(answer, list):
        read.messages(answer)
    else:
        read.message({"role": "assistant", "content": answer}, f"field {pair[-1]!r},")
    return read.found(row, form)


def _has_chosen(fields) -> bool:
    """Whether a row has two answers, one of which people or a model preferred."""
    return "chosen" in fields and "rejected" in fields


def _chosen(row: dict, read: "Turns") -> FoundConversation | None:
    """The conversation of preference data with the chosen answer; None if it has no question."""
    chosen = _parsed_messages(row["chosen"])
    question = next((name for name in _QUESTIONS if row.get(name)), None)
    if isinstance(chosen, str) and (turns := _TRANSCRIPT.split(chosen))[1:]:  # as HH-RLHF has it
        chosen = [
            {"role": name, "content": text.strip()}
            for name, text in zip(turns[1::2], turns[2::2], strict=True)
        ]
    if isinstance(chosen, list):
        if not chosen:
            raise NoConversationError(f"{read.place} has no messages as its chosen answer")
        read.messages(chosen)
        if question and read.read[0]["role"] == "assistant":
            answers, read.read = read.read, []
            asked = _parsed_messages(row[question])
            is_list = isinstance(asked, list)
            read.messages(asked if is_list else [{"role": "user", "content": asked}])
            read.read += answers
    elif question:
        return _question_and_answer(row, [question, "chosen"], read)
    else:
        return None
    return read.found(row, "with the chosen answer (the rejected one is left out)")


def _parsed_messages(value):
    """A list of messages, where a question or an answer is one; else the value as it is."""
    found = parsed(value)
    return found if isinstance(found, list) and found and all(map(has_role, found)) else value


def _of_tree(nodes: dict, newest) -> list[dict]:
    """The messages of a ChatGPT export: from the newest up to the root of its tree."""
    if newest not in nodes:
        newest = next(reversed(nodes), None)
    messages, seen = [], set()
    while isinstance(nodes.get(newest), dict) and newest not in seen:
        seen.add(newest)
        message = nodes[newest].get("message")
        if isinstance(message, dict):
            content, author = message.get("content"), message.get("author")
            parts = content.get("parts") if isinstance(content, dict) else None
            role = author.get("role") if isinstance(author, dict) else None
            if isinstance(content, dict) and not parts:
                parts = [content.get("text")]  # code that runs, and what it printed
            # the export holds hidden system messages and a tool's pictures as messages without text
            texts = [part for part in parts or [] if isinstance(part, str) and part.strip()]
            if texts:
                messages.append({"role": role, "content": "\n".join(texts)})
        newest = nodes[newest].get("parent")
    return messages[::-1]
