"""Draft tokens from the text itself: which are drafted, when none are, and that no text changes."""

import itertools
import random

import pytest
import torch

from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import GenerationError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.decoding import Decoder
from gptlab.inference.generator import Generator
from gptlab.inference.native import NativeDecoder, library
from gptlab.inference.speculation import PromptLookup
from gptlab.model.kv_cache import KVCache
from gptlab.model.quantization import round_weights

LETTERS = "abcdefghijklmnopqrstu\n"  # with the end of text 23 ids, as the models here have


def lookup_of(text: str, most: int = 10, cost: float = 0.01) -> PromptLookup:
    return PromptLookup([ord(letter) for letter in text], most, cost)


def draft_of(lookup: PromptLookup, room: int = 100) -> str:
    return "".join(map(chr, lookup.draft(room)))


def greedy(model, prompt, count, native=None, drafts=0, lookup=None):
    """(tokens, logits before each, passes through the model) of a greedy text of one row."""
    decoder = Decoder(model, [prompt], native, drafts)
    decoder.lookup = lookup
    passes, step = [], decoder._step
    decoder._step = lambda tokens: passes.append(len(tokens[0])) or step(tokens)
    tokens, logits = [], []
    for _ in range(count):
        logits.append(decoder.logits[0].clone())
        tokens.append(logits[-1].argmax().item())
        decoder.append(tokens[-1:])
    return tokens, torch.stack(logits), passes


# Which tokens are drafted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "draft"),
    [
        ("abcdefgh, abc", "defgh, abc"),
        ("xbcU abcV xbc", "U abcV xbc"),  # the longer match, not the nearer one
        ("abcU abcV abc", "V abcV abc"),  # of equal ones the nearer
        ("Qbc1, bc", "1, bc1, bc"),  # two tokens are enough, one is not
        ("Qc1, c", ""),
        ("ababab", "ababababab"),  # a draft that reaches the end of the text repeats itself
        ("abcdefg", ""),
        ("a", ""),
        ("", ""),
    ],
)
def test_what_followed_the_same_tokens_before_is_drafted(text, draft):
    assert draft_of(lookup_of(text, cost=0)) == draft


@pytest.mark.parametrize("room", [-1, 0, 1, 3])
def test_a_draft_fits_the_room_and_the_most(room):
    assert len(lookup_of("ababab", cost=0).draft(room)) == max(0, room)
    assert len(lookup_of("ababab", most=2, cost=0).draft(100)) == 2


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_a_draft_is_as_long_as_gives_the_most_tokens_per_time(cost):
    for seed in range(50):
        lookup = lookup_of("abcdefghijklmnopqrstuvwxyz abcd", cost=cost)
        source = random.Random(seed)
        lookup._rates = sorted(source.random() for _ in lookup._rates)
        chances = itertools.accumulate(lookup._rates[4:14], lambda a, b: a * b)
        written = [1.0, *itertools.accumulate(chances, initial=1.0)][1:]
        speeds = [tokens / (1 + cost * length) for length, tokens in enumerate(written)]
        assert speeds[len(lookup.draft(100))] == pytest.approx(max(speeds))


def test_drafting_stops_where_nothing_is_accepted_and_begins_again_where_it_is():
    lookup = lookup_of("", cost=0.2)
    drafted = 0
    for number in range(200):  # "ab" often, and each time another token behind it
        for token in (ord("a"), ord("b"), 1000 + number):
            lookup.add(token)
            drafted += len(lookup.draft(100)) if number >= 20 else 0
    assert drafted == 0
    passage = [*range(2000, 2100)]
    for token in [*passage, *passage[:20]]:
        lookup.add(token)
    draft = lookup.draft(100)
    assert len(draft) > 2 and draft == passage[20 : 20 + len(draft)]


# That no text changes -----------------------------------------------------------------------------


class Wild:
    """Drafts anything, and sometimes what is right."""

    def __init__(self, truth, vocab_size=23):
        self.truth, self.added, self.vocab_size = truth, 0, vocab_size
        self.random = random.Random(0)

    def add(self, token):
        assert token == self.truth[self.added]
        self.added += 1

    def draft(self, room):
        right = self.truth[self.added :][: self.random.randrange(5)]
        wrong = [self.random.randrange(self.vocab_size) for _ in range(self.random.randrange(6))]
        return [*right, *wrong][: max(0, room)]


