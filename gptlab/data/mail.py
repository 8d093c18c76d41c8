"""Mail as programs export it: mailboxes (mbox), single messages (.eml), saved pages (.mht)."""

import contextlib
import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from gptlab.data.markup import TextOfHtml
from gptlab.data.opening import decompressed, naming_damage
from gptlab.data.tables import Row
from gptlab.data.text_files import Reading
from gptlab.errors import DataError
from gptlab.files import display

_SHOWN = ("From", "To", "Date", "Subject")
_LARGEST_MESSAGE = 1 << 28  # bytes
_FIRST_HEADER = re.compile(r"[A-Za-z][\w-]*:")
# what programs write above a message, and people do not
_TECHNICAL = re.compile(
    r"^(?:MIME-Version|Message-ID|Received|Return-Path|Delivered-To|Content-Type|X-[\w-]+):",
    re.MULTILINE | re.IGNORECASE,
)


def looks_like_mail(head: str) -> bool:
    """Whether a text begins as a mailbox does, or as a message with the headers of programs."""
    first, _, others = head.lstrip("\n").partition("\n")
    if first.startswith("From ") and _FIRST_HEADER.match(others):
        return True
    above = head.split("\n\n")[0].replace("\r\n", "\n").split("\n\n")[0]
    lines = [line for line in above.split("\n") if not line.startswith((" ", "\t"))]
    are_headers = len(lines) > 2 and all(map(_FIRST_HEADER.match, lines))
    names = {line.split(":")[0].lower() for line in lines}
    return are_headers and "from" in names and bool(_TECHNICAL.search(above))


def mail_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, text) of each message: who writes to whom, when, on what, an empty line, the text.

    Texts in HTML lose their tags. Attachments and other headers are left out.
    """
    name = name or display(path)
    for number, content in enumerate(_messages(path, reading, name), 1):
        place = f"{name} message {number:,}"
        try:
            message = email.message_from_bytes(content, policy=email.policy.default)
            text = _text_of(message, reading)
        except Exception as error:  # the package raises errors of many kinds for odd headers
            reason = " ".join(str(error).split()) or type(error).__name__
            yield place, DataError(f"{place} cannot be read ({reason})", "remove it", sep="; ")
            continue
        reading.counts["messages of mail read"] += 1
        yield place, text


def _messages(path: Path, reading: Reading, name: str) -> Iterator[bytes]:
    """The messages of a mailbox, or the one message of a file."""
    held, size, read, is_after_blank = [], 0, 0, True
    with open(path, "rb") as raw, naming_damage(name, "a damaged file"):
        for line in decompressed(raw, name):
            if is_after_blank and line.startswith(b"From "):
                if held:
                    yield b"".join(held)
                    reading.progress(raw.tell() - read)
                    read = raw.tell()
                held, size = [], 0
                continue
            is_after_blank = not line.strip()
            size += len(line)
            if size > _LARGEST_MESSAGE:
                raise ValueError(f"a message is larger than {_LARGEST_MESSAGE >> 20} MB")
            held.append(line[1:] if re.match(rb">+From ", line) else line)
        reading.progress(raw.tell() - read)
    if held:
        yield b"".join(held)


def _text_of(message: EmailMessage, reading: Reading) -> str:
    reading.counts["attachments of mail left out"] += sum(1 for _ in message.iter_attachments())
    body = message.get_body(("plain", "html"))
    text = "" if body is None else _content(body)
    if body is not None and body.get_content_subtype() == "html":
        parser = TextOfHtml(reading)
        parser.feed(text)
        parser.close()
        text = "".join(parser.pieces)
    above = [f"{name}: {' '.join(str(message[name]).split())}" for name in _SHOWN if message[name]]
    return "\n".join([*above, "", text.replace("\r\n", "\n").strip("\n"), ""])


def _content(part: EmailMessage) -> str:
    charset = part.get_content_charset("utf-8")
    content = part.get_payload(decode=True) or b""
    for encoding in (charset, "utf-8", "cp1252"):
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            return content.decode(encoding)
    return content.decode("latin-1")
