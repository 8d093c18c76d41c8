"""Folders for transformers: the same model there, the same model back, misfits named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import CheckpointError, ConfigError, TokenizerError
from gptlab.interop.architectures import architecture_of
from gptlab.interop.read import huggingface
from gptlab.interop.read.models import import_model
from gptlab.interop.write.export import export
from gptlab.model.shapes import shapes
from gptlab.runs import load_checkpoint

transformers = pytest.importorskip("transformers")

GPT2 = dict(
    position_encoding="learned",
    use_rms_norm=False,
    use_swiglu=False,
    activation="gelu_tanh",
    bias=True,
)
EXPORTABLE = {
    "llama": dict(),
    "grouped queries": dict(n_head=6, n_kv_head=2, n_embd=48),
    "multi-query": dict(n_kv_head=1),
    "untied": dict(n_kv_head=2, tie_weights=False),
    "own head_dim": dict(n_kv_head=2, head_dim=14),
    "biases": dict(bias=True, tie_weights=False),
    "theta, eps, size": dict(rope_theta=500.0, norm_eps=1e-2, intermediate_size=77),
    "qwen3": dict(qk_norm=True, n_kv_head=2),
    "qwen3, untied, head_dim": dict(qk_norm=True, head_dim=22, tie_weights=False),
    "qwen3-moe": dict(qk_norm=True, n_expert=4, expert_size=24),
    "qwen3-moe, three of five": dict(
        qk_norm=True, tie_weights=False, n_expert=5, n_expert_active=3, expert_size=20
    ),
    "gpt2": GPT2,
    "gpt2, untied, size": dict(**GPT2, tie_weights=False, intermediate_size=50),
    "gpt2, exact gelu": GPT2 | dict(activation="gelu"),
    "gpt2, relu": GPT2 | dict(activation="relu"),
    "gpt2, squared relu": GPT2 | dict(activation="relu2"),
}
each_exportable = pytest.mark.parametrize("settings", EXPORTABLE.values(), ids=EXPORTABLE.keys())


def opened(folder, **options):
    """The model as transformers opens it, with nothing missing and nothing left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    assert not any(report.values()), report
    return model.eval()


@each_exportable
def test_transformers_computes_the_same_logits_at_200_positions(
    random_model, make_run, bpe, tmp_path, settings
):
    model = random_model(**settings)
    export(make_run(model, bpe), "hf", tmp_path / "hf")
    peer = opened(tmp_path / "hf")
    assert peer.dtype == torch.float32
    tokens = torch.randint(400, (2, 200))
    with torch.no_grad():
        ours, reference = model(tokens)[0], peer(tokens).logits
    assert ours.std() > 0.1  # not equal for being flat
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


@each_exportable
def test_a_model_comes_back_bitwise_with_its_settings_and_tokenizer(
    random_model, make_run, bpe, tmp_path, settings
):
    before = make_run(random_model(**settings), bpe)
    export(before, "hf", tmp_path / "hf")
    after = load_checkpoint(import_model(str(tmp_path / "hf"), tmp_path / "back"))
    assert after.model.config == before.model.config
    assert after.tokenizer.fingerprint == bpe.fingerprint
    peer = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        assert torch.equal(peer[name], value), name
    tied = after.model.lm_head.weight is after.model.token_embedding.weight
    assert tied == before.model.config.tie_weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "grouped queries", "qwen3", "gpt2"])
def test_half_as_large_on_request_and_the_same_model_rounded(
    random_model, make_run, bpe, tmp_path, dtype, kind
):
    model = random_model(**EXPORTABLE[kind])
    checkpoint = make_run(model, bpe)
    export(checkpoint, "hf", tmp_path / "whole")
    export(checkpoint, "hf", tmp_path / "half", dtype=dtype)
    whole, half = (load_file(tmp_path / each / "model.safetensors") for each in ("whole", "half"))
    assert whole.keys() == half.keys()
    for name, value in half.items():
        assert torch.equal(value, whole[name].to(getattr(torch, dtype)))
    settings = json.loads((tmp_path / "half" / "config.json").read_text())
    assert settings["dtype"] == settings["torch_dtype"] == dtype
    assert opened(tmp_path / "half", dtype="auto").dtype == getattr(torch, dtype)
    tokens = torch.randint(400, (2, 200))
    back = load_checkpoint(import_model(str(tmp_path / "half"), tmp_path / "back")).model
    with torch.no_grad():
        reference = opened(tmp_path / "half", dtype=torch.float32)(tokens).logits
        torch.testing.assert_close(back(tokens)[0], reference, atol=1e-4, rtol=0)


