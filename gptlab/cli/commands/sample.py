"""`sample.py`: write text with a trained model."""

import contextlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.errors import GenerationError, GPTLabError
from gptlab.files import atomic_write, display
from gptlab.inference.config import SamplingConfig
from gptlab.options import ESCAPED

FINISH_REASONS = {"end_of_text": "stop", "stop": "stop", "max_tokens": "length"}
# options that a search for the likeliest text ignores
DRAWING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class SampleOptions:
    """Prompt and model."""

    prompt: Annotated[
        str | None,
        "text to continue (\\n is a line end); - reads standard input [the start of a document]",
        ESCAPED,
    ] = None
    prompt_file: Annotated[str | None, "read the prompt from this file (UTF-8)"] = None
    prompts: Annotated[
        str | None,
        'many prompts: a file with one per line, or JSON Lines with "prompt"; - as above',
    ] = None
    json: Annotated[
        bool, "a JSON object per line: prompt, text, tokens (ids), logprobs, finish_reason"
    ] = False
    output: Annotated[str | None, "write the texts to this file instead of stdout"] = None
    interactive: Annotated[
        bool, "ask for prompts; Ctrl-C stops a text, Ctrl-D (Windows: Ctrl-Z Enter) the program"
    ] = False
    chat: Annotated[
        bool, "chat: each prompt is a message, and the model answers in its chat template"
    ] = False
    system: Annotated[
        str | None, "with --chat: the system message before the conversation", ESCAPED
    ] = None
    out_dir: Annotated[
        str | None,
        "the run: its best.pt, else its ckpt.pt; several with commas between write together, from "
        "the average of their probabilities [the newest run]",
    ] = None
    checkpoint: Annotated[str | None, "one checkpoint file, instead of --out_dir"] = None
    device: Annotated[str, "cpu, cuda, cuda:1, mps, xpu, or auto"] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "int8", "auto"],
        "float32 writes the same text on every device; bfloat16 and, on a CPU, int8 are faster; "
        "auto as in training",
    ] = "float32"


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    overrides = COMMANDS["generate"].parse(argv)
    _refuse_what_contradicts(overrides)
    names = SampleOptions.__dataclass_fields__
    options = SampleOptions(
        **{name: overrides.pop(name) for name in list(overrides) if name in names}
    )
    config = SamplingConfig(**overrides)
    if options.prompts is not None:
        return _write_all(options, config, _read_prompts(options.prompts))
    if options.chat and options.prompt is None and options.prompt_file is None:
        options = replace(options, interactive=options.interactive or sys.stdin.isatty())
    prompt = _given_prompt(options)
    if options.json or options.output is not None:
        if prompt is None:
            prompt = _as_text(sys.stdin.buffer.read(), "Standard input")
        return _write_all(options, config, [(prompt, "")])
    generator, attention, template = load_generator(options, config.max_tokens * config.num_samples)
    generator.check(config)
    write = write_streaming
    if options.chat:
        from gptlab.cli.ui.conversation import Talk

        write = Talk(generator, template, options.system).write
    if prompt is None and not options.interactive:
        _note("Reading the prompt from standard input.")
        prompt = _as_text(sys.stdin.buffer.read(), "Standard input")
    with attention:
        if options.interactive:
            from gptlab.cli.ui.conversation import converse

            converse(generator, config, write, prompt)
        elif config.num_samples == 1:
            write(generator, prompt, config)
        else:
            _write_samples(generator, prompt, config)
    return 0


def _refuse_what_contradicts(overrides: dict) -> None:
    """Raise GenerationError for two options of which one would be ignored."""
    pairs = [("prompt", "prompt_file"), ("prompt", "prompts"), ("prompt_file", "prompts")]
    pairs += [("out_dir", "checkpoint")]
    for one in ("prompts", "json", "output"):  # these write all texts and end
        pairs += [(one, "interactive"), (one, "chat")]
    for first, second in pairs:
        if overrides.get(first) not in (None, False) and overrides.get(second) not in (None, False):
            raise GenerationError(f"--{first} and --{second} exclude each other", "use one of them")
    if overrides.get("interactive") and overrides.get("prompt") == "-":
        raise GenerationError(
            "--prompt - and --interactive both read standard input", "use one of them"
        )
    for name in ("interactive", "chat"):
        if overrides.get(name) and overrides.get("num_samples", 1) > 1:
            raise GenerationError(
                f"--{name} shows one text at a time", f"leave --num_samples out, or --{name}"
            )
    if overrides.get("system") is not None and not overrides.get("chat"):
        raise GenerationError("--system belongs to --chat", "add --chat")
    if overrides.get("beam_width", 1) > 1:
        for name in DRAWING_OPTIONS:
            if name in overrides:
                raise GenerationError(
                    f"--beam_width {overrides['beam_width']} searches for the likeliest text "
                    f"without sampling, so --{name} has no effect",
                    "leave one of the two out",
                )


