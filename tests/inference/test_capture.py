"""What is seen inside a model is what it computes, against plain hooks and formulas by hand."""

import contextlib

import pytest
import torch

from gptlab.errors import GenerationError
from gptlab.inference.capture import (
    Means,
    Part,
    ablated,
    capture,
    head_outputs,
    head_scores,
    mean_outputs,
    pattern_scores,
)
from gptlab.model.arithmetic import Trained
from gptlab.model.config import GPTConfig
from gptlab.model.lora import train_only
from gptlab.model.transformer import GPT

TOKENS = [5, 1, 4, 1, 5, 9, 2, 6, 36, 0]
GPT2 = dict(
    position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu_tanh",
    bias=True,
)  # fmt: skip
ARCHITECTURES = {
    "llama": dict(n_kv_head=2),
    "qwen3": dict(n_kv_head=1, qk_norm=True, head_dim=12, tie_weights=False),
    "gpt2": GPT2,
    "classic": dict(position_encoding="sinusoidal", use_swiglu=False, activation="relu"),
}


@pytest.fixture(params=ARCHITECTURES)
def model(request, random_model):
    return random_model(**ARCHITECTURES[request.param])


@contextlib.contextmanager
def hooked(*handles):
    yield
    for handle in handles:
        handle.remove()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0][0]


