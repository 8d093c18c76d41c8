"""The loss in chunks is the cross-entropy of all logits, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.model import transformer
from gptlab.model.arithmetic import loss_chunk_rows
from gptlab.model.transformer import ChunkedCrossEntropy, CrossEntropy


def chunked_loss(hidden, weight, targets, chunk):
    """The loss of a head that is one matrix."""
    return ChunkedCrossEntropy.apply(
        lambda rows: rows @ weight.T, CrossEntropy.apply, targets, chunk, True, hidden, weight
    )


@pytest.fixture
def rows_at_once(monkeypatch):
    """Sets the size of a chunk."""
    return lambda rows: monkeypatch.setattr(transformer, "loss_chunk_rows", lambda *_: rows)


@pytest.fixture(params=[1, 5, 33, 1000], ids=lambda rows: f"{rows} rows at once")
def chunked(request, rows_at_once):
    """Of 33 rows: each alone, a shorter last chunk, exactly one chunk, and one with room."""
    rows_at_once(request.param)


def some_targets(kind, shape):
    targets = torch.randint(37, shape)
    if kind == "some ignored":
        targets[torch.rand(shape) < 0.4] = -1
        targets[0] = -1
    elif kind == "all ignored":
        targets.fill_(-1)
    return targets


def plain_loss(model, tokens, targets, reduction):
    """The oracle: all logits, torch's own cross-entropy."""
    logits = model(tokens)[0].flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")
    return total / max(1, (targets != -1).sum()) if reduction == "mean" else total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["all counted", "some ignored", "all ignored"])
def test_the_loss_in_chunks_is_the_plain_cross_entropy(
    random_model, chunked, kind, reduction, tie_weights
):
    model = random_model(tie_weights=tie_weights).double()
    tokens, targets = torch.randint(37, (3, 11)), some_targets(kind, (3, 11))
    logits, loss = model(tokens, targets, reduction=reduction)
    expected = plain_loss(model, tokens, targets, reduction)
    assert logits is None
    torch.testing.assert_close(loss, expected)
    assert (loss.item() == 0) == (kind == "all ignored")
    ours, expected_grads = gradients(model, loss), gradients(model, expected)
    for name in expected_grads:
        torch.testing.assert_close(ours[name], expected_grads[name], msg=name)


def soft_cap(model, hidden):
    return 2.0 * torch.tanh(model.lm_head(hidden) / 2.0)


def learned_scale(model, hidden):
    return model.lm_head(hidden * model.scale)


def sum_of_two_parameters(model, hidden):
    return model.lm_head(hidden) * (model.factor + model.another)  # autograd gives both one tensor


def embedding_as_a_second_head(model, hidden):
    return model.lm_head(hidden) + hidden @ model.token_embedding.weight.T


def parameter_of_a_block(model, hidden):
    return model.lm_head(hidden) + model.blocks[0].mlp.up_proj.weight.sum()


EDITS = [
    soft_cap,
    learned_scale,
    sum_of_two_parameters,
    embedding_as_a_second_head,
    parameter_of_a_block,
]


