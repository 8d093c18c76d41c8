import json
import os
import random
import re

import numpy as np
import pytest

from gptlab.data import prepare as preparation
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import train_bpe
from gptlab.errors import ConfigError, DataError, TokenizerError

POEM = "  Über allen Gipfeln\n\tist Ruh,\n\n\n\nin allen  Wipfeln  \nspürest du\n" * 30 + "kaum"


def bins(dataset):
    return [(dataset.folder / name).read_bytes() for name in ("train.bin", "val.bin")]


def decoded(dataset):
    return "".join(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))


def left_behind(home):
    data = home / "data"
    return sorted(p.name for p in data.iterdir() if p.name != ".corpora") if data.exists() else []


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_every_space_and_line_break_comes_back(write, tokenizer):
    write("poem.txt", POEM)
    assert decoded(prepare("poem.txt", PrepareOptions(tokenizer=tokenizer)).dataset) == POEM


def test_tiny_shakespeare_is_split_and_encoded_as_nanogpt_does(home, tiny_shakespeare):
    dataset = prepare(tiny_shakespeare).dataset
    text = tiny_shakespeare.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    ids = np.searchsorted(np.array(alphabet), np.array(list(text)))
    n = int(0.9 * len(text))
    assert (len(dataset.train), len(dataset.val)) == (1_003_854, 111_540)
    assert np.array_equal(dataset.train, ids[:n]) and np.array_equal(dataset.val, ids[n:])
    assert dataset.vocab_size == len(alphabet) + 1 == 66
    assert dataset.meta["split"]["how"] == "tail" and dataset.meta["split"]["separators"] == 0


def test_bpe_ids_are_those_of_the_whole_parts_and_the_vocabulary_is_learned_from_training_text(
    write,
):
    text = POEM + "zebra " * 400  # only in the last tenth
    write("t.txt", text)
    dataset = prepare("t.txt", PrepareOptions(tokenizer="bpe", vocab_size=330)).dataset
    train, val = text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :]
    expected = train_bpe([train], 330)
    assert dataset.tokenizer.fingerprint == expected.fingerprint
    assert dataset.train.tolist() == expected.encode(train)
    assert dataset.val.tolist() == expected.encode(val)


def test_meta_says_what_is_there(write, home):
    write("poem.txt", POEM.replace("\n", "\r\n"))
    dataset = prepare("poem.txt", PrepareOptions(val_fraction=0.2)).dataset
    meta = json.loads((dataset.folder / "meta.json").read_text(encoding="utf-8"))
    cut = int(len(POEM) * 0.8)
    assert meta["train_bytes"] == len(POEM[:cut].encode())
    assert meta["val_bytes"] == len(POEM[cut:].encode())
    assert meta["train_tokens"] + meta["val_tokens"] == meta["characters"] == len(POEM)
    assert meta["counts"] == {"Windows line ends (CR LF) normalised": POEM.count("\n")}
    leaked = meta["split"].pop("leaked_tokens")  # the poem stands there thirty times
    assert meta["split"].pop("leaked_share") == leaked / meta["val_tokens"] > 0.9
    assert meta["split"] == {
        "how": "tail",
        "val_fraction": 0.2,
        "seed": 1337,
        "separators": 0,
    }
    assert meta["source"]["files"][0]["path"] == str(home / "poem.txt")
    assert set(meta["baselines"]) >= {"lzma", "unigram", "5gram", "train_tokens_used"}
    assert meta["format_version"] == 1 and meta["dtype"] == "uint16"
    assert sorted(os.listdir(dataset.folder)) == [
        "documents.json",
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
        "val.leaks.npy",
    ]


def test_a_large_vocabulary_is_written_in_four_bytes(write):
    letters = "".join(map(chr, range(0x10000, 0x20000)))
    write("big.txt", letters + letters[:9000])
    dataset = prepare("big.txt", PrepareOptions(tokenizer="char")).dataset
    assert dataset.vocab_size == 65_537 and dataset.meta["dtype"] == "uint32"
    assert dataset.train.dtype == np.dtype("<u4")
    assert decoded(dataset) == letters + letters[:9000]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_each_document_ends_with_one_separator_and_user_text_never_makes_one(write, tokenizer):
    texts = ["one <|endoftext|> two\n" * 50, "three\n" * 60, "four <|endoftext|>\n" * 70]
    for i, text in enumerate(texts):
        write(f"docs/{i}.txt", text)
    dataset = prepare("docs", PrepareOptions(tokenizer=tokenizer)).dataset
    ids = [*dataset.train.tolist(), *dataset.val.tolist()]
    assert ids.count(dataset.tokenizer.eot_id) == 3 == dataset.meta["split"]["separators"]
    assert len(decoded(dataset)) == sum(map(len, texts))