def _read_prompts(place: str) -> list[tuple[str, str]]:
    """The prompts of a file, each with its place in words. GenerationError.

    JSON Lines where the first line is a JSON object, else one prompt a line; empty lines are left
    out, which is reported.
    """
    name = "standard input" if place == "-" else display(place)
    data = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
    lines = list(enumerate(_as_text(data, name).removesuffix("\n").split("\n"), 1))
    full = [(n, line) for n, line in lines if line.strip()]
    if not full:
        raise GenerationError(f"{name} holds no prompt", "write one per line")
    is_json = False
    with contextlib.suppress(ValueError, RecursionError):
        is_json = isinstance(json.loads(full[0][1]), dict)
    prompts = [
        (_prompt_of(line, number, name) if is_json else line, f"Line {number} of {name}")
        for number, line in full
    ]
    kind, empty = 'JSON Lines with "prompt"' if is_json else "one per line", len(lines) - len(full)
    left_out = f", {empty} empty {'line' if empty == 1 else 'lines'} left out" if empty else ""
    many = "1 prompt" if len(prompts) == 1 else f"{len(prompts):,} prompts"
    _note(f"{many} in {name} ({kind}{left_out}).")
    return prompts


def _prompt_of(line: str, number: int, name: str) -> str:
    """The prompt of a line of JSON. GenerationError."""
    try:
        prompt = json.loads(line)["prompt"]
        if isinstance(prompt, str):
            return prompt
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    raise GenerationError(
        f'Line {number} of {name} is not a JSON object with a text "prompt"',
        "correct it, or write one prompt per line",
    )


