"""The pictures of the README: there, small, without paths; and how the terminal is drawn."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readme_shows_a_terminal_and_a_page():
    assert {Path(name).suffix for name in SHOWN} == {".svg", ".png"}
    assert {path.name for path in (ROOT / "docs/pictures").iterdir()} >= {"make.py"} | {
        Path(name).name for name in SHOWN
    }


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_small_and_tells_nothing_of_the_machine(name):
    content = (ROOT / name).read_bytes()
    assert len(content) <= 150_000
    assert not re.search(rb"/home/|/tmp/|/Users/|/root/", content)
    if name.endswith(".svg"):
        ET.fromstring(content)
        assert b"url(http" not in content and b'url("http' not in content


@pytest.mark.skipif(sys.platform == "win32", reason="the script needs a pseudo-terminal")
def test_what_a_bar_overwrote_is_not_drawn_and_colours_are():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures/make.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    written = "Loading ...\rModel: 1\r\n 10%|#\r 90%|###\x1b[K\r\n\x1b[31mred\x1b[0m\x1b[2A\r\n"
    assert pictures.visible(written) == ["Model: 1", " 90%|###", "\x1b[31mred\x1b[0m", ""]
