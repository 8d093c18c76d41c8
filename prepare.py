"""Turn a text into a dataset: python prepare.py --help."""

import sys

from gptlab.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("prepare", sys.argv[1:]))
