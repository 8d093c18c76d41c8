import itertools
import logging

import numpy as np
import pytest
import torch

from gptlab.data.tokenizer import char_tokenizer, train_bpe
from gptlab.errors import GenerationError, TokenizerError
from gptlab.inference import sampling
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator

LETTERS = "abcdefghijklmnopqrstu\n"  # with the end of text 23 ids, as the models here have
FREE = dict(top_k=0, top_p=1.0, temperature=1.0)  # the model's own distribution


@pytest.fixture
def letters():
    return char_tokenizer(LETTERS)


@pytest.fixture
def generator(make_model, letters):
    return Generator(make_model(init_std=0.3), letters)


@pytest.fixture
def reciter(reciting, letters):
    """A function: the Generator that writes a text of different letters, then the end of text."""

    def make(text: str) -> Generator:
        ids = [*letters.encode(text), letters.eot_id]
        return Generator(reciting(ids, letters.vocab_size), letters)

    return make


def stream(generator, prompt, **settings):
    """(pieces, completion) of a streamed text."""
    pieces, iterator = [], generator.stream(prompt, SamplingConfig(**settings))
    while True:
        try:
            pieces.append(next(iterator))
        except StopIteration as end:
            return pieces, end.value


# Against the naive way ----------------------------------------------------------------------------


def test_a_batch_of_unequal_prompts_writes_greedily_what_the_naive_way_writes(make_model, letters):
    model = make_model(seed=3)
    prompts = [
        ("abcdefghij" * 4)[start : start + n] for start, n in enumerate([1, 5, 15, 16, 17, 30])
    ]
    completions = Generator(model, letters).generate(
        prompts, SamplingConfig(temperature=0, max_tokens=40)
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = letters.encode(prompt)
        expected = model.generate(torch.tensor([ids]), 40, temperature=0)[0, len(ids) :].tolist()
        if letters.eot_id in expected:
            expected = expected[: expected.index(letters.eot_id) + 1]
        assert completion.token_ids == expected
        assert completion.text == letters.decode(expected)
        assert completion.prompt == prompt


@pytest.mark.parametrize("length", [63, 64, 65, 500])
@pytest.mark.parametrize("max_tokens", [1, 64, 1000])
def test_no_edge_of_the_window_shows_in_the_text(make_model, letters, length, max_tokens):
    model = make_model(block_size=64, n_layer=1, n_embd=8, n_head=2)
    prompt = ("abcdefghijk" * 50)[:length]
    config = SamplingConfig(max_tokens=max_tokens, seed=1)
    completion = Generator(model, letters).generate(prompt, config)[0]
    assert len(completion.token_ids) == max_tokens or completion.stopped_by == "end_of_text"


def test_a_prompt_longer_than_the_window_keeps_its_end_and_says_so(generator, caplog):
    with caplog.at_level(logging.WARNING):
        cut, whole = (
            generator.generate(prompt, SamplingConfig(seed=1, num_samples=2))
            for prompt in ("a" * 30 + "bcdefghijklmnopq", "bcdefghijklmnopq")
        )
    assert [c.token_ids for c in cut] == [c.token_ids for c in whole]
    assert len(caplog.messages) == 1 and "46" in caplog.text and "16" in caplog.text


def test_log_probabilities_are_the_models_own(generator):
    config = SamplingConfig(seed=5, max_tokens=12, temperature=1.7, top_k=5)
    completion = generator.generate("abcd", config)[0]
    ids = [*generator.tokenizer.encode("abcd"), *completion.token_ids]
    with torch.no_grad():
        logits = generator.model(torch.tensor([ids[:-1]]))[0][0, 3:]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])
    assert completion.log_probs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


