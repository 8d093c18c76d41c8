"""The messages of a conversation, each with a role and a text."""

from gptlab.errors import DataError

ROLES = ("system", "user", "assistant")


def checked_messages(value, place: str, keep_line_endings: bool = False) -> list[dict]:
    """The messages of one conversation, each {"role", "content"}, with line feeds as line ends.

    place: names the conversation in errors. Raises DataError for a message without a known role or
    without text.
    """
    messages = []
    for number, message in enumerate(value if isinstance(value, list) else [], start=1):
        where = f"{place}, message {number},"
        if not isinstance(message, dict):
            raise DataError(f"{where} is {type(message).__name__}, not a role with its content.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{where} has the role {role!r}", f"roles are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"{where} has no text as its content.")
        if not keep_line_endings:
            content = content.replace("\r\n", "\n").replace("\r", "\n")
        messages.append({"role": role, "content": content})
    return messages
