"""Feeds, exports of blogs and notes as documents, other XML without its tags, and the way back."""

from html import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError

WORDPRESS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:content="http://purl.org/rss/1.0/modules/content/"
 xmlns:excerpt="http://wordpress.org/export/1.2/excerpt/"
 xmlns:wp="http://wordpress.org/export/1.2/"><channel><title>Blog</title>
{}</channel></rss>"""
ITEM = """<item><title>{}</title><description></description>
<content:encoded><![CDATA[{}]]></content:encoded>
<excerpt:encoded><![CDATA[not this]]></excerpt:encoded><wp:post_type>{}</wp:post_type></item>
"""
READ = "entries of a feed or an export read without tags"


def read(path, **how):
    reading = Reading(**how)
    source = find([str(path)], None, lambda _: None, how=reading)
    return ["".join(document) for document in source.documents(reading)], +reading.counts


def test_the_posts_of_wordpress_are_documents_with_their_paragraphs(tmp_path):
    items = ITEM.format("One", "<!-- wp --><p>A &amp; <b>b</b></p><p>é</p>", "post")
    items += ITEM.format("Old", "first\n\nsecond\nline", "page")
    items += ITEM.format("a.png", "picture", "attachment") + ITEM.format("None", "", "post")
    (tmp_path / "x.xml").write_text(WORDPRESS.format(items), encoding="utf-8")
    texts, counts = read(tmp_path / "x.xml")
    assert texts == ["One\n\nA & b\n\né\n", "Old\n\nfirst\n\nsecond\nline\n"]
    assert counts == {
        READ: 2,
        "entries that are settings, menus or attachments left out": 1,
        "rows without text skipped": 1,
    }


def test_atom_has_its_text_as_html_as_xhtml_or_plain(tmp_path):
    entries = (
        '<entry><title>a</title><content type="html">&lt;p&gt;1 &amp;lt; 2&lt;/p&gt;</content>'
        '</entry><entry><title>b</title><content type="xhtml">'
        '<div xmlns="http://www.w3.org/1999/xhtml"><p>x</p><p>y</p></div></content></entry>'
        '<entry><title>c</title><content type="text">1 &lt; 2</content></entry>'
        "<entry><title>d</title><summary>short</summary></entry>"
        '<entry><category scheme="http://schemas.google.com/g/2005#kind" '
        'term="http://schemas.google.com/blogger/2008/kind#template"/>'
        "<content>css</content></entry>"
    )
    feed = f'<feed xmlns="http://www.w3.org/2005/Atom"><title>F</title>{entries}</feed>'
    (tmp_path / "x.atom").write_text(feed, encoding="utf-8")
    texts, counts = read(tmp_path / "x.atom")
    assert texts == ["a\n\n1 < 2\n", "b\n\nx\n\ny\n", "c\n\n1 < 2\n", "d\n\nshort\n"]
    assert counts[READ] == 4 and counts.total() == 5


def test_notes_of_evernote_lose_their_tags_and_pictures(tmp_path):
    note = (
        '<?xml version="1.0"?><!DOCTYPE en-note SYSTEM "http://xml.evernote.com/pub/enml2.dtd">'
        '<en-note><div>milk</div><div>eggs<br/></div><en-media type="image/png"/></en-note>'
    )
    export = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE en-export SYSTEM '
        '"http://xml.evernote.com/pub/evernote-export3.dtd">\n<en-export><note><title>List</title>'
        f"<content><![CDATA[{note}]]></content><resource><data>AAAA</data></resource></note>"
        "</en-export>"
    )
    (tmp_path / "x.enex").write_text(export, encoding="utf-8")
    assert read(tmp_path / "x.enex")[0] == ["List\n\nmilk\neggs\n"]


def test_tags_are_kept_on_request_and_dropped_from_any_xml_on_request(tmp_path):
    page, tmx = "<html><p>a</p></html>\n", tmp_path / "x.tmx"
    (tmp_path / "x.html").write_text(page)
    assert read(tmp_path / "x.html", tags="keep") == (
        [page],
        {"files of HTML or XML read with their tags": 1},
    )
    tmx.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<tmx>\n  <tu>\n    <seg>Guten <b>Tag</b> &amp; so'
        "</seg><seg>Good day</seg>\n  </tu>\n</tmx>\n",
    )
    texts, counts = read(tmx, tags="drop")
    assert texts[0].split("\n") == ["", "Guten Tag & so", "Good day", "", ""]
    assert counts == {"XML files read without their tags": 1}
    assert read(tmx)[0] == [tmx.read_text()]
    for tags, name in (("keep", "x.tmx"), ("drop", "x.html")):
        with pytest.raises(ConfigError, match="has no effect"):
            read(tmp_path / name, tags=tags)


def test_what_is_not_well_formed_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "x.xml").write_text(WORDPRESS.format("<item><title>a</item>"))
    with pytest.raises(DataError, match=r"no well-formed XML .* with --tags keep"):
        read(tmp_path / "x.xml")
    assert len(read(tmp_path / "x.xml", tags="keep")[0]) == 1
    (tmp_path / "y.xml").write_text('<?xml version="1.0"?>\n<a>text</b>')
    with pytest.raises(DataError, match=r"no well-formed XML .*leave out --tags drop"):
        read(tmp_path / "y.xml", tags="drop")


@given(st.lists(st.text(alphabet="ab<&é'[{ \n", max_size=30), max_size=6))
@settings(deadline=None, max_examples=50)
def test_every_entry_is_read_or_counted(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("feed") / "x.rss"
    items = "".join(
        f"<item><title>T{i}</title><description>{escape(escape(text))}</description></item>"
        for i, text in enumerate(texts)
    )
    path.write_text(f"<rss><channel>{items}</channel></rss>", encoding="utf-8", newline="\n")
    found, counts = read(path)
    words = [" ".join(text.split()) for text in texts if text.strip()]
    assert [" ".join(text.partition("\n\n")[2].split()) for text in found] == words
    assert counts[READ] + counts["rows without text skipped"] == len(texts)
