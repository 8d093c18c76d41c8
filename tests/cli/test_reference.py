from pathlib import Path

from gptlab.cli.reference import quick_reference

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_reference_page_matches_the_options():
    page = (REPOSITORY / "docs" / "QUICK_REFERENCE.md").read_text(encoding="utf-8")
    assert page == quick_reference(), (
        "run: python -m gptlab.cli.reference > docs/QUICK_REFERENCE.md"
    )