@pytest.mark.parametrize("position_encoding", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("decoded_by", ["torch", "native"])
def test_whatever_is_drafted_the_text_is_the_plain_one_through_sliding_windows(
    make_model, position_encoding, decoded_by
):
    model = make_model(position_encoding=position_encoding, qk_norm=True)
    native = NativeDecoder.of(model) if decoded_by == "native" else None
    if decoded_by == "native" and native is None:
        pytest.skip("there is no C++ compiler here")
    for length in (1, 2, 7, 15, 16, 40):
        prompt = torch.randint(23, (length,), generator=torch.Generator().manual_seed(length))
        prompt = prompt.tolist()
        plain, plain_logits, plain_passes = greedy(model, prompt, 60, native)
        assert plain_passes == [1] * 60
        slowly = model.generate(torch.tensor([prompt]), 60, temperature=0)[0, length:].tolist()
        assert plain == slowly
        for lookup in (None, Wild([*plain, 0])):
            tokens, logits, passes = greedy(model, prompt, 60, native, 10, lookup)
            assert tokens == plain
            if native is not None:
                assert torch.equal(logits, plain_logits)
            else:
                torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-4)
            assert lookup is None or len(passes) < 60 < sum(passes)


def test_a_text_that_repeats_takes_fewer_passes(reciting):
    model = reciting(list(range(8)), 8, block_size=200)  # 0 to 7, and again from 0
    assert len(greedy(model, [0, 1, 2], 100, drafts=10)[2]) < 50


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(stop=("e", "ab")), dict(repetition_penalty=1.3), dict(max_tokens=7),
     dict(temperature=0.7), dict(top_k=1)],
)  # fmt: skip
def test_a_generator_writes_and_streams_the_same_with_it(make_model, settings):
    tokenizer = char_tokenizer(LETTERS)
    for seed in range(6):
        generator = Generator(make_model(seed, block_size=32), tokenizer)
        found = []
        for most in (0, 10):
            config = SamplingConfig(
                **(dict(temperature=0, max_tokens=80, seed=seed, prompt_lookup=most) | settings)
            )
            found.append(generator.generate("abcabdabc", config)[0])
            pieces = list(generator.stream("abcabdabc", config))
            assert "".join(pieces) == found[-1].text
        plain, drafted = found
        assert drafted.token_ids == plain.token_ids and drafted.text == plain.text
        assert drafted.stopped_by == plain.stopped_by
        assert drafted.log_probs == pytest.approx(plain.log_probs, abs=1e-4)


def test_rows_that_are_chosen_anew_forget_what_was_drafted(make_model):
    model = make_model()
    decoder, plain = (
        Decoder(model, [[1, 2, 3, 1, 2]], drafts=10),
        Decoder(model, [[1, 2, 3, 1, 2]]),
    )
    decoder.lookup = Wild([3, 4, 5, 6])
    decoder.lookup.draft = lambda room: [4, 5, 6]
    for each in (decoder, plain):
        each.append([3])
        each.select([0, 0])
        each.append([4, 9])
        each.select([1])
        each.append([5])
    torch.testing.assert_close(decoder.logits, plain.logits, rtol=1e-4, atol=1e-4)


def test_in_sixteen_bits_torch_drafts_nothing_since_rounding_decides_ties(make_model):
    model = make_model().bfloat16()
    assert set(greedy(model, [1, 2] * 5, 20, drafts=10)[2]) == {1}


@pytest.mark.parametrize("most", [-1, 16])
def test_a_number_of_draft_tokens_out_of_range_is_refused(most):
    with pytest.raises(GenerationError, match="prompt_lookup"):
        SamplingConfig(prompt_lookup=most)


def test_tokens_of_several_rows_and_lengths_are_one_by_one_the_same_to_the_bit(make_model):
    for settings in (dict(), dict(n_embd=52, head_dim=20, intermediate_size=77, bias=True)):
        for dtype in ("float32", "bfloat16", "int8"):
            model = make_model(block_size=64, **settings)
            round_weights(model, dtype)
            native = NativeDecoder.of(model, dtype)
            if library() is None:
                pytest.skip("there is no C++ compiler here")
            assert native is not None
            for rows, length in [(1, n) for n in range(2, 17)] + [(2, 5), (3, 4), (8, 2)]:
                tokens = torch.randint(23, (rows, length))
                together, alone = (KVCache(model.config, rows) for _ in range(2))
                for cache in (together, alone):
                    cache.set_lengths([3 * row for row in range(rows)])
                found = native.step(tokens, together)
                single = [native.step(column[:, None], alone)[:, 0] for column in tokens.T]
                assert torch.equal(found, torch.stack(single, dim=1))
                assert together.lengths == alone.lengths


def test_no_thread_reads_the_keys_of_a_token_before_they_are_written(make_model):
    model = make_model(block_size=64, n_layer=1)
    native = NativeDecoder.of(model)
    if native is None:
        pytest.skip("there is no C++ compiler here")
    torch.set_num_threads(2)
    tokens = torch.randint(23, (1, 16))
    alone = KVCache(model.config, 1)
    expected = torch.cat([native.step(column[:, None], alone) for column in tokens.T], dim=1)
    for _ in range(20):
        assert torch.equal(native.step(tokens, KVCache(model.config, 1)), expected)
