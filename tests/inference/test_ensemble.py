"""Models as one: what an ensemble computes is the average of probabilities that torch computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.checkpoints import Checkpoint
from gptlab.data.tokenizer import char_tokenizer_without_end
from gptlab.errors import ConfigError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.ensemble import Ensemble, ensemble_of, model_words
from gptlab.inference.evaluate import measure_tokens, sliding_windows
from gptlab.inference.generator import Generator

ALPHABET = "abcdefghijklmnopqrstuvw"  # 23 ids, as the models have
UNLIKE = dict(n_layer=1, n_head=2, n_kv_head=2, n_embd=24, block_size=12, use_rms_norm=False)


@pytest.fixture
def members(make_model):
    """Three models of one vocabulary and unlike architectures; the shortest window has 12."""
    learned = dict(position_encoding="learned", n_layer=3, use_swiglu=False)
    return [make_model(0), make_model(1, **UNLIKE), make_model(2, **learned)]


def averaged(members, tokens):
    """The mean of the members' probabilities, [B, T, V], without a line of the ensemble's."""
    with torch.no_grad():
        return sum(F.softmax(model(tokens)[0].double(), -1) for model in members) / len(members)


def written_slowly(members, prompt, n_tokens):
    """The likeliest tokens under the averaged probabilities, without a cache."""
    size, window, found = min(model.config.block_size for model in members), list(prompt), []
    for _ in range(n_tokens):
        if len(window) > size:
            window = window[-(size // 2) :]
        probabilities = averaged(members, torch.tensor([window]))[0, -1]
        found.append(int(probabilities.argmax()))
        window.append(found[-1])
    return found


def test_its_logits_are_the_logarithm_of_averaged_probabilities(members):
    tokens = torch.randint(23, (3, 12))
    ensemble = Ensemble(members)
    found = ensemble.unembed(ensemble.features(tokens))
    torch.testing.assert_close(found.double().exp(), averaged(members, tokens))
    few = Ensemble(members, vocab_size=7)
    found = few.unembed(few.features(tokens)).exp().sum(-1)
    torch.testing.assert_close(found, torch.ones(3, 12))  # of rows beyond, nothing is left


def test_it_writes_what_the_averaged_probabilities_say_also_beyond_the_window(members):
    generator = Generator(Ensemble(members), char_tokenizer_without_end(ALPHABET))
    prompts, config = [[1, 5, 3], [7]], SamplingConfig(max_tokens=30, temperature=0)
    for prompt, completion in zip(prompts, generator.generate(prompts, config), strict=True):
        assert completion.token_ids == written_slowly(members, prompt, 30)


@pytest.mark.parametrize(
    "options", [dict(top_k=5, temperature=0.9), dict(prompt_lookup=4), dict(beam_width=3)], ids=str
)
def test_every_way_of_writing_draws_from_the_averaged_probabilities(members, options):
    generator = Generator(Ensemble(members), char_tokenizer_without_end(ALPHABET))
    config = SamplingConfig(max_tokens=9, seed=3, **options)
    found = generator.generate([[2, 2]], config)[0]
    tokens = torch.tensor([[2, 2, *found.token_ids]])
    expected = averaged(members, tokens)[0, 1:-1].log().gather(1, tokens[0, 2:, None])[:, 0]
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-5)
    stream = generator.stream([2, 2], config)
    assert "".join(stream) == found.text


def test_the_loss_of_tokens_is_that_of_averaged_probabilities_beside_each_members(members):
    ids = np.random.default_rng(0).integers(23, size=60)
    loss_mask = np.random.default_rng(1).random(60) < 0.7
    windows = sliding_windows(60, 12, 12)
    found = measure_tokens(members, ids, windows, 12, loss_mask=loss_mask)
    starts = range(0, 59, 12)
    tokens = torch.from_numpy(np.stack([np.resize(ids[s : s + 12], 12) for s in starts]))
    for result, some in zip(found, (members, *([m] for m in members)), strict=True):
        probabilities = averaged(some, tokens)
        losses = [
            -float(probabilities[row, place, ids[start + place + 1]].log())
            for row, start in enumerate(starts)
            for place in range(12)
            if start + place + 1 < 60 and loss_mask[start + place + 1]
        ]
        assert result.tokens == len(losses)
        assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    alone = measure_tokens(members[:1], ids, windows, 12, loss_mask=loss_mask)
    assert len(alone) == 1 and alone[0].loss == pytest.approx(found[1].loss, abs=1e-7)


def test_models_of_other_tokens_are_no_ensemble(make_model):
    def checkpoint(name, alphabet, **content):
        return Checkpoint(
            make_model(), char_tokenizer_without_end(alphabet), Path(name), 1, 2.0, content
        )

    first, other = checkpoint("one", ALPHABET), checkpoint("two", ALPHABET[:-1] + "z")
    with pytest.raises(ConfigError, match="two has another tokenizer than one"):
        ensemble_of([first, first, other])
    with pytest.raises(ConfigError, match="one alone"):
        ensemble_of([first])
    with pytest.raises(ConfigError, match="last character first"):
        ensemble_of([first, checkpoint("two", ALPHABET, reversed_answers=True)])
    both = ensemble_of([first, checkpoint("two", ALPHABET, chat_template="x")])
    assert both.name == "one,two" and both.content["chat_template"] == ""


def test_a_word_names_the_models_between_its_commas(tmp_path):
    assert model_words("a, b,c") == ["a", "b", "c"] and model_words("a") == ["a"]
    (tmp_path / "a,b").mkdir()
    assert model_words(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    with pytest.raises(ConfigError, match="between two commas"):
        model_words("a,,b")


def test_each_member_reads_documents_as_it_was_trained(members):
    tokens = torch.tensor([[4, 5, 0, 6, 7, 1]])  # 0 begins a document
    reader, plain = members[:2]
    alone = averaged([reader], tokens[:, 2:])
    for separators, expected in (
        ([0, None], alone),
        ([None, 0], averaged([reader], tokens)[:, 2:]),
    ):
        ensemble = Ensemble([reader, plain], separators=separators)
        hidden = ensemble.features(tokens)[:, 2:, : reader.config.n_embd]
        found = reader.unembed(hidden).double().softmax(-1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
