"""Preparing compared with nanoGPT's way; encoding and training a BPE compared with `tokenizers`.

    python benchmarks/preparing.py [--megabytes 100] [--text FILE] [--quick] [--json FILE]
    python benchmarks/preparing.py --alone --megabytes 1000 --rounds 1

1. `prepare.py --tokenizer gpt2` and nanoGPT's way (data/openwebtext/prepare.py: tiktoken in
   `datasets.map` on all cores, then a memmap in 1024 parts) as whole processes, in turn. The memory
   is that of all processes together.
2. Encoding on one thread, and learning a BPE, compared with `tokenizers` itself.
3. The share of time that a training waits for its data, with the shortest steps: nanoGPT's shape
   for CPUs.

With --alone only `prepare.py` runs, for texts that take the others an hour. The text consists of
GPT-2's words with Zipf frequencies (or of the lines of FILE in random order), in documents of a few
kB. GPT-2's vocabulary comes from the same places as for `prepare.py`.
"""

import argparse
import itertools
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import numpy as np
import processes
import report

MEMORY_TARGET = 1.5e9  # bytes, for a text of 1 GB
DATA_SHARE_TARGET = 0.01
BPE_VOCAB = 8192
PIECE = 1 << 20  # characters that one call encodes
WORDS_AT_ONCE = 500_000
# how a word ends: the share of each
ENDS = {" ": 0.85, ", ": 0.07, ". ": 0.05, "? ": 0.005, ".\n": 0.023, ".\n\n": 0.002}

# nanoGPT's data/openwebtext/prepare.py, with the text from a file instead of the web
NANOGPT_WAY = """\
import os
import pickle
import sys

import numpy as np
import tiktoken
from datasets import load_dataset

text, ranks, num_proc = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(ranks, "rb") as file:
    enc = tiktoken.Encoding(**pickle.load(file))

if __name__ == "__main__":
    dataset = load_dataset("text", data_files=text, sample_by="paragraph")
    split_dataset = dataset["train"].train_test_split(test_size=0.1, seed=2357, shuffle=True)
    split_dataset["val"] = split_dataset.pop("test")

    def process(example):
        ids = enc.encode_ordinary(example["text"])
        ids.append(enc.eot_token)
        return {"ids": ids, "len": len(ids)}

    tokenized = split_dataset.map(process, remove_columns=["text"], num_proc=num_proc)
    for split, dset in tokenized.items():
        arr_len = np.sum(dset["len"], dtype=np.uint64)
        arr = np.memmap(f"{split}.bin", dtype=np.uint16, mode="w+", shape=(int(arr_len),))
        total_batches, idx = min(1024, len(dset)), 0
        for batch_idx in range(total_batches):
            batch = dset.shard(num_shards=total_batches, index=batch_idx, contiguous=True)
            arr_batch = np.concatenate(batch.with_format("numpy")["ids"])
            arr[idx : idx + len(arr_batch)] = arr_batch
            idx += len(arr_batch)
        arr.flush()
"""


def made_up_text(size: int, seed: int = 0):
    """Pieces of a random text of about `size` bytes, the same for the same seed."""
    from gptlab.data.downloads import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    spelled = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    tokens = [token.decode(errors="replace") for token in spelled]
    # early merges are frequent words, so the ids are nearly in the order of frequency
    words = [t[1:] for t in tokens if t.startswith(" ") and t[1:].isascii() and t[1:].isalpha()]
    ends = [token for token in tokens if token.isascii() and token.isalpha() and len(token) > 2]
    random = np.random.default_rng(seed)
    # rare words, of two tokens or more: a tenth of a text
    pairs = random.integers((len(words), len(ends)), size=(200_000, 2)).tolist()
    rare = [words[a] + ends[b] for a, b in pairs]
    shares = []
    for group, share in ((words, 0.9), (rare, 0.1)):
        frequency = 1 / (np.arange(len(group)) + 2.7)  # Zipf-Mandelbrot
        shares.append(share * frequency / frequency.sum())
    forms = words + rare
    forms += [form.capitalize() for form in forms]  # after the end of a sentence
    cumulated = np.concatenate(shares).cumsum()
    marks, mark_shares = list(ENDS), np.cumsum(list(ENDS.values()))
    written = 0
    while written < size:
        places = random.random((2, WORDS_AT_ONCE))
        ids = np.minimum(cumulated.searchsorted(places[0]), len(cumulated) - 1)
        ending = np.minimum(mark_shares.searchsorted(places[1]), len(marks) - 1)
        ids[1:] += len(cumulated) * (ending[:-1] > 1)
        words_and_marks = zip(
            (forms[i] for i in ids.tolist()), (marks[i] for i in ending.tolist()), strict=True
        )
        piece = "".join(itertools.chain.from_iterable(words_and_marks))[: size - written]
        written += len(piece)
        yield piece


