"""The commands, each declared once: menu, command line, help and reference follow from this.

Modules and classes of options are named, not imported, and a Command is a NamedTuple: the menu
takes 0.05 s, of which dataclasses alone would take 0.01 s, and the commands 0.1 s more.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

TRAINING = "gptlab.training.config:OPTION_CLASSES"
STARTING = "gptlab.cli.commands.train:StartOptions"
PREPARING = "gptlab.data.prepare:PrepareOptions"
LISTING = "gptlab.cli.commands.prepare:ListOptions"


class Command(NamedTuple):
    """One command: `python gpt.py NAME`, or a script of its own.

    sentence: what it does, in the menu and the reference. summary, example: its help.
    module: its `main(argv)` runs it. options: dataclasses of options, or tuples of them, as
    MODULE:NAME; a bare NAME is in `module`. positionals: as `parse_command_line` takes them.
    words: what is written behind the name, for the reference. script: the root script that runs
    it. asking: the module that runs it where it has no argument, with questions at a terminal.
    in_menu: whether the menu lists it.
    """

    name: str
    sentence: str
    module: str
    summary: str
    example: str
    options: tuple[str, ...] = ()
    positionals: tuple[tuple[str, str | None, str], ...] = ()
    words: str = ""
    script: str = ""
    asking: str = ""
    in_menu: bool = True

    @property
    def program(self) -> str:
        """What is written before its options: `train.py`, `gpt.py plan`."""
        return self.script or f"gpt.py {self.name}"

    def option_classes(self) -> list[type]:
        """The dataclasses whose options it takes."""
        classes: list[type] = []
        for place in self.options:
            module, _, name = place.rpartition(":")
            found = getattr(importlib.import_module(module or self.module), name)
            classes += found if isinstance(found, tuple) else [found]
        return classes

    def parse(self, argv: Sequence[str]) -> dict:
        """The options and positionals of a command line, by name; see `parse_command_line`."""
        from gptlab.files import as_installed
        from gptlab.options import parse_command_line

        return parse_command_line(
            argv,
            self.option_classes(),
            prog=self.program,
            summary=self.summary,
            example=self.example,
            positionals=self.positionals,
            wording=as_installed,
        )


_ALL = (
    Command(
        name="prepare",
        sentence="turn a text into a dataset",
        words="[TEXT ...]",
        script="prepare.py",
        module="gptlab.cli.commands.prepare",
        options=(PREPARING, LISTING),
        positionals=(
            ("sources", "*", "a corpus' name, files, a folder, a glob, or hf:OWNER/NAME"),
        ),
        summary="Reads text, learns or takes a vocabulary, and writes data/NAME for training.",
        example="""\
python prepare.py                                  the default corpus, Shakespeare
python prepare.py my_text.txt                      a text of your own
python prepare.py books/ --tokenizer bpe           every text below a folder
python prepare.py posts.jsonl --column body        one document per row of a table
python prepare.py hf:roneneldan/TinyStories --max_bytes 100e6
python prepare.py --list                           what is prepared already
""",
        in_menu=False,
    ),
    Command(
        name="train",
        sentence="train a model",
        script="train.py",
        module="gptlab.cli.commands.train",
        asking="gptlab.cli.wizard",
        options=(STARTING, TRAINING),
        summary="""\
Train a model on a prepared dataset (python prepare.py). Options lie over the recipe of --config,
the recipe over the preset, the preset over the defaults, which are shown in brackets. Ctrl-C
finishes the step, saves, and prints the command that continues.""",
        example="""\
python train.py --config config/shakespeare_char.py
python train.py --dataset mytext --model_preset tiny --minutes 10
python train.py --out_dir out/mytext --resume""",
    ),
    Command(
        name="generate",
        sentence="write text with a trained model",
        script="sample.py",
        module="gptlab.cli.commands.sample",
        asking="gptlab.cli.commands.generate",
        options=("SampleOptions", "SamplingConfig"),
        summary="""\
Writes the prompt and what the model makes of it to stdout, notes to stderr. The first note says
which checkpoint it is. A prompt from a file or from standard input is taken as it is, its final
newline included; only a byte-order mark is removed, and line ends become \\n as in preparation.""",
        example="""\
Examples:
  python sample.py --prompt "ROMEO:"                 the newest run continues a prompt
  python sample.py --out_dir out/mine --num_samples 3 --seed 1
  python sample.py --temperature 0 --stop "END"      always the likeliest token, up to a word
  python sample.py --interactive                     one prompt after the other
  python sample.py --chat --out_dir out/smollm2-135m talk with a chat model; it remembers
  printf 'Once upon' | python sample.py              the prompt from standard input
