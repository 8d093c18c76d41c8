"""The glossary: one source, the words that people meet, and links that lead somewhere."""

import re
from pathlib import Path

from gptlab.reports.glossary import WORDS, glossary, words_in
from gptlab.reports.run_report import make_report

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_document_is_up_to_date():
    written = (DOCS / "GLOSSARY.md").read_text(encoding="utf-8")
    assert written == glossary(), "run: python -m gptlab.reports.glossary > docs/GLOSSARY.md"


def test_each_word_has_one_line_and_no_spelling_occurs_twice():
    spellings = [word for listed in WORDS for word in listed.split(", ")]
    assert len(set(spellings)) == len(spellings)
    assert not [word for word, meaning in WORDS.items() if len(meaning) > 120 or "|" in meaning]


def test_a_word_is_found_as_a_word():
    assert list(words_in("the LOSS of 3 epochs, n_embd 4")) == ["epoch", "loss", "n_embd"]
    assert not words_in("flossing, muons_2, unigrammatical")


def test_every_link_into_the_glossary_leads_to_a_word():
    places = re.findall(r'<a id="(.*?)">', glossary())
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    links = [
        link
        for path in pages
        for link in re.findall(r"GLOSSARY\.md#([^)]*)\)", path.read_text("utf-8"))
    ]
    assert links and set(links) <= set(places)


def test_a_report_explains_the_words_on_it_and_leads_there(make_run):
    source = make_report([make_run().folder])
    explained = source[source.index('<dl id="words">') :]
    for word in ("unigram", "loss", "nats", "lzma", "gradient"):
        assert f"<dt>{word}</dt>" in explained
    assert "<dt>perplexity</dt>" not in explained  # it has no evaluations
    assert 'href="#words"' in source[: source.index("<section")]
