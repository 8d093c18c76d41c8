"""The views of the lens against the model's own output, plain hooks and formulas by hand."""

import json
import string

import pytest
import torch
import torch.nn.functional as F

from gptlab.analysis import lens, tuned_lens
from gptlab.analysis.attribution import ablations, contributions, parse_parts
from gptlab.analysis.lens import VIEWS, make_views, read_prompt
from gptlab.data.token_files import Dataset
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import ConfigError, TokenizerError
from gptlab.inference.capture import Part, capture, mean_outputs
from gptlab.runs import Run

TEXT = "to be or not"
GPT2 = dict(
    position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu_tanh",
    bias=True,
)  # fmt: skip
ARCHITECTURES = {"llama": dict(n_kv_head=2), "untied": dict(tie_weights=False), "gpt2": GPT2}


@pytest.fixture(scope="module")
def tokenizer():
    """27 letters and the end of text: fewer ids than the models' 37."""
    return char_tokenizer(string.ascii_lowercase + " ")


@pytest.fixture(params=ARCHITECTURES)
def model(request, random_model):
    return random_model(noise=0.3, **ARCHITECTURES[request.param])


def views_of(model, tokenizer, *names, text=TEXT, **more):
    prompt = read_prompt(text, model, tokenizer)
    made = make_views(model, tokenizer, prompt, names or tuple(VIEWS), **more)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    return made


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0]


def said(row):
    return [[list(pair) for pair in cell["top"]] for cell in row]


def test_the_lens_of_the_last_layer_is_what_the_model_says(model, tokenizer):
    made = views_of(model, tokenizer, "lens")
    ids, known = made["tokens"], tokenizer.vocab_size
    probabilities = logits_of(model, ids)[:, :known].softmax(-1)
    for t, cell in enumerate(made["views"]["lens"]["layers"][-1]):
        order = probabilities[t].argsort(descending=True).tolist()
        assert [i for i, _ in cell["top"]] == order[:5]
        assert [p for _, p in cell["top"]] == pytest.approx(probabilities[t][order[:5]], rel=1e-3)
        if t + 1 < len(ids):
            rank, chance = cell["next"]
            assert rank == order.index(ids[t + 1]) + 1
            assert chance == pytest.approx(float(probabilities[t, ids[t + 1]]), rel=1e-3)
    assert made["views"]["lens"]["layers"][-1][-1]["next"] is None


def test_the_lens_of_a_layer_is_the_head_on_the_stream_before_the_next_block(model, tokenizer):
    made, seen = views_of(model, tokenizer, "lens"), []
    hook = model.blocks[1].register_forward_pre_hook(lambda module, x: seen.append(x[0][0]))
    logits_of(model, made["tokens"])
    hook.remove()
    with torch.no_grad():
        logits = model.lm_head(model.final_norm(seen[0]))[:, : tokenizer.vocab_size]
    likeliest = [cell["top"][0][0] for cell in made["views"]["lens"]["layers"][1]]
    assert likeliest == logits.argmax(-1).tolist()


def frozen_logit(model, stream, final, target):
    """The logit of a stream [C] under the final norm with the scale that it has for `final`."""
    norm = model.final_norm
    if hasattr(norm, "bias"):
        scaled = (stream - stream.mean()) / (final.var(unbiased=False) + norm.eps).sqrt()
    else:
        scaled = stream / (final.square().mean() + norm.eps).sqrt()
    return float((scaled * norm.weight) @ model.lm_head.weight[target])


@pytest.mark.parametrize(("position", "target"), [(11, 3), (4, 20), (0, 0)])
def test_contributions_add_up_to_the_logit_and_each_is_that_of_plain_hooks(
    model, tokenizer, position, target
):
    ids = tokenizer.encode(TEXT)
    entered, left = {}, {}
    handles = [
        handle
        for n, block in enumerate(model.blocks)
        for handle in (
            block.attention.o_proj.register_forward_pre_hook(
                lambda module, inputs, n=n: entered.__setitem__(n, inputs[0][0, position])
            ),
            block.mlp.register_forward_hook(
                lambda module, inputs, out, n=n: left.__setitem__(n, out[0, position])
            ),
        )
    ]
    handles.append(model.final_norm.register_forward_pre_hook(
        lambda module, inputs: left.__setitem__("final", inputs[0][0, position])
    ))  # fmt: skip
    logit = float(logits_of(model, ids)[position, target])
    for handle in handles:
        handle.remove()
    found = contributions(model, capture(model, ids), position, target)
    parts = {part["part"]: part["logit"] for part in found["parts"]}
    assert found["logit"] == pytest.approx(logit, abs=1e-5)
    assert sum(parts.values()) == pytest.approx(logit, abs=1e-4)
    with torch.no_grad():
        for n, block in enumerate(model.blocks):
            for h in range(4):
                alone = torch.zeros(32)
                alone[8 * h : 8 * h + 8] = entered[n][8 * h : 8 * h + 8]
                written = F.linear(alone, block.attention.o_proj.weight)
                expected = frozen_logit(model, written, left["final"], target)
                assert parts[f"{n}.{h}"] == pytest.approx(expected, abs=1e-4)
            expected = frozen_logit(model, left[n], left["final"], target)
            assert parts[f"mlp{n}"] == pytest.approx(expected, abs=1e-4)
    assert ("biases" in parts) == bool(model.config.bias)