def test_a_weight_that_float16_cannot_hold_is_refused_before_anything_is_left(
    random_model, make_run, bpe, tmp_path
):
    model = random_model()
    with torch.no_grad():
        model.final_norm.weight[0] = 1e5
    checkpoint = make_run(model, bpe)
    with pytest.raises(ConfigError, match="that float16 cannot: use --dtype bfloat16"):
        export(checkpoint, "hf", tmp_path / "hf", dtype="float16")
    assert not any(tmp_path.glob("*hf*"))
    export(checkpoint, "hf", tmp_path / "hf", dtype="bfloat16")


@each_exportable
def test_the_table_of_shapes_is_that_of_the_model(random_model, settings):
    model = random_model(**settings)
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes(model.config) == expected


def test_a_gpt2_without_biases_leaves_as_one_whose_biases_are_zero(
    random_model, make_run, bpe, tmp_path
):
    model = random_model(**GPT2 | dict(bias=False, activation="gelu"))
    export(make_run(model, bpe), "hf", tmp_path / "hf")
    tokens = torch.randint(400, (1, 200))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens)[0], opened(tmp_path / "hf")(tokens).logits, atol=1e-4, rtol=0
        )
    back = load_checkpoint(import_model(str(tmp_path / "hf"), tmp_path / "back")).model
    with torch.no_grad():
        assert torch.equal(back(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_autotokenizer_gives_the_same_ids_and_decodes_exactly(
    random_model, make_run, tmp_path, kind, request
):
    tokenizer = request.getfixturevalue(kind)
    model = random_model(vocab_size=tokenizer.vocab_size)
    export(make_run(model, tokenizer), "hf", tmp_path / "hf")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    lines = request.getfixturevalue("mixed")
    if kind == "characters":
        alphabet = set(tokenizer.alphabet)
        lines = ["".join(c for c in line if c in alphabet) for line in lines]
    for line in lines:
        line = line.replace("<|endoftext|>", "")  # there it is a command, here it is text
        ids = tokenizer.encode(line)
        assert peer(line)["input_ids"] == ids
        assert peer.decode(ids) == line
    assert peer.eos_token_id == peer.pad_token_id == tokenizer.eot_id
    assert len(peer) == tokenizer.vocab_size
    assert set(peer("a")) == {"input_ids", "attention_mask"}  # as the models take it


def test_greedy_text_is_the_same_there(random_model, make_run, bpe, tmp_path):
    from gptlab.inference.config import SamplingConfig
    from gptlab.inference.generator import Generator

    checkpoint = make_run(random_model(noise=0.3), bpe)
    export(checkpoint, "hf", tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    prompt = tokenizer("Hello, world", return_tensors="pt")
    written = opened(tmp_path / "hf").generate(**prompt, max_new_tokens=60, do_sample=False)
    ours = Generator(checkpoint.model, bpe).generate(
        "Hello, world", SamplingConfig(temperature=0, max_tokens=60)
    )
    assert written[0, prompt["input_ids"].size(1) :].tolist() == ours[0].token_ids


REFUSED = {
    "use_swiglu false": dict(use_swiglu=False),
    "use_rms_norm false": dict(use_rms_norm=False),
    "bias true (with qk_norm true)": dict(bias=True, qk_norm=True),
    "position_encoding sinusoidal": GPT2 | dict(position_encoding="sinusoidal"),
    "use_swiglu true": GPT2 | dict(use_swiglu=True, activation=None),
    "use_rms_norm true": GPT2 | dict(use_rms_norm=True),
    "qk_norm true": GPT2 | dict(qk_norm=True),
    "n_kv_head 2": GPT2 | dict(n_kv_head=2),
    "head_dim 10": GPT2 | dict(head_dim=10),
    "intermediate_size 0 (no MLP)": dict(intermediate_size=0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_no_architecture_has_is_refused_by_name_and_nothing_is_written(
    random_model, make_run, bpe, tmp_path, name
):
    checkpoint = make_run(random_model(**REFUSED[name]), bpe)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as refusal:
        export(checkpoint, "hf", tmp_path / "hf")
    assert f" {name}" in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_beyond_the_limit_are_sharded_and_come_back_whole(
    random_model, make_run, bpe, tmp_path, monkeypatch
):
    monkeypatch.setattr("gptlab.interop.write.huggingface.SHARD_BYTES", 30_000)
    model = random_model(tie_weights=False)
    export(make_run(model, bpe), "hf", tmp_path / "hf")
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    tokens = torch.randint(400, (1, 50))
    with torch.no_grad():
        peer = opened(tmp_path / "hf")(tokens).logits
        torch.testing.assert_close(peer, model(tokens)[0], atol=1e-4, rtol=0)
    back = load_checkpoint(import_model(str(tmp_path / "hf"), tmp_path / "back")).model
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
    (tmp_path / "hf" / files[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{files[1]}, which its index names, is missing"):
        huggingface.read(tmp_path / "hf")


def test_tied_weights_are_stored_once(random_model, make_run, bpe, tmp_path):
    export(make_run(random_model(), bpe), "hf", tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert "model.embed_tokens.weight" in stored and "lm_head.weight" not in stored


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_that_transformers_wrote_is_read_with_equal_logits(tmp_path, bpe, name, dtype):
    torch.manual_seed(0)
    sizes = dict(vocab_size=400, num_hidden_layers=2, num_attention_heads=4, bos_token_id=None)
    sizes |= dict(eos_token_id=399, pad_token_id=None)
    llama = dict(hidden_size=32, intermediate_size=48, max_position_embeddings=64)
    llama |= dict(num_key_value_heads=2)
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes, **llama, attention_bias=True),
        "qwen2": lambda: transformers.Qwen2Config(**sizes, **llama),
        "qwen3": lambda: transformers.Qwen3Config(**sizes, **llama, head_dim=16),
        "gpt2": lambda: transformers.GPT2Config(**sizes, n_embd=32, n_positions=64),
    }[name]()
    peer = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    peer.save_pretrained(tmp_path / "peer")
    bpe.save(tmp_path / "peer" / "tokenizer.json")
    folder = import_model(str(tmp_path / "peer"), tmp_path / "ours")
    ours = load_checkpoint(folder).model
    assert all(value.dtype == torch.float32 for value in ours.state_dict().values())
    tokens = torch.randint(400, (2, 60))
    with torch.no_grad():
        reference = opened(tmp_path / "peer", dtype=torch.float32)(tokens).logits
        torch.testing.assert_close(ours(tokens)[0], reference, atol=1e-4, rtol=0)


# What does not fit --------------------------------------------------------------------------------


@pytest.fixture
def folder(random_model, make_run, bpe, tmp_path):
    """An exported Llama."""
    export(make_run(random_model(n_kv_head=2), bpe), "hf", tmp_path / "hf")
    return tmp_path / "hf"


def change_settings(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder):
    with pytest.raises((CheckpointError, ConfigError, TokenizerError)) as caught:
        import_model(str(folder), folder.parent / "back")
    assert not (folder.parent / "back").exists()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


Q = "model.layers.1.self_attn.q_proj.weight"


def test_a_truncated_file_of_weights_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors is damaged" in refusal(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    change_weights(folder, lambda weights: weights.update({Q: weights[Q][:, :-1].contiguous()}))
    assert f"{Q} has the shape (32, 31) and should have (32, 32)" in refusal(folder)


def test_a_missing_tensor_is_named(folder):
    change_weights(folder, lambda weights: weights.pop(Q))
    assert f"has no tensor {Q}" in refusal(folder)


def test_a_bias_that_one_layer_lacks_is_not_taken_for_zero(folder):
    name = "model.layers.{}.self_attn.q_proj.bias"
    change_weights(folder, lambda weights: weights.update({name.format(0): torch.ones(32)}))
    assert f"has no tensor {name.format(1)}" in refusal(folder)


def test_a_superfluous_tensor_is_named(folder):
    change_weights(folder, lambda weights: weights.update(extra=torch.ones(3)))
    assert "has model.extra, which its architecture does not have" in refusal(folder)


def test_weights_that_are_no_floats_are_named(folder):
    change_weights(folder, lambda weights: weights.update({Q: weights[Q].to(torch.int8)}))
    assert f"{Q} as int8" in refusal(folder)


def test_weights_as_a_pickle_are_refused_unread(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert "weights as pickles (.bin)" in refusal(folder)
    assert not (folder / "pwned").exists()


def test_a_folder_without_weights_or_without_a_tokenizer_says_what_is_missing(folder):
    shutil.copytree(folder, folder.parent / "other")
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)
    (folder.parent / "other" / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(folder.parent / "other")


SETTINGS = {
    "architecture 'mamba'": dict(model_type="mamba"),
    "architecture None": dict(model_type=None),
    "rope_scaling of the type 'llama3'": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "rope_scaling of the type 'linear'": dict(rope_scaling={"type": "linear", "factor": 2.0}),
    "rope_parameters of the type 'yarn'": dict(rope_parameters={"rope_type": "yarn"}),
    "hidden_act 'gelu'": dict(hidden_act="gelu"),
    "partial_rotary_factor 0.5": dict(partial_rotary_factor=0.5),
    "layer_types 'sliding_attention'": dict(layer_types=["sliding_attention"] * 2),
    "no valid hidden_size ('many')": dict(hidden_size="many"),
    "no valid num_hidden_layers (None)": dict(num_hidden_layers=None),
    "no valid vocab_size (True)": dict(vocab_size=True),
    "a tokenizer of 400 ids and a model of 300": dict(vocab_size=300),
}


@pytest.mark.parametrize("words", SETTINGS)
def test_settings_that_this_model_cannot_have_are_named(folder, words):
    if SETTINGS[words].get("vocab_size") == 300:
        name = "model.embed_tokens.weight"
        change_weights(folder, lambda weights: weights.update({name: weights[name][:300].clone()}))
    change_settings(folder, **SETTINGS[words])
    assert words in refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_config_that_is_no_json_object_is_named(folder, content):
    (folder / "config.json").write_text(content, encoding="utf-8")
    assert "config.json" in refusal(folder)


def test_older_settings_without_rope_parameters_mean_the_same(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("rope_parameters", "tie_word_embeddings", "head_dim", "dtype"):
        del content[name]
    content |= {"rope_theta": 1234.0, "rope_scaling": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    config = huggingface.read(folder).config
    assert config.rope_theta == 1234.0 and config.head_dim == 8 and config.tie_weights


def test_gpt2_files_without_prefix_and_with_masks_are_read(random_model, make_run, bpe, tmp_path):
    model = random_model(**GPT2)
    export(make_run(model, bpe), "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    old = {n.removeprefix("transformer."): v for n, v in load_file(path).items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.ones(())}
    save_file(old, path)
    back = load_checkpoint(import_model(str(tmp_path / "hf"), tmp_path / "back")).model
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


# The end and the beginning of a text --------------------------------------------------------------


def imported_like(bpe):
    """A tokenizer.json from elsewhere: <|endoftext|>, <|im_start|> and <|im_end|> are special."""
    spec = json.loads(bpe.to_json())
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]],
    }
    first = spec["added_tokens"][0]
    for content in ("<|im_start|>", "<|im_end|>"):
        last = spec["added_tokens"][-1]["id"]
        spec["added_tokens"].append(first | {"id": last + 1, "content": content})
    return spec


@pytest.mark.parametrize("how", ["token", "token object", "id", "ids"])
def test_the_end_of_text_is_the_one_that_the_model_names(folder, bpe, how):
    spec = imported_like(bpe)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "tokenizer_config.json").unlink()
    end = spec["added_tokens"][-1]["id"]
    name = "generation_config.json" if how.startswith("id") else "tokenizer_config.json"
    content = {
        "token": {"eos_token": "<|im_end|>"},
        "token object": {"eos_token": {"content": "<|im_end|>"}},
        "id": {"eos_token_id": end},
        "ids": {"eos_token_id": [end, 399]},
    }[how]
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    change_settings(folder, vocab_size=end + 1)
    change_weights(
        folder,
        lambda weights: weights.update({"model.embed_tokens.weight": torch.randn(end + 1, 32)}),
    )
    checkpoint = load_checkpoint(import_model(str(folder), folder.parent / "back"))
    tokenizer = checkpoint.tokenizer
    assert tokenizer.eot_id == end and tokenizer.decode([end]) == ""
    assert end not in tokenizer.encode("a <|im_end|> b")  # text is text
    assert tokenizer.decode(tokenizer.encode("a <|im_end|> b")) == "a <|im_end|> b"
    export(checkpoint, "hf", folder.parent / "again")
    peer = transformers.AutoTokenizer.from_pretrained(folder.parent / "again")
    assert peer.eos_token == "<|im_end|>" and peer.eos_token_id == end
    assert '"end_of_text"' not in (folder.parent / "again" / "tokenizer.json").read_text("utf-8")
    again = import_model(str(folder.parent / "again"), folder.parent / "again-back")
    assert load_checkpoint(again).tokenizer.fingerprint == tokenizer.fingerprint


def test_the_token_before_every_text_is_known_and_not_part_of_the_text(bpe):
    spec = imported_like(bpe)
    token = spec["added_tokens"][1]
    one = {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token["content"], "type_id": 0}}, one],
        "pair": [one, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token["content"]: {
                "id": token["content"],
                "ids": [token["id"]],
                "tokens": [token["content"]],
            }
        },
    }
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.bos_id == token["id"]
    assert token["id"] not in tokenizer.encode("abc")
    assert bpe.bos_id is None


def test_a_chat_template_travels_in_and_out(folder):
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"chat_template": "{{ messages }}"}), encoding="utf-8")
    checkpoint = load_checkpoint(import_model(str(folder), folder.parent / "back"))
    export(checkpoint, "hf", folder.parent / "again")
    written = json.loads((folder.parent / "again" / "tokenizer_config.json").read_text("utf-8"))
    assert written["chat_template"] == "{{ messages }}"


def test_architectures_are_told_by_their_settings(random_model):
    kinds = [
        architecture_of(random_model(**EXPORTABLE[n]).config) for n in ("llama", "qwen3", "gpt2")
    ]
    assert kinds == ["llama", "qwen3", "gpt2"]
