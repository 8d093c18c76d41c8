"""The start time of this process, from which a time budget counts. cli/main.py loads it first."""

import time

STARTED = time.perf_counter()
