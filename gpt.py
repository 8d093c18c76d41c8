"""All commands behind one: python gpt.py --help."""

import sys

from gptlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
