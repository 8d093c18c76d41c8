"""ONNX out: the model as a graph for any runtime, through torch's exporter."""

import contextlib
import logging
import warnings
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.interop.write.output import new_folder


def check(checkpoint) -> None:
    """Raise ConfigError where the exporter's packages are missing, or for a window of one token."""
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "ONNX is written by the packages onnx and onnxscript: pip install onnx onnxscript."
        ) from None
    if checkpoint.model.config.n_expert:
        raise ConfigError(
            "This model has experts, and a graph of fixed operations would keep the choice of the "
            "tokens that it was traced with",
            "use --format hf or gguf",
        )
    if checkpoint.model.config.block_size < 2:
        raise ConfigError("A model with block_size 1 cannot be exported as ONNX.")


def write(checkpoint, output, *, overwrite: bool = False, progress=None) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) as a folder of model.onnx and tokenizer.json.

    tokens int64 [B, T], T up to block_size -> logits float32 [B, T, V], every setting included. The
    graph has no cache: each step reads the whole text again. Nothing is there under the name until
    all is, and onnxruntime, where it is installed, has computed the module's own logits with it.
    """
    import torch

    model = checkpoint.model
    limits = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("length", min=1, max=model.config.block_size),
    }
    example = torch.zeros(2, 2, dtype=torch.int64)
    total = sum(value.nbytes for value in model.parameters())
    with new_folder(output, overwrite, mark="model.onnx") as folder:
        if progress:
            progress("tracing the model", 0, total)
        with _quiet():
            program = torch.onnx.export(
                _logits_of(model).eval(),
                (example,),
                input_names=["tokens"],
                output_names=["logits"],
                dynamic_shapes={"tokens": limits},
                dynamo=True,
                verbose=False,
            )
            for node in program.model.graph:
                node.metadata_props.clear()  # stack traces: the folders of this machine
            program.save(folder / "model.onnx")
        if has_runtime():
            _check(model, folder / "model.onnx")
        if progress:
            progress("tracing the model", total, total)
        if checkpoint.tokenizer is not None:
            text = checkpoint.tokenizer.to_plain_json()
            (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")
    return Path(output)


def has_runtime() -> bool:
    """Whether what was written can be run here; then the graph of an edited module is right too."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def _check(model, path: Path) -> None:
    """Raise ConfigError where the graph computes other logits than the module."""
    import onnxruntime
    import torch

    from gptlab.model.proof import difference, plain_logits, probe_tokens

    tokens = probe_tokens(min(model.config.block_size, 32), model.config.vocab_size)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"tokens": tokens[None].numpy()})[0][0]
    if reason := difference(torch.from_numpy(found), plain_logits(model, tokens)):
        raise ConfigError(
            f"The export as onnx was run and is not this model ({reason}), so it was not kept: use "
            "--format hf or gguf."
        )


class _WholeText:
    """Stands where a cache would: nothing is before the text, and the mask is written out.

    Whether attention is causal without a mask depends on the length, and a graph is for all.
    """

    lengths = (0,)

    def reserve(self, length):
        return slice(0, length)

    def append(self, layer, k, v):
        import torch

        length = k.size(2)
        return k, v, torch.ones(length, length, dtype=torch.bool).tril()

    def advance(self, length):
        pass


def _logits_of(model):
    """The model as a module from tokens to logits alone."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens, cache=_WholeText())[0]

    return Logits()


@contextlib.contextmanager
def _quiet():
    """Without what the exporter says of packages that it would also know, and of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
