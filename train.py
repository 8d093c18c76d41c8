"""Train a model: python train.py --help."""

import sys

from gptlab.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