# Seeds --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_and_another_seed_another(generator):
    texts = [
        generator.generate("abc", SamplingConfig(seed=seed, **FREE))[0].text for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_every_text_is_new(generator):
    config = SamplingConfig(num_samples=3, **FREE)
    generator.end_ids = set()  # or two would be equal by chance, ended at once
    texts = [c.text for c in generator.generate("abc", config) + generator.generate("abc", config)]
    assert len(set(texts)) == 6


def test_a_text_depends_on_nothing_that_sits_beside_it_in_the_batch(generator):
    config = SamplingConfig(seed=7, num_samples=3, max_tokens=40, **FREE)
    prompts = ["abc", "q", "hijklmnopabcdef"]
    together = [c.token_ids for c in generator.generate(prompts, config)]
    for number, prompt in enumerate(prompts):
        alone = [c.token_ids for c in generator.generate(prompt, config)]
        assert alone == together[3 * number : 3 * number + 3]
        assert len({tuple(ids) for ids in alone}) == 3
    generator.batch_size = 2
    assert [c.token_ids for c in generator.generate(prompts, config)] == together
    first = SamplingConfig(seed=7, max_tokens=40, **FREE)
    assert stream(generator, "q", seed=7, max_tokens=40, **FREE)[1].token_ids == together[3]
    assert generator.generate("q", first)[0].token_ids == together[3]


def test_a_greedy_text_needs_no_seed(generator):
    for greedy in (dict(temperature=0), dict(top_k=1)):
        config = SamplingConfig(num_samples=2, **greedy)
        texts = {tuple(c.token_ids) for c in generator.generate(["abc", "abc"], config)}
        assert len(texts) == 1


# Streaming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_streamed_pieces_join_to_the_text(generator, seed):
    settings = dict(seed=seed, max_tokens=30, stop=("e", "ab"), **FREE)
    pieces, completion = stream(generator, "abc", **settings)
    assert completion == generator.generate("abc", SamplingConfig(**settings))[0]
    assert "".join(pieces) == completion.text and all(pieces)


def test_text_arrives_token_by_token(reciter):
    assert stream(reciter("abcdef"), "ab")[0] == ["c", "d", "e", "f"]


@pytest.mark.parametrize("max_tokens", range(1, 16))
def test_a_character_of_several_tokens_is_shown_whole_or_not_at_all(reciting, max_tokens):
    tokenizer = train_bpe(["no pair twice"], 257)  # bytes alone
    text = "x😀é日z"
    ids = tokenizer.encode(text)
    generator = Generator(reciting([*ids, tokenizer.eot_id], tokenizer.vocab_size), tokenizer)
    pieces, completion = stream(generator, "x", max_tokens=max_tokens)
    whole = b"".join(map(tokenizer.token_bytes, ids[1 : max_tokens + 1]))
    assert completion.text == whole.decode("utf-8", errors="ignore")
    assert all(len(piece) == 1 and piece in text for piece in pieces)


def test_streamed_emoji_of_a_trained_vocabulary_equal_the_whole_decode(make_model):
    tokenizer = train_bpe(["😀😃🏳️‍🌈 日本語 naïve ", "😀🏳️‍🌈 日本 "] * 20, 290)
    model = make_model(vocab_size=tokenizer.vocab_size, block_size=64, init_std=0.2)
    generator = Generator(model, tokenizer)
    for seed in range(10):
        pieces, completion = stream(generator, "😀 日", seed=seed, max_tokens=60, **FREE)
        whole = tokenizer.decode(completion.token_ids)
        assert "".join(pieces) == completion.text
        # the whole decode shows half a character at the end as one mark
        assert whole in (completion.text, completion.text + "\ufffd")


def test_leaving_a_stream_early_leaves_the_model_as_it_was(generator):
    generator.model.train()
    iterator = generator.stream("abc", SamplingConfig(**FREE))
    next(iterator)
    assert not generator.model.training
    iterator.close()
    assert generator.model.training


def test_streaming_does_not_leave_gradients_switched_off(reciter):
    for _ in reciter("abcd").stream("a"):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# Stopping -----------------------------------------------------------------------------------------


def test_a_text_ends_at_the_end_of_text_and_hides_it(reciter, letters):
    completion = reciter("abcd").generate("a")[0]
    assert completion.text == "bcd" and completion.stopped_by == "end_of_text"
    assert completion.token_ids == [*letters.encode("bcd"), letters.eot_id]


def test_a_text_ends_at_max_tokens(reciter):
    completion = reciter("abcdefgh").generate("a", SamplingConfig(max_tokens=3))[0]
    assert completion.text == "bcd" and completion.stopped_by == "max_tokens"


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (("ef",), "bcd"),
        (("efx",), "bcdefgh"),  # begins, and does not come
        (("h",), "bcdefg"),
        (("hi",), "bcdefgh"),  # still open at the end of text
        (("de", "def"), "bc"),  # one is the beginning of the other
        (("def", "de"), "bc"),
        (("cdef", "de"), "bc"),  # the one that is complete first
        (("a", "ab"), "bcdefgh"),  # in the prompt, or begun by it
        (("b",), ""),
    ],
)
def test_a_text_ends_exactly_before_a_stop_string(reciter, stops, text):
    pieces, completion = stream(reciter("abcdefgh"), "a", stop=stops)
    assert completion.text == "".join(pieces) == text
    assert completion.stopped_by == ("end_of_text" if text == "bcdefgh" else "stop")


