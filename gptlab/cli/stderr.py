"""Print errors and warnings as plain sentences on stderr, in UTF-8 in any locale."""

import logging
import os
import sys

from gptlab.files import runnable


def complain(sentence: str) -> None:
    """Print an error to stderr; among the processes of one training, only the first does."""
    if os.environ.get("RANK", "0") == "0":
        sentence = runnable(sentence).replace("\n", " ")  # a name may contain one
        print(f"gptlab: {sentence}", file=sys.stderr, flush=True)


class _Sentences(logging.Handler):
    """Warnings of the package as lines on stderr, above a progress bar where there is one."""

    def emit(self, record):
        if os.environ.get("RANK", "0") != "0":
            return
        line = f"gptlab: {runnable(record.getMessage())}"
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


def configure_output() -> None:
    """Use UTF-8 in any locale, and print warnings of this package as plain sentences."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    logger = logging.getLogger("gptlab")
    if not any(isinstance(handler, _Sentences) for handler in logger.handlers):
        logger.addHandler(_Sentences())
        logger.propagate = False
