"""HTML, notebooks, subtitles, and lines that no person wrote."""

import base64
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import text_files
from gptlab.data.corpora import find
from gptlab.data.text_files import Reading
from gptlab.errors import DataError

XML_READ = "XML files read as they are, with their tags (--tags drop reads the text between them)"


def read(path):
    notes = []
    reading = Reading(note=notes.append)
    source = find([str(path)], None, notes.append, how=reading)
    texts = ["".join(document) for document in source.documents(reading)]
    return texts, +reading.counts, notes


PAGE = """<?xml version="1.0"?>
<!-- made by a program -->
<!DOCTYPE html>
<html><head><title>A &amp; B</title><style>p { color: red }</style></head>
<body><h1>It&#39;s</h1><p>One <b>bold</b>
word.</p><ul><li>a<li>b</ul>x<br>y<script>var x = "<p>no</p>";</script>
<svg><text>drawn</text></svg><pre>a
  b</pre><table><tr><td>1</td><td>2</td></tr></table>un<i>broken</i></body></html>"""


@pytest.mark.parametrize("name", ["x.html", "x.txt", "x"])
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_html_is_read_without_tags_scripts_and_entities(write, monkeypatch, name, block_bytes):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    texts, counts, _ = read(write(name, PAGE))
    expected = "A & B\n\nIt's\n\nOne bold word.\n\na\nb\n\nx\ny\n\na\n  b\n\n1 2\n\nunbroken\n"
    assert texts == [expected]
    assert counts["HTML pages read without their tags"] == 1
    assert counts["scripts, styles and drawings in HTML left out"] == 3


def test_a_text_that_only_mentions_tags_stays_as_it_is(write):
    text = "In HTML <p> begins a paragraph.\n<html> begins a page.\n"
    assert read(write("x.txt", text))[0] == [text]


@given(st.lists(st.text(alphabet="ab é日<>&\"'", min_size=1).filter(str.strip), min_size=1))
@settings(deadline=None)
def test_every_word_of_a_page_is_read(tmp_path_factory, paragraphs):
    import html

    path = tmp_path_factory.mktemp("html") / "x.html"
    body = "".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    path.write_text(f"<!doctype html>{body}", encoding="utf-8")
    assert read(path)[0][0].split() == " ".join(paragraphs).split()


def test_a_notebook_is_the_sources_of_its_cells(write):
    picture = {"output_type": "display_data", "data": {"image/png": "iVBOR" * 1000}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "print(1)\n", "outputs": [picture, picture]},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    texts, counts, _ = read(write("x.ipynb", json.dumps({"nbformat": 4, "cells": cells})))
    assert texts == ["# Title\nwords\n\nprint(1)\n"]
    assert counts["outputs of notebook cells left out"] == 2
    for damaged in ('{"cells": [', '{"nbformat": 4}', '{"cells": [1]}', '{"cells": {"a": 1}}'):
        with pytest.raises(DataError, match=r"x\.ipynb is not a readable notebook"):
            read(write("x.ipynb", damaged))


SRT = "1\n00:00:01,000 --> 00:00:02,500\n<i>First</i> line\n1984\n\n2\n00:00:03,000 --> 00:00:04,0"
SRT += "00\n{\\an8}{one more}\n12\n\n3\n00:00:05,000 --> 00:00:06,000\n"
VTT = "WEBVTT - a talk\nKind: captions\n\nNOTE\nno words\n\nSTYLE\n::cue {}\n\n"
VTT += "00:01.000 --> 00:02.000 align:start\nFirst <c.red>line</c><00:01.500>\nFirst line\n\n"
VTT += "id\n00:03.000 --> 00:04.000\nend\n"


def test_subtitles_are_what_is_said(write):
    texts, counts, _ = read(write("x.srt", SRT.replace("\n", "\r\n")))
    assert texts == ["First line\n1984\n{one more}\n12\n"]
    assert counts["files of subtitles read without their time codes"] == 1
    texts, counts, _ = read(write("x.vtt", VTT))
    assert texts == ["First line\nend\n"]
    assert counts["subtitle lines that repeat the one before left out"] == 1
    assert read(write("y.srt", "No time codes\nhere\n"))[0] == ["No time codes\nhere\n"]


