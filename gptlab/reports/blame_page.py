"""The text of a step as one HTML page: tokens coloured by their loss, no script."""

from html import escape

from gptlab.analysis.blame import Blame, Window, level, pieces
from gptlab.data.documents import Place
from gptlab.files import without_folders
from gptlab.reports import page as page
from gptlab.reports.sections import footer, words_section
from gptlab.training.terminal import CONTROL

LEVELS = ("below 25%", "25% to 50%", "50% to 75%", "75% to 100%", "above the uniform baseline")
STYLE = """
:root { --l1: #fdf1cf; --l2: #fbd48f; --l3: #f3a36f; --l4: #cf3f38; }
@media (prefers-color-scheme: dark) {
  :root { --l1: #39321f; --l2: #5d451d; --l3: #8a4524; --l4: #d14a42; }
}
.windows { display: grid; gap: 16px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.windows section { margin: 0; }
.window { margin-top: 10px; }
.window span { border-radius: 2px; position: relative; }
.window [data-loss]:is(:hover, :focus) { outline: 2px solid var(--ink); z-index: 1; }
.window [data-loss]:is(:hover, :focus)::after {
  content: attr(data-loss); position: absolute; left: 0; bottom: 100%; padding: 1px 6px;
  border-radius: 4px; background: var(--ink); color: var(--paper); white-space: nowrap;
}
.l1 { background: var(--l1); } .l2 { background: var(--l2); } .l3 { background: var(--l3); }
.l4 { background: var(--l4); color: #fff; }
.end { color: var(--muted); font-style: italic; }
.scale { display: flex; flex-wrap: wrap; gap: 6px; margin: 14px 0 8px; font-size: .86rem; }
.scale span { padding: 1px 8px; border: 1px solid var(--rule); border-radius: 4px; }
"""


def make_page(found: Blame, run_name: str, sentences: list[str]) -> str:
    """The page as HTML. sentences: shown above the windows."""
    title = f"Step {found.step:,} of {run_name}"
    scale = "".join(f'<span class="l{i}">{words}</span>' for i, words in enumerate(LEVELS))
    header = (
        f'<header>\n<p class="eyebrow">gptlab blame</p>\n<h1>{escape(title)}</h1>\n'
        + "".join(f'<p class="lede">{escape(sentence)}</p>\n' for sentence in sentences)
        + f'<div class="scale">{scale}</div>\n<p class="hint">The loss of a token as a share of '
        f"the uniform baseline, {found.uniform_loss:.2f} nats: that of a model that knows nothing. "
        "Point at a token, or tap it, to see its loss in nats. "
        f"{page.words_link()}."
        "</p>\n"
        "</header>"
    )
    sections = [
        _section(found, place, window) for place, window in enumerate(found.windows, start=1)
    ]
    windows = "\n".join(sections)
    body = "\n".join([header, f'<div class="windows">\n{windows}\n</div>'])
    body += words_section(body) + footer()
    return page.page(f"{title} (gptlab blame)", body, STYLE)


def _section(found: Blame, rank: int, window: Window) -> str:
    hint = f"{window.loss:.3f} nats per token, from token {window.start:,} of train.bin"
    if window.places:
        places = [Place(without_folders(place.name), place.line) for place in window.places]
        hint += f" ({', '.join(map(str, places))})"
    text = "".join(
        _span(piece, level(piece.loss, found.uniform_loss))
        for piece in pieces(window, found.data.tokenizer)
    )
    content = f'<pre class="window">{text}</pre>'
    origin = f" ({window.dataset})" if len(found.data.parts) > 1 else ""
    return page.section(f"{rank}. Sequence {window.sequence:,}{origin}", content, hint=hint)


def _span(piece, hardness: int) -> str:
    if piece.is_end:
        text = '<span class="end">end of text</span>'
    else:
        text = escape(CONTROL.sub("\ufffd", piece.text)).replace("\n", "\u21b5\n")
    if piece.loss is None:
        return text
    return f'<span class="l{hardness}" data-loss="{piece.loss:.2f}" tabindex="-1">{text}</span>'
