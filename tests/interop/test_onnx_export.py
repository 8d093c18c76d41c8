"""ONNX: a runtime that knows nothing of torch computes our logits, for every setting and length."""

import sys

import pytest
import torch

from gptlab.errors import ConfigError
from gptlab.interop.write.export import export

SETTINGS = {
    "qwen3": dict(n_kv_head=2, qk_norm=True, tie_weights=False),
    "classic": dict(position_encoding="learned", use_rms_norm=False, use_swiglu=False, bias=True),
    "sinusoidal": dict(position_encoding="sinusoidal", use_swiglu=False, activation="relu2"),
    "attention only": dict(intermediate_size=0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_onnxruntime_computes_our_logits_at_every_length(
    random_model, make_run, bpe, tmp_path, name
):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    checkpoint = make_run(random_model(n_layer=1, block_size=64, **SETTINGS[name]), bpe)
    folder = export(checkpoint, "onnx", tmp_path / "onnx")
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "tokenizer.json"}
    assert __file__.split("tests")[0].encode() not in (folder / "model.onnx").read_bytes()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    for batch, length in [(1, 1), (2, 17), (3, 64)]:
        tokens = torch.randint(400, (batch, length))
        peer = torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(peer, checkpoint.model(tokens)[0], atol=1e-4, rtol=0)


def test_without_the_exporter_it_says_what_to_install(
    random_model, make_run, bpe, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        export(make_run(random_model(), bpe), "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