def _write_all(options: SampleOptions, config: SamplingConfig, prompts: list) -> int:
    """Write the texts of all prompts, in batches, to stdout or a file; the exit code."""
    with contextlib.ExitStack() as stack:
        write = _write
        if options.output is not None:  # before the work: the place may be refused
            write = stack.enter_context(atomic_write(options.output, "w")).write
        total = config.max_tokens * config.num_samples * len(prompts)
        generator, attention, _ = load_generator(options, total)
        generator.check(config)
        for prompt, where in prompts:
            _check_prompt(generator, prompt, where)
        stack.enter_context(attention)
        steps = total if config.beam_width == 1 else config.max_tokens * len(prompts)
        progress = stack.enter_context(_progress(steps))
        number, at_once = 0, max(1, generator.batch_size // config.num_samples)
        for first in range(0, len(prompts), at_once):
            some = [prompt for prompt, _ in prompts[first : first + at_once]]
            for completion in generator.generate(some, config, progress):
                if options.json:
                    write(json.dumps(_as_object(completion), ensure_ascii=False) + "\n")
                else:
                    text = completion.prompt + completion.text
                    write(_heading(number, len(prompts), config.num_samples))
                    write(text if text.endswith("\n") else text + "\n")
                number += 1
    if options.output is not None:
        _note(
            f"Wrote {number:,} {'text' if number == 1 else 'texts'} to {display(options.output)}."
        )
    return 0


def _check_prompt(generator, prompt: str, where: str) -> None:
    """The error of a prompt that this model cannot read, with its place."""
    try:
        generator.tokenizer.encode(prompt)
    except GPTLabError as error:
        problem = f"{where}: {error.problem}" if where else error.problem
        raise GenerationError(problem, error.fix, sep=error.sep) from None


def _heading(number: int, prompts: int, samples: int) -> str:
    """The line above the text of this number; "" where there is only one."""
    parts = []
    if prompts > 1:
        parts.append(f"prompt {number // samples + 1} of {prompts}")
    if samples > 1:
        parts.append(f"sample {number % samples + 1} of {samples}")
    return f"=== {', '.join(parts)} ===\n" if parts else ""


def _as_object(completion) -> dict:
    """A completion as programs read it; finish_reason as OpenAI's API has it."""
    return {
        "prompt": completion.prompt,
        "text": completion.text,
        "tokens": completion.token_ids,
        "logprobs": [round(value, 6) for value in completion.log_probs],
        "finish_reason": FINISH_REASONS[completion.stopped_by],
    }


def _given_prompt(options: SampleOptions) -> str | None:
    """The prompt of the command line or of a file; None where it comes from standard input."""
    if options.prompt_file is not None:
        return _as_text(Path(options.prompt_file).read_bytes(), display(options.prompt_file))
    if options.prompt not in (None, "-"):
        return options.prompt
    if options.prompt == "-" or options.interactive or not sys.stdin.isatty():
        return None
    return ""  # nothing was piped in: the start of a document


def _as_text(data: bytes, name: str) -> str:
    """Bytes as text, by the same rules as a corpus: no byte-order mark, line ends as \\n."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"{name} is not UTF-8 at byte {error.start:,}", "save the prompt as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_generator(options: SampleOptions, tokens: int):
    """(Generator of the chosen checkpoint, the context to write in, chat template).

    tokens: number of tokens to write.
    """
    from gptlab.inference.ensemble import ensemble_of, model_words
    from gptlab.runs import find_run, load_checkpoint, newest_run

    paths = [options.checkpoint or options.out_dir or newest_run()]
    if options.out_dir is not None and options.checkpoint is None:
        words = model_words(options.out_dir)
        paths = [word if Path(word).is_file() else find_run(word) for word in words]
    if len(paths) > 1 and options.dtype == "int8":
        raise GenerationError(
            "--dtype int8 is for one model, and several are named",
            "use --dtype bfloat16, or name one",
        )
    if sys.stderr.isatty():
        print("Loading torch ...", end="\r", file=sys.stderr, flush=True)
    choice = _choose(options.device, options.dtype)
    opened = [load_checkpoint(path, choice.device) for path in paths]
    checkpoint = ensemble_of(opened) if len(opened) > 1 else opened[0]
    dtype = "int8" if options.dtype == "int8" else choice.dtype
    for one in opened:
        _note(_describe(one, dtype, choice.device))
    if checkpoint.members:
        _note(_averaged(checkpoint))
    if choice.slow:
        _note(f"{choice.reason}.")
    generator, attention = make_generator(checkpoint, choice, dtype, tokens)
    return generator, attention, checkpoint.content.get("chat_template")


def make_generator(checkpoint, choice, dtype: str, tokens: int):
    """(Generator of a checkpoint on the chosen device, the context to write in).

    tokens: number of tokens to write. Raises GenerationError for a model without a tokenizer.
    """
    import torch

    from gptlab.inference.generator import Generator

    if checkpoint.tokenizer is None:
        raise GenerationError(
            f"{checkpoint.name} was trained on token ids without a tokenizer, so it "
            "cannot read or write text",
            "put a tokenizer.json next to its train.bin and train again",
        )
    model, native = checkpoint.model, None
    if choice.device == "cpu" and choice.dtype != "float16" and not checkpoint.members:
        from gptlab.inference.native import NativeDecoder
        from gptlab.model.quantization import round_weights

        round_weights(model, dtype)
        native = NativeDecoder.worth_it(model, dtype, tokens)
    if native is None:
        model = model.to(getattr(torch, choice.dtype))
    generator = Generator(model, checkpoint.tokenizer, native)
    generator.reverses = bool(checkpoint.content.get("reversed_answers"))
    members = checkpoint.members or (checkpoint,)
    head_dims = {member.model.config.head_dim for member in members}
    return generator, _attention(choice, head_dims)


def _choose(device: str, dtype: str):
    """The device and precision, with only the necessary trials, for a quick start."""
    from gptlab.hardware import choose, detect

    untried = choose(detect(only=""), device, "auto" if dtype == "auto" else "float32")
    if untried.device == "cpu" and dtype in ("float32", "int8"):
        return untried
    if dtype == "int8":
        raise GenerationError(
            f"--dtype int8 is for CPUs, not for {untried.device}",
            "use --device cpu, or --dtype bfloat16",
        )
    return choose(detect(), device, dtype)


def _describe(checkpoint, dtype: str, device: str) -> str:
    loss = checkpoint.val_loss
    parts = [
        f"{display(checkpoint.path)}: step {checkpoint.step:,}",
        "no validation loss recorded" if loss is None else f"validation loss {loss:.4f}",
        f"{dtype} on {device}",
    ]
    if checkpoint.content.get("weights") == "averaged":
        parts[1] += " (averaged weights)"
    return ", ".join(parts)


def _averaged(checkpoint) -> str:
    """How an ensemble writes, and by whose window where these differ."""
    windows = {member.model.config.block_size for member in checkpoint.members}
    sentence = f"Writing from the average of the probabilities of {len(checkpoint.members)} models"
    if len(windows) > 1:
        sentence += f", in windows of {min(windows):,} tokens, the shortest that they have"
    return f"{sentence}."


def _attention(choice, head_dims: set[int]):
    """A context with correct attention on this device: fused, or the plain formula."""
    from gptlab.hardware import attention_is_causal

    if choice.device == "cpu" or all(
        attention_is_causal(choice.device, choice.dtype, head_dim=size) for size in head_dims
    ):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    _note(f"Fused attention is wrong on {choice.device}; using the plain formula.")
    return sdpa_kernel(SDPBackend.MATH)


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def write_streaming(generator, prompt: str, config: SamplingConfig) -> None:
    """Print a prompt and its continuation as it comes, with a newline at the end."""
    ids = generator.prompt_ids(prompt)  # before anything is shown, because it may be refused
    _write(prompt)
    last = prompt
    try:
        with _progress(config.max_tokens if config.beam_width > 1 else None) as progress:
            for piece in generator.stream(ids, config, progress):
                _write(piece)
                last = piece
    finally:
        if not last.endswith("\n"):
            _write("\n")


def _write_samples(generator, prompt: str, config: SamplingConfig) -> None:
    """Print several continuations, each under a line with its number."""
    beams = config.beam_width > 1
    with _progress(config.max_tokens * (1 if beams else config.num_samples)) as progress:
        completions = generator.generate(prompt, config, progress)
    for number, completion in enumerate(completions, start=1):
        text = prompt + completion.text
        _write(f"=== sample {number} of {len(completions)} ===\n")
        _write(text if text.endswith("\n") else text + "\n")


@contextlib.contextmanager
def _progress(total: int | None):
    """A function that takes numbers of tokens: a bar on a terminal, else nothing."""
    if total is None or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="token", leave=False, delay=1) as bar:
        yield bar.update