def test_a_stop_string_may_begin_and_end_inside_tokens(reciting):
    tokenizer = train_bpe(["hello world"] * 10, 300)
    text = "hello world"
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([i]) for i in ids] == ["hello", " world"]
    start = tokenizer.encode("x")
    generator = Generator(reciting([*start, *ids], tokenizer.vocab_size), tokenizer)
    for stop in ("lo wo", "o w", " world", "hello w", "rl"):
        pieces, completion = stream(generator, "x", stop=(stop,), max_tokens=2)
        assert completion.text == "".join(pieces) == text[: text.index(stop)]
        assert completion.stopped_by == "stop"


def test_rows_of_a_batch_end_each_for_itself(reciter):
    config = SamplingConfig(max_tokens=4, stop=("h",))
    texts = reciter("abcdefghijkl").generate(["a", "f", "k", "b"], config)
    assert [(c.text, c.stopped_by) for c in texts] == [
        ("bcde", "max_tokens"),
        ("g", "stop"),
        ("l", "end_of_text"),
        ("cdef", "max_tokens"),
    ]


def test_progress_arrives_at_all_texts_times_max_tokens_also_when_some_end_early(reciter):
    seen = []
    config = SamplingConfig(max_tokens=6, num_samples=2)
    reciter("abcdefghij").generate(["a", "f", "i"], config, progress=seen.append)
    assert sum(seen) == 6 * 2 * 3 and len(seen) == 6


# Prompts ------------------------------------------------------------------------------------------


def test_an_empty_prompt_starts_at_the_end_of_the_text_before(reciter):
    assert reciter("abc").generate("")[0].text == "abc"


def test_a_prompt_may_be_token_ids(reciter, letters):
    for ids in (letters.encode("bc"), letters.encode_to_array("bc")):
        assert reciter("abcdef").generate([ids])[0].text == "def"


def test_an_id_outside_the_vocabulary_is_named_with_its_place(generator):
    with pytest.raises(GenerationError, match=r"id 23 at position 2 .* 23 ids"):
        generator.generate([[1, 2, 23]])


def test_a_character_that_the_model_does_not_know_is_named_with_its_place(generator):
    with pytest.raises(TokenizerError, match=r"'€' \(U\+20AC\) at position 2 .* 22 characters"):
        generator.generate("ab€")


def test_the_spelling_of_the_end_of_text_in_a_prompt_is_plain_text(make_model):
    for tokenizer in (train_bpe(["some text"], 257), char_tokenizer("<|>endoftx")):
        generator = Generator(make_model(vocab_size=tokenizer.vocab_size, block_size=64), tokenizer)
        ids = generator.prompt_ids("<|endoftext|>")
        assert tokenizer.eot_id not in ids and tokenizer.decode(ids) == "<|endoftext|>"


# The allowed ids ----------------------------------------------------------------------------------


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(make_model, letters):
    with pytest.raises(GenerationError, match=r"23 ids, but the model 20"):
        Generator(make_model(vocab_size=20), letters)


