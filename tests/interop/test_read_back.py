"""What is written is read back: a writer that errs leaves nothing, and an import has its proof."""

import dataclasses

import pytest
import torch

from gptlab.errors import ConfigError
from gptlab.interop.read import gguf as gguf_reader
from gptlab.interop.read.imported_model import write_run
from gptlab.interop.write import gguf, html, huggingface, onnx
from gptlab.interop.write.export import export
from gptlab.model import proof
from gptlab.runs import load_checkpoint


def swapped(to_peer):
    def write(weights, config, naming):
        found = to_peer(weights, config, naming)
        q, k = (next(name for name in found if part in name) for part in ("q_proj", "k_proj"))
        found[q], found[k] = found[k], found[q]
        return found

    return write


def with_settings(hf_settings, **wrong):
    return lambda config: hf_settings(config) | wrong


ERRORS = {
    "queries for keys": ("hf", huggingface, "to_peer", swapped, "another tensor"),
    "another eps": (
        "hf", huggingface, "hf_settings",
        lambda written: with_settings(written, rms_norm_eps=0.5), "logits differ by",
    ),
    "another rope base": (
        "hf", huggingface, "hf_settings",
        lambda written: with_settings(
            written, rope_theta=100.0, rope_parameters={"rope_type": "default", "rope_theta": 100.0}
        ), "logits differ by",
    ),
    "rows as halves": (
        "gguf", gguf, "_interleaved", lambda written: lambda weight, head_dim: weight,
        "q_proj.weight is another tensor",
    ),
    "doubled scales": (
        "html", html, "quantize",
        lambda written: lambda weight: (written(weight)[0], 2 * written(weight)[1]),
        "another tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "module", "name", "wrong", "reason"), ERRORS.values(), ids=ERRORS
)
def test_a_writer_that_errs_is_refused_and_leaves_what_was_there(
    random_model, make_run, bpe, tmp_path, monkeypatch, format, module, name, wrong, reason
):
    checkpoint = make_run(random_model(vocab_size=bpe.vocab_size), bpe)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, wrong(getattr(module, name)))
        with pytest.raises(ConfigError, match=f"export as {format} was read back.*{reason}"):
            export(checkpoint, format, tmp_path / "it" / "new")
    assert not any((tmp_path / "it").glob("*"))
    export(checkpoint, format, tmp_path / "it" / "new")


def test_rounded_matrices_are_held_against_the_live_module_with_these_very_weights(
    random_model, make_run, bpe, tmp_path, monkeypatch
):
    checkpoint = make_run(random_model(noise=0.3, vocab_size=bpe.vocab_size, n_head=2), bpe)
    for quantize in ("f16", "bf16", "q8_0", "q4_0"):
        export(checkpoint, "gguf", tmp_path / quantize, quantize=quantize)

    def other_eps(path):
        config, weights = gguf_reader.read_weights(path)
        return dataclasses.replace(config, norm_eps=0.5), weights

    monkeypatch.setattr(gguf, "read_weights", other_eps)
    with pytest.raises(ConfigError, match="logits differ by"):
        export(checkpoint, "gguf", tmp_path / "wrong", quantize="q8_0")
    assert not (tmp_path / "wrong").exists()


def test_a_graph_that_looks_ahead_is_refused_by_the_runtime(
    random_model, make_run, bpe, tmp_path, monkeypatch
):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    def all_of_it(self, layer, k, v):
        return k, v, torch.ones(k.size(2), k.size(2), dtype=torch.bool)

    monkeypatch.setattr(onnx._WholeText, "append", all_of_it)
    with pytest.raises(ConfigError, match="export as onnx was run and is not this model"):
        export(make_run(random_model(n_layer=1), bpe), "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_quantised_import_has_the_proof_of_its_dequantised_weights(
    random_model, make_run, bpe, tmp_path, home
):
    checkpoint = make_run(random_model(noise=0.3, vocab_size=bpe.vocab_size, n_head=2), bpe)
    file = export(checkpoint, "gguf", tmp_path / "file.gguf", quantize="q8_0")
    imported = load_checkpoint(write_run(gguf_reader.read(file), home / "out" / "imported", {}))
    stored = imported.content["proof"]
    assert proof.difference_from(stored, imported.model) == ""
    found = proof.proof_of(imported.model)
    assert torch.equal(found["log_sum_exp"], stored["log_sum_exp"])
    assert not torch.equal(checkpoint.content["proof"]["log_sum_exp"], stored["log_sum_exp"])
