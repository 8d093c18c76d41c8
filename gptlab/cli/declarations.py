"""Declare each command once: menu, command line, help and reference follow from this.

Modules and option classes are named, not imported, and a Command is a NamedTuple, because the menu
takes only 0.05 s: dataclasses would add 0.01 s, and the commands 0.1 s.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

TRAINING = "gptlab.training.config:OPTION_CLASSES"
STARTING = "gptlab.cli.commands.train:StartOptions"
PREPARING = "gptlab.data.prepare_options:PrepareOptions"
LISTING = "gptlab.cli.commands.prepare:ListOptions"


class Command(NamedTuple):
    """One command: `python gpt.py NAME`, or a script of its own.

    sentence: what it does, in the menu and the reference. summary, example: its help.
    module: its `main(argv)` runs the command. options: dataclasses of options, or tuples of them,
    as MODULE:NAME; a bare NAME is in `module`. positionals: as `parse_command_line` takes them.
    words: its arguments, for the reference. script: the root script that runs it. asking: the
    module that runs it without arguments, with questions at a terminal. group: the menu's; "" for a
    command that the menu does not list.
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
    group: str = "more"

    @property
    def program(self) -> str:
        """The words before its options: `train.py`, `gpt.py plan`."""
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
        options=(PREPARING, "PreviewOptions", LISTING),
        positionals=(
            (
                "sources",
                "*",
                "a corpus' name, files, a folder, a glob, - for a pipe, hf:OWNER/NAME, or a task",
            ),
        ),
        summary="Reads text, learns or reuses a vocabulary, and writes data/NAME for training.",
        example="""\
python prepare.py                                  the default corpus, Shakespeare
python prepare.py my_text.txt                      a text of your own
python prepare.py books/ --tokenizer bpe           every text below a folder
python prepare.py posts.jsonl --column body        one document per row of a table
python prepare.py names.txt --document line        one document per line
python prepare.py train.txt --val valid.txt        a validation text of your own
python prepare.py posts.csv --show                 its first documents, before anything is written
python prepare.py hf:roneneldan/TinyStories --max_bytes 100e6
python prepare.py task:addition:digits=3           sums with answers, made while training
python prepare.py --list                           what is prepared already, and every task
""",
        group="",
    ),
    Command(
        name="train",
        group="start",
        sentence="train a model",
        script="train.py",
        module="gptlab.cli.commands.train",
        asking="gptlab.cli.wizard",
        options=(STARTING, TRAINING),
        summary="""\
Train a model on a prepared dataset (python prepare.py). Options override the recipe of --config,
which overrides the preset, which overrides the defaults, shown in brackets. Ctrl-C finishes the
step, saves, and prints the command that continues.""",
        example="""\
python train.py --config config/shakespeare_char.py
python train.py --config config/addition.py
python train.py --dataset mytext --model_preset tiny --minutes 10
python train.py --out_dir out/mytext --resume""",
    ),
    Command(
        name="generate",
        group="start",
        sentence="write text with a trained model",
        script="sample.py",
        module="gptlab.cli.commands.sample",
        asking="gptlab.cli.commands.generate",
        options=("SampleOptions", "SamplingConfig"),
        summary="""\
Writes the prompt and the model's continuation to stdout, notes to stderr. The first note names the
checkpoint. A prompt from a file or from standard input is used unchanged, with its final newline;
only a byte-order mark is removed, and line ends become \\n as in preparation.""",
        example="""\
Examples:
  python sample.py --prompt "ROMEO:"                 the newest run continues a prompt
  python sample.py --out_dir out/mine --num_samples 3 --seed 1
  python sample.py --temperature 0 --stop "END"      always the likeliest token, up to a word
  python sample.py --interactive                     one prompt after another
  python sample.py --chat --out_dir out/smollm2-135m chat with a model; it remembers
  printf 'Once upon' | python sample.py              the prompt from standard input
""",
    ),
    Command(
        name="info",
        group="inspect",
        sentence="show the environment, the datasets and the runs",
        module="gptlab.cli.commands.info",
        options=("InfoOptions",),
        summary="""\
Show the environment, the prepared datasets and the runs. With --runs, show all runs with their disk
use; at a terminal they can be renamed and deleted.""",
        example="""\
python gpt.py info
python gpt.py info --runs
python gpt.py info --rename shakespeare_2 --to plays
python gpt.py info --delete shakespeare_3""",
    ),
    Command(
        name="dataset",
        group="start",
        sentence="list, prepare, add, view and delete texts",
        words="WORD ...",
        module="gptlab.cli.commands.dataset",
        options=(LISTING, PREPARING, "ViewOptions"),
        positionals=(("names", "*", "a text to prepare, or a prepared dataset to view or delete"),),
        summary="""\
Without arguments, it asks at a terminal. `prepare` and `add` take the options below; `prepare` may
be left out before a text.""",
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
        group="plan",
        sentence="check that a run will work, or diagnose a run's curve",
        words="[RUN]",
        module="gptlab.cli.commands.doctor",
        options=("DoctorOptions", STARTING, TRAINING),
        summary="""\
Without a run: checks packages, write access, disk space, device, attention, compiler, prepared
datasets and checkpoints, and shows how to fix what fails; with the options of train.py, it checks
that training. With a run as the first word: reads its records, diagnoses its curve, and suggests
one command. With --cluster, under torchrun: measures the links between all processes, and what
share of a step communication takes. Exit code 1 when something was found.""",
        example="""\
python gpt.py doctor
python gpt.py doctor --config config/shakespeare_char.py
torchrun --standalone --nproc_per_node 8 gpt.py doctor --cluster --config config/gpt2_124m.py
python gpt.py doctor out/mytext""",
    ),
    Command(
        name="check",
        sentence="check that an edit of the code is sound",
        words="[RUN|RECIPE]",
        group="improve",
        module="gptlab.cli.commands.check",
        options=(
            "CheckOptions",
            "gptlab.training.config:PresetOption",
            "gptlab.training.config:OptimizerOptions",
            "gptlab.model.config:GPTConfig",
        ),
        summary="""\
Check that the code builds and trains a model as it should, after an edit of gptlab/model or
gptlab/training: causality, the cache, the loss, gradients, learning, precision, checkpoints,
exports. Each line is PASS, WARN (unusual), FAIL or SKIP (and why), with what was measured. A large
model is checked at a small shape of the same settings. Exit code 1 when a check fails.""",
        example="""\
python gpt.py check                                the defaults
python gpt.py check --model_preset gpt2            a preset
python gpt.py check config/shakespeare_char.py     a recipe, with its optimizer
python gpt.py check out/shakespeare_char           a run, and its weights
python gpt.py check --qk_norm --against HEAD       speed beside the last commit""",
    ),
    Command(
        name="hardware",
        group="",
        sentence="show this machine's devices and the recommended one",
        module="gptlab.cli.commands.hardware",
        options=("HardwareOptions",),
        summary="Show this machine's devices, their fast precisions, and the recommended choice.",
        example="python gpt.py hardware",
    ),
    Command(
        name="config",
        group="plan",
        sentence="make a recipe, show every value, compare two",
        words="[show FILE|RUN | diff A B]",
        module="gptlab.cli.commands.config",
        options=("ShowOptions", TRAINING),
        summary="""\
Without arguments: ask questions at a terminal and write a recipe.
show FILE|RUN [--option ...]: every option's value and its source: default, preset, recipe, command
line, or the reason for the value that it resolves to here.
diff A B: the options in which two recipes or runs differ.""",
        example="""\
python gpt.py config show config/shakespeare_char.py --max_iters 50
python gpt.py config show out/shakespeare_char
python gpt.py config diff config/shakespeare_char.py config/speedrun.py""",
    ),
    Command(
        name="plan",
        group="plan",
        sentence="estimate what a training takes: memory, time and money",
        words="[RUN|RECIPE]",
        module="gptlab.cli.commands.plan",
        options=("PlanOptions", TRAINING),
        summary="""\
plan [RUN|RECIPE] [--option ...]: estimate parameters, FLOPs, memory, the largest batch that fits,
time here and on rented GPUs, and the best number of tokens for a model of this size. It takes the
options of train.py. Nothing is trained. With --gpus, of many GPUs: memory and communication of each
parallelism, time, cost, and a recipe of what to choose.""",
        example="""\
python gpt.py plan --model_preset gpt2
python gpt.py plan --config config/shakespeare_char.py --measure
python gpt.py plan out/shakespeare_char --max_iters 20000
python gpt.py plan --model_preset gpt2-xl --gpus 64 --gpu h100 --output config/many.py""",
    ),
    Command(
        name="report",
        group="inspect",
        sentence="write a run, or several, as one page for a browser",
        words="[RUN ...]",
        module="gptlab.cli.commands.report",
        options=("ReportOptions",),
        positionals=(("runs", "*", "run directories, or names under out/ [the newest]"),),
        summary="""\
Write one or several runs as one HTML file that needs no network: loss curves with baselines, speed,
samples over time, configuration with sources, data, hardware and the exact commands. Several runs
are compared in one chart, by tokens and by time.""",
        example="""\
python gpt.py report out/shakespeare_char
python gpt.py report out/a out/b out/c --output compared.html""",
    ),
    Command(
        name="blame",
        group="inspect",
        sentence="show the text behind a step, with the loss of each token",
        words="[RUN] --step N",
        module="gptlab.cli.commands.blame",
        options=("BlameOptions",),
        positionals=(("run", "?", "a run directory, or a name under out/ [the newest]"),),
        summary="""\
Show what a step trained on: its sequences with the loss of each token, the hardest first, and the
file and line that they come from. A run does not record what it reads, because the order follows
from its seed. The losses are those of the checkpoint, not of the model at that step.""",
        example="""\
python gpt.py blame out/shakespeare_char --step 480
python gpt.py blame out/shakespeare_char --step 480 --top 32 --html step480.html""",
    ),
    Command(
        name="trace",
        group="inspect",
        sentence="show which spans of a text stand in the training text",
        words="[RUN]",
        module="gptlab.cli.commands.trace",
        options=("TraceOptions",),
        positionals=(("run", "?", "a run directory, or a name under out/ [the newest]"),),
        summary="""\
Show which spans of what a model writes, or of any text, stand verbatim in its training text: the
longest spans with file and line, the share of the text in spans of --min_chars or more, and the
same for validation text as long as this, which shows how much of it is chance. Characters are
compared, however the tokenizer splits them; a span ends where a document ends. The text of a model
that the run began from (--init_from) is not searched.""",
        example="""\
python gpt.py trace out/shakespeare_char
python gpt.py trace out/shakespeare_char --prompt "ROMEO:" --temperature 0.5 --html trace.html
python gpt.py trace out/shakespeare_char --file poem.txt --min_chars 20""",
    ),
    Command(
        name="lens",
        group="inspect",
        sentence="look inside a model: layers, heads, what a word needs",
        words="[MODEL] --prompt TEXT",
        module="gptlab.cli.commands.lens",
        options=("LensOptions",),
        positionals=(
            ("model", "?", "a run, checkpoint, Hugging Face folder or .gguf [newest run]"),
        ),
        summary="""\
Look inside a model while it reads a prompt: what it would say at each layer, where its heads look,
which heads and MLPs its next token comes from and which it needs, which heads have a known job,
what surprises it, and which tokens are alike to it.""",
        example="""\
python gpt.py lens out/shakespeare_char --prompt "ROMEO:\\nWhat light"
python gpt.py lens --prompt "To be, or not" --view ablation --ablate 2.1,mlp0
python gpt.py lens out/smollm2-135m --prompt "The capital of France is" --target " Paris"
python gpt.py lens --prompt "To be, or not" --tuned""",
    ),
    Command(
        name="replay",
        group="inspect",
        sentence="repeat the first steps of a run and compare them bit by bit",
        words="[RUN]",
        module="gptlab.cli.commands.replay",
        options=("ReplayOptions",),
        positionals=(("run", "?", "a run directory, or a name under out/ [the newest]"),),
        summary="""\
Repeat the first steps of a run, with its recorded options and in a temporary folder. Report that
they are bitwise equal, or name the first step and tensor that differ, and what has changed since:
versions, threads, processor, options, data, and lines of gptlab's own code. Exit code 1 when
something differs.""",
        example="""\
python gpt.py replay out/shakespeare_char
python gpt.py replay out/shakespeare_char --steps 10""",
    ),
    Command(
        name="compare",
        sentence="train two recipes side by side and say which is better",
        words="A [B]",
        group="improve",
        module="gptlab.cli.commands.compare",
        options=("CompareOptions",),
        positionals=(("recipes", "*", "A and B: recipes, runs, or A alone with --set"),),
        summary="""\
Train A and B with the same seeds, data order and, where they fit, initial tensors; measure both on
the whole validation split; say which is better, with a 95% interval of the difference over seeds.
Every run is an ordinary run directory. Ctrl-C loses nothing: the same command continues.""",
        example="""\
python gpt.py compare config/speedrun.py --set qk_norm=False --seeds 5
python gpt.py compare config/speedrun.py my_recipe.py
python gpt.py compare config/speedrun.py --against HEAD        the code here beside that of a commit
python gpt.py compare config/quick_test.py --set n_layer=4 --both max_iters=100 --noise_floor""",
    ),
    Command(
        name="sweep",
        sentence="try many settings, and measure the best few afresh",
        words="RECIPE --OPTION VALUES ...",
        group="improve",
        module="gptlab.cli.commands.sweep",
        options=("SweepOptions",),
        summary="""\
Train a recipe with many settings: any option of train.py takes several values (3e-3,7e-3), whole
numbers from 3..6, or any number of 1e-3..1e-2. All train for a few tokens, the best third for three
times as many, and so on. Then the recipe and the best few train with fresh seeds, and only those
say how good the winner is: the best of many is partly luck. Every trial is an ordinary run
directory. Ctrl-C loses nothing: the same command continues.""",
        example="""\
python gpt.py sweep config/speedrun.py --learning_rate 3e-3,7e-3 --n_layer 3..6
python gpt.py sweep config/speedrun.py --learning_rate 1e-3..3e-2 --hours 8
python gpt.py sweep config/speedrun.py --learning_rate 1e-3..3e-2 --sampler tpe --trials 50""",
    ),
    Command(
        name="scaling",
        sentence="train a ladder of small models and predict a larger one",
        group="improve",
        module="gptlab.cli.commands.scaling",
        options=("ScalingOptions",),
        summary="""\
Train small models of several sizes on several lengths of text, and fit the law by which the loss
falls with both: how large the best model for a budget is, and how good it will be. Every point is
an ordinary run directory. Ctrl-C loses nothing: the same command continues.""",
        example="""\
python gpt.py scaling --minutes 30
python gpt.py scaling --for_minutes 120            the best model for two hours of training
python gpt.py scaling --check                      train a larger model and see if the law holds
python gpt.py scaling --dataset mytext --minutes 60 --seeds 2""",
    ),
    Command(
        name="import",
        group="share",
        sentence="turn a model from elsewhere into a run",
        words="MODEL",
        module="gptlab.cli.commands.import_model",
        options=("ImportOptions",),
        positionals=(("model", None, "a path, smollm2-135m, gpt2, or hf:OWNER/NAME"),),
        summary="""\
Turn a model from elsewhere, with its tokenizer, into a run directory: sample.py, train.py
--init_from and export use it like one that was trained here. Code in a file is never executed.""",
        example="""\
python gpt.py import smollm2-135m                  a small pretrained model, 93 MB
python gpt.py import folder_of_transformers/       Llama, Qwen2, Qwen3(-MoE) or GPT-2
python gpt.py import model.gguf                    llama.cpp's format, also quantised
python gpt.py import out-shakespeare-char/ckpt.pt  a checkpoint of nanoGPT
python gpt.py import hf:OWNER/NAME                 a model of the Hugging Face hub""",
    ),
    Command(
        name="evaluate",
        group="inspect",
        sentence="measure a model on a text that it never saw",
        words="[MODEL ...]",
        module="gptlab.cli.commands.evaluate",
        options=("EvaluateOptions",),
        positionals=(
            ("models", "*", "a run, checkpoint, Hugging Face folder or .gguf [newest run]"),
        ),
        summary="""\
Measure a model on a text: loss, perplexity and bits per byte, and the loss by position in the
window. Bits per byte count the text's own bytes, so models with different tokenizers can be
compared. Or let it write (--samples): repetition, variety, words that its training text knows,
sentence length and copied passages, each beside as much held-out text. A run keeps the result, and
gpt.py report shows it. With --ensemble several models of one tokenizer are measured as one, whose
probabilities are the average of theirs, beside each of them.""",
        example="""\
python gpt.py evaluate out/shakespeare_char --data held_out.txt
python gpt.py evaluate out/shakespeare_char --samples 16
python gpt.py evaluate out/shakespeare_char --dataset shakespeare   its validation part, all of it
python gpt.py evaluate folder_of_transformers/ --data held_out.txt --stride 256 --json
python gpt.py evaluate out/a out/b out/c --ensemble --dataset shakespeare   their average
python gpt.py evaluate out/mine --tasks arc_easy,hellaswag --limit 100""",
    ),
    Command(
        name="export",
        group="share",
        sentence="write a run in the format of another program",
        words="[RUN]",
        module="gptlab.cli.commands.export",
        options=("ExportOptions",),
        positionals=(("run", "?", "run directory, name under out/, or checkpoint [the newest]"),),
        summary="""\
Write a run for other programs, its tokenizer included: a folder that transformers opens
(AutoModelForCausalLM.from_pretrained), as Llama, Qwen3(-MoE) or GPT-2 and with a model card, a file
that llama.cpp runs, or one page in which a small model writes in any browser, offline. An option
of the model that the format lacks is refused by name.""",
        example="""\
python gpt.py export out/shakespeare_char --format hf --output my_model
python gpt.py export out/shakespeare_char --format gguf --quantize q8_0
python gpt.py export out/shakespeare_char --format html""",
    ),
    Command(
        name="version",
        group="",
        sentence="show the releases of gptlab, Python and torch",
        module="gptlab.cli.commands.version",
        summary="Show the releases of gptlab, Python and torch, and the platform.",
        example="python gpt.py version",
    ),
)
COMMANDS = {command.name: command for command in _ALL}