def repeated_text(path: Path, size: int, seed: int = 0):
    """The lines of a file, repeated, each time in a new order."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    random = np.random.default_rng(seed)
    written = 0
    while written < size:
        piece = "\n\n".join(paragraphs[i] for i in random.permutation(len(paragraphs))) + "\n\n"
        written += len(piece.encode())
        yield piece


def prepare_ours(text: Path, home: Path, *options) -> processes.Ended:
    """`prepare.py` as a process."""
    command = [sys.executable, REPOSITORY / "prepare.py", text, *options, "--overwrite"]
    return processes.run(command, home, {"GPTLAB_HOME": str(home)})


def whole_processes(text: Path, home: Path, rounds: int, alone: bool) -> dict:
    """Prepare with GPT-2's BPE, by gptlab and (unless alone) nanoGPT's way in turn."""
    from gptlab.data.downloads import gpt2_tokenizer
    from gptlab.data.tokenizer import GPT2_SPLIT

    tokenizer = gpt2_tokenizer()
    peer = home / "nanogpt"
    peer.mkdir()
    script, ranks = peer / "prepare.py", peer / "ranks.pkl"
    script.write_text(NANOGPT_WAY, encoding="utf-8")
    merged = {tokenizer.token_bytes(i): i for i in range(tokenizer.eot_id)}
    encoding = {
        "name": "gpt2",
        "pat_str": GPT2_SPLIT,
        "mergeable_ranks": merged,
        "special_tokens": {"<|endoftext|>": tokenizer.eot_id},
    }
    ranks.write_bytes(pickle.dumps(encoding))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ended = {"nanoGPT's way": [], "gptlab": []}
    for number in range(rounds):
        # a new cache each time, or `datasets` would find its work done
        cache = {"HF_HOME": str(peer / f"cache{number}"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, script, text, ranks, cores]
        if not alone:
            ended["nanoGPT's way"].append(processes.run(command, peer, cache))
        ended["gptlab"].append(prepare_ours(text, home, "--dataset", "gpt2", "--tokenizer", "gpt2"))
    folders = {"nanoGPT's way": peer, "gptlab": home / "data" / "gpt2"}
    tokens = {
        name: sum((folder / f"{part}.bin").stat().st_size // 2 for part in ("train", "val"))
        for name, folder in folders.items()
        if ended[name]
    }
    size = text.stat().st_size
    return {
        name: {
            "seconds": report.spread([run.seconds for run in runs]),
            "megabytes_per_second": size / 1e6 / statistics.median(run.seconds for run in runs),
            "peak_bytes": max((run.peak for run in runs if run.peak), default=None),
            "tokens": tokens[name],
        }
        for name, runs in ended.items()
        if runs
    }


def encoding_speed(text: Path, megabytes: int, rounds: int) -> dict:
    """MB/s of one thread: {vocabulary: {"gptlab": ..., "tokenizers": ...}}."""
    from tokenizers import Tokenizer as Reference

    from gptlab.data.downloads import gpt2_tokenizer
    from gptlab.data.tokenizer import train_bpe

    with open(text, encoding="utf-8") as file:
        pieces = [piece for _ in range(megabytes) if (piece := file.read(PIECE))]
    size = sum(len(piece.encode()) for piece in pieces)
    found = {}
    small = train_bpe(pieces[:4], BPE_VOCAB)
    for name, tokenizer in (("GPT-2's", gpt2_tokenizer()), (f"trained, {BPE_VOCAB:,}", small)):
        reference = Reference.from_str(tokenizer.to_plain_json())
        reference.encode_special_tokens = True
        ways = {
            "tokenizers": lambda piece, reference=reference: reference.encode(piece).ids,
            "gptlab": tokenizer.encode_to_array,
        }
        same = all(
            np.array_equal(ways["gptlab"](piece), ways["tokenizers"](piece)) for piece in pieces[:1]
        )
        speeds = {way: [] for way in ways}
        for _ in range(rounds):
            for way, encode in ways.items():
                begin = time.perf_counter()
                for piece in pieces:
                    encode(piece)
                speeds[way].append(size / 1e6 / (time.perf_counter() - begin))
        found[name] = {way: report.spread(values) for way, values in speeds.items()}
        found[name]["same_ids"] = same
    return found


def learn(way: str, text: Path) -> dict:
    """Learn a BPE in this process: seconds, and the bytes per token."""
    begin = time.perf_counter()
    if way == "gptlab":
        from gptlab.data.text_store import TextStore
        from gptlab.data.vocabulary import learn_tokenizer

        with (
            tempfile.TemporaryDirectory() as folder,
            TextStore(Path(folder) / "text.tmp", 0) as store,
            open(text, encoding="utf-8") as file,
        ):
            store.add(iter(lambda: file.read(PIECE), ""))
            store.finish()
            train, _ = store.split("tail", 0.1)
            tokenizer = learn_tokenizer(
                store, train, "bpe", BPE_VOCAB, lambda *_: None, lambda _: None
            )
            count, size = lambda piece: len(tokenizer.encode_to_array(piece)), tokenizer.vocab_size
    else:
        import tokenizers
        from tokenizers import models, pre_tokenizers, trainers

        reference = tokenizers.Tokenizer(models.BPE())
        reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=BPE_VOCAB - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        reference.train([str(text)], trainer)
        count = lambda piece: len(reference.encode(piece).ids)  # noqa: E731
        size = reference.get_vocab_size()
    seconds = time.perf_counter() - begin
    with open(text, "rb") as file:
        file.seek(max(0, text.stat().st_size - PIECE))
        last = file.read().decode(errors="ignore")
    return {"seconds": seconds, "bytes_per_token": len(last.encode()) / count(last), "ids": size}


def learning(text: Path, rounds: int) -> dict:
    """Learn a BPE in separate processes, by gptlab and `tokenizers` on the whole file in turn."""
    found = {"tokenizers": [], "gptlab": []}
    for _ in range(rounds):
        for way, rows in found.items():
            ended = processes.run([sys.executable, __file__, "--learn", way, "--text", text])
            rows.append(json.loads(ended.output) | {"peak_bytes": ended.peak})
    return {
        way: {
            **rows[0],
            "seconds": report.spread([row["seconds"] for row in rows]),
            "peak_bytes": max(row["peak_bytes"] or 0 for row in rows) or None,
        }
        for way, rows in found.items()
    }


def data_share(text: Path, home: Path, steps: int) -> float:
    """The share of the time that a training of nanoGPT's CPU shape waits for its data."""
    prepare_ours(text, home, "--dataset", "char", "--tokenizer", "char", "--max_bytes", 5_000_000)
    shape = "--n_layer 4 --n_head 4 --n_embd 128 --block_size 64 --batch_size 12 --dropout 0"
    rest = f"--max_iters {steps} --log_interval {steps // 5} --compile_model false --eval_tokens 64"
    processes.run(
        [sys.executable, REPOSITORY / "train.py", "--dataset", "char", *shape.split(),
         *rest.split(), "--out_dir", home / "run"],
        home, {"GPTLAB_HOME": str(home)},
    )  # fmt: skip
    lines = (home / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    shares = [r["data_share"] for r in records if "data_share" in r and r["step"] > 1]
    return statistics.median(shares)


def main() -> None:
    """Run, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, help="size of the text [100; 20 with --quick]")
    parser.add_argument("--text", type=Path, help="a text whose lines form the large one")
    parser.add_argument("--rounds", type=int, help="of whole processes [3; 1 with --quick]")
    parser.add_argument("--quick", action="store_true", help="20 MB, one round: a minute")
    parser.add_argument("--alone", action="store_true", help="prepare.py only, without its peers")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--learn", help=argparse.SUPPRESS)  # for the child process
    options = parser.parse_args()
    if options.learn:
        print(json.dumps(learn(options.learn, options.text)))
        return
    megabytes = options.megabytes or (20 if options.quick else 100)
    rounds = options.rounds or (1 if options.quick else 3)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        home, text = Path(folder), Path(folder) / "text.txt"
        size = megabytes * 1_000_000
        pieces = repeated_text(options.text, size) if options.text else made_up_text(size)
        with open(text, "w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)

        found = results["whole_processes"] = whole_processes(text, home, rounds, options.alone)
        base = found["gptlab" if options.alone else "nanoGPT's way"]
        print(report.table(
            [f"preparing {megabytes} MB, GPT-2's BPE", "seconds", "runs", "MB/s", "peak memory",
             "tokens", f"time, {next(iter(found))} = 1"],
            [[
                name,
                f"{row['seconds']['median']:.1f}",
                f"{row['seconds']['min']:.1f} to {row['seconds']['max']:.1f}",
                f"{row['megabytes_per_second']:.1f}",
                _megabytes(row["peak_bytes"]),
                f"{row['tokens']:,}",
                f"{row['seconds']['median'] / base['seconds']['median']:.3f}",
            ] for name, row in found.items()],
        ))  # fmt: skip
        print(f"Target: less than {MEMORY_TARGET / 1e9:.1f} GB of memory for a text of 1 GB.\n")
        if options.alone:
            report.finish(results, options.json)
            return

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        found = results["encoding"] = encoding_speed(text, 4 if options.quick else 16, 3)
        print(report.table(
            ["encoding, one thread", "tokenizers MB/s", "gptlab MB/s", "gptlab runs", "ratio",
             "same ids"],
            [[
                name,
                f"{row['tokenizers']['median']:.2f}",
                f"{row['gptlab']['median']:.2f}",
                f"{row['gptlab']['min']:.2f} to {row['gptlab']['max']:.2f}",
                f"{row['gptlab']['median'] / row['tokenizers']['median']:.2f}",
                "yes" if row["same_ids"] else "NO",
            ] for name, row in found.items()],
        ), end="\n\n")  # fmt: skip

        del os.environ["TOKENIZERS_PARALLELISM"]
        found = results["learning"] = learning(text, rounds)
        base = found["tokenizers"]["seconds"]["median"]
        print(report.table(
            [f"learning a BPE of {BPE_VOCAB:,} ids", "seconds", "peak memory", "bytes per token",
             "time, tokenizers = 1"],
            [[
                name,
                f"{row['seconds']['median']:.1f}",
                _megabytes(row["peak_bytes"]),
                f"{row['bytes_per_token']:.3f}",
                f"{row['seconds']['median'] / base:.3f}",
            ] for name, row in found.items()],
        ), end="\n\n")  # fmt: skip

        share = results["data_share"] = data_share(text, home, 100 if options.quick else 500)
        print(report.table(
            ["of the training's time", "found", "target"],
            [["waiting for data", f"{share:.2%}", f"below {DATA_SHARE_TARGET:.0%}"]],
        ))  # fmt: skip
    report.finish(results, options.json)


def _megabytes(size: int | None) -> str:
    return "not measured here" if size is None else f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
