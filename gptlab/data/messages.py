"""Conversations in the forms that people keep them in, read as messages with a role and a text.

A row is read as OpenAI's `messages`, as ShareGPT's `conversations` (from, value), as a question
with its answer (Alpaca, prompt and completion), or as an entry of ChatGPT's or Claude's export.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from gptlab.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
WANTED_FORM = (
    'a row is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": '
    '"..."}]}, {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": '
    '"..."}]}, or {"prompt": "...", "completion": "..."}'
)
# What other programs call the roles; in lower case.
_ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": "system",
    **dict.fromkeys(("human", "prompter", "customer", "question"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "chatbot", "ai", "model", "bing", "bard", "claude", "answer"),
        "assistant",
    ),
    "function_call": "assistant",  # LLaMA-Factory's; the value is the call
    **dict.fromkeys(("function", "observation", "tool_response", "ipython"), "tool"),
}
_LISTS = (
    "messages", "conversations", "conversation", "chat_messages", "dialogue", "dialog", "turns"
)  # fmt: skip
_ROLE_KEYS = ("role", "from", "sender", "speaker")
_TEXT_KEYS = ("content", "value", "text")
# A question and its answer, the more telling names first. Alpaca: instruction, input, output;
# Dolly: instruction, context, response.
_QUESTIONS = ("instruction", "prompt", "question", "query", "input", "inputs", "problem")
_ANSWERS = ("output", "completion", "response", "answer", "reply", "target", "targets", "solution")
_CONTEXTS = ("input", "context")
_MORE = ("system", "history", "tools", "functions")  # of a row
_KEPT = ("name", "tool_call_id", "weight")  # of a message, as they are


class NoConversationError(DataError):
    """A row that is no conversation; up to a share of the rows these are skipped and counted."""

    def __init__(self, problem: str, fix: str = WANTED_FORM):
        super().__init__(problem, fix, sep="; ")


@dataclass
class FoundConversation:
    """The conversation of a row. form: in words. roles: {(name in the file, role): messages}.

    tools: the functions that the assistant may call, as the chat template gets them. left_out:
    {field of a message that is not read: how often}.
    """

    messages: list[dict]  # [] for a conversation of an export in which nothing was said
    form: str
    tools: list = field(default_factory=list)
    roles: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)

    def to_json(self) -> str:
        """What the store holds: the list of messages, or an object of messages and tools."""
        both = {"messages": self.messages, "tools": self.tools}
        return json.dumps(both if self.tools else self.messages, ensure_ascii=False)


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
        said = ["Conversations: " + ", ".join(f"{n:,} {w}" for w, n in self.forms.items())]
        renamed = [
            f"{name!r} as {role} ({number:,})"
            for (name, role), number in self.roles.items()
            if name != role
        ]
        if renamed:
            said.append("roles read: " + ", ".join(renamed))
        if self.left_out:
            fields = (f"{name} ({number:,})" for name, number in self.left_out.items())
            said.append("fields of messages left out: " + ", ".join(fields))
        return "; ".join(said) + "."


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
    read = _Reader(place, keep_line_endings)
    for name in _LISTS if column is None else (column,):
        messages = _parsed(row.get(name))
        # `messages` always means a conversation; other lists do if their items have roles
        if isinstance(messages, list) and (
            name == "messages" or any(_has_role(message) for message in messages)
        ):
            if not messages:
                raise NoConversationError(f"{place} has no messages")
            read.messages(messages)
            return read.found(row, _form_of(name, messages))
    if pair := _pair(row, column):
        return _question_and_answer(row, pair, read)
    if column is None and isinstance(row.get("mapping"), dict):
        read.messages(_of_tree(row["mapping"], row.get("current_node")))
        return read.found({}, "of ChatGPT's export")
    return None


def is_message(value) -> bool:
    """Whether a value is a message of a conversation: a known role with a text."""
    if not isinstance(value, dict) or not any(key in value for key in _TEXT_KEYS):
        return False
    roles = [value[key] for key in _ROLE_KEYS if key in value]
    return any(isinstance(role, str) and role.strip().lower() in _ROLE_NAMES for role in roles)


def _form_of(name: str, messages: list) -> str:
    first = next(message for message in [*messages, {}] if isinstance(message, dict))
    if "from" in first and "value" in first:
        return f"in ShareGPT's form ({name})"
    return f"with {name}"


def _has_role(message) -> bool:
    return isinstance(message, dict) and any(key in message for key in _ROLE_KEYS)


def _parsed(value):
    """A list or an object that a table holds as its JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _pair(fields, column: str | None) -> list[str]:
    """[question, context or none, answer] among the names of a row's fields; [] if it has none."""
    named = None if column is None else [name.strip() for name in column.split(",")]
    if named is None and "text" in fields:
        return []  # a table of texts, whatever else it holds
    wanted = list(fields) if named is None else [name for name in named if name in fields]
    answer = next((name for name in _ANSWERS if name in wanted), None)
    question = next((name for name in _QUESTIONS if name in wanted), None)
    if answer is None or question is None or (named and len(wanted) < len(named)):
        return []
    context = [name for name in _CONTEXTS if name in wanted and name != question]
    context = context[:1] if question == "instruction" else []
    pair = [question, *context, answer]
    return pair if named is None or sorted(named) == sorted(pair) else []