@given(
    st.lists(
        st.text(alphabet="ab 1é?", min_size=1).map(str.strip).filter(lambda t: t and t != "1"),
        min_size=1,
        unique=True,
    )
)
@settings(deadline=None)
def test_every_line_of_subtitles_is_read(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("srt") / "x.srt"
    cues = [f"{i}\n00:00:0{i % 10},000 --> 00:00:09,000\n{t}\n\n" for i, t in enumerate(texts, 1)]
    path.write_text("".join(cues), encoding="utf-8")
    assert read(path)[0] == ["".join(f"{text}\n" for text in texts)]


def test_lines_that_no_person_wrote_are_named_with_file_and_line(write, tmp_path):
    noise = random.Random(0).randbytes(9000)
    write("f/a.txt", "one\ntwo\n" + base64.b64encode(noise).decode() + "\nfour\n")
    write("f/m.js", "!function(t){var e=1;for(;e<10;){t(e);e++}}(n);" * 100)
    _, counts, notes = read(tmp_path / "f")
    notes = " ".join(notes)
    assert "a.txt holds what is hardly text, in line 3 (base64)" in notes
    assert "m.js holds what is hardly text, in line 1 (minified code)" in notes
    assert counts["lines that look like base64"] == 1
    assert "--exclude leaves such a file out of a folder" in notes


def test_a_part_of_a_page_is_html_by_its_name(write):
    page = "<div>One &amp; two</div>\n<p>Three"
    assert read(write("part.html", page))[0] == ["One & two\n\nThree\n"]
    assert read(write("part.txt", page))[0] == [page]
    assert read(write("plain.html", "1 < 2 and no tag"))[0] == ["1 < 2 and no tag"]


def test_columns_between_tabs_in_a_text_are_said_with_the_option_that_reads_them(write):
    cards = "#html:true\n" + "".join(f"question {i}\tanswer {i}\n" for i in range(20))
    texts, counts, _ = read(write("cards.txt", cards))
    assert texts == [cards]
    assert [n for what, n in counts.items() if "--delimiter tab reads their rows" in what] == [1]
    for text in ("a\tb\n" * 9, "indented\n\tcode\n" * 20, "x\t\ty\nz\tw\n" * 20):
        assert not read(write("other.txt", text))[1]


def test_long_lines_of_people_are_not_named(write):
    prose = "It was the best of times, it was the worst of times; (so they say). " * 100
    text = "\n".join([prose, "日本語の文章は空白を使わない。" * 300, "ภาษาไทย" * 500, "-" * 5000])
    assert read(write("x.txt", text))[1:] == ({}, [])


def test_base64_in_short_lines_is_named_and_letters_of_genes_are_not(write):
    noise = base64.encodebytes(random.Random(0).randbytes(9000)).decode()
    _, counts, notes = read(write("mail.txt", f"Subject: x\n\n{noise}\n--end\n"))
    assert counts["lines that look like base64"] == 1 and "in line 3 (base64)" in notes[0]
    genes = "".join(random.Random(0).choices("ACGT", k=6000))
    fasta = ">seq\n" + "\n".join(genes[i : i + 60] for i in range(0, 6000, 60)) + "\n"
    assert read(write("genes.fa", fasta))[1:] == ({}, [])


def test_xml_is_said_to_keep_its_tags(write):
    text = '<?xml version="1.0"?>\n<pages><page>words</page></pages>\n'
    texts, counts, _ = read(write("x.xml", text))
    assert texts == [text] and counts == {XML_READ: 1}


def test_front_matter_and_xml_without_a_first_line_are_said(write):
    note = "---\ntags: [a, b]\ndate: 2021-01-01\naliases:\n  - x\n---\n# Title\n\ntext\n"
    texts, counts, _ = read(write("note.md", note))
    assert texts == [note]
    assert counts == {"files read with the front matter (YAML) above their text": 1}
    rule = "---\nA poem between rules\nof some lines\n---\n"
    assert read(write("poem.md", rule))[1] == {}
    other = '<pages xmlns="http://example.org/pages"><title>x</title></pages>'
    assert read(write("other.xml", other))[1] == {XML_READ: 1}
