"""A validation text that is unlike the training text is said, at preparing and by the doctor."""

import random
from pathlib import Path

from gptlab.analysis.health import check_validation
from gptlab.cli.main import run_command
from gptlab.data.baselines import compare_parts, unlike
from gptlab.data.prepare import PrepareOptions, prepare

ONE = "ba ko ri el na mi sha tu vo len".split()
OTHER = "xq zz wyrk pth gnu dfsg blk vrr ckt qqu".split()


def text_of(syllables, size, seed):
    rng = random.Random(seed)
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(size)]
    lines = [" ".join(words[i : i + 8]) for i in range(0, size, 8)]
    paragraphs = ["\n".join(lines[i : i + 4]) for i in range(0, len(lines), 4)]
    return "\n\n".join(paragraphs) + "\n\n"


def test_tiny_shakespeares_tail_is_like_the_rest_and_a_licence_is_not(tiny_shakespeare):
    text = tiny_shakespeare.read_bytes()
    for size in (30_000, 165_000, len(text)):
        cut = int(0.9 * size)
        assert not unlike(compare_parts(text[:cut], text[cut:size]))
    source = Path(__file__).read_bytes() * 8
    assert unlike(compare_parts(text[:165_000], source[:18_000]))


def test_the_tail_of_another_kind_is_said_and_paragraphs_mend_it(home):
    (home / "t.txt").write_text(text_of(ONE, 16_000, 1) + text_of(OTHER, 1150, 2))
    done = prepare("t.txt")
    said = next(note for note in done.notes if "unlike" in note)
    split = done.dataset.meta["split"]
    assert split["val_5gram"] > 1.5 * split["hardest_5gram"]
    assert f"{split['val_5gram']:.2f} bits per byte" in said and "--document paragraph" in said
    spread = prepare("t.txt", PrepareOptions(document="paragraph", dataset="spread"))
    assert not any("unlike" in note for note in spread.notes)
    assert check_validation("spread", spread.dataset.meta) is None
    found = check_validation("t", done.dataset.meta)
    assert not found.ok and "--document paragraph" in found.fix


def test_a_file_that_validates_is_compared_too(home):
    (home / "t.txt").write_text(text_of(ONE, 16_000, 1))
    (home / "same.txt").write_text(text_of(ONE, 1800, 2))
    (home / "other.txt").write_text(text_of(OTHER, 1800, 3))
    for name, is_unlike in (("same.txt", False), ("other.txt", True)):
        done = prepare("t.txt", PrepareOptions(val=name, overwrite=True))
        assert any("unlike" in note for note in done.notes) == is_unlike
        assert bool(check_validation("t", done.dataset.meta)) == is_unlike


def test_a_short_text_is_not_judged(home):
    assert compare_parts(b"a few words " * 100, b"zzz" * 50) == {}


def test_doctor_says_it_of_the_dataset(home, capsys):
    (home / "t.txt").write_text(text_of(ONE, 16_000, 1) + text_of(OTHER, 1150, 2))
    prepare("t.txt")
    assert run_command("doctor", ["--dataset", "t"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "FAIL validation text of t: the validation text is unlike the training text" in out
    assert "prepare it with --document paragraph" in out


def test_the_view_of_the_dataset_says_it_too(home, capsys):
    (home / "t.txt").write_text(text_of(ONE, 16_000, 1) + text_of(OTHER, 1150, 2))
    prepare("t.txt")
    assert run_command("dataset", ["view", "t"]) == 0
    assert "unlike the training text" in " ".join(capsys.readouterr().out.split())
