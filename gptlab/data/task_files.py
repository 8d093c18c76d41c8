"""A task on disk: a folder with a meta.json and a tokenizer.json, and no token files."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.prepare_options import PrepareOptions, check_options, options_that_matter
from gptlab.data.problems import Task
from gptlab.data.task_dataset import PROBLEMS, TaskDataset
from gptlab.data.tasks import PREFIX, Own, described, folder_name, make_task, read_name
from gptlab.data.token_files import Meta, dataset_folder, is_task, prepare_again, read_meta
from gptlab.data.tokenizer import Tokenizer, char_tokenizer, word_tokenizer
from gptlab.data.vocabulary import ready_tokenizer
from gptlab.errors import ConfigError, DataError, TokenizerError
from gptlab.files import FORMAT_VERSIONS, atomic_write, data_home, display, write_json

VERSION = 1  # of the problems that the same options and seed give
_MOST_TOKENS = 10**15  # that are counted
_OPTIONS = ("dataset", "tokenizer", "seed", "overwrite")  # of preparing, which a task takes


@dataclass(frozen=True)
class PreparedTask:
    """The result of `prepare_task`. skipped: it was there already."""

    dataset: TaskDataset
    skipped: bool

    @property
    def sentence(self) -> str:
        """What was made, in a line."""
        tests = self.dataset.test_problems
        return (
            f"Made the task {self.dataset.name} in {display(self.dataset.folder)}: "
            f"{len(tests['unseen']):,} problems test, which no training meets; for example "
            f"{as_written(self.dataset.task, tests['unseen'][-1])}."
        )


def as_written(task: Task, problem) -> str:
    """A problem with its answer as a person writes it."""
    answer = problem.answer[::-1] if task.is_reversed else problem.answer
    return f"{problem.prompt}{answer}"


def prepare_task(word: str, options: PrepareOptions | None = None) -> PreparedTask:
    """Make the dataset of a task, such as task:addition:digits=3; nothing if it is there already.

    Raises ConfigError or DataError, and then leaves nothing behind.
    """
    options = options or PrepareOptions()
    check_options(options)
    for name in options_that_matter(options):
        if name not in _OPTIONS:
            raise ConfigError(
                f"--{name} has no effect on a task, whose problems are made from random numbers",
                "leave it out",
            )
    kind, settings, path = read_name(word)
    task = make_task(kind, settings, path)
    tokenizer = _tokenizer_of(task, word, options)
    folder = data_home() / (options.dataset or folder_name(word))
    meta = _meta_of(folder.name, word, kind, task, tokenizer, options)
    dataset = TaskDataset(folder.name, folder, meta, task, options.seed, tokenizer)
    if folder.exists() and any(folder.iterdir()):
        found = read_meta(folder) if (folder / "meta.json").is_file() else {}
        if found.get("task") == meta["task"] and found.get("tokenizer") == meta["tokenizer"]:
            return PreparedTask(open_task(folder), True)
        if not (options.overwrite and is_task(found)):
            what = "another task" if is_task(found) else "a text"
            ways = "use --overwrite, or another --dataset" if is_task(found) else "use --dataset"
            raise ConfigError(
                f"{display(folder)} holds {what}", f"{ways}, which names this one, or delete it"
            )
    tests = dataset.test_problems
    # one more, as a text whose first token is no target
    meta["val_tokens"] = len(tests["unseen"]) * dataset.longest_tested + 1
    meta["train_tokens"] = _train_tokens(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    if path is not None:
        with open(path, "rb") as source, atomic_write(folder / PROBLEMS) as copy:
            shutil.copyfileobj(source, copy)
    write_json(folder / "meta.json", meta)  # last: with it the folder is a dataset
    return PreparedTask(open_task(folder), False)


def _tokenizer_of(task: Task, word: str, options: PrepareOptions) -> Tokenizer:
    """The tokenizer that is named, else one of the task's characters or numbers."""
    if options.tokenizer in ("auto", "char"):
        return word_tokenizer(task.vocabulary) if task.words else char_tokenizer(task.characters)
    tokenizer = ready_tokenizer(options.tokenizer)
    if tokenizer is None or tokenizer.eot_id is None:
        raise ConfigError(
            f"A task needs a tokenizer with an end of text, and {options.tokenizer} is none",
            "leave --tokenizer out, or name a dataset, a run or a model",
        )
    try:
        is_spelled = tokenizer.decode(tokenizer.encode(task.characters)) == task.characters
    except TokenizerError as error:
        raise TokenizerError(
            f"The tokenizer of {options.tokenizer} cannot spell {word}: {error.problem}",
            "leave --tokenizer out, or name one that can, such as gpt2",
            sep="; ",
        ) from None
    if not is_spelled:
        raise TokenizerError(
            f"The tokenizer of {options.tokenizer} cannot spell {word}",
            "leave --tokenizer out, or name one that can, such as gpt2",
        )
    return tokenizer


def _meta_of(name, word, kind, task, tokenizer, options) -> Meta:
    """The content of meta.json, without the sizes."""
    own, identity = {}, word
    if isinstance(task, Own):
        content = json.dumps(task.problems).encode()
        own = {"sha256": hashlib.sha256(content).hexdigest()}
    return {
        "format_version": FORMAT_VERSIONS["dataset"],
        "name": name,
        "dtype": "uint16",
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "source": {"identity": identity, "label": f"the task {word.removeprefix(PREFIX)}"},
        "options": options_that_matter(options),
        "task": {
            "version": VERSION,
            "kind": kind,
            "options": described(task),
            "seed": options.seed,
            **own,
        },
    }


def _train_tokens(dataset: TaskDataset) -> int:
    """Tokens of all problems to train on, each as long as the longest."""
    task = dataset.task
    problems = task.share * sum(map(task.count, task.lengths))
    if finite := dataset.finite:
        problems = len(finite[0])
    return min(_MOST_TOKENS, round(problems * dataset.longest))


def open_task(folder: Path) -> TaskDataset:
    """The task whose meta.json is in a folder. Raises DataError for one that is damaged."""
    folder = dataset_folder(folder)
    meta, name = read_meta(folder), folder.resolve().name
    task = meta["task"]
    if task.get("version") != VERSION or not (folder / "tokenizer.json").is_file():
        raise DataError(f"{display(folder)} is damaged", prepare_again(name, meta), sep="; ")
    own = folder / PROBLEMS if task["kind"] == "own" else None
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    made = make_task(task["kind"], task["options"], own)
    return TaskDataset(name, folder, meta, made, task["seed"], tokenizer)
