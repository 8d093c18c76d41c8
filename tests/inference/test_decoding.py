"""The cached decoder against the slow, obvious way: a whole forward pass for every token."""

import pytest
import torch

from gptlab.inference.decoding import Decoder, evaluating

ENCODINGS = ["rope", "learned", "sinusoidal"]


def prompts_of(lengths, vocab_size=23, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def next_logits(model, window):
    return model(torch.tensor([window]))[0][0, -1]


def written_slowly(model, prompt, count):
    """(tokens, logits before each) by the rule of GPT.generate, one whole window at a time."""
    block_size = model.config.block_size
    window, tokens, logits = prompt[-block_size:], [], []
    for _ in range(count):
        if len(window) > block_size:
            window = window[-max(1, block_size // 2) :]
        logits.append(next_logits(model, window))
        tokens.append(logits[-1].argmax().item())
        window = [*window, tokens[-1]]
    return tokens, torch.stack(logits)


def written_by_decoder(model, prompts, count):
    decoder = Decoder(model, prompts)
    tokens, logits = [], []
    for step in range(count):
        if step:
            decoder.append(tokens[-1])
        logits.append(decoder.logits.clone())
        tokens.append(decoder.logits.argmax(-1).tolist())
    return [list(row) for row in zip(*tokens, strict=True)], torch.stack(logits, dim=1)


@pytest.mark.parametrize("position_encoding", ENCODINGS)
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_cached_writing_equals_the_naive_one_from_every_prompt_length_past_the_window(
    make_model, position_encoding, n_kv_head
):
    model = make_model(position_encoding=position_encoding, n_kv_head=n_kv_head, qk_norm=True)
    prompts = prompts_of([*range(1, 18), 40])  # block_size is 16; all of them in one batch
    tokens, logits = written_by_decoder(model, prompts, 26)
    for row, prompt in enumerate(prompts):
        expected, expected_logits = written_slowly(model, prompt, 26)
        assert tokens[row] == expected
        difference = logits[row].log_softmax(-1) - expected_logits.log_softmax(-1)
        assert difference.abs().max() < 1e-4
    alone, _ = written_by_decoder(model, prompts[:1], 26)
    assert alone[0] == tokens[0]


@pytest.fixture
def nothing_is_zero():
    """Memory that nobody wrote to holds nan, as it may."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.usefixtures("nothing_is_zero")
def test_slots_that_no_token_has_written_are_never_seen(make_model):
    model = make_model(n_kv_head=2)
    prompts = prompts_of([3, 9, 16, 21])
    expected = [written_slowly(model, prompt, 26)[0] for prompt in prompts]
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert written_by_decoder(model, [prompt], 26)[0] == [tokens]
        decoder = Decoder(model, [prompt])  # read once, then three rows of it
        decoder.select([0, 0, 0])
        for token in tokens:
            assert decoder.logits.argmax(-1).tolist() == [token] * 3
            decoder.append([token] * 3)
    for some in (slice(2), slice(None)):  # no prompt reaches the window's end, and two do
        assert written_by_decoder(model, prompts[some], 26)[0] == expected[some]


@pytest.mark.parametrize("position_encoding", ENCODINGS)
def test_the_slow_way_of_these_tests_is_that_of_gpt_generate(make_model, position_encoding):
    model = make_model(position_encoding=position_encoding)
    for prompt in prompts_of([1, 15, 16, 17, 40]):
        generated = model.generate(torch.tensor([prompt]), 40, temperature=0)
        assert generated[0, len(prompt) :].tolist() == written_slowly(model, prompt, 40)[0]


@pytest.mark.parametrize("block_size", [1, 2, 3, 5])
def test_the_smallest_windows_slide_too(make_model, block_size):
    model = make_model(block_size=block_size)
    prompts = prompts_of([1, 2, 3, 4, 5, 6])
    tokens, _ = written_by_decoder(model, prompts, 12)
    assert tokens == [written_slowly(model, prompt, 12)[0] for prompt in prompts]


@pytest.mark.parametrize("position_encoding", ENCODINGS)
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 7, 3], [1, 15], [15, 1], [8, 8]])
def test_any_split_of_a_sequence_into_pieces_gives_the_same_logits(
    make_model, position_encoding, pieces
):
    from gptlab.model.kv_cache import KVCache

    model = make_model(position_encoding=position_encoding)
    ids = torch.tensor(prompts_of([16, 16]))
    with torch.no_grad():
        whole = model(ids)[0]
        cache = KVCache(model.config, 2)
        parts = [model(piece, cache=cache)[0] for piece in ids.split(pieces, dim=1)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


def test_rows_can_be_repeated_dropped_and_reordered(make_model):
    model = make_model()
    prompts = prompts_of([3, 9, 14])
    decoder = Decoder(model, prompts)
    decoder.select([2, 0, 0])
    contexts = [prompts[2], prompts[0], prompts[0]]
    for tokens in ([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]):  # row 0 slides
        decoder.append(tokens)
        contexts = [[*context, token] for context, token in zip(contexts, tokens, strict=True)]
        contexts = [c if len(c) <= 16 else c[-8:] for c in contexts]
        expected = torch.stack([next_logits(model, context) for context in contexts])
        assert (decoder.logits - expected).abs().max() < 1e-4
    decoder.select([1])
    assert (decoder.logits - expected[1]).abs().max() < 1e-4
    decoder.append([3])
    assert (decoder.logits[0] - next_logits(model, [*contexts[1], 3])).abs().max() < 1e-4


def test_the_mode_of_the_model_comes_back_even_after_an_error(make_model):
    model = make_model().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not model.blocks[0].training
        raise KeyError
    assert model.training and model.blocks[0].training