@pytest.mark.parametrize("settings", [FREE, dict(temperature=0), dict(beam_width=3)])
def test_ids_that_only_pad_the_models_table_are_never_chosen(make_model, letters, settings):
    model = make_model(vocab_size=128)
    for seed in range(3):
        config = SamplingConfig(seed=seed, max_tokens=30, **settings)
        assert max(Generator(model, letters).generate("abc", config)[0].token_ids) < 23


@pytest.mark.parametrize("uniform", [0.0, 1.0, 1e9])
def test_a_faulty_source_of_random_numbers_draws_only_ids_that_are_left(
    generator, monkeypatch, uniform
):
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed: type("Faulty", (), {"random": lambda _: uniform})()
    )
    config = SamplingConfig(top_k=2, top_p=1.0, max_tokens=10)
    completion = generator.generate("abc", config)[0]
    ids = [*generator.tokenizer.encode("abc"), *completion.token_ids]
    for position, token in enumerate(completion.token_ids, start=3):
        with torch.no_grad():
            logits = generator.model(torch.tensor([ids[:position]]))[0][0, -1]
        assert token in logits.topk(2).indices


def test_a_draw_for_a_device_without_float64_happens_on_the_cpu(monkeypatch):
    class Elsewhere(torch.Tensor):
        device = torch.device("mps")

    moved = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(
        Elsewhere, "cpu", lambda self: moved.append(self) or real(self.as_subclass(torch.Tensor))
    )
    logits = torch.randn(2, 9).as_subclass(Elsewhere)
    chosen, _ = sampling.sample(logits, SamplingConfig(), [0.2, 0.9])
    assert len(moved) == 1 and not isinstance(chosen, Elsewhere)


def test_the_repetition_penalty_counts_prompt_and_continuation(generator):
    def repeated(penalty):
        config = SamplingConfig(
            repetition_penalty=penalty, max_tokens=15, temperature=0, num_samples=2
        )
        completion = generator.generate(["abcdefgh", "q"], config)[0]
        ids = [*generator.tokenizer.encode("abcdefgh"), *completion.token_ids]
        return len(ids) - len(set(ids))

    assert repeated(1e6) < repeated(1.0)
    assert repeated(1e6) == max(0, 8 + 15 - 23)


# Beam search --------------------------------------------------------------------------------------


def test_beams_stop_at_stop_strings_and_at_the_end_of_text(reciter):
    generator = reciter("abcdefgh")
    for stops, text, reason in (((), "bcdefgh", "end_of_text"), (("ef",), "bcd", "stop")):
        config = SamplingConfig(beam_width=3, stop=stops)
        pieces, completion = stream(generator, "a", beam_width=3, stop=stops)
        assert completion == generator.generate("a", config)[0]
        assert "".join(pieces) == completion.text == text and completion.stopped_by == reason


def test_several_samples_of_a_beam_search_are_its_best_beams(generator):
    config = SamplingConfig(beam_width=5, num_samples=3, max_tokens=10)
    completions = generator.generate(["abc", "d"], config)
    assert [c.prompt for c in completions] == ["abc"] * 3 + ["d"] * 3
    means = [np.mean(c.log_probs) for c in completions]
    for first, second in itertools.pairwise(means[:3]):
        assert first >= second


def test_several_samples_cannot_be_streamed(generator):
    with pytest.raises(GenerationError, match="num_samples is 2"):
        next(generator.stream("a", SamplingConfig(num_samples=2)))


def test_a_text_begins_with_the_begin_token_that_the_model_was_trained_with(make_model, letters):
    generator = Generator(make_model(vocab_size=letters.vocab_size), letters)
    plain = generator.prompt_ids("bcd")
    letters.bos_id = 3
    try:
        assert generator.prompt_ids("bcd") == [3, *plain]
        assert generator.prompt_ids("") == [3]
        assert generator.prompt_ids([1, 2]) == [1, 2]  # ids are taken as they are
    finally:
        del letters.bos_id