""",
    ),
    Command(
        name="info",
        sentence="show the environment, the datasets and the runs",
        module="gptlab.cli.commands.info",
        options=("InfoOptions",),
        summary="""\
Show the environment, the prepared datasets and the runs. With --runs also the disk that each run
takes, and at a terminal runs can be renamed and deleted.""",
        example="""\
python gpt.py info
python gpt.py info --runs
python gpt.py info --rename shakespeare_2 --to plays
python gpt.py info --delete shakespeare_3""",
    ),
    Command(
        name="dataset",
        sentence="list, prepare, add, view and delete texts",
        words="WORD ...",
        module="gptlab.cli.commands.dataset",
        options=(LISTING, PREPARING, "ViewOptions"),
        positionals=(("names", "*", "a text to prepare, or a prepared dataset to view or delete"),),
        summary="""\
Without any word, asks at a terminal. `prepare` and `add` take the options below; the word may be
left out before a text.""",
        example="""\
Examples:
  python gpt.py dataset list                         what is prepared
  python gpt.py dataset prepare shakespeare          a corpus known by name
  python gpt.py dataset add my_text.txt              a text of your own: file, folder, table, hf:
  python gpt.py dataset view shakespeare             numbers, frequent tokens, excerpts
  python gpt.py dataset delete my_text               asks first
""",
    ),
    Command(
        name="doctor",
        sentence="check that a run will work, or what a run's curve shows",
        words="[RUN]",
        module="gptlab.cli.commands.doctor",
        options=(STARTING, TRAINING),
        summary="""\
Without a run: checks packages, write access, disk space, device, attention, compiler, prepared
datasets and checkpoints, and says how to mend what fails; it takes the options of train.py, and
checks for that training. With a run first: reads what it recorded, says what its curve shows, and
names one command to try. Exit code 1 when something was found.""",
        example="""\
python gpt.py doctor
python gpt.py doctor --config config/shakespeare_char.py
python gpt.py doctor out/mytext""",
    ),
    Command(
        name="hardware",
        sentence="show what this machine has and what is recommended",
        module="gptlab.cli.commands.hardware",
        options=("HardwareOptions",),
        summary="Show this machine's devices, the precisions they are fast in, and what is chosen.",
        example="python gpt.py hardware",
    ),
    Command(
        name="config",
        sentence="make a recipe, show every value, compare two",
        words="[show FILE|RUN | diff A B]",
        module="gptlab.cli.commands.config",
        options=("ShowOptions", TRAINING),
        summary="""\
Without a word: make a recipe by questions, at a terminal.
show FILE|RUN [--option ...]: every option's value and where it is from: default, preset, recipe,
command line, or what it was resolved to here and why.
diff A B: the options in which two recipes or runs differ.""",
        example="""\
python gpt.py config show config/shakespeare_char.py --max_iters 50
python gpt.py config show out/shakespeare_char
python gpt.py config diff config/shakespeare_char.py config/speedrun.py""",
    ),
    Command(
        name="plan",
        sentence="what a training takes: memory, time and money",
        words="[RUN|RECIPE]",
        module="gptlab.cli.commands.plan",
        options=("PlanOptions", TRAINING),
        summary="""\
plan [RUN|RECIPE] [--option ...]: what a training amounts to: parameters, FLOPs, memory, the largest
batch that fits, time here and on rented GPUs, and the tokens that a model of this size is worth.
Takes the options of train.py. Nothing is trained.""",
        example="""\
python gpt.py plan --model_preset gpt2
python gpt.py plan --config config/shakespeare_char.py --measure
python gpt.py plan out/shakespeare_char --max_iters 20000""",
    ),
    Command(
        name="report",
        sentence="write a run, or several, as one page for a browser",
        words="[RUN ...]",
        module="gptlab.cli.commands.report",
        options=("ReportOptions",),
        positionals=(("runs", "*", "run directories, or names under out/ [the newest]"),),
        summary="""\
Write one or several runs as one HTML file that needs no network: loss curves with baselines, speed,
samples as they improved, configuration with sources, data, hardware and the exact commands.
Several runs are laid over each other, against tokens and against time.""",
        example="""\
