"""`python gpt.py dataset`: list, prepare, add, view and delete prepared texts."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from gptlab.analysis.dataset_runs import runs_on
from gptlab.cli.commands.prepare import (
    describe_task,
    kept_versions,
    list_prepared,
    listing,
    prepare_sources,
    prepare_words,
)
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui import questions
from gptlab.cli.ui.command_line import program
from gptlab.cli.ui.console import facts_table
from gptlab.cli.ui.progress import Bars
from gptlab.cli.ui.questions import MenuItem
from gptlab.data.baselines import unlike
from gptlab.data.leaks import PASSAGE_BYTES, TELLING, leaked_remark
from gptlab.data.replacing import foreign_files
from gptlab.data.task_files import PreparedTask, open_task
from gptlab.data.token_files import (
    Dataset,
    dataset_folder,
    find_meta,
    is_task,
    list_datasets,
    open_dataset,
)
from gptlab.errors import ConfigError, DataError
from gptlab.files import data_home, display, in_bytes, remove_folder
from gptlab.training.units import TextUnits

WORDS = ("list", "prepare", "add", "view", "delete")


@dataclass(frozen=True)
class ViewOptions:
    """view and delete"""

    top: Annotated[int, "view: number of most frequent tokens to show"] = 20
    excerpts: Annotated[int, "view: number of excerpts to show"] = 3
    yes: Annotated[bool, "delete: do not ask"] = False


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    if not argv:
        questions.refuse_without_terminal(
            f"run {program('gpt.py')} dataset list, prepare, add FILE, view NAME or delete NAME"
        )
        return _ask()
    word, rest = (argv[0], argv[1:]) if argv[0] in WORDS else ("prepare", argv)
    options = COMMANDS["dataset"].parse(rest)
    names = options.pop("names", [])
    if word == "list" or options.pop("list", False):
        print(listing())
        return 0
    view = {name: options.pop(name) for name in ViewOptions.__dataclass_fields__ if name in options}
    vocab_size = options.pop("vocab_size", None) if word == "view" else None
    if word in ("view", "delete"):
        name = _only_name(word, names)
        if options:
            raise ConfigError(f"--{next(iter(options))} belongs to preparing, not to {word}.")
        return (
            show_dataset(name, ViewOptions(**view), vocab_size)
            if word == "view"
            else delete_dataset(name, **view)
        )
    if view:
        raise ConfigError(f"--{next(iter(view))} belongs to view and delete, not to {word}.")
    if word == "add" and not names:
        raise ConfigError(
            "dataset add needs a text",
            "name a file, a folder, a pattern such as 'books/*.txt', a table (.jsonl, .csv, "
            ".parquet) or hf:OWNER/NAME",
        )
    return prepare_words(names or ["shakespeare"], options)


def _only_name(word: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    there = ", ".join(name for name, _ in list_datasets()) or "nothing yet"
    raise ConfigError(f"dataset {word} takes one name; prepared here: {there}.")


# Asking -------------------------------------------------------------------------------------------


def _ask() -> int:
    """Ask what to do, and do it; the exit code."""
    console = questions.open_console()
    while True:
        console.print(list_prepared(), markup=False)
        has_any = bool(list_datasets())
        nothing = "" if has_any else "Nothing is prepared yet: prepare Shakespeare or add a text."
        try:
            word = questions.select(
                console,
                "What would you like to do?",
                [
                    MenuItem("leave", "leave", "change nothing"),
                    MenuItem("shakespeare", "prepare Shakespeare", "the usual first try, 1 MB"),
                    MenuItem("add", "add my own text", "a file, a folder, a table, or hf:"),
                    MenuItem("view", "view one", "numbers, tokens, excerpts", refusal=nothing),
                    MenuItem("delete", "delete one", "asks once more", refusal=nothing),
                ],
                default=0 if has_any else 1,
                explanation="A dataset is a text as numbers, from which a model can learn.",
                is_first=True,
            )
            if word == "leave":
                return 0
            if word == "shakespeare":
                questions.attempt(console, lambda: prepare_sources(["shakespeare"]))
            elif word == "add":
                ask_for_text(console)
            elif word == "view":
                show_dataset(_ask_for_name(console), ViewOptions())
            else:
                delete_dataset(_ask_for_name(console))
        except questions.Back:
            continue


def ask_for_text(console, says_next: bool = True) -> Dataset:
    """Ask for a text until one can be prepared; the dataset. Raises Back."""
    from gptlab.cli.ui.explanations import OWN_TEXT

    def convert(line: str) -> Dataset:
        return prepare_sources(questions.typed_paths(line), says_next=says_next).dataset

    with questions.path_completion():
        return questions.ask(
            console,
            "Which text? Type or drop a file or a folder.",
            convert,
            explanation=OWN_TEXT,
        )


def _ask_for_name(console) -> str:
    choices = [MenuItem(name, name, size_of(meta)) for name, meta in list_datasets()]
    return questions.select(console, "Which one?", choices)


def size_of(meta: dict | None) -> str:
    """The size of a prepared text, in words."""
    if meta is None:
        return "token files without a readable meta.json"
    if is_task(meta):
        return f"{(meta.get('source') or {}).get('label', 'a task')}, made while training"
    tokens = meta.get("train_tokens", 0) + meta.get("val_tokens", 0)
    size = meta.get("train_bytes", 0) + meta.get("val_bytes", 0)
    kind = (meta.get("tokenizer") or {}).get("kind", "unknown")
    version = f", version {meta['version']}" if meta.get("version", 1) > 1 else ""
    return f"{in_bytes(size)}, {tokens:,} tokens ({kind}){version}"


# Viewing ------------------------------------------------------------------------------------------


def show_dataset(name: str, options: ViewOptions, vocab_size: int | None = None) -> int:
    """Print what a dataset holds; 0. vocab_size: of token files without a meta.json."""
    from gptlab.analysis import dataset_statistics as view

    if options.top < 0 or options.excerpts < 0:
        raise ConfigError("--top and --excerpts are numbers from 0 on.")
    if is_task(find_meta(name)):
        if options != ViewOptions():
            raise ConfigError(
                f"{name} is a task, which view shows without options", "leave them out"
            )
        print(describe_task(PreparedTask(open_task(dataset_folder(name)), True)))
        return 0
    dataset = open_dataset(name, vocab_size)
    console = questions.open_console()
    total = 3 * len(dataset.train) + 2 * len(dataset.val)  # three readings
    with Bars(unit="token") as bars:
        progress = functools.partial(bars.progress, "reading", total=total)
        counts = view.count_tokens(dataset, progress)
        documents = view.count_documents(dataset, progress)
        leaks = view.leaks_of(dataset, progress)
    console.print(_statistics(dataset, counts, documents))
    if dataset.tokenizer is not None:
        if options.top:
            console.print(_frequent(dataset, counts, options.top))
        _print_excerpts(console, dataset, options.excerpts)
    if documents and documents.repeated:
        share = documents.repeated / documents.total
        console.print(
            f"Repeated documents: {documents.repeated:,} of {documents.total:,} ({share:.1%}) "
            "equal an earlier one; the model reads them more than once.",
            style="yellow" if share > 0.01 else "",
        )
    _print_leaks(console, dataset, leaks)
    return 0


def _statistics(dataset: Dataset, counts, documents):
    from rich.text import Text

    meta = dataset.meta or {}
    kind = dataset.tokenizer.kind if dataset.tokenizer else "unknown"
    used = int((counts > 0).sum())
    rows = {
        "from": (meta.get("source") or {}).get("label", "unknown"),
        "folder": display(dataset.folder),
        "vocabulary": f"{kind}, {dataset.vocab_size:,} ids, of which {used:,} occur",
    }
    if kept := kept_versions(dataset.folder):
        rows["version"] = f"{meta.get('version', 1)}; kept: {'; '.join(kept)}"
    for split in ("train", "val"):
        tokens = len(getattr(dataset, split))
        size = meta.get(f"{split}_bytes")
        per_token = f", {size / tokens:.2f} bytes per token" if size and tokens else ""
        rows[split] = f"{tokens:,} tokens" + (f", {in_bytes(size)}{per_token}" if size else "")
    if documents:
        rows["documents"] = f"{documents.total:,}, of which {documents.repeated:,} are repeated"
    if levels := TextUnits(meta).levels():
        named = ", ".join(f"{name} {loss:.2f}" for name, loss in levels.items())
        rows["baselines"] = f"{named}: losses to beat, in nats per token"
    if sentence := unlike(meta.get("split") or {}):
        rows["warning"] = sentence
    table = facts_table(dataset.name)
    for label, value in rows.items():
        table.add_row(label, Text(value))
    return table


def _frequent(dataset: Dataset, counts, number: int):
    from rich.table import Table
    from rich.text import Text

    from gptlab.analysis.dataset_statistics import most_frequent

    total = max(1, int(counts.sum()))
    table = Table(title="Most frequent tokens", title_justify="left", title_style="bold")
    table.add_column("id", justify="right")
    table.add_column("token", overflow="fold")
    table.add_column("occurs", justify="right")
    table.add_column("share", justify="right")
    for token in most_frequent(dataset, counts, number):
        shown = shown_token(token.text) if token.text else "(end of text)"
        table.add_row(
            str(token.token_id), Text(shown), f"{token.count:,}", f"{token.count / total:.1%}"
        )
    return table


def shown_token(data: bytes) -> str:
    """A token with every byte visible: spaces as ␣, line ends as ↵, partial characters as <E6>.

    BPE tokens may hold a part of a character's bytes.
    """
    shown = ""
    for character in data.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            shown += f"<{ord(character) - 0xDC00:02X}>"
        elif character in " \n\t\r":
            shown += {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}[character]
        else:
            shown += character if character.isprintable() else f"<U+{ord(character):04X}>"
    return shown


def _print_excerpts(console, dataset: Dataset, number: int) -> None:
    """Print excerpts as text; in colour, tokens of several characters in two alternating ones."""
    from rich.padding import Padding
    from rich.text import Text

    from gptlab.analysis.dataset_statistics import excerpts

    per_token = (dataset.meta or {}).get("train_bytes", 1) / max(1, len(dataset.train))
    length = max(40, round(240 / max(1.0, per_token)))
    colours = ("black on bright_cyan", "black on bright_yellow")
    in_colour = console.is_terminal and not console.no_color and dataset.tokenizer.kind != "char"
    for i, ids in enumerate(excerpts(dataset, number, length), start=1):
        text = Text()
        for n, piece in enumerate(_pieces(dataset.tokenizer, ids.tolist())):
            text.append(piece, colours[n % 2] if in_colour else "")
        console.print()
        console.print(Text(f"Excerpt {i}: {len(ids)} tokens", "bold"))
        console.print(Padding(text, (0, 0, 0, 2)))
    console.print()


def _pieces(tokenizer, ids: list[int]) -> Iterator[str]:
    """The text of each token; tokens that hold parts of a character come together."""
    from gptlab.training.terminal import CONTROL

    held = b""
    for token in ids:
        data = tokenizer.token_bytes(token)
        held += data or b"<end of text>"
        try:
            text = held.decode("utf-8")
        except UnicodeDecodeError:
            if len(held) < 8:  # a character may go on
                continue
            text = held.decode("utf-8", "replace")
        held = b""
        yield CONTROL.sub("\ufffd", text)
    if held:
        yield held.decode("utf-8", "replace")


def _print_leaks(console, dataset: Dataset, leaks) -> None:
    """Say how much of the validation text stands in the training text, and what the runs reach
    without it."""
    if not len(leaks.ranges):
        console.print(
            f"Validation: no passage of {PASSAGE_BYTES} characters or more stands in the training "
            "text."
        )
        return
    console.print(
        f"{leaked_remark(leaks.tokens, leaks.share)}. There the validation loss measures "
        "memorisation, and is lower than on new text.",
        style="yellow" if leaks.share > TELLING else "",
        markup=False,
    )
    if dataset.tokenizer is not None:
        start, stop = leaks.ranges[0].tolist()
        example = dataset.tokenizer.decode(dataset.val[start : min(stop, start + leaks.length)])
        console.print(f"  for example: {example!r}", markup=False)
    for run in runs_on(dataset.folder):
        if (clean := run.record.clean_loss) is not None:
            name, (_, loss) = display(run.folder), run.record.best
            console.print(
                f"  {name}: lowest loss {loss:.4f}, without these passages {clean:.4f}",
                markup=False,
            )


# Deleting -----------------------------------------------------------------------------------------


def delete_dataset(name: str, yes: bool = False) -> int:
    """Delete a prepared dataset after a yes; 0, or 1 when it stays."""
    folder = dataset_folder(name)
    names = [known for known, _ in list_datasets()]
    if folder.parent != data_home() or name not in names:
        there = f"prepared here: {', '.join(names)}" if names else "nothing is prepared"
        raise DataError(
            f"There is no prepared dataset {name!r} in {display(data_home())} ({there})."
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    others = foreign_files(folder)
    if not yes:
        questions.refuse_without_terminal(f"add --yes to delete {name}")
        more = f", with {', '.join(others[:3])}, which gptlab did not write" if others else ""
        console = questions.open_console()
        console.print("Runs that were trained on it have their own tokenizer and stay usable.")
        title = f"Delete {display(folder)} ({in_bytes(size)}){more}?"
        if not questions.confirm(console, title):
            print("Nothing was deleted.")
            return 1
    remove_folder(folder)
    print(f"Deleted {display(folder)} ({in_bytes(size)}).")
    return 0