def by_hand_weights(model, layer, tokens):
    """Attention [H, T, T] from the outputs of q_proj and k_proj, position by position."""
    attention, config, seen = model.blocks[layer].attention, model.config, {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output[0])

    with hooked(
        attention.q_proj.register_forward_hook(keep("q")),
        attention.k_proj.register_forward_hook(keep("k")),
    ):
        logits_of(model, tokens)
    D, H, K, T = config.head_dim, config.n_head, config.n_kv_head, len(tokens)

    def turned(vector, position, norm):
        if norm is not None:
            vector = vector / (vector.square().mean() + config.norm_eps).sqrt() * norm.weight
        if config.position_encoding != "rope":
            return vector
        pairs = torch.complex(vector[: D // 2], vector[D // 2 :])
        rate = config.rope_theta ** (-torch.arange(0, D, 2) / D)
        pairs = pairs * torch.polar(torch.ones(D // 2), position * rate)
        return torch.cat((pairs.real, pairs.imag))

    weights = torch.zeros(H, T, T)
    for h in range(H):
        k = h // (H // K)
        for t in range(T):
            query = turned(seen["q"][t, h * D : h * D + D], t, attention.q_norm)
            scores = torch.stack([
                query @ turned(seen["k"][s, k * D : k * D + D], s, attention.k_norm)
                for s in range(t + 1)
            ])  # fmt: skip
            exponentials = (scores / D**0.5).exp()
            weights[h, t, : t + 1] = exponentials / exponentials.sum()
    return weights


def test_attention_is_the_softmax_by_hand_and_its_rows_sum_to_one(model):
    attention = capture(model, TOKENS).attention
    for layer in range(2):
        assert torch.allclose(attention[layer], by_hand_weights(model, layer, TOKENS), atol=2e-6)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 4, len(TOKENS)), atol=1e-6)


def test_the_stream_grows_by_what_attention_and_mlp_add(model):
    seen = capture(model, TOKENS)
    growth = seen.residual[1:] - seen.residual[:-1]
    assert torch.allclose(growth, seen.attention_out + seen.mlp_out, atol=1e-5)
    with torch.no_grad():
        embedding = model.token_embedding(torch.tensor(TOKENS))
        if model.position_embedding is not None:
            embedding = embedding + model.position_embedding.weight[: len(TOKENS)]
        if model.position_table is not None:
            embedding = embedding + model.position_table[: len(TOKENS)]
        assert torch.equal(seen.residual[0], embedding)
        assert torch.equal(model.unembed(model.final_norm(seen.residual[-1])), seen.logits)


def test_heads_add_up_to_what_attention_writes(model):
    heads = head_outputs(model, capture(model, TOKENS)).sum(1)  # [L, T, C]
    for layer, block in enumerate(model.blocks):
        bias = 0 if block.attention.o_proj.bias is None else block.attention.o_proj.bias
        written = capture(model, TOKENS).attention_out[layer]
        assert torch.allclose(heads[layer] + bias, written, atol=1e-5)


def test_the_model_is_the_same_afterwards(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = logits_of(model.eval(), TOKENS)
    model.train()
    seen = capture(model, TOKENS)
    means = mean_outputs(model, [TOKENS])
    with ablated(model, [Part(0, 1), Part(1)], means):
        pass
    assert model.training and torch.equal(seen.logits, logits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(logits_of(model.eval(), TOKENS), logits)


def with_plain_hooks(model, parts, means, tokens):
    """The logits with heads replaced at the entrance of o_proj, and MLPs at their exit."""
    D, handles = model.config.head_dim, []
    for layer, head in parts:
        block = model.blocks[layer]
        if head is None:
            handles.append(block.mlp.register_forward_hook(
                lambda module, inputs, output, layer=layer: means["mlp", layer].expand_as(output)
            ))  # fmt: skip
            continue

        def enter(module, inputs, layer=layer, head=head):
            changed = inputs[0].clone()
            changed[..., head * D : head * D + D] = means["o", layer][head * D : head * D + D]
            return (changed,)

        handles.append(block.attention.o_proj.register_forward_pre_hook(enter))
    with hooked(*handles):
        return logits_of(model, tokens)


def plain_means(model, sequences):
    """The mean of what enters each o_proj and leaves each MLP, over all tokens."""
    seen = {}
    for tokens in sequences:
        handles = []
        for layer, block in enumerate(model.blocks):
            handles.append(block.attention.o_proj.register_forward_pre_hook(
                lambda module, inputs, layer=layer: seen.setdefault(("o", layer), []).append(
                    inputs[0][0]
                )
            ))  # fmt: skip
            handles.append(block.mlp.register_forward_hook(
                lambda module, inputs, output, layer=layer: seen.setdefault(
                    ("mlp", layer), []
                ).append(output[0])
            ))  # fmt: skip
        with hooked(*handles):
            logits_of(model, tokens)
    return {name: torch.cat(values).mean(0) for name, values in seen.items()}


@pytest.mark.parametrize("parts", [[(1, 2)], [(0, 0), (0, 3), (1, 1)], [(0, None)],
                                   [(0, 1), (1, None)]])  # fmt: skip
def test_an_ablation_is_what_plain_hooks_make_of_it(model, parts):
    sequences = [[3, 1, 2, 7, 9], [8, 8, 30, 12, 4]]
    means, expected_means = mean_outputs(model, sequences), plain_means(model, sequences)
    expected = with_plain_hooks(model, parts, expected_means, TOKENS)
    assert not torch.allclose(expected, logits_of(model, TOKENS), atol=1e-3)
    with ablated(model, [Part(*part) for part in parts], means):
        assert torch.allclose(logits_of(model, TOKENS), expected, atol=1e-5)


def test_each_row_of_a_batch_may_lack_another_part(model):
    means = mean_outputs(model, [TOKENS])
    parts = [Part(0, 1), Part(1, 3), Part(1), Part(0)]
    with ablated(model, parts, means, rows=[0, 1, 2, 0]):
        together = model(torch.tensor([TOKENS] * 4))[0].detach()
    for row, lacking in enumerate(([parts[0], parts[3]], [parts[1]], [parts[2]], [])):
        with ablated(model, lacking, means):
            assert torch.allclose(together[row], logits_of(model, TOKENS), atol=1e-5)


def test_to_ablate_nothing_changes_nothing(model):
    logits = logits_of(model, TOKENS)
    with ablated(model, [], mean_outputs(model, [TOKENS])):
        assert torch.equal(logits_of(model, TOKENS), logits)


def test_a_head_beside_an_adapter_writes_what_both_write(random_model):
    model = random_model()
    train_only(model, Trained(lora_rank=2, lora_targets=("o_proj",)), alpha=4.0)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.o_proj.lora_B.normal_()
    seen = capture(model, TOKENS)
    assert torch.allclose(head_outputs(model, seen).sum(1), seen.attention_out, atol=1e-5)


def test_an_edited_attention_is_refused_by_name(random_model, monkeypatch):
    model = random_model()
    plain = lambda q, k, v, **_: v  # noqa: E731
    monkeypatch.setattr("gptlab.model.transformer.F.scaled_dot_product_attention", plain)
    with pytest.raises(GenerationError, match="scaled_dot_product_attention 0 times in 2 layers"):
        capture(model, TOKENS)


# Scores -------------------------------------------------------------------------------------------


def test_scores_tell_apart_attention_patterns_made_by_hand():
    half, T = 4, 8
    attention = torch.zeros(1, 4, T, T)
    for t in range(T):
        attention[0, 0, t, max(0, t - 1)] = 1  # the token before
        attention[0, 1, t, t - half + 1 if t >= half else 0] = 1  # what followed it
        attention[0, 2, t, t - half if t >= half else 0] = 1  # the same token
        attention[0, 3, t, : t + 1] = 1 / (t + 1)
    scores = pattern_scores(attention, half)
    assert scores["previous"][0][0] == 1 and scores["induction"][0][1] == 1
    assert scores["duplicate"][0][2] == 1
    assert scores["induction"][0][0] == scores["duplicate"][0][0] == 0
    spread = sum(1 / (t + 1) for t in range(half, T)) / half
    assert scores["induction"][0][3] == pytest.approx(spread)
    assert scores["previous"][0][3] == pytest.approx(sum(1 / (t + 1) for t in range(1, T)) / 7)


@pytest.fixture(scope="module")
def hand_made():
    """Two layers of one head with an induction head, all weights by hand (Elhage et al. 2021).

    The stream has a token's one-hot vector, its position's, and room for the token before.
    """
    V, P = 8, 16
    tokens, positions, before = range(V), range(V, V + P), range(V + P, V + P + V)
    model = GPT(GPTConfig(
        block_size=P, vocab_size=V, n_layer=2, n_head=1, n_embd=2 * V + P, head_dim=P,
        dropout=0.0, position_encoding="learned", use_swiglu=False, tie_weights=False,
    ))  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.token_embedding.weight[range(V), tokens] = 1
        model.position_embedding.weight[range(P), positions] = 1
        sharp = 30.0
        first, second = (block.attention for block in model.blocks)
        first.q_proj.weight[range(P - 1), positions[1:]] = sharp  # asks for the position before
        first.k_proj.weight[range(P), positions] = 1
        first.v_proj.weight[range(V), tokens] = 1
        first.o_proj.weight[before, range(V)] = 1
        second.q_proj.weight[range(V), tokens] = sharp  # asks for who came after this token
        second.k_proj.weight[range(V), before] = 1
    return model.eval()


def test_a_hand_made_induction_head_is_found_and_only_it(hand_made):
    scores = head_scores(hand_made, range(8))
    assert scores["previous"][0][0] > 0.99 and scores["induction"][1][0] > 0.9
    assert scores["previous"][1][0] < 0.3 and scores["induction"][0][0] < 0.01
    assert scores["duplicate"][0][0] < 0.01 and scores["duplicate"][1][0] < 0.1


def test_a_random_model_has_no_such_head(random_model):
    scores = head_scores(random_model(), range(37))
    assert all(score < 0.4 for table in scores.values() for row in table for score in row)


def test_scores_of_a_window_too_short_are_refused(random_model):
    with pytest.raises(GenerationError, match="window of four tokens"):
        head_scores(random_model(block_size=3), range(37))


def test_means_are_of_all_tokens(random_model):
    model = random_model()
    means = mean_outputs(model, [[1, 2, 3], [4, 5, 6]])
    parts = [capture(model, tokens).mlp_out for tokens in ([1, 2, 3], [4, 5, 6])]
    assert isinstance(means, Means) and means.heads.shape == (2, 4, 8)
    assert torch.allclose(means.mlps, torch.cat(parts, dim=1).mean(1), atol=1e-6)