python gpt.py report out/shakespeare_char
python gpt.py report out/a out/b out/c --output compared.html""",
    ),
    Command(
        name="blame",
        sentence="show the text behind a step, with the loss of each token",
        words="[RUN] --step N",
        module="gptlab.cli.commands.blame",
        options=("BlameOptions",),
        positionals=(("run", "?", "a run directory, or a name under out/ [the newest]"),),
        summary="""\
Show what a step trained on: its sequences with the loss of each token, the hardest first, and the
file and line that they come from. No run records what it reads: the order of the text follows from
its seed. The losses are those of the checkpoint, the model as it is now.""",
        example="""\
python gpt.py blame out/shakespeare_char --step 480
python gpt.py blame out/shakespeare_char --step 480 --top 32 --html step480.html""",
    ),
    Command(
        name="replay",
        sentence="take the first steps of a run again, and compare bit by bit",
        words="[RUN]",
        module="gptlab.cli.commands.replay",
        options=("ReplayOptions",),
        positionals=(("run", "?", "a run directory, or a name under out/ [the newest]"),),
        summary="""\
Take the first steps of a run again, from the options that it recorded and in a temporary folder,
and say that they are bitwise equal, or name the first step and tensor that differ, and what has
changed since: versions, threads, processor, options, data, and the lines of gptlab's own code. Exit
code 1 when something differs.""",
        example="""\
python gpt.py replay out/shakespeare_char
python gpt.py replay out/shakespeare_char --steps 10""",
    ),
    Command(
        name="import",
        sentence="make a run of a model from elsewhere",
        words="MODEL",
        module="gptlab.cli.commands.import_model",
        options=("ImportOptions",),
        positionals=(("model", None, "a path, smollm2-135m, gpt2, or hf:OWNER/NAME"),),
        summary="""\
Make a run directory of a model from elsewhere, with its tokenizer: sample.py, train.py --init_from
and export take it like one that was trained here. Nothing of a file is ever run as code.""",
        example="""\
python gpt.py import smollm2-135m                  a small pretrained model, 93 MB
python gpt.py import folder_of_transformers/       Llama, Qwen2, Qwen3 or GPT-2, safetensors
python gpt.py import model.gguf                    llama.cpp's format, also quantised
python gpt.py import out-shakespeare-char/ckpt.pt  a checkpoint of nanoGPT
python gpt.py import hf:OWNER/NAME                 a model of the Hugging Face hub""",
    ),
    Command(
        name="evaluate",
        sentence="measure a model on a text that it never saw",
        words="[MODEL]",
        module="gptlab.cli.commands.evaluate",
        options=("EvaluateOptions",),
        positionals=(
            ("model", "?", "a run, checkpoint, Hugging Face folder or .gguf [newest run]"),
        ),
        summary="""\
Measure a model on a text: loss, perplexity and bits per byte, and the loss by how much text stands
before a token in the window. Bits per byte count the text's own bytes, so models with different
tokenizers can be compared. A run keeps the result, and gpt.py report shows it.""",
        example="""\
python gpt.py evaluate out/shakespeare_char --data held_out.txt
python gpt.py evaluate out/shakespeare_char --dataset shakespeare   its validation part, all of it
python gpt.py evaluate folder_of_transformers/ --data held_out.txt --stride 256 --json
python gpt.py evaluate out/mine --tasks arc_easy,hellaswag --limit 100""",
    ),
    Command(
        name="export",
        sentence="write a run in the files of other programs",
        words="[RUN]",
        module="gptlab.cli.commands.export",
        options=("ExportOptions",),
        positionals=(("run", "?", "run directory, name under out/, or checkpoint [the newest]"),),
        summary="""\
Write a run for other programs, its tokenizer included: a folder that transformers opens
(AutoModelForCausalLM.from_pretrained), as Llama, Qwen3 or GPT-2 and with a model card, a file
that llama.cpp runs, or one page in which a small model writes in any browser, offline. A setting
that the format does not have is refused by name.""",
        example="""\
python gpt.py export out/shakespeare_char --format hf --output my_model
python gpt.py export out/shakespeare_char --format gguf --quantize q8_0
python gpt.py export out/shakespeare_char --format html""",
    ),
    Command(
        name="version",
        sentence="show the releases of gptlab, Python and torch",
        module="gptlab.cli.commands.version",
        summary="Show the releases of gptlab, Python and torch, and the platform.",
        example="python gpt.py version",
    ),
)
COMMANDS = {command.name: command for command in _ALL}
