"""A traced text as one HTML page: spans coloured by their length, no script."""

from html import escape

from gptlab.analysis.trace import Traced, TracedText, beginning, level_names, percent, span_level
from gptlab.files import without_folders
from gptlab.reports import page as page
from gptlab.reports.sections import footer, readable

STYLE = """
:root { --l0: #fdf1cf; --l1: #fbd48f; --l2: #f3a36f; }
@media (prefers-color-scheme: dark) {
  :root { --l0: #4a3f1e; --l1: #5d451d; --l2: #8a4524; }
}
.traced span { border-radius: 2px; position: relative; }
.traced [data-where]:is(:hover, :focus) { outline: 2px solid var(--ink); z-index: 1; }
.traced [data-where]:is(:hover, :focus)::after {
  content: attr(data-where); position: absolute; left: 0; bottom: 100%; padding: 1px 6px;
  border-radius: 4px; background: var(--ink); color: var(--paper); white-space: nowrap;
}
.l0 { background: var(--l0); } .l1 { background: var(--l1); } .l2 { background: var(--l2); }
.spans td:first-child, .spans th { white-space: nowrap; overflow-wrap: normal; }
.spans td:nth-child(2) { min-width: 9em; }
.scale { display: flex; flex-wrap: wrap; gap: 6px; margin: 14px 0 8px; font-size: .86rem; }
.scale span { padding: 1px 8px; border: 1px solid var(--rule); border-radius: 4px; }
"""


def make_trace_page(traced: Traced, min_chars: int, name: str, sentences: list[str]) -> str:
    """The page as HTML. sentences: shown above the text."""
    text = traced.texts[0]
    scale = "".join(
        f'<span class="l{i}">{words}</span>' for i, words in enumerate(level_names(min_chars))
    )
    chance = traced.longest_by_chance
    figures = {
        "Share of the text": percent(text.share(min_chars)),
        "By chance": percent(traced.share_by_chance(min_chars)) if traced.held_out else "",
        "Longest span": f"{text.longest:,} characters" if text.longest else "none",
        "Longest by chance": f"{chance:,.0f} characters" if chance is not None else "",
    }
    body = (
        f'<header>\n<p class="eyebrow">gptlab trace</p>\n<h1>{escape(name)}</h1>\n'
        + "".join(f'<p class="lede">{escape(sentence)}</p>\n' for sentence in sentences)
        + page.tiles(figures)
        + f'<div class="scale">{scale}</div>\n<p class="hint">The colour says how many characters '
        "a span has. Point at a span, or tap it, to see where it stands first.</p>\n</header>\n"
        + page.section("The text", f'<pre class="traced">{_coloured(text, min_chars)}</pre>')
        + page.section("Spans", _table(text, min_chars))
        + footer()
    )
    return page.page(f"{name} (gptlab trace)", body, STYLE)


def _coloured(text: TracedText, min_chars: int) -> str:
    pieces = []
    for piece, span in text.segments(min_chars):
        shown = escape(readable(piece))
        if span is not None:
            place = escape(without_folders(f"{len(span):,} characters, {span.where}"))
            kind = f"l{span_level(span, min_chars)}"
            shown = f'<span class="{kind}" data-where="{place}" tabindex="-1">{shown}</span>'
        pieces.append(shown)
    return "".join(pieces)


def _table(text: TracedText, min_chars: int) -> str:
    spans = [span for span in text.spans if len(span) >= min_chars]
    rows = [
        [
            f"{len(span):,}",
            without_folders(span.where),
            readable(beginning(text, span)),
        ]
        for span in sorted(spans, key=len, reverse=True)
    ]
    return page.table(["characters", "stands in", "begins"], rows, "spans")
