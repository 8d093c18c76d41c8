"""Show the result of a training at a terminal: its curves' findings, a sample, next commands."""

import sys

from gptlab.cli.ui.command_line import command_line, command_to_try, program
from gptlab.errors import GPTLabError
from gptlab.files import display, quoted

SAMPLE_TOKENS, SHOWN_ANSWERS = 300, 6
# a larger model takes too long on a CPU for a sample that nobody requested
MOST_PARAMETERS_ON_CPU = 60_000_000


def show_result(outcome) -> None:
    """Print findings about the run's curves, a sample, and three commands.

    outcome: `training.trainer.Outcome` of a finished training. A part that fails is left out with
    a message, because the training itself has succeeded.
    """
    from gptlab.analysis.diagnosis import diagnose, read_run
    from gptlab.data.token_files import find_meta, is_chat, is_task
    from gptlab.training.terminal import columns, wrapped

    folder = display(outcome.folder)
    run = read_run(outcome.folder)
    findings = diagnose(run)
    for finding in findings:
        print(wrapped(f"Noticed: {finding.sentence}", columns()))
    data = run.settings.get("dataset", "")
    try:
        if is_task(find_meta(data)):
            _show_answers(outcome.folder, data)
        else:
            _show_sample(outcome.folder)
    except (GPTLabError, OSError) as error:
        print(f"gptlab: no sample ({error})", file=sys.stderr)
    longer = {"out_dir": folder, "max_iters": 2 * outcome.step}
    print("Next, for example:")
    if is_chat(find_meta(data)):
        print(f"  {command_line('sample.py', {'out_dir': folder})} --chat")
        print("      talk with the model")
    else:
        print(f"  {command_line('sample.py', {'out_dir': folder})} --interactive")
        print("      write with the model, which continues your text")
    if findings:
        print(f"  {command_to_try(run, findings[0])}")
        print("      the change that should help most")
    else:
        print(f"  {command_line('train.py', longer)} --resume")
        print("      continue to twice as many steps")
    print(f"  {program('gpt.py')} report {quoted(folder)}")
    print("      the whole run on one page for a browser", flush=True)


def _show_answers(folder, dataset: str) -> None:
    """Print what the best weights answer to a few problems that no training meets."""
    from gptlab.data.mixture import open_part
    from gptlab.data.task_files import as_written
    from gptlab.inference.config import SamplingConfig
    from gptlab.inference.generator import Generator
    from gptlab.runs import load_checkpoint

    checkpoint, data = load_checkpoint(folder), open_part(dataset)
    problems = data.test_problems["unseen"]
    some = problems[:: max(1, len(problems) // SHOWN_ANSWERS)][-SHOWN_ANSWERS:]
    generator = Generator(checkpoint.model, checkpoint.tokenizer)
    generator.reverses = bool(checkpoint.content.get("reversed_answers"))
    sampling = SamplingConfig(max_tokens=data.longest_tested, top_k=1)
    print(f"Its answers to problems that it never met (step {checkpoint.step}):")
    for problem in some:
        text = problem.prompt + generator.generate(problem.prompt, sampling)[0].text
        wanted = as_written(data.task, problem)
        print(f"  {text}" + ("" if text == wanted else f"  (wrong: {wanted})"))


def _show_sample(folder) -> None:
    """Stream a text from the best weights, on the CPU, between two rules."""
    from gptlab.data.tokenizer import Tokenizer
    from gptlab.errors import TokenizerError
    from gptlab.inference.config import SamplingConfig
    from gptlab.inference.generator import Generator
    from gptlab.model.arithmetic import active_parameters
    from gptlab.runs import load_checkpoint
    from gptlab.training.terminal import CONTROL

    checkpoint = load_checkpoint(folder)
    tokenizer: Tokenizer | None = checkpoint.tokenizer
    if tokenizer is None or active_parameters(checkpoint.model.config) > MOST_PARAMETERS_ON_CPU:
        return
    prompt = "\n"
    try:
        tokenizer.encode(prompt)
    except TokenizerError:
        prompt = ""
    rule = "-" * 40
    print(f"A sample (step {checkpoint.step}):\n{rule}")
    generator = Generator(checkpoint.model, tokenizer)
    generator.reverses = bool(checkpoint.content.get("reversed_answers"))
    config = SamplingConfig(max_tokens=SAMPLE_TOKENS, seed=1)
    at_start, last = True, "\n"
    for piece in generator.stream(prompt, config):
        piece = CONTROL.sub("\ufffd", piece)
        piece = piece.lstrip("\n") if at_start else piece
        if piece:
            at_start, last = False, piece
            print(piece, end="", flush=True)
    print(("" if last.endswith("\n") else "\n") + rule)
