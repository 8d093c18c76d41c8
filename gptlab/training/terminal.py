"""Show a training at a terminal: lines, and a progress bar below them."""

import re
import sys

from tqdm import tqdm

# characters that ring, clear or recolour a terminal; an untrained model writes them
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """Lines on stdout and, where stderr is a terminal, a bar of steps; nothing unless loud."""

    def __init__(self, loud: bool):
        self.loud = loud
        self.bar = None

    def say(self, text: str = "") -> None:
        """Print a line above the bar."""
        if self.loud:
            with tqdm.external_write_mode(file=sys.stdout):
                try:
                    print(text, flush=True)
                except UnicodeEncodeError:  # a console must not end a run
                    known = sys.stdout.encoding
                    print(text.encode(known, "replace").decode(known), flush=True)

    def begin(self, step: int, total: int) -> None:
        """Show the bar: `step` of `total` steps are done."""
        if self.loud and sys.stderr.isatty():
            self.bar = tqdm(
                total=total,
                initial=step,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                smoothing=0.05,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar:12}|{postfix}",
            )

    def advance(self) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.update(1)

    def go_back(self, step: int) -> None:
        """The run stands at an earlier step again."""
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