@pytest.fixture
def edited(random_model, monkeypatch):
    """Builds a float64 model with another `unembed`, and the parameters that the edits need."""

    def build(edit, **settings):
        model = random_model(**settings)
        model.scale = torch.nn.Parameter(torch.rand(32) + 0.5)
        model.factor = torch.nn.Parameter(torch.rand(37))
        model.another = torch.nn.Parameter(torch.rand(37))
        monkeypatch.setattr(type(model), "unembed", edit)
        return model.double()

    return build


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_unembed_reaches_the_loss_and_every_gradient(edited, chunked, edit, tie_weights):
    model = edited(edit, tie_weights=tie_weights)
    tokens, targets = torch.randint(37, (3, 11)), some_targets("some ignored", (3, 11))
    loss = model(tokens, targets)[1]
    expected = plain_loss(model, tokens, targets, "mean")
    torch.testing.assert_close(loss, expected)
    ours, expected_grads = gradients(model, loss), gradients(model, expected)
    for name, grad in expected_grads.items():  # None for a parameter that this edit does not use
        assert (ours[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(ours[name], grad, msg=name)


def test_a_soft_cap_trains_another_model(edited, random_model):
    tokens, targets = torch.randint(37, (3, 11)), torch.randint(37, (3, 11))
    plain = random_model().double()
    before = plain(tokens, targets)[1]
    grad = gradients(plain, before)["token_embedding.weight"]
    capped = edited(soft_cap)
    loss = capped(tokens, targets)[1]
    assert abs(loss.item() - before.item()) > 1e-3
    assert not torch.allclose(gradients(capped, loss)["token_embedding.weight"], grad, rtol=1e-3)


def test_a_parameter_of_unembed_learns_beside_a_frozen_head(edited, rows_at_once):
    rows_at_once(4)
    model = edited(learned_scale, tie_weights=False)
    model.requires_grad_(False)
    model.scale.requires_grad_(True)
    tokens, targets = torch.randint(37, (2, 5)), torch.randint(37, (2, 5))
    ours = gradients(model, model(tokens, targets)[1])
    expected_grads = gradients(model, plain_loss(model, tokens, targets, "mean"))
    torch.testing.assert_close(ours.pop("scale"), expected_grads["scale"])
    assert all(grad is None for grad in ours.values())


def test_the_mean_of_float32_agrees_with_torch_itself(random_model, chunked):
    model = random_model()
    tokens, targets = torch.randint(37, (3, 11)), some_targets("some ignored", (3, 11))
    expected = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(model(tokens, targets)[1], expected)


def test_the_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.double, requires_grad=True)
    targets = torch.tensor([0, 8, -1, 3, 3, -1, 5])
    assert torch.autograd.gradcheck(
        lambda hidden, weight: chunked_loss(hidden, weight, targets, 3), (hidden, weight)
    )


def test_a_scaled_loss_scales_its_gradient(random_model):
    model = random_model()
    tokens, targets = torch.randint(37, (2, 5)), torch.randint(37, (2, 5))
    once = gradients(model, model(tokens, targets)[1])
    scaled = gradients(model, model(tokens, targets)[1] * 1024.0)
    for name in once:
        torch.testing.assert_close(scaled[name], once[name] * 1024.0)


def test_an_extreme_logit_gives_a_finite_loss():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = chunked_loss(hidden, weight, torch.tensor([1, 1]), 8)
    loss.backward()
    assert loss.item() == 2e4  # row 0 misses by 1e4 - -1e4, row 1 is right
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_a_frozen_head_gets_no_gradient_and_the_rest_does(random_model):
    model = random_model(tie_weights=False)
    tokens, targets = torch.randint(37, (2, 5)), torch.randint(37, (2, 5))
    free = gradients(model, model(tokens, targets)[1])
    model.lm_head.requires_grad_(False)
    frozen = gradients(model, model(tokens, targets)[1])
    assert frozen.pop("lm_head.weight") is None
    for name in frozen:
        torch.testing.assert_close(frozen[name], free[name])


@pytest.mark.parametrize(("frozen", "matrices", "chunks"), [(False, 2, 1), (True, 0, 2)])
def test_the_working_space_is_two_chunks_or_one_and_twice_the_gradients_that_are_wanted(
    live_bytes, frozen, matrices, chunks
):
    hidden = torch.randn(64, 32, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(2000, 32), requires_grad=not frozen)
    targets = torch.randint(2000, (64,))
    with live_bytes(hidden, weight, targets) as memory:
        loss = chunked_loss(hidden, weight, targets, 4)
    assert loss.requires_grad
    chunk, small = 4 * 2000 * 4, 2 * hidden.nbytes
    assert memory.peak < matrices * weight.nbytes + chunks * chunk + small


def test_the_chunks_are_large_alike_and_few():
    assert loss_chunk_rows(4096, 50257) == 256  # 51 MB of float32 logits, 16 chunks
    assert loss_chunk_rows(1024, 50257) == 256
    assert loss_chunk_rows(12 * 1024, 50257) == 768  # still 16 chunks
    assert loss_chunk_rows(4096, 65) == 1 << 17  # all at once
    assert loss_chunk_rows(5, 1 << 30) == 1
    for tokens in (1, 1000, 4097, 1_000_000):
        for vocab_size in (2, 8192, 50257):
            assert -(-tokens // loss_chunk_rows(tokens, vocab_size)) <= 16


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept(random_model):
    model = random_model()
    tokens, targets = torch.randint(37, (2, 5)), torch.randint(37, (2, 5))
    with torch.no_grad():
        loss = model(tokens, targets)[1]
    assert loss.grad_fn is None
    assert loss.item() == model(tokens, targets)[1].item()


def test_all_logits_are_never_in_memory_at_once(random_model, rows_at_once, monkeypatch):
    rows_at_once(4)
    seen = []
    logsumexp = torch.Tensor.logsumexp

    def watch(logits, *args, **kwargs):
        seen.append(tuple(logits.shape))
        return logsumexp(logits, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "logsumexp", watch)
    model = random_model()
    model(torch.randint(37, (2, 5)), torch.randint(37, (2, 5)))[1].backward()
    assert seen == [(4, 37), (4, 37), (2, 37)]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_under_autocast_the_loss_is_float32_and_near_the_exact_one(
    random_model, rows_at_once, tie_weights
):
    rows_at_once(4)
    model = random_model(tie_weights=tie_weights)
    tokens, targets = torch.randint(37, (2, 5)), some_targets("some ignored", (2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.features(tokens).dtype == torch.bfloat16
        loss = model(tokens, targets)[1]
    exact = plain_loss(model, tokens, targets, "mean")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0)
    low, high = gradients(model, loss), gradients(model, exact)
    for name in high:
        assert low[name].dtype == torch.float32
        error = (low[name] - high[name]).norm() / high[name].norm()
        assert error < 0.05, f"{name}: {error:.3f}"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compiled", ["blocks", "model"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at every tensor's
def test_with_compiled_code_the_loss_and_its_gradients_equal_the_eager_ones(
    random_model, rows_at_once, compiled, backend
):
    """The loss itself is not compiled, whether the blocks are, as in training, or the model.

    aot_eager traces and functionalises as the real backend does, without the C++ compiler.
    """
    torch.compiler.reset()  # a block that other tests compiled has seen other lengths
    rows_at_once(4)
    model = random_model(n_layer=1, n_kv_head=2)
    tokens, targets = torch.randint(37, (2, 5)), some_targets("some ignored", (2, 5))
    eager_loss = model(tokens, targets, reduction="sum")[1]
    eager = gradients(model, eager_loss)
    if compiled == "model":
        compiled_model = torch.compile(model, backend=backend)
    else:
        model.blocks[0].compile(fullgraph=True, backend=backend)
        compiled_model = model
    compiled_loss = compiled_model(tokens, targets, reduction="sum")[1]
    torch.testing.assert_close(compiled_loss, eager_loss)
    for name, grad in gradients(model, compiled_loss).items():
        torch.testing.assert_close(grad, eager[name], msg=name)