def test_each_ablation_is_the_loss_of_the_model_with_a_plain_hook(model, tokenizer):
    ids, known, position, target = tokenizer.encode(TEXT), tokenizer.vocab_size, 7, 4
    means = mean_outputs(model, [ids[:6], ids[6:]])
    found = ablations(model, ids, position, target, known, means, [Part(0, 1), Part(1)])
    assert [row["parts"] for row in found["parts"]] == [
        [name] for n in (0, 1) for name in (*(f"{n}.{h}" for h in range(4)), f"mlp{n}")
    ]

    def expect(row, logits):
        logits = logits[:, :known]
        loss = F.cross_entropy(logits[position], torch.tensor(target))
        text_loss = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        assert row["loss"] == pytest.approx(float(loss), abs=1e-4)
        assert row["text_loss"] == pytest.approx(float(text_loss), abs=1e-4)
        assert row["probability"] == pytest.approx(float((-loss).exp()), rel=1e-3)
        assert row["top"][0][0] == int(logits[position].argmax())

    def head_hook(n, h):
        def enter(module, inputs):
            changed = inputs[0].clone()
            changed[..., 8 * h : 8 * h + 8] = means.heads[n, h]
            return (changed,)

        return model.blocks[n].attention.o_proj.register_forward_pre_hook(enter)

    def mlp_hook(n):
        return model.blocks[n].mlp.register_forward_hook(
            lambda module, inputs, output: means.mlps[n].expand_as(output)
        )

    expect(found, logits_of(model, ids))
    for row in found["parts"]:
        name = row["parts"][0]
        is_mlp = name.startswith("mlp")
        hook = mlp_hook(int(name[3:])) if is_mlp else head_hook(*map(int, name.split(".")))
        logits = logits_of(model, ids)
        hook.remove()
        expect(row, logits)
    hooks = head_hook(0, 1), mlp_hook(1)
    logits = logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    expect(found["chosen"], logits)
    assert found["chosen"]["parts"] == ["0.1", "mlp1"]


def test_surprise_is_the_loss_of_each_token(model, tokenizer):
    made = views_of(model, tokenizer, "surprise")
    ids = made["tokens"]
    logits = logits_of(model, ids)[:, : tokenizer.vocab_size]
    expected = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    nats = made["views"]["surprise"]["nats"]
    assert nats[0] is None and nats[1:] == pytest.approx(expected.tolist(), abs=1e-3)


def test_neighbours_are_the_tokens_of_the_largest_cosine(random_model, tokenizer):
    model = random_model()
    made = views_of(model, tokenizer, "neighbours", text="aab")
    vectors = model.token_embedding.weight.detach().double().numpy()
    nearest = made["views"]["neighbours"]["nearest"]
    assert set(nearest) == {str(i) for i in tokenizer.encode("ab")}
    for token, found in nearest.items():
        own = vectors[int(token)]
        cosines = {
            i: float(own @ v / ((own @ own) * (v @ v)) ** 0.5)
            for i, v in enumerate(vectors[: tokenizer.vocab_size]) if i != int(token)
        }  # fmt: skip
        best = sorted(cosines, key=cosines.get, reverse=True)[:8]
        assert [i for i, _ in found] == best
        assert [c for _, c in found] == pytest.approx([cosines[i] for i in best], abs=1e-4)


def test_the_object_has_what_its_description_names_for_each_kind_of_model(model, tokenizer):
    made = views_of(model, tokenizer, name="a")
    assert list(made["views"]) == list(VIEWS) and not made["left_out"]
    T, views = len(TEXT), made["views"]
    assert all(set(views[name]) >= {"title", "sentence", "reference"} for name in VIEWS)
    rows = views["attention"]["weights"]
    assert [len(row) for row in rows[1][3]] == list(range(1, T + 1))
    assert sum(rows[0][2][T - 1]) == pytest.approx(1, abs=0.01)
    assert views["ablation"]["means"] == (
        "the 12 tokens of the prompt (there is no validation text)"
    )
    assert len(views["lens"]["layers"]) == 3 and views["lens"]["tuned"] is None
    assert "".join(made["texts"][str(i)] for i in made["tokens"]) == TEXT
    assert made["target"] == views["lens"]["layers"][-1][-1]["top"][0][0]
    assert views["heads"]["found"] == {"previous": [], "induction": [], "duplicate": []}
    assert max(map(int, made["texts"])) < tokenizer.vocab_size


def test_a_model_without_mlps_has_heads_alone(random_model, tokenizer):
    model = random_model(intermediate_size=0)
    made = views_of(model, tokenizer)
    names = [f"{n}.{h}" for n in (0, 1) for h in range(4)]
    assert [row["parts"] for row in made["views"]["ablation"]["parts"]] == [[n] for n in names]
    found = made["views"]["contributions"]
    assert [part["part"] for part in found["parts"]] == ["embedding", *names]
    assert sum(part["logit"] for part in found["parts"]) == pytest.approx(found["logit"], abs=1e-4)
    with pytest.raises(ConfigError, match=r"no mlp0: the heads are 0\.0 to 1\.3 \(layer\.head\)"):
        parse_parts("mlp0", model)


