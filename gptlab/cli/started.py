"""When this process started: what a time budget counts from. cli/main.py loads it first."""

import time

STARTED = time.perf_counter()
