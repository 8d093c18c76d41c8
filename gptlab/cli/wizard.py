"""`python gpt.py train` without options: a few questions, then a training.

Every answer becomes options of train.py. At the end it prints a command with all of them; the
training uses the same options, so that the command repeats it.
"""

from pathlib import Path

from gptlab.cli.commands.dataset import ask_for_text, size_of
from gptlab.cli.commands.prepare import prepare_sources
from gptlab.cli.ui import explanations, questions
from gptlab.cli.ui.command_line import command_line, program
from gptlab.cli.ui.console import facts_table
from gptlab.cli.ui.questions import Back, MenuItem
from gptlab.cli.ui.recipe_builder import (
    RESET,
    ask_recipe_name,
    explain_option,
    parse_assignments,
    write_recipe,
)
from gptlab.data.mixture import open_part
from gptlab.data.token_files import list_datasets
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import display, fresh_folder, out_home, quoted
from gptlab.model.arithmetic import active_in_words, count_parameters
from gptlab.planning import suggest
from gptlab.planning.plan import CHINCHILLA, Machine, expected_overfitting
from gptlab.planning.planner import Planner, Proposal, in_millions
from gptlab.training.config import LENGTHS, OPTIONS, layer, plan_numbers
from gptlab.training.memory import in_gigabytes, memory_needed
from gptlab.training.resolving import TextSize

# options of the model that a plan starts from; the others are derived, or the user changed them
ARCHITECTURE = {
    "model_preset", "block_size", "n_layer", "n_head", "n_embd", "qk_norm", "tie_weights",
    "init_projection",
}  # fmt: skip
# they have questions of their own, or belong to one start only
NOT_CHANGED_HERE = {
    "dataset", "device", "model_preset", "init_from", "out_dir", "resume", "overwrite", "dry_run",
    "vocab_size", "quiet",
}  # fmt: skip
OWN_TEXT = "my own text"
SHAKESPEARE = "prepare Shakespeare"


def main(argv: list[str]) -> int:
    """Ask and train; the exit code."""
    questions.refuse_without_terminal(
        f"run {program('gpt.py')} train --dataset shakespeare --minutes 3, or use other options "
        f"({program('train.py')} --help)"
    )
    wizard = Wizard(questions.open_console())
    wizard.ask_all()
    return wizard.do()