def _question_and_answer(row: dict, pair: list[str], read: "_Reader") -> FoundConversation:
    form = f"with {' and '.join(pair[:-1])} as the question, {pair[-1]} as the answer"
    question, answer = _parsed_messages(row[pair[0]]), _parsed_messages(row[pair[-1]])
    for past in _parsed(row.get("history")) or []:
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise NoConversationError(f"{read.place} has a history that is no list of pairs")
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


def _parsed_messages(value):
    """A list of messages, where a question or an answer is one; else the value as it is."""
    found = _parsed(value)
    return found if isinstance(found, list) and found and all(map(_has_role, found)) else value


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


# Messages -----------------------------------------------------------------------------------------


class _Reader:
    """Reads the messages of one row and counts what is in them."""

    def __init__(self, place: str, keep_line_endings: bool):
        self.place, self._keep_line_endings = place, keep_line_endings
        self.read, self._roles, self._left_out = [], Counter(), Counter()

    def found(self, row: dict, form: str) -> FoundConversation:
        """What was read, with the system's text and the tools of the row."""
        messages, system = self.read, row.get("system")
        if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._lines(system)}, *messages]
        tools = _parsed(row.get("tools"))
        if not tools and (functions := _parsed(row.get("functions"))):
            tools = [{"type": "function", "function": function} for function in functions]
        if tools and not isinstance(tools, list):
            raise NoConversationError(f"{self.place} has tools that are no list")
        tools = _without_none(tools or [])
        return FoundConversation(messages, form, tools, self._roles, self._left_out)

    def messages(self, values: list) -> None:
        """Read the messages of a list."""
        for number, message in enumerate(values, start=len(self.read) + 1):
            self.message(message, f"message {number},")

    def message(self, message, where: str) -> None:
        """Read one message, in OpenAI's, ShareGPT's or Claude's form. where: names it in errors."""
        where = f"{self.place}, {where}"
        if not isinstance(message, dict):
            raise NoConversationError(
                f"{where} is {type(message).__name__}, not a role with its content"
            )
        message = {key: value for key, value in message.items() if value is not None}
        role_key = next((key for key in _ROLE_KEYS if key in message), "role")
        text_key = next((key for key in _TEXT_KEYS if key in message), "content")
        if role_key == "sender" and isinstance(message.get("text"), str):
            text_key = "text"  # Claude's export has the same as parts in its content
        name = message.get(role_key)
        role = _ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise NoConversationError(
                f"{where} has the role {name!r}", f"the roles are {', '.join(ROLES)}"
            )
        calls = _tool_calls(message, where) if role == "assistant" else []
        content = _text(message.get(text_key, message.get("refusal")), role, where)
        if content is None and not calls:
            raise NoConversationError(f"{where} has no text as its content")
        content = None if content is None else self._lines(content)
        kept = {key: message[key] for key in _KEPT if key in message}
        self.read.append(
            {"role": role, "content": content, **kept, **({"tool_calls": calls} if calls else {})}
        )
        self._roles[name, role] += 1
        known = {role_key, *_TEXT_KEYS, "tool_calls", "function_call", "refusal", *_KEPT}
        self._left_out.update(key for key, value in message.items() if key not in known and value)

    def _lines(self, text: str) -> str:
        if self._keep_line_endings:
            return text
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(content, role: str, where: str) -> str | None:
    """The text of a message's content: itself, or its parts joined; None if there is none."""
    if content is None or isinstance(content, str):
        return content
    if role == "tool" and isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        raise NoConversationError(f"{where} has no text as its content")
    texts = []
    for part in content:
        text = part
        if isinstance(part, dict):
            text = part.get("text") if part.get("text") is not None else part.get("refusal")
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise NoConversationError(f"{where} has a part that is no text ({kind})")
        texts.append(text)
    return "".join(texts)


def _tool_calls(message: dict, where: str) -> list[dict]:
    """The calls of an assistant's message; arguments as an object, as chat templates want them."""
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [{"type": "function", "function": message["function_call"]}]
    found = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise NoConversationError(f"{where} has a tool call without the name of a function")
        arguments = _parsed(function.get("arguments") or {})
        function = _without_none({**function, "arguments": {}}) | {"arguments": arguments}
        found.append(
            _without_none({key: value for key, value in call.items() if key in ("id", "type")})
            | {"function": function}
        )
    return found


def _without_none(value):
    """A value without the nulls that a table adds where rows differ in their fields."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
