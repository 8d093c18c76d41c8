"""The page of a report: one HTML file with its own style, for phone and desktop, light and dark.

It loads no script, font or picture, so it opens without a network and prints well.
"""

from collections.abc import Collection
from html import escape

# The lines of several runs differ in colour and follow the order of the legend.
RUN_COLOURS_LIGHT = ("#2f6db3", "#c8443f", "#23836f", "#b9770e", "#7b52ab", "#4d5661")
RUN_COLOURS_DARK = ("#7fb2ec", "#ff8a80", "#5cc9b2", "#f0b45c", "#c3a0f0", "#b4bcc7")

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f1; --card: #fffefb; --ink: #1d2025; --muted: #646a73; --rule: #e3e0d8;
  --train: #6f93bd; --val: #c8443f; --ema: #23836f; --accent: #2f6db3; --soft: #eeece5;
  RUNS_LIGHT
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #13151a; --card: #1b1e25; --ink: #e8eaee; --muted: #9ba2ae; --rule: #2d323c;
    --train: #6d8fb9; --val: #ff8a80; --ema: #5cc9b2; --accent: #7fb2ec; --soft: #242831;
    RUNS_DARK
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "DejaVu Sans", sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 44px 24px 64px; }
header { margin-bottom: 28px; }
.eyebrow {
  margin: 0; color: var(--muted); font-size: .8rem; letter-spacing: .08em;
  text-transform: uppercase;
}
h1 { margin: 4px 0 10px; font-size: 2.3rem; line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 1.2rem; letter-spacing: -.01em; }
h3 { margin: 22px 0 6px; font-size: .95rem; }
p { margin: 0 0 10px; }
.lede { max-width: 44em; font-size: 1.08rem; }
.hint { max-width: 46em; color: var(--muted); font-size: .92rem; }
.noticed { border-left: 3px solid var(--val); padding: 2px 0 2px 12px; max-width: 46em; }
section, .tiles div {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
}
section { margin-top: 18px; padding: 20px 22px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 10px;
  margin: 20px 0 0; }
.tiles div { padding: 10px 12px; white-space: nowrap; }
.tiles dt { color: var(--muted); font-size: .78rem; }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; letter-spacing: -.01em;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 4px; padding: 0;
  list-style: none; font-size: .88rem; color: var(--muted); }
.legend i { display: inline-block; width: 18px; height: 0; margin-right: 7px;
  border-top: 3px solid; border-radius: 2px; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; margin: 4px 0 0; overflow: visible; }
svg.narrow { display: none; }
svg text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .axis { font-size: 12px; }
svg .name, svg .mark { paint-order: stroke; stroke: var(--card); stroke-width: 4px;
  stroke-linejoin: round; }
svg .mark { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--rule); fill: none; }
svg .base { stroke: var(--muted); stroke-width: .8; fill: none; }
svg .level { stroke: var(--muted); stroke-dasharray: 4 4; fill: none; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; }
svg .raw { stroke-width: 1; opacity: .38; }
svg .dot { fill: currentColor; }
svg .ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
.train { color: var(--train); } .val { color: var(--val); } .ema { color: var(--ema); }
.accent { color: var(--accent); }
RUN_CLASSES
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr));
  gap: 6px 26px; }
.small h3 { margin: 10px 0 2px; } .small svg { max-width: 430px; }
.bars { display: grid; grid-template-columns: auto 1fr; gap: 7px 12px; align-items: center;
  margin: 10px 0 0; font-size: .92rem; }
