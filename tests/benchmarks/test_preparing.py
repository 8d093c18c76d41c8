"""The text and the parts of the preparing benchmark."""

import numpy as np


def test_a_repeated_text_is_the_lines_of_the_file_in_other_orders(tmp_path):
    import preparing

    source = tmp_path / "source.txt"
    source.write_text("\n\n".join(f"paragraph {i}" for i in range(50)), encoding="utf-8")
    texts = ["".join(preparing.repeated_text(source, 3000, seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) >= 3000
    assert set(texts[0].split("\n\n")) == {*source.read_text().split("\n\n"), ""}


def test_both_ways_learn_tokens_of_the_same_length(tmp_path):
    import preparing

    random = np.random.default_rng(0)
    syllables = np.array(["ba", "ko", "ri", "tes", "un", "mol", "sha", "pe"])
    words = ["".join(random.choice(syllables, random.integers(1, 4))) for _ in range(300)]
    ranks = random.zipf(1.3, 200_000) % len(words)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words[i] for i in ranks), encoding="utf-8")
    found = {way: preparing.learn(way, text) for way in ("gptlab", "tokenizers")}
    lengths = [row["bytes_per_token"] for row in found.values()]
    assert min(lengths) > 3 and max(lengths) / min(lengths) < 1.02
