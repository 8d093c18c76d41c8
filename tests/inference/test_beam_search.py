import itertools

import pytest
import torch

from gptlab.inference.beam_search import beam_search
from gptlab.inference.decoding import Decoder

END = 3  # the id that ends a text, in the models of this file


@torch.no_grad()
def log_probs_of(model, prompt, ids):
    """Log-probability of each id after the prompt, by whole forward passes."""
    result, context = [], list(prompt)
    for token in ids:
        logits = model(torch.tensor([context[-model.config.block_size :]]))[0][0, -1]
        result.append(logits.log_softmax(-1)[token].item())
        context.append(token)
    return result


def every_text(vocab_size, max_tokens):
    """All continuations: those that end early, and those of full length."""
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(range(vocab_size), repeat=length):
            ended = ids[-1] == END
            if END not in ids[:-1] and (ended or length == max_tokens):
                yield ids


def search(model, prompt, beam_width, max_tokens, n_best=1, **more):
    return beam_search(
        Decoder(model, [prompt]), beam_width, max_tokens, lambda ids: ids[-1] == END, n_best, **more
    )


@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_what_an_exhaustive_search_finds(make_model, seed):
    model = make_model(seed=seed, vocab_size=5, n_embd=8, n_head=2, init_std=0.7)
    scored = []
    for ids in every_text(5, 3):
        log_probs = log_probs_of(model, [1, 2], ids)
        scored.append((sum(log_probs) / len(ids), ids, log_probs))
    scored.sort(reverse=True)
    found = search(model, [1, 2], 5**2, 3, n_best=10)
    assert [beam.token_ids for beam in found] == [ids for _, ids, _ in scored[:10]]
    for beam, (score, _, log_probs) in zip(found, scored, strict=False):
        assert beam.score == pytest.approx(score, abs=1e-4)
        assert beam.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_one_beam_is_greedy_writing_also_past_the_window(make_model):
    model = make_model()
    found = beam_search(Decoder(model, [[1, 2, 3]]), 1, 40, lambda ids: False)
    expected = model.generate(torch.tensor([[1, 2, 3]]), 40, temperature=0)
    assert list(found[0].token_ids) == expected[0, 3:].tolist()


def test_more_beams_find_a_likelier_text_than_greedy_writing(make_model):
    gains = []
    for seed in range(5):
        model = make_model(seed=seed, init_std=0.3)
        one, many = (search(model, [5], width, 10)[0].score for width in (1, 16))
        gains.append(many - one)
    assert min(gains) > -1e-6 and max(gains) > 0.01


def test_past_the_window_scores_are_those_of_the_sliding_rule(make_model):
    model = make_model(block_size=4)
    best = beam_search(Decoder(model, [[1, 2, 3]]), 3, 9, lambda ids: False)[0]
    window, expected = [1, 2, 3], []
    for token in best.token_ids:
        window = window if len(window) <= 4 else window[-2:]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0][0, -1]
        expected.append(logits.log_softmax(-1)[token].item())
        window.append(token)
    assert best.log_probs == pytest.approx(expected, abs=1e-4)


def test_ids_beyond_the_vocabulary_are_never_chosen(make_model):
    model = make_model()
    found = search(model, [1], 4, 8, n_best=4, vocab_size=6)
    assert max(max(beam.token_ids) for beam in found) < 6


def test_the_results_are_different_texts_and_the_best_comes_first(make_model):
    found = search(make_model(), [1], 6, 8, n_best=6)
    assert len({beam.token_ids for beam in found}) == 6
    assert [beam.score for beam in found] == sorted((b.score for b in found), reverse=True)


def test_the_search_ends_early_once_nothing_can_be_better(reciting):
    model = reciting([0, 1, 2, END], vocab_size=6)
    steps = []
    found = search(model, [0], 2, 1000, progress=steps.append)
    assert found[0].token_ids == (1, 2, END)
    assert sum(steps) < 20


@pytest.mark.parametrize("beam_width", [1, 2, 8])
def test_an_early_end_neither_takes_the_place_of_a_beam_nor_hides_a_better_text(
    reciting, beam_width
):
    model = reciting([0, 1, 2, 4, END], vocab_size=6, certainty=20.0)
    with torch.no_grad():  # after 0, ending at once is a little likelier than the long text
        model.lm_head.weight[END, 0] = 20.2
    best = search(model, [0], beam_width, 8)[0]
    assert log_probs_of(model, [0], [END])[0] > log_probs_of(model, [0], [1])[0]
    assert best.token_ids == (1, 2, 4, END)
