"""The section of a report that shows what the model wrote."""

from collections.abc import Callable, Sequence
from html import escape

from gptlab.analysis.text_quality import MEASURES, quality_of_samples
from gptlab.analysis.trace import (
    MIN_CHARS,
    SHORTEST_BYTES,
    Traced,
    percent,
    trace_texts,
    training_data,
)
from gptlab.errors import GPTLabError
from gptlab.files import as_installed, explain_error, quoted, shareable, without_folders
from gptlab.reports import page as page
from gptlab.reports.run_view import RunView, Sample
from gptlab.reports.sections import readable
from gptlab.runs import Run

MOST_SAMPLES = 6  # shown unfolded


def samples_section(view: RunView, progress: Callable[[str, int, int], None]) -> str:
    """What the model wrote over time, how much of it is copied, and how it reads."""
    samples = view.samples
    if not samples:
        return page.section(
            "Samples",
            "<p>This run recorded no samples. With <code>--sample_interval</code> a run writes a "
            "short text at its evaluations, and the texts appear here in order.</p>",
        )
    try:
        datasets = training_data(Run(view.record.folder))
        traced: Traced | str = trace_texts(datasets, _texts(view, samples), progress=progress)
    except (GPTLabError, OSError) as error:
        datasets, traced = [], explain_error(error).problem
    longest = [text.longest for text in traced.texts] if isinstance(traced, Traced) else []
    places = range(len(samples))
    if len(samples) > MOST_SAMPLES:
        places = [i * (len(samples) - 1) // (MOST_SAMPLES - 1) for i in range(MOST_SAMPLES)]
    rest = page.details(
        f"All {len(samples)} samples", _samples(samples, range(len(samples)), longest)
    )
    return page.section(
        "Samples over time",
        _samples(samples, places, longest),
        rest if len(samples) > len(places) else "",
        _verbatim(view, traced),
        _quality(view, samples, datasets, progress),
        hint="Texts that the model wrote at some of its evaluations, always with the same random "
        "numbers: the differences come from what it had learned.",
    )


def _samples(samples: list[Sample], places: Sequence[int], longest: list[int]) -> str:
    """The samples at these places. longest: characters of each one's longest verbatim span."""
    items = []
    for place in places:
        sample = samples[place]
        facts = [f"loss {sample.loss:.3f}"] if sample.loss is not None else []
        if longest and longest[place]:
            facts.append(f"{longest[place]:,} verbatim")
        spans = " ".join(f"<span>{fact}</span>" for fact in facts)
        text = readable(sample.text).strip("\n")
        items.append(
            f"<li><div><strong>step {sample.step:,}</strong>{spans}</div>"
            f"<pre>{escape(text)}</pre></li>"
        )
    return f'<ol class="samples">{"".join(items)}</ol>'


def _texts(view: RunView, samples: list[Sample]) -> list[str]:
    """The samples without their prompt."""
    prompt = view.record.settings.get("sample_prompt") or ""
    return [sample.text.removeprefix(prompt) for sample in samples]


def _verbatim(view: RunView, traced: Traced | str) -> str:
    """How much of the last sample stands verbatim in the training text, beside chance.

    traced: the samples without their prompt; or why they are not looked up.
    """
    if isinstance(traced, str):
        words = f"The samples were not looked up in the training text: {without_folders(traced)}."
        return f'<p class="hint">{escape(words)}</p>'
    last = traced.texts[-1]
    words = (
        "Verbatim: the characters of a sample's longest span that stands in the training text. "
        f"{percent(last.share(MIN_CHARS))} of the last sample stands there "
        f"in spans of {MIN_CHARS} characters or more; its longest has "
        f"{last.longest or f'fewer than {SHORTEST_BYTES}'}."
    )
    if traced.held_out:
        share, longest = traced.share_by_chance(MIN_CHARS), traced.longest_by_chance
        words += f" By chance, in validation text as long: {percent(share)}, and {longest:,.0f}."
    folder = quoted(shareable(view.record.folder))
    command = as_installed(f"python gpt.py trace {folder}")
    return f'<p class="hint">{escape(words)}</p>' + page.command(
        "Show the spans of a text, and where they stand:", command
    )


def _quality(view: RunView, samples: list[Sample], datasets: Sequence, progress) -> str:
    """The quality of what gpt.py evaluate let the model write, else of the later samples."""
    measured = [row for row in Run(view.record.folder).evaluated() if "measures" in row]
    if measured:
        quality, are_fresh = measured[-1], True
        words = f"{quality['verdict']} Measured on {quality['data']} at step {quality['step']:,}."
    elif not datasets:  # `_verbatim` says why
        return ""
    else:
        later = _texts(view, samples[len(samples) // 2 :])
        try:
            tokens = max(len(datasets[0].tokenizer.encode(text)) for text in later)
            found = quality_of_samples(later, max(1, tokens), datasets, "", progress)
        except (GPTLabError, OSError):
            return ""
        quality, are_fresh = found.to_dict(), False
        of = f"last {len(later)} samples" if len(later) > 1 else "last sample"
        words = (
            f"Of the {of} and as much validation text. Samples of a training share their random "
            "numbers and resemble each other, so nothing is judged here."
        )
    rows, meaning = [], []
    for measure in MEASURES:
        for each in quality["measures"]:
            if each["name"] == measure.name and (are_fresh or not measure.is_across_texts):
                numbers = [measure.show(each[side]) or "-" for side in ("samples", "held_out")]
                rows.append([measure.name, *numbers, (are_fresh and each["differs"]) or ""])
                meaning.append([measure.name, f"{measure.sentence}."])
    folder = quoted(shareable(view.record.folder))
    return (
        f'<h3>Beside held-out text</h3><p class="hint">{escape(without_folders(words))}</p>'
        + page.table(["", "samples", "held-out text", ""], rows, numbers=True)
        + page.details("What is measured", page.table(["", ""], meaning, "data"))
        + page.command(
            "Measure fresh and longer samples:",
            as_installed(f"python gpt.py evaluate {folder} --samples 16"),
        )
    )
