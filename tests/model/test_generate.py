"""The naive generate: the five-line script's, and the oracle of the fast Generator."""

import pytest
import torch

import gptlab.model.transformer as transformer
from gptlab.model.transformer import create_model


def plain_greedy(model, prompt, count):
    """The sliding rule in its own words, one row, one token at a time."""
    block_size = model.config.block_size
    text, context = list(prompt), list(prompt)[-block_size:]
    for _ in range(count):
        with torch.no_grad():
            token = model(torch.tensor([context]))[0][0, -1].argmax().item()
        text.append(token)
        context.append(token)
        if len(context) > block_size:
            context = context[-(block_size // 2) :]
    return text


@pytest.mark.parametrize("position_encoding", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 24])
def test_greedy_text_follows_the_sliding_rule_at_the_windows_edge(
    random_model, length, position_encoding
):
    model = random_model(block_size=8, position_encoding=position_encoding, noise=0.5)
    prompts = torch.randint(37, (2, length))
    generated = model.generate(prompts, 30, temperature=0)
    assert generated.shape == (2, length + 30)
    assert generated.tolist() == [plain_greedy(model, row, 30) for row in prompts.tolist()]
    assert len(set(generated[0, length:].tolist())) > 1  # a constant would prove little


def test_no_window_is_longer_than_the_model_allows(random_model, monkeypatch):
    model = random_model(block_size=8)
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda t: seen.append(t.size(1)) or forward(t))
    model.generate(torch.randint(37, (1, 5)), 12, temperature=0)
    assert seen == [5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6]


def test_a_window_of_one_token_still_generates(random_model):
    assert random_model(block_size=1).generate(torch.tensor([[3, 4]]), 5).shape == (1, 7)


def test_greedy_text_is_the_same_every_time_and_draws_nothing(random_model):
    model = random_model()
    prompt = torch.randint(37, (2, 3))
    state = torch.get_rng_state()
    first = model.generate(prompt, 20, temperature=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, model.generate(prompt, 20, temperature=0))


def test_the_same_seed_gives_the_same_text_and_another_seed_another(random_model):
    model = random_model()
    prompt = torch.randint(37, (2, 3))

    def text(seed):
        torch.manual_seed(seed)
        return model.generate(prompt, 20, top_k=30, top_p=0.95).tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_dropout_is_off_while_it_generates_and_back_afterwards(random_model):
    model = random_model(dropout=0.5)
    prompt = torch.randint(37, (1, 4))
    expected = model.generate(prompt, 20, temperature=0)
    model.train()
    assert torch.equal(model.generate(prompt, 20, temperature=0), expected)
    assert model.training
    assert not model.eval().generate(prompt, 1).requires_grad and not model.training


def next_tokens(random_model, **sampling):
    """The distribution that the model predicts, and how often each id was drawn in 4,000 times."""
    model = random_model(vocab_size=6, noise=0.5)
    prompt = torch.tensor([[1, 2]])
    with torch.no_grad():
        logits = model(prompt)[0][0, -1]
    drawn = model.generate(prompt.expand(4000, -1), 1, **sampling)[:, -1]
    return logits, drawn.bincount(minlength=6) / 4000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ids_come_with_the_probabilities_of_the_tempered_logits(random_model, temperature):
    logits, frequencies = next_tokens(random_model, temperature=temperature)
    expected = (logits / temperature).softmax(-1)
    assert expected.max() < 0.9
    assert (frequencies - expected).abs().max() < 0.04  # five standard deviations


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 200])
def test_top_k_leaves_the_k_likeliest_ids(random_model, top_k):
    logits, frequencies = next_tokens(random_model, top_k=top_k)
    kept = logits >= logits.sort(descending=True).values[min(top_k, 6) - 1]
    expected = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    assert (frequencies[~kept] == 0).all()
    assert (frequencies - expected).abs().max() < 0.04


@pytest.mark.parametrize("held", [1, 2, 3, 4, 5])
def test_top_p_leaves_the_fewest_ids_that_hold_the_probability(random_model, held):
    logits, _ = next_tokens(random_model)
    flat = (logits / 5).softmax(-1).sort(descending=True)  # so flat that every kept id is drawn
    mass = flat.values.cumsum(-1)[held - 1].item()
    for top_p, count in ((mass - 0.01, held), (mass + 0.01, held + 1)):
        _, frequencies = next_tokens(random_model, temperature=5.0, top_p=top_p)
        assert set(frequencies.nonzero()[:, 0].tolist()) == set(flat.indices[:count].tolist())


def test_the_smallest_top_p_is_greedy_and_the_largest_drops_nothing(random_model):
    logits, frequencies = next_tokens(random_model, top_p=1e-6)
    assert frequencies[logits.argmax()] == 1
    _, frequencies = next_tokens(random_model, temperature=5.0, top_p=1.0)
    assert (frequencies > 0).all()


def test_top_p_holds_its_share_of_what_top_k_left(random_model):
    logits, _ = next_tokens(random_model)
    flat = (logits / 5).softmax(-1).sort(descending=True)
    share = flat.values[:3] / flat.values[:3].sum()
    top_p = share[:2].sum().item() - 0.01
    assert flat.values[:2].sum() < top_p  # of all ids it would take a third
    _, frequencies = next_tokens(random_model, temperature=5.0, top_k=3, top_p=top_p)
    assert set(frequencies.nonzero()[:, 0].tolist()) == set(flat.indices[:2].tolist())


def test_nothing_is_generated_when_nothing_is_asked(random_model):
    prompt = torch.randint(37, (2, 20))
    assert torch.equal(random_model().generate(prompt, 0), prompt)


def test_the_five_line_script_works():
    model = create_model("tiny", vocab_size=50, n_layer=1)
    ids = torch.randint(50, (1, 4))
    logits, loss = model(ids)
    assert logits.shape == (1, 4, 50) and loss is None
    longer = model.generate(ids, max_new_tokens=3, temperature=0.8, top_k=200, top_p=0.9)
    assert longer.shape == (1, 7) and torch.equal(longer[:, :4], ids)
    assert 0 <= longer.min() and longer.max() < 50


def test_the_model_file_run_as_a_program_shows_shapes_parameters_and_a_generation(capsys):
    import runpy

    runpy.run_path(transformer.__file__, run_name="__main__")
    shown = capsys.readouterr().out
    assert "7,520,320 parameters" in shown
    assert "tokens (1, 19) -> logits (1, 19, 256)" in shown
    assert "generated ids: [" in shown
