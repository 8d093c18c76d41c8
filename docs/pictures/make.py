"""Make the pictures of README.md again: a training in a terminal, its report, its exported page.

python docs/pictures/make.py [TEXT]

TEXT is a text file, by default Shakespeare as `prepare.py shakespeare` finds it. It copies the
checkout into a temporary folder, trains there for some minutes, and needs Chromium for the pages.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path(__file__).resolve().parent
TRAIN = "python train.py --config config/shakespeare_char.py --max_iters 500"
COLUMNS = 80
LINES = 34  # at most, of the terminal
PAGES = {  # file: (page, its query, width, height in pixels)
    "report.png": ("out/shakespeare_char/report.html", "", 1100, 1500),
    "page.png": ("out/shakespeare_char/page.html", "?prompt=ROMEO:&n=260", 1100, 860),
}
MOST_COLOURS = 256
PAGE_TIME = 6000  # milliseconds that a page has before its picture is taken


def main(argv: list[str]) -> int:
    """Make all pictures; the exit code."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        print("There is no Chromium here: install it, because it draws the pages.")
        return 2
    text = [str(Path(word).resolve()) for word in argv[:1]] or ["shakespeare"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gptlab", "config", "gpt.py", "train.py", "prepare.py", "sample.py"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        run(folder, "prepare.py", *text, "--dataset", "shakespeare")
        shown = in_terminal(folder, [*TRAIN.split()[1:], "--sample_interval", "250"])
        draw_terminal(TRAIN, shown, PICTURES / "training.svg")
        run(folder, "gpt.py", "report", "shakespeare_char")
        page = Path(folder, "out/shakespeare_char/page.html")
        run(
            folder,
            "gpt.py",
            "export",
            "shakespeare_char",
            "--format",
            "html",
            "--output",
            str(page),
        )
        for name, (page, query, width, height) in PAGES.items():
            url = Path(folder, page).as_uri() + query
            draw_page(browser, url, (width, height), PICTURES / name)
    return 0


def environment() -> dict[str, str]:
    """Of a terminal of COLUMNS columns with colours, and of no other home."""
    kept = {name: value for name, value in os.environ.items() if name != "GPTLAB_HOME"}
    return kept | {"COLUMNS": str(COLUMNS), "LINES": "24", "TERM": "xterm-256color"}


def run(folder: str, *words: str) -> None:
    """Run a script of the copy."""
    subprocess.run([sys.executable, *words], cwd=folder, env=environment(), check=True)


def in_terminal(folder: str, words: list[str]) -> str:
    """What a command writes to a terminal, with its colours."""
    ours, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment(), stdin=child, stdout=child,
        stderr=child,
    )  # fmt: skip
    os.close(child)
    found = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux reports the end of the process as an error
            piece = b""
        if not piece:
            break
        found += piece
    os.close(ours)
    if process.wait():
        raise SystemExit(found.decode(errors="replace"))
    return found.decode(errors="replace")


def visible(written: str) -> list[str]:
    """The lines that a terminal shows in the end: what `\\r` overwrites is gone, colours stay."""
    without = re.sub(r"\x1b\[[0-9;?]*[A-Za-ln-z]", "", written)  # all but colours, which end in m
    return [line.rstrip("\r").rpartition("\r")[2] for line in without.split("\n")]


def draw_terminal(command: str, written: str, path: Path) -> None:
    """A terminal with a command and what it wrote, as SVG."""
    from rich.console import Console
    from rich.text import Text

    lines = visible(written)[:LINES]
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {command}", "bold"))
        for line in lines:
            console.print(Text.from_ansi(line))
        svg = console.export_svg(title="gptlab")
    # no font from elsewhere: a page that shows a picture does not load it
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def draw_page(browser: str, url: str, size: tuple[int, int], path: Path) -> None:
    """The top of a page as PNG, with few colours so that it stays small."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as profile:
        picture = Path(profile) / "picture.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}/profile", f"--screenshot={picture}"]
        command += [f"--window-size={size[0]},{size[1]}", f"--virtual-time-budget={PAGE_TIME}"]
        subprocess.run([*command, url], check=True, capture_output=True, timeout=120)
        Image.open(picture).convert("RGB").quantize(MOST_COLOURS, Image.Quantize.MAXCOVERAGE).save(
            path, optimize=True
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
