"""`sample.py --interactive`: prompts are asked for, texts are streamed."""

import contextlib
import sys

from gptlab.errors import GPTLabError
from gptlab.inference.config import SamplingConfig


def converse(generator, config: SamplingConfig, write, first: str | None = None) -> None:
    """Ask for prompts and `write(generator, prompt, config)` until the input ends.

    Each line is a prompt of its own: the model continues text, it does not remember. Ctrl-C stops
    the text that is being written, or empties the line that is being typed. A prompt that cannot
    be used is answered by its sentence.
    """
    with contextlib.suppress(ImportError):  # Windows has its own line editing
        import readline  # noqa: F401
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
    print(f"Type a prompt. Ctrl-C stops a text, {end} ends.", file=sys.stderr, flush=True)
    prompt = first
    while True:
        try:
            if prompt is None:
                prompt = input("> " if on_terminal else "")
            current, prompt = prompt, None
            write(generator, current, config)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return
        except GPTLabError as error:
            print(f"gptlab: {error}", file=sys.stderr, flush=True)
