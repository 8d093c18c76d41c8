"""Mailboxes and single messages, read back from what Python's own package writes."""

import mailbox
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.text_files import Reading
from gptlab.errors import DataError


def message(subject: str, text: str, html: str = "", attachment: bytes = b"") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "ann@example.org", "bob@example.org", subject
    made["Message-ID"] = "<1@example.org>"
    made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html")
    if attachment:
        made.add_attachment(attachment, maintype="image", subtype="png", filename="a.png")
    return made


def write_mailbox(path, messages):
    box = mailbox.mbox(path)
    for each in messages:
        box.add(mailbox.mboxMessage(each))
    box.close()
    return path


def read(path):
    reading = Reading()
    source = find([str(path)], None, lambda _: None, how=reading)
    return ["".join(document) for document in source.documents(reading)], +reading.counts


def test_a_mailbox_is_its_messages_decoded_and_without_attachments(tmp_path):
    messages = [
        message("Grüße", "Hällo Bob\nFrom me\n", attachment=bytes(range(256))),
        message("Two", "plain\n", html="<p>not <b>this</b></p>"),
    ]
    only_html = message("Three", "")
    only_html.set_content("<p>It&#39;s</p><style>x</style>", subtype="html")
    texts, counts = read(write_mailbox(tmp_path / "All mail", [*messages, only_html]))
    above = "From: ann@example.org\nTo: bob@example.org\nSubject: "
    assert texts == [
        f"{above}Grüße\n\nHällo Bob\nFrom me\n",
        f"{above}Two\n\nplain\n",
        f"{above}Three\n\nIt's\n",
    ]
    assert counts["messages of mail read"] == 3 and counts["attachments of mail left out"] == 1


def test_a_single_message_and_a_text_that_only_looks_like_a_letter(tmp_path):
    (tmp_path / "x.eml").write_bytes(message("Ünder", "text é\n").as_bytes())
    assert read(tmp_path / "x.eml")[0][0].endswith("Subject: Ünder\n\ntext é\n")
    letter = "From: Ann\nTo: Bob\nSubject: us\n\nFrom here on\n"
    (tmp_path / "play.txt").write_text(letter, encoding="utf-8")
    assert read(tmp_path / "play.txt")[0] == [letter]


def test_a_message_in_an_unknown_character_set_is_read(tmp_path):
    head = b"From: a@b\nSubject: x\nMessage-ID: <1@b>\nContent-Type: text/plain; charset=x-odd\n\n"
    (tmp_path / "x.eml").write_bytes(head + "caf\u00e9\n".encode())
    assert read(tmp_path / "x.eml")[0][0].endswith("café\n")


@given(
    st.lists(
        st.text(
            st.characters(
                codec="utf-8", exclude_characters="\r\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
            )
        )
        .map(lambda text: text.strip("\n") + "\n")
        .filter(str.strip),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=50)
def test_every_message_of_a_mailbox_comes_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("mail")
    path = write_mailbox(folder / "box", [message("s", text) for text in texts])
    found, counts = read(path)
    assert [text.split("\n\n", 1)[1].lstrip("\n") for text in found] == [
        t.lstrip("\n") for t in texts
    ]
    assert counts["messages of mail read"] == len(texts)


def test_a_cut_mailbox_in_gzip_is_refused_by_name(tmp_path):
    import gzip

    whole = write_mailbox(tmp_path / "box", [message("s", "t\n" * 9000)]).read_bytes()
    (tmp_path / "box.gz").write_bytes(gzip.compress(whole)[:-30])
    with pytest.raises(DataError, match=r"box\.gz is a damaged"):
        read(tmp_path / "box.gz")