def test_renamed_files_give_the_same_split(write):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("some words to make a text of".split(), k=50)) for _ in range(60)]
    for i, text in enumerate(texts):
        write(f"one/{i}.txt", text)
        write(f"two/x{59 - i}/y.md", text)
    one, two = prepare("one").dataset, prepare("two").dataset
    assert one.meta["split"]["how"] == "document"
    assert bins(one) == bins(two)
    assert 0.05 < one.meta["val_bytes"] / (one.meta["train_bytes"] + one.meta["val_bytes"]) < 0.2
    other = prepare("one", PrepareOptions(dataset="other", seed=2)).dataset
    assert bins(other) != bins(one)


def test_few_documents_are_split_by_the_tail_and_many_by_document_unless_set(write):
    for i in range(3):
        write(f"few/{i}.txt", f"{i} words\n" * 100)
    assert prepare("few").dataset.meta["split"]["how"] == "tail"
    explicit = prepare("few", PrepareOptions(dataset="explicit", split="document")).dataset
    assert explicit.meta["split"]["how"] == "document"
    assert (explicit.meta["train_documents"], explicit.meta["val_documents"]) == (2, 1)
    rows = [json.dumps({"text": f"row {i} of many"}) for i in range(300)]
    write("many.jsonl", "\n".join(rows))
    assert prepare("many.jsonl").dataset.meta["split"]["how"] == "document"
    tail = prepare("many.jsonl", PrepareOptions(dataset="tail", split="tail")).dataset
    assert tail.meta["split"]["how"] == "tail"


def test_preparing_again_does_nothing_and_says_so(write):
    write("poem.txt", POEM)
    first = prepare("poem.txt")
    stamp = (first.dataset.folder / "train.bin").stat().st_mtime_ns
    again = prepare("poem.txt")
    assert again.skipped and not first.skipped
    assert (again.dataset.folder / "train.bin").stat().st_mtime_ns == stamp
    forced = prepare("poem.txt", PrepareOptions(overwrite=True))
    assert not forced.skipped and bins(forced.dataset) == bins(first.dataset)


def test_a_changed_text_or_option_is_prepared_again_and_reported(write):
    write("poem.txt", POEM)
    first = prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=280))
    second = prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=285))
    assert any("vocab_size 280 -> 285" in note for note in second.notes)
    assert (first.dataset.vocab_size, second.dataset.vocab_size) == (280, 285)
    write("poem.txt", POEM + " auch")
    third = prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=285))
    assert any("poem.txt has changed" in note for note in third.notes)
    assert decoded(third.dataset) == POEM + " auch"


def test_a_damaged_dataset_is_prepared_again_and_reported(write):
    write("poem.txt", POEM)
    first = prepare("poem.txt")
    before = bins(first.dataset)
    (first.dataset.folder / "val.bin").write_bytes(b"ab")
    again = prepare("poem.txt")
    assert not again.skipped
    pattern = r".*val.bin has 2 bytes where its meta.json says \d+: preparing it again\."
    assert any(re.fullmatch(pattern, note) for note in again.notes)
    assert bins(again.dataset) == before


def test_a_name_of_another_source_is_refused_unless_overwritten(write):
    write("a/poem.txt", POEM)
    write("b/poem.txt", "another text\n" * 50)
    first = prepare("a/poem.txt").dataset
    before = bins(first)
    with pytest.raises(DataError, match=r"prepared from a different source \(.*a/poem"):
        prepare("b/poem.txt")
    assert bins(open_dataset("poem")) == before
    replaced = prepare("b/poem.txt", PrepareOptions(overwrite=True)).dataset
    assert decoded(replaced) == "another text\n" * 50
    write("c/poem.txt", "another text\n" * 50)  # the same text from another place
    assert prepare("c/poem.txt").skipped


