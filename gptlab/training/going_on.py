"""The commands that take a model to a text which it was not trained on."""

from collections import Counter

from gptlab.data.prepare_command import prepare_command
from gptlab.data.spelling import name_characters
from gptlab.data.token_files import Dataset
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.errors import ConfigError
from gptlab.files import display, quoted
from gptlab.options import option_words
from gptlab.training.config import FOR_THIS_RUN, START_OPTIONS, Overrides


def same_ids(tokenizer: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Whether two tokenizers are equal; token ids without a tokenizer fit any."""
    return tokenizer is None or other is None or tokenizer.fingerprint == other.fingerprint


def is_wider(tokenizer: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Whether a tokenizer has the ids of another one and more."""
    return (
        isinstance(tokenizer, CharTokenizer)
        and tokenizer.extends(other)
        and not same_ids(tokenizer, other)
    )


def other_vocabulary(
    model: str, path: str, tokenizer: Tokenizer | None, dataset: Dataset, overrides: Overrides
) -> ConfigError:
    """The refusal of a dataset whose tokenizer is not the model's.

    model: as init_from names it. path: of its checkpoint. overrides: the options that were given.
    """
    fix = way_to(model, path, tokenizer, dataset, overrides)
    if is_wider(dataset.tokenizer, tokenizer):
        new = name_characters(Counter(new_characters(dataset.tokenizer, tokenizer)))
        return ConfigError(f"{dataset.name} has characters that {path} lacks: {new}", fix)
    return ConfigError(
        f"{path} was trained with another tokenizer than {dataset.name} was prepared with", fix
    )


def new_characters(tokenizer: CharTokenizer, other: CharTokenizer) -> list[str]:
    """The characters that only the first of two tokenizers has."""
    return [character for character in tokenizer.alphabet if character not in other.alphabet]


def way_to(
    model: str, path: str, tokenizer: Tokenizer | None, dataset: Dataset, overrides: Overrides
) -> str:
    """What to do so that the weights of a model learn from a dataset: commands that work.

    tokenizer: of the model. The others as for `other_vocabulary`.
    """
    own, steps = dataset.tokenizer, []
    if tokenizer is None:
        return "name a dataset of the ids that it was trained on"
    widens = is_wider(own, tokenizer)
    if not widens and (own is None or not same_ids(own, tokenizer)):
        widens = isinstance(tokenizer, CharTokenizer) and not (
            isinstance(own, CharTokenizer) and set(own.alphabet) <= set(tokenizer.alphabet)
        )
        changed = {"tokenizer": path, "vocab_size": None, "unknown": "add" if widens else ""}
        again = prepare_command(dataset.meta or {}, **changed)
        if not again:
            words = [f"--tokenizer {quoted(path)}", "--unknown add" * widens]
            again = f"python prepare.py YOUR_TEXT.txt --dataset {quoted(dataset.name)} --overwrite "
            again += " ".join(filter(None, words))
        steps.append(f"prepare the text with the model's tokenizer (`{again}`), then ")
    what = "widen its vocabulary" if widens else "start from its weights"
    command = command_to_train(overrides, init_from=model, extend_vocabulary=widens)
    return f"{''.join(steps)}{what}: `{command}`"


def command_to_train(overrides: Overrides, **changed: object) -> str:
    """The command line of these options, with others where `changed` says so; False leaves one out.

    Options that a preset or a recipe has set come from these again.
    """
    given = {}
    for source in overrides.sources.values():
        if source.endswith(".py"):
            given["config"] = source
    given |= {
        name: value
        for name, value in overrides.values.items()
        if overrides.sources[name] in FOR_THIS_RUN
        and (name not in START_OPTIONS or name == "out_dir")
        and name != "vocab_size"
    }
    given = {name: v for name, v in {**given, **changed}.items() if v is not False}
    return " ".join(map(quoted, ["python", "train.py", *option_words(given)]))


def as_named(path) -> str:
    """The checkpoint at a path as a command names it: by its run, where that means the same."""
    return display(path.parent if path.name in ("best.pt", "ckpt.pt", "best", "ckpt") else path)
