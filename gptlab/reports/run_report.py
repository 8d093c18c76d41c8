"""A report on one or several runs as one HTML page (no torch, no network, no script)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape

from gptlab.analysis.diagnosis import diagnose
from gptlab.data.leaks import leak_remark
from gptlab.data.token_files import text_label
from gptlab.files import in_bytes, without_folders
from gptlab.model.arithmetic import active_in_words
from gptlab.options import format_value
from gptlab.reports import page as page
from gptlab.reports.charts import Chart, Line, short
from gptlab.reports.comparison import overlay
from gptlab.reports.inside_section import inside_section
from gptlab.reports.run_view import RunView, view_run
from gptlab.reports.samples import samples_section
from gptlab.reports.sections import (
    bits_of,
    charts,
    commands_section,
    course_section,
    footer,
    loss_lines,
    machine_section,
    words_section,
)
from gptlab.runs import Run
from gptlab.training.units import duration

MOST_LENGTHS = 12  # of a task's problems, shown unfolded


def make_report(
    folders: Sequence,
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> str:
    """The report on one run, or a comparison of several, as HTML.

    progress: of the search for one run's samples in its training text, as `trace_texts` calls it.
    Raises RunError for a directory without training records.
    """
    views = [view_run(folder) for folder in folders]
    body = single(views[0], progress) if len(views) == 1 else overlay(views)
    title = ", ".join(view.name for view in views)
    return page.page(f"{title} (gptlab report)", body)


def single(view: RunView, progress: Callable[[str, int, int], None]) -> str:
    """The sections of a report on one run as HTML."""
    body = "\n".join(
        part
        for part in (
            _header(view),
            samples_section(view, progress),
            _loss_section(view),
            _answers_section(view),
            _baseline_section(view),
            inside_section(view),
            course_section([view]),
            _evaluations_section(view),
            _data_section(view),
            machine_section([view]),
            _config_section(view),
            commands_section([view]),
        )
        if part
    )
    return body + words_section(body) + footer()


def _header(view: RunView) -> str:
    record = view.record
    tokens = view.tokens[-1][1]
    model = "A model"
    if view.config is not None:
        active = active_in_words(view.config.model, short)
        model += f" of {short(view.parameters)} parameters{active}"
    dataset = record.settings.get("dataset", "")
    read = f" of {dataset}" if dataset else ""
    if epochs := _epochs(view):
        times = "once" if f"{epochs:.2g}" == "1" else f"{epochs:.2g} times"
        read += f" ({times} through the text)" if epochs >= 1 else f" ({epochs:.0%} of it)"
    state = {"finished": "", "interrupted": " and then interrupted"}.get(record.state, " so far")
    sentences = [
        f"{model}, trained for {_steps(view)} on {short(tokens)} tokens{read} in "
        f"{duration(view.seconds[-1][1])}{state}.",
        _verdict(view),
    ]
    findings = "".join(
        f'<p class="noticed">{escape(without_folders(finding.sentence))}</p>'
        for finding in diagnose(record)
    )
    return (
        f'<header>\n<p class="eyebrow">gptlab report</p>\n<h1>{escape(view.name)}</h1>\n'
        f'<p class="lede">{escape(" ".join(filter(None, sentences)))} {page.words_link()}.</p>\n'
        f"{findings}\n"
        f"{page.tiles(_figures(view))}\n</header>"
    )


def _steps(view: RunView) -> str:
    total = view.record.settings.get("max_iters")
    of = f" of {total:,}" if total and total != view.record.step else ""
    return f"{view.record.step:,}{of} steps"


def _verdict(view: RunView) -> str:
    if not view.record.best:
        return "There is no evaluation yet."
    step, loss = view.record.best
    bits = bits_of(view, loss)
    words = f"Its lowest validation loss is {loss:.3f}"
    words += f" ({bits:.2f} bits per byte)" if bits else ""
    words += f", at step {step:,}"
    if found := [y for x, y in view.curve("accuracy") if x == step]:
        words += f", where {found[-1]:.1%} of the answers to unseen problems are right"
    if view.record.clean_loss is not None:
        words += (
            f" ({view.record.clean_loss:.3f} over the windows without passages that stand in the "
            "training text too)"
        )
    if not bits or not view.baselines:
        return words + "."
    beaten = [name for name, level in view.baselines.items() if bits < level]
    unbeaten = [name for name in view.baselines if name not in beaten]
    if not beaten:
        return f"{words}. It does not beat {_and(unbeaten)} yet."
    rest = f", but not yet {_and(unbeaten)}" if unbeaten else ""
    return f"{words}. It beats {_and(beaten)}{rest}."


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _figures(view: RunView) -> dict[str, str]:
    record = view.record
    loss = record.best[1] if record.best else None
    bits = bits_of(view, loss)
    speed = view.speed
    return {
        "Loss (nats/token)": f"{loss:.4f}" if loss is not None else "",
        "Loss (bits/byte)": f"{bits:.3f}" if bits else "",
        "Parameters": short(view.parameters) if view.parameters else "",
        "Active parameters": short(view.active) if view.active != view.parameters else "",
        "Tokens": short(view.tokens[-1][1]),
        "Time in steps": duration(view.seconds[-1][1]),
        "Tokens per second": short(speed) if speed else "",
    }


def _epochs(view: RunView) -> float | None:
    train_tokens = (view.meta or {}).get("train_tokens")
    return view.tokens[-1][1] / train_tokens if train_tokens else None


def _loss_section(view: RunView) -> str:
    lines = loss_lines(view)
    best = view.record.best
    chart = Chart(
        "Loss",
        lines,
        "step",
        "loss (nats per token)",
        levels=view.levels,
        right=("bits per byte", view.bits_per_nat) if view.bits_per_nat else None,
        mark=(*best, f"{best[1]:.3f}") if best else None,
        cut=True,
    )
    names = {line.label: line.kind for line in lines if line.label != "one batch"}
    hint = (
        "How surprised the model is by the next token, on average: lower is better. The training "
        "loss is measured on the batches that the model learns from (the faint line shows every "
        "record, the strong line their average). The validation loss is measured on text that it "
        "never learns from."
    )
    if view.levels:
        hint += " Dashed lines: what simple programs reach on the same text."
    drawn = charts(chart)
    if not drawn:
        points = [f"{line.label} {y:.4f} at step {x:,}" for line in lines for x, y in line.points]
        few = "; ".join(points[1:]) or "none"  # those of "one batch" are those of "training"
        return page.section("Loss", f"<p>Too few records for a curve: {escape(few)}.</p>")
    return page.section("Loss", page.legend(names), drawn, hint=hint)


def _answers_section(view: RunView) -> str:
    """The share of right answers over the steps of a task, and at the end by length."""
    lines = [
        Line("unseen", view.curve("accuracy"), "val", dots=True),
        Line("trained on", view.curve("train_accuracy"), "train", dots=True),
    ]
    lines = [
        replace(line, points=[(x, 100 * y) for x, y in line.points])
        for line in lines
        if line.points
    ]
    if not lines:
        return ""
    last = [r for r in view.record.records if r.get("accuracy_by_length")][-1]
    rows = [
        [name, f"{right / total:.1%}", f"{right:,} of {total:,}"]
        for name, (right, total) in last["accuracy_by_length"].items()
    ]
    table = page.table(["length", "right", "problems"], rows) if len(rows) > 1 else ""
    chart = Chart("Right answers", lines, "step", "right answers (%)", floor=0)
    return page.section(
        "Right answers",
        page.legend({line.label: line.kind for line in lines}) if len(lines) > 1 else "",
        charts(chart),
        table if len(rows) <= MOST_LENGTHS else page.details(f"{len(rows)} lengths", table),
        hint="The share of problems whose whole answer the model writes exactly, always with the "
        "likeliest token. The model never trains on the unseen ones."
        + (f" The table is of step {last['step']:,}." if len(rows) > 1 else ""),
    )


def _baseline_section(view: RunView) -> str:
    if not view.baselines or not view.record.best:
        return ""
    ours = bits_of(view, view.record.best[1])
    rows = sorted([*view.baselines.items(), (view.name, ours)], key=lambda row: -row[1])
    worst = rows[0][1]
    bars = "".join(
        f'<span{kind}>{escape(name)}</span><b{kind} style="width:{100 * bits / worst:.0f}%">'
        f"{bits:.2f}</b>"
        for name, bits in rows
        for kind in (' class="ours"' if name == view.name else "",)
    )
    return page.section(
        "How it compares",
        f'<div class="bars">{bars}</div>',
        hint="Bits needed per byte of the validation text, by a program that counts single tokens "
        "(unigram), a compressor (lzma), a program that counts sequences of five tokens (5-gram), "
        "and this model. Use this figure to compare models with different vocabularies.",
    )


def _evaluations_section(view: RunView) -> str:
    results = Run(view.record.folder).evaluated()
    rows = [
        [
            without_folders(row["data"]),
            f"{row['step']:,}",
            f"{row['loss']:.4f}",
            f"{row['perplexity']:,.4g}",
            f"{row['bits_per_byte']:.4f}" if row["bits_per_byte"] is not None else "",
            f"{row['tokens']:,}",
            row["time"],
        ]
        for row in results
        if "loss" in row
    ]
    tasks = [
        [task, f"{row['step']:,}", metric, f"{value:.4f}", row["time"]]
        for row in results
        for task, metrics in row.get("tasks", {}).items()
        for metric, value in metrics.items()
    ]
    if not rows and not tasks:
        return ""
    head = ["text", "step", "loss", "perplexity", "bits per byte", "tokens", "measured"]
    hint = (
        "Measured by gpt.py evaluate. Bits per byte are comparable between models with different "
        "tokenizers; loss and perplexity are not."
    )
    clean = [row.get("clean_loss") for row in results if "loss" in row]
    if any(loss is not None for loss in clean):
        head.insert(3, "clean loss")
        for row, loss in zip(rows, clean, strict=True):
            row.insert(3, "" if loss is None else f"{loss:.4f}")
        hint += (
            " The clean loss is that of the windows without passages that stand in the training "
            "text too."
        )
    return page.section(
        "Evaluations",
        page.table(head, rows),
        page.table(["task", "step", "metric", "value", "measured"], tasks),
        hint=hint,
    )


def _config_section(view: RunView) -> str:
    recipe = view.recipe
    if not recipe.values:
        return ""
    chosen = [n for n in recipe.values if recipe.sources[n] != "default"]
    defaults = [n for n in recipe.values if recipe.sources[n] == "default"]
    return page.section(
        "Configuration",
        page.details(f"{len(chosen)} options that were set or follow", _values_table(view, chosen)),
        page.details(f"{len(defaults)} options at their default", _values_table(view, defaults)),
        hint="Each value and its source: a recipe, a preset, the command line, the wizard, or what "
        "it follows from.",
    )


def _values_table(view: RunView, names: list[str]) -> str:
    recipe = view.recipe
    rows = [[name, format_value(recipe.values[name]), recipe.sources[name]] for name in names]
    rows = [[without_folders(cell) for cell in row] for row in rows]
    return page.table(["option", "value", "source"], rows, "values")


def _data_section(view: RunView) -> str:
    meta = view.meta
    if not meta:
        return ""
    source, tokenizer = meta.get("source") or {}, meta.get("tokenizer") or {}
    rows = {
        "name": meta.get("name"),
        "text": text_label(meta),
        "size": in_bytes(source["bytes"]) if isinstance(source.get("bytes"), int) else None,
        "characters": _count(meta.get("characters")),
        "documents": _count(meta.get("documents")),
        "training part": _part(meta, "train"),
        "validation part": _part(meta, "val"),
        "split": (meta.get("split") or {}).get("how"),
        "in both parts": leak_remark(meta.get("split") or {}),
        "tokenizer": f"{tokenizer.get('kind', '')}, {_count(meta.get('vocab_size'))} ids",
        "noticed while reading": "; ".join(
            f"{without_folders(what)}: {_count(number)}"
            for what, number in (meta.get("counts") or {}).items()
        ),
        "fingerprint": str(meta.get("fingerprint", ""))[:16],
    }
    changed = ""
    if view.has_changed_data:
        changed = (
            '<p class="noticed">The dataset of this name is no longer the one that this run was '
            "trained on.</p>"
        )
    table = page.table(["", ""], [[k, v] for k, v in rows.items() if v], "data")
    return page.section("Data", changed, table)


def _count(number) -> str:
    return f"{number:,}" if isinstance(number, int) else ""


def _part(meta: dict, split: str) -> str:
    tokens, size = meta.get(f"{split}_tokens"), meta.get(f"{split}_bytes")
    parts = [f"{_count(tokens)} tokens"] if tokens else []
    parts += [in_bytes(size)] if size else []
    return ", ".join(parts)
