"""Draw the views of the lens (analysis/lens.py) as tables and coloured text."""

from gptlab.cli.ui.console import make_table
from gptlab.training.terminal import fitting

ROWS = 6  # of a view, where not all are asked for
LENS_ROWS = 10
MOST_SHOWN, SHORTEST_SHOWN = 14, 9  # characters of a token in a table, at most
BAR = 24
LIKELY = ((0.5, "black on green"), (0.2, "green"), (0.05, ""), (0.0, "dim"))
SURPRISING = ((6.0, "bold white on red"), (4.0, "red"), (2.0, "yellow"), (0.0, ""))  # nats
EXPLAINING = {"contributions", "ablation"}  # views of one prediction
KINDS = {
    "previous": "the token before",
    "induction": "what followed this token before (induction)",
    "duplicate": "this token earlier",
}


def show_views(console, made: dict, all_rows: bool) -> None:
    """Print a heading and the views in `made`; all_rows: of each view all, not the main ones."""
    from rich.text import Text

    model, views, tokens = made["model"], made["views"], made["tokens"]
    heads = model["layers"] * model["heads"]
    about = (
        f"{model['name']}: {model['parameters']:,} parameters{model['active']}, "
        f"{model['layers']} layers with {heads} heads in all. The prompt has {len(tokens)} "
        f"{'token' if len(tokens) == 1 else 'tokens'}."
    )
    if EXPLAINING & set(views):
        about += (
            f" Explained: {_token(made, made['target'])} after token {made['position']}, "
            f"{_token(made, tokens[made['position']])}."
        )
    console.print(Text(about))
    for name, view in views.items():
        console.print(Text(f"\n{view['title']}", style="bold"))
        console.print(Text(f"{view['sentence']} ({view['reference']})", style="dim"))
        DRAWINGS[name](console, made, view, all_rows)
    for name, reason in made["left_out"].items():
        console.print(Text(f"\n{name}: left out. {reason}"))


