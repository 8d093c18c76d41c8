"""Ask for prompts and stream the texts, for `sample.py --interactive` and `--chat`."""

import contextlib
import sys

from gptlab.data.chat import ChatTemplate, Conversation
from gptlab.errors import GPTLabError
from gptlab.inference.config import SamplingConfig


class Talk:
    """A conversation with a chat model in its template; it remembers as much as fits the window."""

    def __init__(self, generator, template: str | None, system: str | None = None):
        own = ChatTemplate(template or "", generator.tokenizer)
        generator.end_ids.add(own.end_id())
        self._conversation = Conversation(own, generator.model.config.block_size, system)

    def write(self, generator, prompt: str, config: SamplingConfig) -> None:
        """Print the answer to a message as it comes, and remember both."""
        ids, left_out = self._conversation.ask(prompt, config.max_tokens)
        if left_out:
            print(f"(The first {left_out} messages no longer fit the window.)", file=sys.stderr)
        pieces = []
        try:
            for piece in generator.stream(ids, config):
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            self._conversation.answered("".join(pieces))
            if not (pieces and pieces[-1].endswith("\n")):
                sys.stdout.write("\n")
                sys.stdout.flush()


def converse(generator, config: SamplingConfig, write, first: str | None = None) -> None:
    """Ask for prompts and `write(generator, prompt, config)` until the input ends.

    Each line is a separate prompt; only `Talk.write` remembers earlier text. Ctrl-C stops the
    current text or clears the current line. For a prompt that cannot be used, the error is shown.
    """
    with contextlib.suppress(ImportError):  # Windows has its own line editing
        import readline  # noqa: F401
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
    print(f"Type a prompt. Ctrl-C stops a text, {end} exits.", file=sys.stderr, flush=True)
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
