"""`python gpt.py lens`: look inside a model while it reads a prompt."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import make_console
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import display, in_bytes, shareable
from gptlab.options import ESCAPED
from gptlab.web.assets import PAGE_MARK

VIEW_NAMES = Literal[
    "lens", "attention", "contributions", "ablation", "heads", "surprise", "neighbours"
]


@dataclass(frozen=True)
class LensOptions:
    """Lens"""

    prompt: Annotated[str | None, "the text to look at (\\n is a line end)", ESCAPED] = None
    view: Annotated[VIEW_NAMES | None, "show this view alone, all of it"] = None
    ablate: Annotated[
        str | None, "without these parts: heads as layer.head and MLPs, such as 2.3,mlp0"
    ] = None
    position: Annotated[
        int | None, "explain the token after this one, counted from 0 [the last]"
    ] = None
    target: Annotated[str | None, "explain the score of this token [the likeliest]", ESCAPED] = None
    tuned: Annotated[
        bool, "translate each layer for the lens; trained once on the validation text, and kept"
    ] = False
    json: Annotated[bool, "print one JSON object"] = False
    html: Annotated[
        str | None, "write the page to this file [RUN/lens.html; with --view or --json none]"
    ] = None


def main(argv: list[str]) -> int:
    """Look inside a model; the exit code."""
    overrides = COMMANDS["lens"].parse(argv)
    word = overrides.pop("model", None)
    options = LensOptions(**overrides)
    _refuse_what_has_no_effect(options)
    if options.prompt is None:
        raise ConfigError("lens looks at a prompt", 'give one with --prompt "To be, or not"')
    from gptlab.analysis.attribution import parse_parts
    from gptlab.analysis.evaluation import open_model
    from gptlab.analysis.lens import VIEWS, known_means, make_views, read_prompt
    from gptlab.runs import newest_run

    checkpoint, run = open_model(word or str(newest_run()))
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{display(checkpoint.path)} was trained on token ids without a tokenizer, so it "
            "reads no text",
            "put a tokenizer.json next to its train.bin and train again",
        )
    page = _page(options, run)
    prompt = read_prompt(options.prompt, model, tokenizer, options.position, options.target)
    chosen = parse_parts(options.ablate, model) if options.ablate is not None else []
    wanted = [options.view] if options.view and page is None else list(VIEWS)
    means = known_means(model, run) if "ablation" in wanted else None
    with Bars(unit="part") as bars:
        found = _tuned(model, run, bars) if options.tuned else None
        translators = found and (found.weights, found.biases)
        made = make_views(
            model,
            tokenizer,
            prompt,
            wanted,
            name=shareable(checkpoint.path.parent if run else checkpoint.path),
            means=means,
            chosen=chosen,
            translators=translators,
            progress=bars.progress,
        )
    if options.json:
        print(json.dumps(_shown(made, options.view), ensure_ascii=False))
    else:
        from gptlab.cli.ui.lens_screen import show_views

        show_views(make_console(), _shown(made, options.view), all_rows=options.view is not None)
    if page is not None:
        _write(page, made, checkpoint, means, translators, sys.stderr if options.json else None)
    return 0


def _page(options: LensOptions, run) -> Path | None:
    """Where the page goes; None for no page. ConfigError for a folder, or a file of others."""
    if options.html is None and (options.view or options.json):
        return None
    page = Path(options.html or (run.folder if run else Path()) / "lens.html").expanduser()
    if page.is_dir():
        raise ConfigError(f"{display(page)} is a folder", "name a file with --html")
    if page.exists():
        with open(page, "rb") as file:
            if PAGE_MARK not in file.read(1000):
                raise ConfigError(
                    f"{display(page)} is another file, which is not replaced",
                    "name a new one with --html",
                )
    return page


def _shown(made: dict, view: str | None) -> dict:
    """The views with only the one that was asked for."""
    return made if view is None else {**made, "views": {
        name: content for name, content in made["views"].items() if name == view
    }}  # fmt: skip


def _write(page: Path, made: dict, checkpoint, means, translators, stream) -> None:
    """Write the page, and say where it is and what it can do."""
    from gptlab.reports.lens_page import write_lens_page

    with Bars() as bars:
        _, why = write_lens_page(
            page, made, checkpoint, means, translators=translators, overwrite=True,
            progress=bars.progress,
        )  # fmt: skip
    kind = "it looks at any other prompt too"
    if why:
        kind = f"it shows this prompt alone, because {why[0].lower()}{why[1:]}"
    size = in_bytes(page.stat().st_size)
    print(f"Wrote {display(page)} ({size}): open it in a browser; {kind.rstrip('.')}.", file=stream)


def _refuse_what_has_no_effect(options: LensOptions) -> None:
    """ConfigError for an option whose view is not shown."""
    views = {
        "ablate": ("ablation",),
        "tuned": ("lens",),
        "target": ("ablation", "contributions"),
        "position": ("ablation", "contributions", "attention"),
    }
    for name, shown in views.items():
        if getattr(options, name) not in (None, False) and options.view not in (None, *shown):
            raise ConfigError(
                f"--view {options.view} shows nothing of --{name}",
                f"leave one of the two out, or use --view {shown[0]}",
            )


def _tuned(model, run, bars: Bars):
    """The translators of a run; ConfigError where it has no validation text to train them on."""
    from gptlab.analysis.tuned_lens import tuned_lens

    try:
        if run is None:
            raise ConfigError("this model is no run, so it has none")
        had_file = run.tuned_lens.exists()
        found = tuned_lens(model, run, bars.progress, bars.note)
    except GPTLabError as error:
        raise ConfigError(
            f"--tuned trains on the run's validation text, and {error.problem}",
            "leave --tuned out: the plain lens is not trained",
        ) from None
    bars.note(
        f"Tuned lens ({'from' if had_file else 'wrote'} {display(run.tuned_lens)}): trained on "
        f"{found.tokens:,} tokens of the validation text; on others its guesses are "
        f"{found.after:.2f} nats from the model's, and {found.before:.2f} without it."
    )
    return found