def test_files_that_gptlab_did_not_write_are_never_removed(write, home):
    write("poem.txt", POEM)
    write("data/poem/notes.md", "mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"did not write \(notes\.md\)"):
            prepare("poem.txt", PrepareOptions(overwrite=overwrite))
    assert (home / "data/poem/notes.md").read_text(encoding="utf-8") == "mine"
    write("data/bins/train.bin", b"\1\0\2\0")
    with pytest.raises(DataError, match=r"without a readable meta\.json"):
        prepare("poem.txt", PrepareOptions(dataset="bins"))
    assert not prepare("poem.txt", PrepareOptions(dataset="bins", overwrite=True)).skipped


@pytest.mark.parametrize("content", ["", "  \n\n", "\ufeff", "\ufeff \r\n"])
def test_an_empty_or_blank_text_is_refused_and_leaves_nothing(write, home, content):
    write("e.txt", content)
    with pytest.raises(DataError, match=r"e\.txt holds no text"):
        prepare("e.txt")
    assert left_behind(home) == []


def test_a_failure_in_any_stage_leaves_nothing_and_the_former_dataset_untouched(write, home):
    write("x.jsonl", "\n".join(json.dumps({"text": f"row {i}"}) for i in range(100)))
    before = bins(prepare("x.jsonl").dataset)
    write("x.jsonl", "\n".join([*['{"text": "row"}'] * 100, "broken", "broken"]))
    with pytest.raises(DataError, match="line 101"):
        prepare("x.jsonl")
    write("x.jsonl", "\n".join(json.dumps({"text": f"new row {i}"}) for i in range(100)))
    for stage in ("reading", "encoding", "baselines"):

        def interrupt(now, advance, total, stage=stage):
            if now == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare("x.jsonl", progress=interrupt)
        assert left_behind(home) == ["x"]
    assert [(home / "data/x" / n).read_bytes() for n in ("train.bin", "val.bin")] == before


def test_a_failing_rename_brings_the_former_dataset_back(write, home, monkeypatch):
    write("poem.txt", POEM)
    before = bins(prepare("poem.txt").dataset)
    rename = os.replace

    def fail_for_the_new_one(source, target):
        if str(source).endswith(".tmp") and "former" not in str(source):
            if os.path.basename(target) == "poem":
                raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(preparation.os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="no"):
        prepare("poem.txt", PrepareOptions(tokenizer="bpe"))
    monkeypatch.undo()
    assert left_behind(home) == ["poem"]
    assert [(home / "data/poem" / n).read_bytes() for n in ("train.bin", "val.bin")] == before


def test_what_a_killed_preparation_left_is_cleared_away_later(write, home):
    write("poem.txt", POEM)
    for name, age in ((".old.123.tmp", 7200), (".running.124.tmp", 0)):
        (home / "data" / name).mkdir(parents=True)
        (home / "data" / name / "train.bin").write_bytes(b"x")
        if age:
            for path in (home / "data" / name / "train.bin", home / "data" / name):
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    prepare("poem.txt")
    assert left_behind(home) == [".running.124.tmp", "poem"]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"tokenizer": "bpe", "vocab_size": 50}, TokenizerError, "at least 257"),
        ({"tokenizer": "bpe", "vocab_size": 256}, TokenizerError, "at least 257"),
        ({"tokenizer": "char", "vocab_size": 300}, ConfigError, "belongs to --tokenizer bpe"),
        ({"tokenizer": "word"}, ConfigError, "tokenizer cannot be 'word': choose auto, char"),
        ({"val_fraction": 0.0}, ConfigError, "val_fraction cannot be 0"),
        ({"val_fraction": 1.0}, ConfigError, "val_fraction cannot be 1"),
        ({"val_fraction": float("nan")}, ConfigError, "val_fraction cannot be nan"),
        ({"dataset": "../x"}, ConfigError, r"dataset cannot be '\.\./x'"),
        ({"dataset": ".x"}, ConfigError, r"for example x"),
        ({"max_bytes": 0}, ConfigError, "max_bytes cannot be 0"),
        ({"seed": -1}, ConfigError, "seed cannot be -1"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    write, home, options, error, sentence
):
    write("poem.txt", POEM)
    with pytest.raises(error, match=sentence):
        prepare("poem.txt", PrepareOptions(**options))
    assert left_behind(home) == []


