"""`python gpt.py lens`: look inside a model while it reads a prompt."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import make_console, note
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import display, shareable
from gptlab.options import ESCAPED

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


def main(argv: list[str]) -> int:
    """Look inside a model; the exit code."""
    overrides = COMMANDS["lens"].parse(argv)
    word = overrides.pop("model", None)
    options = LensOptions(**overrides)
    _refuse_what_has_no_effect(options)
    if options.prompt is None:
        raise ConfigError("lens looks at a prompt", 'give one with --prompt "To be, or not"')
    note("Loading torch ...")
    from gptlab.analysis.attribution import parse_parts
    from gptlab.analysis.evaluation import open_model
    from gptlab.analysis.lens import VIEWS, make_views, means_for, read_prompt
    from gptlab.runs import newest_run

    checkpoint, run = open_model(word or str(newest_run()))
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{display(checkpoint.path)} was trained on token ids without a tokenizer, so it "
            "reads no text",
            "put a tokenizer.json next to its train.bin and train again",
        )
    prompt = read_prompt(options.prompt, model, tokenizer, options.position, options.target)
    chosen = parse_parts(options.ablate, model) if options.ablate is not None else []
    wanted = [options.view] if options.view else list(VIEWS)
    with Bars(unit="part") as bars:
        found = _tuned(model, run, bars) if options.tuned else None
        made = make_views(
            model,
            tokenizer,
            prompt,
            wanted,
            name=shareable(checkpoint.path.parent if run else checkpoint.path),
            means=means_for(model, prompt, run) if "ablation" in wanted else None,
            chosen=chosen,
            translators=found and (found.weights, found.biases),
            progress=bars.progress,
        )
    if options.json:
        print(json.dumps(made, ensure_ascii=False))
        return 0
    from gptlab.cli.ui.lens_screen import show_views

    show_views(make_console(), made, all_rows=options.view is not None)
    return 0


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
