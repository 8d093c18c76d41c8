"""What a model computes for one prompt, as views: plain lists, which the terminal and the page draw.

    {
      "format_version": 1,
      "model": {"name", "layers": L, "heads": H, "channels": C, "vocab_size": V, "parameters"},
      "prompt": text,
      "tokens": [T] ids,
      "texts": {id as a string: its text}, of every id anywhere in here,
      "position": whose next token is explained,      "target": id of that token,
      "views": {name: {"title", "sentence", "reference", ...}} in the order of VIEWS:
        "lens":          "layers": [L + 1][T] of {"top": [[id, probability] x 5], "next": [rank from
                         1, probability] of the real next token, null at the end}; layer l is the
                         stream before block l, layer L the model's output.
                         "tuned": the same with trained translators, or null
        "attention":     "weights": [L][H][T][t + 1]; row t has the tokens 0 to t
        "contributions": "logit": of the target; "parts": [{"part", "logit"}], which add up to it;
                         part is embedding, 2.3 (layer.head), mlp2, or biases
        "ablation":      "means": in words, what the means are of; "loss": of the target at the
                         position, "text_loss": mean over the prompt (null for one token), "top": id;
                         "parts": [{"parts": ["2.3"], "loss", "text_loss", "top", "probability"}] of
                         the model without them: losses, its likeliest token, the target's
                         probability; "chosen": the same for --ablate, or null
        "heads":         "threshold"; "previous", "induction", "duplicate": [L][H] scores from 0 to
                         1; "found": {kind: [names of the heads from the threshold on, best first]}
        "surprise":      "nats": [T], of each token after those before it; null for the first
        "neighbours":    "nearest": {id as a string: [[id, cosine] x 8]} of each distinct token
    }

Losses and surprise are in nats.
"""

from typing import NamedTuple


class View(NamedTuple):
    """What a view is called and shows, in a sentence for newcomers, and whose idea it is."""

    title: str
    sentence: str
    reference: str


VIEWS = {
    "lens": View(
        "What the model would say at each layer",
        "Each row is a token of the prompt; from left to right, the next token that the model would "
        "guess if it stopped after that layer.",
        "logit lens: nostalgebraist 2020",
    ),
    "attention": View(
        "Where each head looks",
        "To read a token, a head looks back at earlier tokens; the weights of a row say how much at "
        "which, and add up to one.",
        "Vaswani et al. 2017",
    ),
    "contributions": View(
        "Who votes for the next token",
        "The score of the next token is a sum: so much comes from the embedding, so much from each "
        "head and MLP.",
        "direct logit attribution: Elhage et al. 2021",
    ),
    "ablation": View(
        "What the prediction needs",
        "Each head and MLP is replaced by its average, one at a time: where the loss rises most, the "
        "prediction needs it most.",
        "mean ablation: Wang et al. 2022",
    ),
    "heads": View(
        "Heads with a known job",
        "On random tokens that come twice, some heads look at the token before, at the same token "
        "earlier, or at what followed it (induction: how a model copies a pattern).",
        "induction heads: Olsson et al. 2022",
    ),
    "surprise": View(
        "What surprises the model",
        "The more unlikely the model found a token after those before it, the stronger its colour.",
        "surprisal: Shannon 1948",
    ),
    "neighbours": View(
        "Tokens that mean alike to the model",
        "Each token is a vector; those that point in almost the same direction are used alike.",
        "Mikolov et al. 2013",
    ),
}
