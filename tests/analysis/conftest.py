"""A training of a second on a folder of texts."""

import pytest

GARBAGE = "".join(chr(33 + (i * i * 7919 + i * 104729) % 94) for i in range(400))
BOOKS = {
    f"b{i}.txt": [f"the {i} and the {n} are what the book of line {n} is about" for n in range(9)]
    for i in range(12)
} | {"garbage.txt": [GARBAGE]}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`gptlab.train` as it is, for runs of a second; out_dir is a name under out/ of the home.

    The home has a folder of texts, prepared as "books" by characters.
    """

    from gptlab.data.prepare import PrepareOptions, prepare
    from gptlab.training import trainer
    from gptlab.training.picture import Picture

    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    for name, lines in BOOKS.items():
        path = tmp_path / "books" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    prepare("books", PrepareOptions(tokenizer="char", split="document"))

    def run(out_dir="run", **options):
        small = dict(
            dataset="books", n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0,
            batch_size=4, max_iters=12, eval_tokens=64, log_interval=1, quiet=True,
            learning_rate=1e-2, device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
        if options.get("resume"):
            small = dict(quiet=True)
        folder = tmp_path / "out" / out_dir
        trainer.train(**{**small, **options, "out_dir": str(folder)})
        return folder

    return run