class Wizard:
    """The questions, and the answers so far."""

    def __init__(self, console):
        self.console = console
        self.hardware = None  # hardware.Hardware
        self.machine: Machine | None = None
        self.dataset = None  # Dataset
        self.text: TextSize | None = None
        self.model: dict | None = None  # options of the model; None: fitted to text and time
        self.changed: dict = {}
        self.plan: Proposal | None = None
        self._unchanged: Proposal | None = None  # the plan before single options were changed
        self.action = "start"
        self.asks_device, self.count = False, 0
        self.recipe: Path | None = None
        self._planner: Planner | None = None

    def ask_all(self) -> None:
        """All questions; b goes back. A device is asked for only where there are several."""
        steps = [
            self.ask_dataset,
            self.ask_size,
            self.ask_length,
            self.ask_changes,
            self.ask_start,
        ]
        self._look_at_machine()
        self.asks_device = sum(device.usable for device in self.hardware.devices) > 1
        if self.asks_device:
            steps.insert(0, self.ask_device)
        self.count = len(steps)
        questions.walk(steps)

    def _title(self, question: int, words: str) -> str:
        """The title of a question: its number among those that are asked. question: from 0 on."""
        return f"{question + self.asks_device}/{self.count}  {words}"

    # Hardware and text

    def _look_at_machine(self) -> None:
        """Find the devices, and take the recommended one."""
        from gptlab import hardware

        self.console.print("Looking at this machine (a few seconds) ...", style="dim")
        self.hardware = hardware.detect()
        for note in self.hardware.notes:
            self.console.print(note, style="yellow", markup=False)
        chosen = self.hardware.recommended
        self.machine = Machine.of(self.hardware, chosen)
        device = self.machine.device
        self._say(
            f"Device: {device.name} ({_device_words(device)}); {chosen.device_reason}; "
            f"{chosen.dtype_reason}."
        )

    def ask_device(self) -> None:
        """Which device; the recommended one is the default."""
        from gptlab import hardware

        recommended = self.hardware.recommended
        choices = [
            MenuItem(
                device.name,
                device.name,
                _device_words(device) + ("; recommended" * (device.name == recommended.device)),
                refusal="" if device.usable else f"{device.name} cannot be used: {device.reason}.",
            )
            for device in self.hardware.devices
        ]
        default = [choice.value for choice in choices].index(recommended.device)
        title = self._title(0, "Which device?")
        name = questions.select(
            self.console, title, choices, default, explanations.DEVICE, is_first=True
        )
        self.machine = Machine.of(self.hardware, hardware.choose(self.hardware, name))
        if name != recommended.device:
            self._say(f"{self.machine.choice.reason}.")

    def ask_dataset(self) -> None:
        """Which text: a prepared one, Shakespeare, or the user's own."""
        while True:
            prepared = list_datasets()
            choices = [_dataset_choice(name, meta) for name, meta in prepared]
            names = [name for name, _ in prepared]
            if "shakespeare" not in names:
                choices.append(MenuItem(SHAKESPEARE, SHAKESPEARE, "1 MB of plays, to try it out"))
            choices.append(MenuItem(OWN_TEXT, OWN_TEXT, "a file, a folder, a table, or hf:"))
            default = names.index("shakespeare") if "shakespeare" in names else 0
            answer = questions.select(
                self.console,
                self._title(1, "Which text?"),
                choices,
                default,
                explanations.DATASET,
                is_first=not self.asks_device,
            )
            try:
                if questions.attempt(self.console, lambda answer=answer: self._take_text(answer)):
                    return
            except Back:
                continue  # back from the question for a path

    def _take_text(self, answer: str) -> bool:
        """Prepare and open the text; the caller shows its errors."""
        if answer == OWN_TEXT:
            dataset = ask_for_text(self.console, says_next=False)
        elif answer == SHAKESPEARE:
            dataset = prepare_sources(["shakespeare"], says_next=False).dataset
        else:
            dataset = open_part(answer)
        sizes = dataset.train_tokens, dataset.val_tokens
        text = TextSize(dataset.vocab_size, *sizes, f"the dataset {dataset.name}")
        text.block_size(256)  # raises where the text is too short for any model
        self.dataset, self.text = dataset, text
        self._planner = Planner(self.machine, dataset.name, text, self._say)
        return True

    # Size

    def ask_size(self) -> None:
        """Which model: fitted, a preset, or layers, heads and width."""
        smallest = suggest.architecture(suggest.SMALLEST, self.text)
        refusal = suggest.refusal_of(smallest, self.text, self.machine)
        refusal = refusal and f"No model can be trained here: {refusal}; go back with b."
        words = "suits this text and the time that you choose next"
        choices = [MenuItem("fit", "fit", words, refusal)]
        fits = [name for name in suggest.PRESET_SIZES if not self._refusal(name)]
        for name in suggest.PRESET_SIZES:
            options = suggest.architecture(name, self.text)
            size = count_parameters(suggest.model_of(options, self.text))
            needed = suggest.least_memory(options, self.text, self.machine)
            refusal = self._refusal(name)
            if refusal:
                instead = f"the largest preset that fits is {fits[-1]}" if fits else "take fit"
                refusal = f"{name} cannot be trained here: {refusal}; {instead}."
            words = f"{in_millions(size)} parameters, at least {in_gigabytes(needed)} of memory"
            choices.append(MenuItem(name, name, words + ", does not fit" * bool(refusal), refusal))
        choices.append(MenuItem("custom", "custom", "layers, heads and width of your own"))
        while True:
            title = self._title(2, "How large a model?")
            answer = questions.select(self.console, title, choices, 0, explanations.SIZE)
            if answer == "custom":
                try:
                    self.model = self._ask_shape()
                except Back:
                    continue
            else:
                self.model = None if answer == "fit" else suggest.architecture(answer, self.text)
            return

    def _refusal(self, size: str) -> str:
        options = suggest.architecture(size, self.text)
        return suggest.refusal_of(options, self.text, self.machine)

    def _ask_shape(self) -> dict:
        """Layers, heads and width, each checked when it is typed."""
        shape = {}

        def layers():
            shape["n_layer"] = questions.ask(
                self.console,
                "Layers: 4, 8, 12, 24, or any number",
                questions.whole_number("The number of layers", 1, 1000),
                "4",
                explanations.LAYERS,
            )

        def heads():
            shape["n_head"] = questions.ask(
                self.console,
                "Attention heads in each layer",
                questions.whole_number("The number of heads", 1, 1000),
                "4",
                explanations.HEADS,
            )

        def width():
            step = 2 * shape["n_head"]  # positions turn pairs of numbers, in each head

            def convert(word: str) -> int:
                value = questions.whole_number("The width", 1, 100_000)(word)
                if value % step:
                    below = value // step * step
                    near = f"{below} or {below + step}" if below else str(step)
                    raise ConfigError(f"Width {value} is not a multiple of {step}", f"type {near}")
                self._check_shape({**shape, "n_embd": value})
                return value

            default = str(32 * shape["n_head"])
            title = f"Width: a multiple of {step} (heads of an even size)"
            shape["n_embd"] = questions.ask(
                self.console, title, convert, default, explanations.WIDTH
            )

        questions.walk([layers, heads, width], can_leave=True)
        return suggest.custom_architecture(**shape, text=self.text)

    def _check_shape(self, shape: dict) -> None:
        """ConfigError for a shape that cannot be built, or does not fit into memory."""
        options = suggest.custom_architecture(**shape, text=self.text)
        suggest.model_of(options, self.text)
        refusal = suggest.refusal_of(options, self.text, self.machine)
        if refusal:
            nearest = suggest.nearest_that_fits(shape, self.text, self.machine)
            raise ConfigError(f"This does not fit: {refusal}; {nearest}.")

    # Length

    def ask_length(self) -> None:
        """How long, with the time that this model takes here."""
        try:
            plans = {name: self._plan_of(name) for name in suggest.LENGTHS}
        except (GPTLabError, OSError) as error:  # for example, out of memory despite the estimate
            questions.show_error(self.console, error)
            raise Back from None
        choices = [MenuItem(name, name, _length_words(plan)) for name, plan in plans.items()]
        choices.append(MenuItem("minutes", "minutes", "a time that you type"))
        while True:
            title = self._title(3, "How long?")
            answer = questions.select(self.console, title, choices, 1, explanations.LENGTH)
            if answer != "minutes":
                self._take_plan(plans[answer])
                return
            try:
                minutes = questions.ask(
                    self.console,
                    "Minutes of training",
                    questions.number("The time", 0.1, 100_000),
                    "10",
                    explanations.MINUTES,
                )
            except Back:
                continue
            model = self.model or self._planner.fitted_model(60 * minutes)
            self._take_plan(self._planner.propose(model, minutes=minutes))
            return

    def _take_plan(self, plan: Proposal) -> None:
        self.plan, self.changed = plan, {}
        self._unchanged = plan

    def _plan_of(self, length: str) -> Proposal:
        steps, seconds = suggest.LENGTHS[length]
        if self.model is None:
            model = self._planner.fitted_model(seconds)
            return self._planner.propose(model, minutes=seconds / 60)
        return self._planner.propose(self.model, max_iters=steps)

    # Summary and start

    def ask_changes(self) -> None:
        """Show the plan; take changes of single options."""
        while True:
            self._show_summary()
            changes = questions.ask(
                self.console,
                self._title(4, "Anything to change? Type NAME VALUE, or press Enter to continue."),
                self._read_changes,
                "",
                explanations.SUMMARY,
                "continue",
            )
            if not changes:
                return

    def _read_changes(self, line: str) -> bool:
        """Take `NAME VALUE` pairs into the plan; whether there were any. Raises ConfigError."""
        if line.startswith("?"):
            self._say(explain_option(line[1:].strip(), OPTIONS))
            return True
        changes = parse_assignments(line)
        for name in changes:
            if name in NOT_CHANGED_HERE:
                raise ConfigError(f"{name} cannot be changed here: go back with b.")
        if not changes:
            return False
        overrides = {**self.changed, **changes}
        if changes.keys() & set(LENGTHS):
            overrides = {n: v for n, v in overrides.items() if n not in LENGTHS or n in changes}
        overrides = {name: value for name, value in overrides.items() if value != RESET}
        before = self._unchanged.options
        length = {name: overrides[name] for name in LENGTHS if overrides.get(name) is not None}
        length = length or {"max_iters": before["max_iters"]}
        model = {name: value for name, value in before.items() if name in ARCHITECTURE}
        self.plan = self._planner.propose(model, **length, changed=overrides)
        self.changed = overrides
        return True

    def _show_summary(self) -> None:
        from rich.text import Text

        table = facts_table("Summary")
        for label, words in self.summary().items():
            table.add_row(label, Text(words))
        self.console.print()
        self.console.print(table)

    def summary(self) -> dict[str, str]:
        """The plan as label -> words."""
        config, text = self.plan.config, self.text
        numbers = plan_numbers(config, text.train_tokens)
        model = config.model
        free = self.machine.free
        free_words = f", {in_gigabytes(free)} are free" if free is not None else ""
        ratio = numbers["tokens"] / numbers["active"]
        chinchilla = f"{ratio:.2g} (Chinchilla's rule of thumb is {CHINCHILLA}: " + (
            "a longer training would help)" if ratio < 10 else "a good use of the time)"
        )
        compiled = ", compiled" if config.machine.compile_model else ""
        return {
            "text": f"{self.dataset.name}: {size_of(self.dataset.meta)}",
            "model": (
                f"{in_millions(numbers['parameters'])} parameters"
                f"{active_in_words(model, in_millions)}: {model.n_layer} layers, "
                f"{model.n_head} heads, width {model.n_embd}, {model.block_size} tokens at once"
            ),
            "device": f"{config.machine.device} in {config.machine.dtype}{compiled}",
            "memory": f"{in_gigabytes(memory_needed(config))} needed{free_words}",
            "length": (
                f"{config.batch.max_iters:,} steps of {numbers['tokens_per_step']:,} tokens, about "
                f"{_duration(self.plan.seconds)}"
            ),
            "tokens per parameter": chinchilla,
            "readings of the text": (
                f"{numbers['epochs']:.2g}. "
                + expected_overfitting(numbers["epochs"], config.evaluation.early_stopping > 0)
            ),
            "regularisation": (
                f"dropout {model.dropout:g}, weight decay {config.optimizer.weight_decay:g}"
            ),
            "learning rate": (
                f"{config.optimizer.learning_rate:g} (optimizer {config.optimizer.optimizer}, "
                f"schedule {config.schedule.schedule})"
            ),
        }

    def ask_start(self) -> None:
        """Start now, save as a recipe, both, or show the command only."""
        self.action = questions.select(
            self.console,
            self._title(5, "Start now?"),
            [
                MenuItem("start", "start", f"train now, about {_duration(self.plan.seconds)}"),
                MenuItem("recipe", "recipe", "save the options in config/ and leave"),
                MenuItem("both", "both", "save the options, then train"),
                MenuItem("leave", "leave", "only show the command"),
            ],
            0,
            explanations.START,
        )
        if self.action in ("recipe", "both"):
            self.recipe = ask_recipe_name(self.console, self.dataset.name)

    def do(self) -> int:
        """Save, show the command, and train, as the answers require; the exit code."""
        folder = fresh_folder(out_home() / self.dataset.name)
        options = self.plan.options
        if self.recipe is not None:
            machine = ("device", "dtype", "compile_model")
            portable = {name: value for name, value in options.items() if name not in machine}
            title = f"A training on {self.dataset.name}, from the wizard's questions."
            write_recipe(self.recipe, portable, title)
            self._say(f"Wrote the recipe {display(self.recipe)}. It trains without questions:")
            self._say(command_line("train.py", {"config": display(self.recipe)}))
        starts = self.action in ("start", "both")
        again = fresh_folder(folder, is_taken=starts)
        self.console.print("\nThe same training without questions:", style="bold")
        print(command_line("train.py", {**options, "out_dir": display(again)}), flush=True)
        if not starts:
            return 0
        from gptlab.cli.commands.train import run_training

        print(flush=True)
        answers = {**options, "out_dir": display(folder)}
        return run_training(layer(command_line=answers, asked="the wizard"))

    # Helpers

    def _say(self, sentence: str) -> None:
        self.console.print(sentence, style="dim", markup=False, soft_wrap=False)


def _dataset_choice(name: str, meta: dict | None) -> MenuItem:
    refusal = ""
    if meta is None:
        refusal = (
            f"{name} has no readable meta.json, so its vocabulary is unknown: train it with "
            f"{program('train.py')} --dataset {quoted(name)} --vocab_size N."
        )
    return MenuItem(name, name, size_of(meta), refusal)


def _device_words(device) -> str:
    memory = ""
    if device.memory_total:
        free = f" of {in_gigabytes(device.memory_total)} free"
        memory = f", {in_gigabytes(device.memory_free)}{free}" if device.memory_free else ""
    return f"{device.description}{memory}" + ("" if device.usable else "; not usable")


def _length_words(plan: Proposal) -> str:
    config = plan.config
    return (
        f"{config.batch.max_iters:,} steps of a model with "
        f"{in_millions(count_parameters(config.model))} parameters, about {_duration(plan.seconds)}"
    )


def _duration(seconds: float) -> str:
    from gptlab.training.units import duration

    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.0f} days"
    return duration(seconds)