def _lens(console, made: dict, view: dict, all_rows: bool) -> None:
    """A row for each token, a column for each layer that fits; all_rows: table by table, all."""
    layers, tokens = view["tuned"] or view["layers"], made["tokens"]
    first = 0 if all_rows else max(0, len(tokens) - LENS_ROWS)
    rows, every = range(first, len(tokens)), range(len(layers))
    before = 10 + max(_cell(made, tokens[t]).cell_len for t in rows)  # columns of the window
    for percent in (True, False):  # without it, where the layers do not fit with it
        cells = [[_guess(made, layers[n][t]["top"][0], percent) for n in every] for t in rows]
        widest = max(6, *(cell.cell_len for row in cells for cell in row))  # "output"
        room = max(2, (console.width - before) // (widest + 3))
        if len(layers) <= room:
            break
    count = min(room, len(layers))
    tables = [[round(i * every[-1] / (count - 1)) for i in range(count)]]
    if all_rows:
        tables = [list(every[n : n + room]) for n in range(0, len(layers), room)]
    for columns in tables:
        names = ["output" if n == every[-1] else f"{n}" for n in columns]
        table = make_table("#", "token", *names, numbers=("#",))
        for t, row in zip(rows, cells, strict=True):
            table.add_row(f"{t}", _cell(made, tokens[t]), *(row[n] for n in columns))
        console.print(table)
    lens = "tuned lens (Belrose et al. 2023)" if view["tuned"] else "lens"
    about = f"Columns: the {lens} after so many layers (0: the embedding alone)"
    about += "; percent: how sure it is." if percent else "."
    if not all_rows and count < len(layers):
        more = len(layers) - count
        about += f" {more} more {'layer' if more == 1 else 'layers'}: --view lens."
    console.print(_plain(about))
    _say_rest(console, first, "lens")


def _attention(console, made: dict, view: dict, all_rows: bool) -> None:
    """Of each head, what the explained position looks at most.

    First those that look most at one token, the first aside: there heads rest that find nothing
    (Xiao et al. 2023, attention sinks).
    """
    position, tokens = made["position"], made["tokens"]
    heads = [
        (f"{layer}.{h}", head[position])
        for layer, row in enumerate(view["weights"])
        for h, head in enumerate(row)
    ]
    if not all_rows:
        heads.sort(key=lambda head: -max(head[1][1:] or head[1]))
        console.print(
            _plain("First those that look most at one token; idle heads rest on token 0.")
        )
    table = make_table("head", f"from token {position} it looks at")
    shown = heads if all_rows else heads[:ROWS]
    for name, weights in shown:
        most = sorted(range(len(weights)), key=lambda t: -weights[t])[:3]
        looks = [f"{weights[t]:.0%} {_token(made, tokens[t])} ({t})" for t in most]
        table.add_row(name, _plain(fitting(looks, console.width - 10)))
    console.print(table)
    _say_rest(console, len(heads) - len(shown), "attention")


def _contributions(console, made: dict, view: dict, all_rows: bool) -> None:
    """The parts as signed bars, largest first, and their sum."""
    from rich.text import Text

    parts = sorted(view["parts"], key=lambda part: -abs(part["logit"]))
    shown = parts if all_rows else parts[:ROWS]
    others = parts[len(shown) :]
    largest = abs(parts[0]["logit"]) or 1.0
    table = make_table("part", "logit", "", numbers=("logit",))
    for part in shown:
        value = part["logit"]
        bar = Text(("+" if value > 0 else "-") * round(BAR * abs(value) / largest))
        bar.stylize("green" if value > 0 else "red")
        table.add_row(part["part"], f"{value:+.2f}", bar)
    if others:
        table.add_row(f"{len(others)} others", f"{sum(p['logit'] for p in others):+.2f}", "")
    table.add_row("sum", f"{sum(part['logit'] for part in parts):+.2f}", "")
    console.print(table)
    _say_rest(console, len(others), "contributions")


def _ablation(console, made: dict, view: dict, all_rows: bool) -> None:
    """The losses without a part, where they rise most first."""
    from rich.text import Text

    console.print(Text(f"The averages are those of {view['means']}."))
    chosen = [view["chosen"]] if view["chosen"] else []
    others = [part for part in view["parts"] if part not in chosen]
    parts = sorted(others, key=lambda part: -part["loss"])
    shown = parts if all_rows else parts[:ROWS]
    numbers = (f"loss of {_token(made, made['target'])}", "change", "of the prompt")
    table = make_table("without", *numbers, "says", numbers=numbers)
    for row in [view, *chosen, *shown]:
        (likeliest, _), (usual, _) = row["top"][0], view["top"][0]
        style = "" if likeliest == usual else "yellow"
        table.add_row(
            "nothing" if row is view else ", ".join(row["parts"]),
            f"{row['loss']:.3f}",
            "" if row is view else f"{row['loss'] - view['loss']:+.3f}",
            _loss_of_prompt(row, view),
            Text(_token(made, likeliest), style, no_wrap=True),
            style="bold" if row in chosen else "",
        )
    console.print(table)
    _say_rest(console, len(parts) - len(shown), "ablation")


def _loss_of_prompt(row: dict, view: dict) -> str:
    """The mean loss of the prompt, or its change; "" for a prompt of one token."""
    if row["text_loss"] is None:
        return ""
    if row is view:
        return f"{row['text_loss']:.3f}"
    return f"{row['text_loss'] - view['text_loss']:+.3f}"


def _heads(console, made: dict, view: dict, all_rows: bool) -> None:
    """The heads that pass the threshold, or that there are none; all_rows: every score."""
    for kind, words in KINDS.items():
        scores = {
            f"{layer}.{h}": score
            for layer, row in enumerate(view[kind])
            for h, score in enumerate(row)
        }
        best = max(scores, key=scores.get)
        found = ", ".join(f"{name} ({scores[name]:.2f})" for name in view["found"][kind][:ROWS])
        if len(view["found"][kind]) > ROWS:
            found += f" and {len(view['found'][kind]) - ROWS} more"
        none = f"none found; the most is {scores[best]:.2f}, of head {best}"
        console.print(_plain(f"{words}: {found or none}"))
    console.print(
        _plain(f"A head is named from a score of {view['threshold']:.2f} on, its mean attention.")
    )
    if all_rows:
        table = make_table("head", *KINDS, numbers=tuple(KINDS))
        for layer, row in enumerate(view["previous"]):
            for h in range(len(row)):
                scores = [f"{view[kind][layer][h]:.3f}" for kind in KINDS]
                table.add_row(f"{layer}.{h}", *scores)
        console.print(table)


def _surprise(console, made: dict, view: dict, all_rows: bool) -> None:
    """The prompt in colours, and the most surprising tokens; all_rows: each token in order."""
    from rich.text import Text

    tokens, nats = made["tokens"], view["nats"]
    if console.is_terminal and not console.no_color:
        shown = Text()
        for token, loss in zip(tokens, nats, strict=True):
            text = made["texts"][str(token)]
            plain = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
            shown.append(plain, _level(SURPRISING, loss or 0.0))
        scale = Text("Nats: ")
        for least, style in reversed(SURPRISING):
            scale.append(f"from {least:.0f}", style).append("  ")
        console.print(scale)
        console.print(shown, soft_wrap=True)
    order = range(1, len(tokens))
    if not all_rows:
        order = sorted(order, key=lambda t: -nats[t])[:ROWS]
    table = make_table("#", "token", "nats", "", numbers=("#", "nats"))
    for t in order:
        bar = Text("#" * round(nats[t] * 2), _level(SURPRISING, nats[t]))
        bar.truncate(BAR)
        table.add_row(f"{t}", _cell(made, tokens[t]), f"{nats[t]:.2f}", bar)
    if len(tokens) > 1:
        console.print(table)
    else:
        console.print(_plain("A single token: nothing comes before it."))
    _say_rest(console, len(tokens) - 1 - len(order), "surprise")


def _neighbours(console, made: dict, view: dict, all_rows: bool) -> None:
    """The nearest tokens of each distinct token of the prompt, the last ones first."""
    distinct = list(dict.fromkeys(reversed(made["tokens"])))
    shown = distinct if all_rows else distinct[:ROWS]
    table = make_table("token", "nearest (cosine)")
    for token in shown:
        near = [f"{_token(made, i)} {cosine:.2f}" for i, cosine in view["nearest"][str(token)]]
        room = console.width - MOST_SHOWN - 6
        table.add_row(_cell(made, token), _plain(fitting(near[: None if all_rows else 5], room)))
    console.print(table)
    _say_rest(console, len(distinct) - len(shown), "neighbours")


DRAWINGS = {
    "lens": _lens,
    "attention": _attention,
    "contributions": _contributions,
    "ablation": _ablation,
    "heads": _heads,
    "surprise": _surprise,
    "neighbours": _neighbours,
}


def _token(made: dict, token: int, most: int = MOST_SHOWN) -> str:
    """A token in quotes, its white space and whatever steers a terminal as escapes."""
    shown = repr(made["texts"][str(token)])
    return shown if len(shown) <= most else f"{shown[: most - 2]}.."


def _cell(made: dict, token: int):
    """A token for a cell that is not wrapped."""
    from rich.text import Text

    return Text(_token(made, token), no_wrap=True)


def _guess(made: dict, best: list, percent: bool):
    """The likeliest token, in the colour of how sure the model is, with percent too."""
    from rich.text import Text

    token, probability = best
    shown = _token(made, token, MOST_SHOWN if percent else SHORTEST_SHOWN)
    shown += f" {probability:.0%}" * percent
    return Text(shown, _level(LIKELY, probability), no_wrap=True)


def _plain(text: str):
    """Text in which brackets are no markup."""
    from rich.text import Text

    return Text(text)


def _level(levels, value: float) -> str:
    """The style of the first level that a value reaches."""
    return next(style for least, style in levels if value >= least)


def _say_rest(console, count: int, view: str) -> None:
    """How many rows are not shown, and what shows them."""
    if count > 0:
        console.print(_plain(f"{count:,} more {'row' if count == 1 else 'rows'}: --view {view}."))