def test_a_prompt_of_one_token_has_every_view(random_model, tokenizer):
    made = views_of(random_model(), tokenizer, text="a")
    assert made["views"]["surprise"]["nats"] == [None]
    assert made["views"]["ablation"]["text_loss"] is None


def test_a_window_without_room_for_scores_leaves_that_view_out(random_model, tokenizer):
    made = views_of(random_model(block_size=3), tokenizer, "heads", text="abc")
    assert made["views"] == {} and "window of four tokens" in made["left_out"]["heads"]


@pytest.mark.parametrize(("text", "more", "error", "words"), [
    ("", {}, ConfigError, "The prompt is empty"),
    ("a" * 17, {}, ConfigError, "17 tokens and the model's window is 16"),
    ("a!", {}, TokenizerError, "'!'"),
    ("ab", {"position": 2}, ConfigError, "the prompt's tokens are 0 to 1"),
    ("ab", {"position": -1}, ConfigError, "the prompt's tokens are 0 to 1"),
    ("ab", {"target": "xy"}, ConfigError, "'xy' is 2 tokens"),
    ("ab", {"target": ""}, ConfigError, "'' is 0 tokens"),
])  # fmt: skip
def test_what_is_no_prompt_is_refused(random_model, tokenizer, text, more, error, words):
    with pytest.raises(error) as refused:
        read_prompt(text, random_model(), tokenizer, **more)
    assert words in str(refused.value)


def test_a_prompt_whose_attention_is_too_much_to_draw_is_refused(
    random_model, tokenizer, monkeypatch
):
    monkeypatch.setattr(lens, "MOST_WEIGHTS", 100)
    assert read_prompt("abcde", random_model(), tokenizer).position == 4
    with pytest.raises(ConfigError, match="6 tokens, and of a model of 8 heads the lens shows 5"):
        read_prompt("abcdef", random_model(), tokenizer)


@pytest.mark.parametrize("word", ["", ",", "2", "mlp", "0.4", "2.0", "mlp2", "a.b", "0.1.2", "-1.0",
                                  "0.1,x", "mlp-1", "0.٣"])  # fmt: skip
def test_a_part_that_the_model_lacks_is_refused_with_those_that_it_has(random_model, word):
    with pytest.raises(ConfigError, match=r"0\.0 to 1\.3 \(layer\.head\), the MLPs mlp0 to mlp1"):
        parse_parts(word, random_model())


def test_parts_are_read_in_order_and_once(random_model):
    assert parse_parts("1.3, mlp0,1.3", random_model()) == [Part(1, 3), Part(0)]


# The tuned lens -----------------------------------------------------------------------------------


@pytest.fixture
def run_with_text(tmp_path, monkeypatch):
    """A run whose validation text is what the test says: here, 20 sequences of 16 letters."""
    text = torch.randint(1, 27, (20 * 16,), generator=torch.Generator().manual_seed(0))

    data = Dataset("own", tmp_path, None, text.numpy(), text.numpy(), None, 37)
    monkeypatch.setattr(lens, "training_data", lambda run: [data])
    for name, value in dict(STEPS=12, SEQUENCES=2, LEARNING_RATE=1e-2, HELD_OUT=2).items():
        monkeypatch.setattr(tuned_lens, name, value)
    return Run(tmp_path)


def test_the_tuned_lens_starts_as_the_plain_one(model, tokenizer):
    zeros = torch.zeros(2, 32, 32), torch.zeros(2, 32)
    view = views_of(model, tokenizer, "lens", translators=zeros)["views"]["lens"]
    assert view["tuned"] == view["layers"]


def test_training_brings_the_lens_closer_to_the_model_which_does_not_change(
    random_model, run_with_text
):
    model = random_model(noise=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tuned_lens.tuned_lens(model, run_with_text)
    assert found.after < 0.9 * found.before
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_translators_are_kept_and_trained_again_for_other_weights_or_a_damaged_file(
    random_model, run_with_text
):
    model, notes = random_model(), []
    found = tuned_lens.tuned_lens(model, run_with_text, note=notes.append)

    def no_training(*_):
        pytest.fail("they are trained again")

    again = tuned_lens.tuned_lens(model, run_with_text, no_training, notes.append)
    assert torch.equal(again.weights, found.weights) and torch.equal(again.biases, found.biases)
    assert (again.tokens, again.before, again.after) == (found.tokens, found.before, found.after)
    assert notes == []
    other = tuned_lens.tuned_lens(random_model(seed=1), run_with_text, note=notes.append)
    assert not torch.equal(other.weights, found.weights)
    run_with_text.tuned_lens.write_bytes(b"nothing of the kind")
    tuned_lens.tuned_lens(model, run_with_text, note=notes.append)
    assert notes == [
        "tuned_lens.safetensors belongs to other weights: it is trained again.",
        "tuned_lens.safetensors is damaged: it is trained again.",
    ]
