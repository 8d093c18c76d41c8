"""A sequence in pieces through the cache gives the logits of the sequence in one piece."""

import itertools

import pytest
import torch

from gptlab.errors import GenerationError
from gptlab.model.kv_cache import KVCache

POSITION_ENCODINGS = ["rope", "learned", "sinusoidal"]


def in_pieces(model, tokens, sizes):
    """Logits of tokens that are fed to a fresh cache in pieces of these sizes."""
    cache = KVCache(model.config, tokens.size(0))
    with torch.no_grad():
        logits = [model(piece, cache=cache)[0] for piece in tokens.split(sizes, dim=1)]
    assert cache.lengths == [tokens.size(1)] * tokens.size(0)
    return torch.cat(logits, dim=1)


def full(model, tokens):
    """The oracle: no cache."""
    with torch.no_grad():
        return model(tokens)[0]


def compositions(total):
    """Every way to cut `total` into an ordered list of pieces."""
    for cuts in itertools.product([False, True], repeat=total - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), total]
        yield [b - a for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("position_encoding", POSITION_ENCODINGS)
def test_every_split_of_a_sequence_gives_the_logits_of_the_whole(
    random_model, position_encoding, n_kv_head
):
    model = random_model(position_encoding=position_encoding, n_kv_head=n_kv_head, block_size=6)
    tokens = torch.randint(37, (2, 6))
    expected = full(model, tokens)
    for sizes in compositions(6):
        logits = in_pieces(model, tokens, sizes)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5, msg=str(sizes))


@pytest.mark.parametrize(
    "settings",
    [
        dict(qk_norm=True, n_kv_head=2, head_dim=10),
        dict(use_rms_norm=False, use_swiglu=False, bias=True, tie_weights=False),
    ],
)
def test_a_split_gives_the_same_logits_with_the_other_settings_too(random_model, settings):
    model = random_model(**settings)
    tokens = torch.randint(37, (2, 16))
    logits = in_pieces(model, tokens, [5, 1, 1, 8, 1])
    torch.testing.assert_close(logits, full(model, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("position_encoding", POSITION_ENCODINGS)
def test_prompts_of_unequal_length_share_a_batch(random_model, position_encoding, n_kv_head):
    """Padded on the right, true lengths set, then pieces of several sizes behind each row."""
    model = random_model(position_encoding=position_encoding, n_kv_head=n_kv_head)
    lengths, ahead = [1, 4, 7, 4], [1, 3, 1, 2]
    rows = [torch.randint(37, (length + sum(ahead),)) for length in lengths]
    padded = torch.full((len(rows), max(lengths)), 36)
    for row, tokens, length in zip(padded, rows, lengths, strict=True):
        row[:length] = tokens[:length]
    cache = KVCache(model.config, len(rows))
    with torch.no_grad():
        prompt_logits = model(padded, cache=cache)[0]
        cache.set_lengths(lengths)
        done, pieces = 0, []
        for size in ahead:
            piece = [t[n + done : n + done + size] for t, n in zip(rows, lengths, strict=True)]
            pieces.append(model(torch.stack(piece), cache=cache)[0])
            done += size
    assert cache.lengths == [length + sum(ahead) for length in lengths]
    for b, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        logits = torch.cat([prompt_logits[b, :length], *(piece[b] for piece in pieces)])
        torch.testing.assert_close(logits, full(model, tokens[None])[0], atol=1e-5, rtol=1e-5)


def test_what_lies_behind_a_row_is_never_seen(random_model):
    model = random_model(n_kv_head=2)
    tokens = torch.randint(37, (2, 8))
    cache = KVCache(model.config, 2)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
        cache.set_lengths([3, 5])
        for keys, values in zip(cache.keys, cache.values, strict=True):
            keys[0, :, 3:], values[0, :, 3:] = 1e4, 1e4
            keys[1, :, 5:], values[1, :, 5:] = 1e4, 1e4
        after = model(torch.stack([tokens[0, 3:6], tokens[1, 5:8]]), cache=cache)[0]
    expected = [full(model, tokens[:1, :6])[0, 3:], full(model, tokens[1:])[0, 5:]]
    torch.testing.assert_close(after, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_selected_rows_go_on_as_copies_of_the_rows_they_came_from(random_model):
    model = random_model(n_kv_head=2)
    prompts = [torch.randint(37, (5,)), torch.randint(37, (3,)), torch.randint(37, (4,))]
    cache = KVCache(model.config, 3)
    with torch.no_grad():
        model(torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True), cache=cache)
        cache.set_lengths([5, 3, 4])
        chosen = [2, 0, 0, 2]  # replicated, reordered, one dropped
        cache.select(torch.tensor(chosen))
        following = torch.randint(37, (4, 2))
        logits = model(following, cache=cache)[0]
    assert cache.lengths == [6, 7, 7, 6]
    for b, source in enumerate(chosen):
        whole = torch.cat((prompts[source], following[b]))
        torch.testing.assert_close(logits[b], full(model, whole[None])[0, -2:])


def test_a_row_taken_from_another_cache_goes_on_as_it_would_there(random_model):
    model = random_model(n_kv_head=2)
    first, second = torch.randint(37, (2, 9)), torch.randint(37, (2, 4))
    cache, other = KVCache(model.config, 2), KVCache(model.config, 2)
    with torch.no_grad():
        model(first, cache=cache)
        model(second, cache=other)
        cache.take_row(0, other, 1)
        following = torch.randint(37, (2, 3))
        logits = model(following, cache=cache)[0]
    assert cache.lengths == [7, 12]
    expected = [torch.cat((second[1], following[0])), torch.cat((first[1], following[1]))]
    for b, whole in enumerate(expected):
        torch.testing.assert_close(logits[b], full(model, whole[None])[0, -3:])


def test_the_cache_takes_block_size_tokens_and_refuses_one_more_unharmed(random_model):
    model = random_model(block_size=6)
    tokens = torch.randint(37, (1, 7))
    cache = KVCache(model.config, 1)
    with torch.no_grad():
        model(tokens[:, :6], cache=cache)
        keys = cache.keys[0].clone()
        with pytest.raises(GenerationError, match=r"7 tokens do not fit .* window of 6"):
            model(tokens[:, 6:], cache=cache)
    assert cache.lengths == [6]
    assert torch.equal(cache.keys[0], keys)


def test_the_cache_has_the_size_and_type_that_were_asked_for(random_model):
    config = random_model(n_kv_head=2, head_dim=10, block_size=7, n_layer=3).config
    cache = KVCache(config, 5, dtype=torch.bfloat16)
    assert cache.block_size == 7
    assert cache.lengths == [0] * 5
    tensors = cache.keys + cache.values
    assert len(tensors) == 6
    assert {tuple(t.shape) for t in tensors} == {(5, 2, 7, 10)}
    assert {t.dtype for t in tensors} == {torch.bfloat16}


def test_a_bfloat16_cache_under_autocast_stays_near_the_exact_logits(random_model):
    model = random_model(n_kv_head=2)
    tokens = torch.randint(37, (2, 8))
    cache = KVCache(model.config, 2, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pieces = [model(piece, cache=cache)[0] for piece in tokens.split([5, 1, 2], dim=1)]
    exact = full(model, tokens)
    error = torch.cat(pieces, dim=1).float() - exact
    assert error.abs().max() < 0.05 * exact.abs().max()
