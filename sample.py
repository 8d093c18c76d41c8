"""Write text with a trained model: python sample.py --help."""

import sys

from gptlab.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("sample", sys.argv[1:]))
