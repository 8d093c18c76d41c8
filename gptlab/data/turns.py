"""One message of a conversation, in the forms that people keep it in: its role, text and calls."""

import json
from collections import Counter
from dataclasses import dataclass, field

from gptlab.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
WANTED_FORM = (
    'a row is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": '
    '"..."}]}, {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": '
    '"..."}]}, or {"prompt": "...", "completion": "..."}'
)
# What other programs call the roles; in lower case.
ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": "system",
    **dict.fromkeys(("human", "prompter", "customer", "client", "question"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "chatbot", "ai", "agent", "model", "bing", "bard", "claude"),
        "assistant",
    ),
    "answer": "assistant",
    "function_call": "assistant",  # LLaMA-Factory's; the value is the call
    **dict.fromkeys(("function", "observation", "tool_response", "ipython"), "tool"),
}
_ROLE_KEYS = ("role", "from", "sender", "speaker")
# by which a message is named where it has no role; a "customer" may be a column of names
_SPEAKERS = frozenset(
    "human user prompter question assistant bot chatbot gpt chatgpt ai answer".split()
)
_TEXT_KEYS = ("content", "value", "text")
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


def is_message(value) -> bool:
    """Whether a value is a message of a conversation: a known role with a text."""
    if not isinstance(value, dict) or not any(key in value for key in _TEXT_KEYS):
        return False
    roles = [value[key] for key in _ROLE_KEYS if key in value]
    return any(isinstance(role, str) and role.strip().lower() in ROLE_NAMES for role in roles)


def has_role(message) -> bool:
    """Whether a value is a message that says who speaks."""
    return isinstance(message, dict) and any(key in message for key in _ROLE_KEYS)


def is_turn(value) -> bool:
    """Whether an item of a list is a message with a role, or a user's and its answer by names."""
    return has_role(value) or bool(speakers(value))


def speakers(fields) -> list[str]:
    """The names of the fields with what a user says and what the assistant answers, or []."""
    if not isinstance(fields, (dict, list)):
        return []
    words = [name for name in fields if isinstance(name, str) and name.lower() in _SPEAKERS]
    found = {ROLE_NAMES[name.lower()]: name for name in words}
    return [found["user"], found["assistant"]] if len(found) == 2 else []


def parsed(value):
    """A list or an object that a table holds as its JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Turns:
    """Reads the messages of one row and counts what is in them."""

    def __init__(self, place: str, keep_line_endings: bool):
        self.place, self._keep_line_endings = place, keep_line_endings
        self.read, self._roles, self._left_out = [], Counter(), Counter()

    def found(self, row: dict, form: str) -> FoundConversation:
        """What was read, with the system's text and the tools of the row."""
        messages, system = self.read, row.get("system")
        if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._lines(system)}, *messages]
        tools = parsed(row.get("tools"))
        if not tools and (functions := parsed(row.get("functions"))):
            tools = [{"type": "function", "function": function} for function in functions]
        if tools and not isinstance(tools, list):
            raise NoConversationError(f"{self.place} has tools that are not a list")
        tools = _without_none(tools or [])
        return FoundConversation(messages, form, tools, self._roles, self._left_out)

    def messages(self, values: list) -> None:
        """Read the messages of a list."""
        for number, message in enumerate(values, start=len(self.read) + 1):
            if not has_role(message) and (pair := speakers(message)):
                for name in pair:
                    turn = {"role": name, "content": message[name]}
                    self.message(turn, f"message {number}, field {name!r},")
            else:
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
        role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise NoConversationError(
                f"{where} has the role {name!r}",
                f"the roles are {', '.join(ROLES)}",
            )
        calls = _tool_calls(message, where) if role == "assistant" else []
        content = self._text(message.get(text_key, message.get("refusal")), role, where)
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

    def _text(self, content, role: str, where: str) -> str | None:
        """The text of a message's content: itself, or its parts joined; None if there is none.

        Parts of another type than text, such as a picture, are left out and counted.
        """
        if content is None or isinstance(content, str):
            return content
        if role == "tool" and isinstance(content, dict):
            return json.dumps(content, ensure_ascii=False)
        if not isinstance(content, list):
            raise NoConversationError(f"{where} has no text as its content")
        texts, others = [], Counter()
        for part in content:
            kind, text = type(part).__name__, part
            if isinstance(part, dict):
                kind = part.get("type")
                text = part.get("text") if part.get("text") is not None else part.get("refusal")
            if isinstance(text, str):
                texts.append(text)
            elif isinstance(part, dict) and isinstance(kind, str) and "text" not in part:
                others[f"parts of the type {kind}"] += 1
            else:
                raise NoConversationError(f"{where} has a part that is not text ({kind})")
        if others and not "".join(texts).strip():
            raise NoConversationError(f"{where} has no text beside its {', '.join(others)}")
        self._left_out.update(others)
        return "".join(texts)

    def _lines(self, text: str) -> str:
        if self._keep_line_endings:
            return text
        return text.replace("\r\n", "\n").replace("\r", "\n")


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
        arguments = parsed(function.get("arguments") or {})
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
