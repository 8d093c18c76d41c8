"""Files of a prepared dataset, malformed."""

import json
import shutil

import numpy as np
from hypothesis import strategies as st

from gptlab.data.batches import Sequences
from gptlab.data.documents import places
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import Tokenizer


def test_a_malformed_meta_json_is_refused_by_name(fuzz):
    path = fuzz.home / "data" / "plays" / "meta.json"

    def attempt(content):
        path.write_bytes(content)
        fuzz.survives(lambda: open_dataset("plays").fingerprint, "meta.json", "plays", "train.bin")
        fuzz.command("dataset", "view", "plays", names=("plays",))
        fuzz.command("prepare", "--list")
        fuzz.command("info")
        fuzz.command("config", "show", "out/plays")
        fuzz.command("doctor", "out/plays")

    fuzz.run("meta.json", fuzz.json_file(path.read_bytes()), attempt, 25)


def test_a_malformed_tokenizer_json_is_refused_by_name(fuzz, tmp_path):
    kept = fuzz.home / "data" / "plays" / "tokenizer.json"
    path = tmp_path / "tokenizer.json"

    def attempt(content):
        path.write_bytes(content)

        def use():
            tokenizer = Tokenizer.load(path)
            ids = tokenizer.encode("to be")
            tokenizer.decode(ids, keep_special=True)
            tokenizer.token_bytes(0)

        fuzz.survives(use, "tokenizer.json", "tokenizer", "text", "vocabulary")

    fuzz.run("tokenizer.json, characters", fuzz.json_file(kept.read_bytes()), attempt, 100)
    from gptlab.data.tokenizer import train_bpe

    bpe = train_bpe([kept.read_text(encoding="utf-8")], 300)
    fuzz.run("tokenizer.json, BPE", fuzz.json_file(bpe.to_json().encode()), attempt, 100)
    spec = json.loads(bpe.to_json())
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 300, "content": "<s>"})
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [300], "tokens": ["<s>"]}},
    }  # fmt: skip
    imported = json.dumps(spec).encode()
    fuzz.run("tokenizer.json, imported", fuzz.json_file(imported), attempt, 100)


def test_a_malformed_token_file_is_refused_by_name(fuzz):
    folder = fuzz.home / "data" / "plays"
    path, meta = folder / "train.bin", folder / "meta.json"
    valid, meta_content = path.read_bytes(), json.loads(meta.read_text(encoding="utf-8"))

    def attempt(case):
        content, how = case
        path.write_bytes(content)
        meta.write_text(json.dumps(meta_content), encoding="utf-8")
        if how == "unhashed":  # as an older or another program would have written it
            tokens = len(content) // 2
            changed = {**meta_content, "train_tokens": tokens, "sha256": None}
            meta.write_text(json.dumps(changed), encoding="utf-8")
        elif how == "bare":
            meta.unlink()

        def use():
            dataset = open_dataset("plays", None if how != "bare" else meta_content["vocab_size"])
            sequences = Sequences(
                dataset.train, vocab_size=dataset.vocab_size, block_size=16, seed=1, path=str(path)
            )
            tokens, _ = sequences.windows(np.arange(4))
            assert tokens.max() < dataset.vocab_size

        fuzz.survives(use, "train.bin", "train part")

    cases = st.tuples(
        st.one_of(fuzz.bytes_file(valid), st.binary(max_size=200)),
        st.sampled_from(["hashed", "unhashed", "bare"]),
    )
    fuzz.run("train.bin", cases, attempt, 100)


def test_a_malformed_documents_json_is_refused_by_name(fuzz):
    folder = fuzz.home / "data" / "plays"
    path = folder / "documents.json"

    def attempt(content):
        path.write_bytes(content)

        def use():
            list(map(str, places(open_dataset("plays"), [0, 500, 1200])))

        fuzz.survives(use, "documents.json")

    fuzz.run("documents.json", fuzz.json_file(path.read_bytes()), attempt, 60)
    shutil.rmtree(folder)
