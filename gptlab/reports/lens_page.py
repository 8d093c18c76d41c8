"""The page of `gpt.py lens`: one offline file, live where it holds the model, else recorded."""

import json
from html import escape
from pathlib import Path

import torch

from gptlab.analysis.lens import VIEWS, Prompt, make_views
from gptlab.errors import ConfigError, GenerationError
from gptlab.inference.capture import Means
from gptlab.interop.write import html
from gptlab.interop.write.output import new_file
from gptlab.interop.write.verify import check_architecture
from gptlab.web.assets import PAGE_MARK, filled


def look_inside(
    checkpoint,
    means: tuple[Means, str] | None,
    *,
    views: dict | None = None,
    translators: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> html.Inside:
    """What `interop.write.html` needs so that its page looks inside the model for any prompt.

    means: `known_means`; None for those of the prompt. views: those that the page begins
    with. translators: weights [L, C, C] and biases [L, C] of the tuned lens.
    Raises ConfigError for a model that a page cannot hold.
    """
    html.check(checkpoint)
    one = Prompt("", (0,), 0)  # the scores of heads are of no prompt
    try:
        made = make_views(checkpoint.model, checkpoint.tokenizer, one, ["heads"])
    except GenerationError as error:  # an edited attention, whose heads Python cannot see
        made = {"views": {}, "left_out": {"heads": str(error)}}
    content = {
        "titles": {name: view._asdict() for name, view in VIEWS.items()},
        "heads": made["views"].get("heads"),
        "left_out": made["left_out"],
        "means": means and means[1],
    }
    tensors = {}
    if means:
        tensors = {"means.heads": means[0].heads.flatten(), "means.mlps": means[0].mlps.flatten()}
    for layer, (weight, bias) in enumerate(zip(*translators or ((), ()), strict=True)):
        tensors |= {f"tuned.{layer}.weight": weight, f"tuned.{layer}.bias": bias}
    start = None
    if views is not None:
        chosen = views["views"].get("ablation", {}).get("chosen")
        start = {name: views[name] for name in ("prompt", "position", "target")}
        start["parts"] = chosen["parts"] if chosen else []
    return html.Inside(content, tensors, start)


def write_lens_page(
    output,
    views: dict,
    checkpoint,
    means: tuple[Means, str] | None,
    *,
    translators: tuple[torch.Tensor, torch.Tensor] | None = None,
    overwrite: bool = False,
    progress=None,
) -> tuple[Path, str | None]:
    """Write the views of a prompt (`analysis.lens.make_views`) as one HTML file that works offline.

    A model that `export --format html` can hold lies in the page: it begins with the prompt and
    computes the same views for any other. Of any other model the page has the recorded views.
    means: `known_means`, which a live page holds. translators: as `make_views` was given
    them. Returns the file, and why its views are recorded; None for a live page. Raises ConfigError
    for a name that is taken.
    """
    output = Path(output)
    try:
        inside = look_inside(checkpoint, means, views=views, translators=translators)
        check_architecture(checkpoint.model, "html")
    except ConfigError as error:
        why = error.problem
    else:
        html.write(checkpoint, output, overwrite=overwrite, progress=progress, inside=inside)
        return output, None
    model = views["model"]
    page = filled(
        "lens.html",
        NAME=escape(model["name"]),
        SUMMARY=f"What a GPT of {model['parameters']:,} parameters computes for one text. Choose a "
        "token: every picture follows it, except the two that explain one prediction.",
        FACTS=f"{model['layers']} layers of {model['heads']} heads, width {model['channels']} · "
        f"{model['vocab_size']:,} token ids. Recorded with gptlab.",
        RECORDED=json.dumps(views, ensure_ascii=False).replace("<", "\\u003c"),
    )
    with new_file(output, overwrite, mark=PAGE_MARK) as file:
        file.write(page.encode())
    return output, why
