"""Which part of a text validates: its tail, whole documents, or a file of its own."""

import numpy as np

from gptlab.data.prepare_options import PrepareOptions
from gptlab.data.text_store import Split, TextStore
from gptlab.errors import ConfigError, DataError


def split_text(
    store: TextStore, options: PrepareOptions, is_chat: bool, keys: np.ndarray
) -> tuple[str, dict[str, Split]]:
    """("tail" or "document", the "train" and the "val" part).

    auto splits by documents if that comes close to the requested fraction, which it does not for a
    few documents, or documents of very unequal sizes. keys: uint64 [documents], as
    `Gathered.keys`.
    """
    how = "document" if is_chat else options.split
    if how == "auto":
        how = "tail"
        if store.documents > 1:
            _, val = store.split("document", options.val_fraction, keys)
            share = val.bytes / store.bytes / options.val_fraction
            how = "document" if 0.8 <= share <= 1.25 else "tail"
    train, val = store.split(how, options.val_fraction, keys)
    if not train.bytes or not val.bytes:
        one = store.documents == 1
        raise DataError(
            f"{store.characters:,} characters in {store.documents:,} "
            f"document{'' if one else 's'} cannot be split into training and validation text with "
            f"val_fraction {options.val_fraction:g} by {how}",
            "say --document line or paragraph, or --separator TEXT, to make several of it"
            if one and how == "document" and not is_chat
            else "add more text",
            sep="; ",
        )
    return how, {"train": train, "val": val}


def how_to_validate(how: str, documents: int) -> str:
    """What to do about a validation text that is unlike the training text."""
    if how == "file":
        return "leave --val out, or name a text of the same kind, if that is not meant"
    if documents > 1:
        return "cut off its end if it does not belong there, or say --split document"
    return (
        "cut off its end if it does not belong there, or say --document paragraph, so that "
        "paragraphs from all over the text validate"
    )


def check_no_split(options: PrepareOptions, val: str) -> None:
    """Raise ConfigError for an option of the split where the validation text is a file."""
    for name in ("val_fraction", "split", "seed"):
        if getattr(options, name) != getattr(PrepareOptions, name):
            raise ConfigError(
                f"--{name} has no effect: {val} is the validation text",
                "leave it out" + ("" if options.val else ", or say --val none"),
                sep="; ",
            )