.bars b { display: block; min-width: 3.4em; padding: 1px 8px; border-radius: 0 5px 5px 0;
  background: var(--soft); font-weight: 500; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.bars .ours { font-weight: 600; } .bars b.ours { background: var(--val); color: var(--card); }
.samples { margin: 10px 0 0; padding: 0; list-style: none; }
.samples li { display: grid; grid-template-columns: 118px 1fr; gap: 4px 18px; padding: 12px 0;
  border-top: 1px solid var(--rule); }
.samples li:first-child { border-top: 0; }
.samples strong { display: block; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.samples span { display: inline-block; margin-right: 8px; color: var(--muted);
  font-size: .86rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono", "DejaVu Sans Mono",
    monospace; }
.command { margin: 3px 0 14px; padding: 9px 12px; border-radius: 8px; background: var(--soft); }
.command span { display: inline-block; max-width: 100%; }  /* no line break inside an option */
table { width: 100%; border-collapse: collapse; font-size: .92rem; margin: 6px 0 0; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .82rem; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; overflow-wrap: normal; }
tr:last-child td { border-bottom: 0; }
td:first-child { color: var(--muted); }
tr.marked td { background: var(--soft); font-weight: 600; }
.values td:nth-child(2), .data td:nth-child(2) { color: var(--ink); font-weight: 500; }
.values td:nth-child(3) { color: var(--muted); }
.data col:first-child { width: 12em; } .values col:first-child { width: 15em; }
.values col:nth-child(2) { width: 12em; }
.scroll { overflow-x: auto; }
.scroll td, .scroll th { white-space: nowrap; overflow-wrap: normal; }
.scroll td:first-child { color: var(--ink); font-weight: 500; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
a { color: var(--accent); }
#words { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0 0;
  font-size: .92rem; }
#words dt { font-weight: 500; } #words dd { margin: 0; color: var(--muted); }
footer { margin-top: 26px; color: var(--muted); font-size: .85rem; }
@media (max-width: 640px) {
  main { padding: 26px 14px 44px; }
  h1 { font-size: 1.75rem; }
  section { padding: 16px 14px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  svg.wide { display: none; } svg.narrow { display: block; }
  .small { grid-template-columns: 1fr; }
  .samples li { grid-template-columns: 1fr; }
  #words { grid-template-columns: 1fr; gap: 0; } #words dd { margin-bottom: 7px; }
  .samples strong { display: inline; margin-right: 8px; }
  .values table, .values tbody, .values tr, .values td { display: block; }
  .values thead { display: none; }
  .values tr { padding: 7px 0; border-bottom: 1px solid var(--rule); }
  .values td { display: inline; padding: 0 6px 0 0; border: 0; }
  .values td:nth-child(3) { display: block; font-size: .85rem; }
  .data col:first-child { width: 8em; }
}
@media print { section { break-inside: avoid; } body { background: #fff; } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """The whole document. style: CSS added to the common style."""
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    names = range(len(RUN_COLOURS_LIGHT))
    return (
        STYLE.replace("RUNS_LIGHT", _variables(RUN_COLOURS_LIGHT))
        .replace("RUNS_DARK", _variables(RUN_COLOURS_DARK))
        .replace("RUN_CLASSES", "\n".join(f".run{i} {{ color: var(--run{i}); }}" for i in names))
    )


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--run{i}: {colour};" for i, colour in enumerate(colours))


def section(title: str, *parts: str, hint: str = "") -> str:
    """A card with a heading; "" if it has no content."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    hint = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{hint}\n{content}\n</section>"


def tiles(rows: dict[str, str]) -> str:
    """Named figures: {name: figure}; empty figures are left out."""
    cells = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd></div>"
        for name, figure in rows.items()
        if figure
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def words_link() -> str:
    """The link to the folded section that explains the words of a page."""
    return '<a href="#words">What the words mean</a>'


def legend(names: dict[str, str]) -> str:
    """The legend of a chart: {label: CSS class}."""
    items = "".join(
        f'<li><i class="{kind}"></i>{escape(name)}</li>' for name, kind in names.items()
    )
    return f'<ul class="legend">{items}</ul>'


def table(
    columns: list[str],
    rows: list[list[str]],
    kind: str = "",
    numbers: bool = False,
    marked: Collection[int] = (),
) -> str:
    """A table; with `numbers` every column but the first is aligned to the right.

    marked: the places of rows that stand out.
    """
    if not rows:
        return ""
    side = ' class="number"' if numbers else ""
    head = ""
    if any(columns):
        cells = [f"<th{side if i else ''}>{escape(name)}</th>" for i, name in enumerate(columns)]
        head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    body = "".join(
        ('<tr class="marked">' if place in marked else "<tr>")
        + "".join(f"<td{side if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for place, row in enumerate(rows)
    )
    columns_ = "<colgroup>" + "<col>" * len(rows[0]) + "</colgroup>"
    return f'<div class="{kind}"><table>{columns_}{head}<tbody>{body}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Content that is folded until the reader opens it; it needs no script."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def command(purpose: str, line: str) -> str:
    """A command line and its purpose."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in line.split(" "))
    return f'<p class="hint">{escape(purpose)}</p><pre class="command">{words}</pre>'
