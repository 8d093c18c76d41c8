"""Dumps of Wikipedia and of other MediaWikis: pages as documents, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from gptlab.data.opening import decompressed, naming_damage
from gptlab.data.tables import Row
from gptlab.data.text_files import Reading
from gptlab.files import display


def wiki_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, text) of each article: its title, an empty line, and its text with the markup.

    Pages of discussion, help and the like (namespaces but 0) and redirects are left out.
    (https://www.mediawiki.org/wiki/Help:Export)
    """
    name = name or display(path)
    read = 0
    with open(path, "rb") as raw, naming_damage(name, "no readable dump of a wiki"):
        pages = ElementTree.iterparse(decompressed(raw, name), events=("start", "end"))
        _, root = next(pages)
        try:
            for event, page in pages:
                if event == "start" or page.tag.rpartition("}")[2] != "page":
                    continue
                if (page.findtext("{*}ns") or "0") != "0":
                    reading.counts["pages of a wiki left out that are not articles"] += 1
                elif page.find("{*}redirect") is not None:
                    reading.counts["redirects of a wiki left out"] += 1
                else:
                    title = page.findtext("{*}title") or ""
                    revisions = page.findall("{*}revision")
                    text = revisions[-1].findtext("{*}text") if revisions else None
                    reading.counts["articles of a wiki read with their markup"] += bool(text)
                    yield f"{name}, {title!r}", f"{title}\n\n{text}\n" if text else None
                root.clear()
                reading.progress(raw.tell() - read)
                read = raw.tell()
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from None