def test_a_text_too_short_to_split_is_refused_with_the_numbers(write, home):
    write("s.txt", "x")
    with pytest.raises(DataError, match="1 characters in 1 document cannot be split"):
        prepare("s.txt")
    write("docs/a.txt", "only one document")
    with pytest.raises(DataError, match="by document; say --document line or paragraph"):
        prepare("docs", PrepareOptions(split="document"))
    assert left_behind(home) == []


def test_a_short_text_says_how_many_ids_it_supports(write):
    write("poem.txt", POEM)
    done = prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=32_000))
    size = done.dataset.vocab_size
    assert 257 < size < 1000
    assert any(f"support only {size:,} ids instead of 32,000" in note for note in done.notes)


def test_auto_takes_characters_for_a_small_alphabet_only(write):
    write("poem.txt", POEM)
    done = prepare("poem.txt")
    assert done.dataset.meta["tokenizer"]["kind"] == "char"
    assert any(f"char, for {len(set(POEM))} distinct characters" in note for note in done.notes)
    write("han.txt", "".join(map(chr, range(0x4E00, 0x4E00 + 301))) * 20)
    assert prepare("han.txt").dataset.meta["tokenizer"]["kind"] == "bpe"
    sized = prepare("poem.txt", PrepareOptions(dataset="sized", vocab_size=280)).dataset
    assert sized.meta["tokenizer"]["kind"] == "bpe" and sized.vocab_size == 280


def test_another_datasets_tokenizer_can_be_used(write, home):
    write("poem.txt", POEM)
    write("more.txt", "spürest allen Über\n" * 40)
    first = prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=280)).dataset
    for word in ("data/poem/tokenizer.json", "data/poem"):
        options = PrepareOptions(tokenizer=word, overwrite=True)
        second = prepare("more.txt", options).dataset
        assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
        assert decoded(second) == "spürest allen Über\n" * 40
    prepare("poem.txt", PrepareOptions(tokenizer="bpe", vocab_size=285))
    again = prepare("more.txt", PrepareOptions(tokenizer="data/poem"))
    assert not again.skipped and again.dataset.vocab_size == 285  # the file has changed


def test_max_bytes_stops_at_a_whole_character(write):
    write("poem.txt", "é" * 1000)
    dataset = prepare("poem.txt", PrepareOptions(max_bytes=101)).dataset
    assert decoded(dataset) == "é" * 50
    write("rows.jsonl", "\n".join(json.dumps({"text": f"row {i:03}"}) for i in range(900)))
    dataset = prepare("rows.jsonl", PrepareOptions(max_bytes=3500)).dataset
    assert dataset.meta["documents"] == 500


def test_repeated_documents_are_counted(write):
    write("rows.jsonl", "\n".join(json.dumps({"text": f"row {i % 90}"}) for i in range(100)))
    done = prepare("rows.jsonl")
    assert done.dataset.meta["counts"]["documents that repeat another"] == 10
    assert any("Documents that repeat another: 10" in note for note in done.notes)


def test_progress_reaches_the_size_of_the_text(write):
    write("poem.txt", POEM)
    size, done, totals = len(POEM.encode()), {}, {}

    def progress(stage, advance, total):
        done[stage] = done.get(stage, 0) + advance
        totals[stage] = total

    meta = prepare("poem.txt", PrepareOptions(tokenizer="bpe"), progress).dataset.meta
    assert done["hashing"] == done["reading"] == done["encoding"] == size
    assert totals["reading"] == totals["encoding"] == size
    learned = "learning the vocabulary"
    assert done[learned] == totals[learned] == meta["train_bytes"]


def test_a_text_without_spaces_is_prepared(write):
    text = "".join(random.Random(0).choices("森林木花鳥風月山川空", k=30_000))
    write("han.txt", text)
    dataset = prepare("han.txt", PrepareOptions(tokenizer="bpe", vocab_size=400)).dataset
    assert dataset.vocab_size == 400
    assert decoded(dataset) == text
