"""Decoding steps on a CPU by native.cpp, which is compiled once and kept.

    native = NativeDecoder.of(model, "int8")     # None where there is no compiler

Decoding reads every weight for each token, so its speed is that of the memory: a step in one piece,
with weights of 4, 2 or 1 bytes, is several times faster than the same step in torch operations.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path

import torch

from gptlab.errors import GenerationError
from gptlab.model.kv_cache import KVCache
from gptlab.model.proof import computing_plainly, difference, plain_logits, probe_tokens
from gptlab.model.quantization import quantize
from gptlab.model.reference import unlike_in_narrow_copy, unlike_names
from gptlab.model.transformer import GPT, RMSNorm

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
# no -ffast-math: it would change how the whole process treats very small numbers
FLAGS = (
    "-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared",
    "-fPIC",
)  # fmt: skip
TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}
ACTIVATIONS = {"gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}  # 0: SwiGLU
MOST_TOKENS = 16  # in one step; above, torch's matrix products are faster
# what one more token in a step takes, as a share of a step of one token, on two slow cores
TOKEN_COST = {"float32": 0.18, "bfloat16": 0.18, "int8": 0.26}
PROBE, NARROW_PROBE = 24, 256  # tokens before and in the steps that are compared with the model's
# as a share of the largest logit; int8 takes tokens of 16 bits, and depth adds up their rounding
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-3, "int8": 5e-2}
PROBE_STEPS = 8  # tokens of them that native.cpp computes
COMPILE_SECONDS = 8.0  # on two slow cores
# what a step takes less than in torch: seconds a parameter (its memory), and a layer (its calls)
SAVED_BY_PARAMETER, SAVED_BY_LAYER = 4e-10, 1.5e-4


class _Matrix(Structure):
    _fields_ = [
        ("data", c_void_p), ("scales", c_void_p), ("bias", c_void_p),
        ("rows", c_int64), ("cols", c_int64), ("type", c_int64),
    ]  # fmt: skip


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("keys", c_void_p), ("values", c_void_p),
    ]  # fmt: skip


class _Model(Structure):
    _fields_ = [
        *(
            (name, c_int64)
            for name in (
                "layers", "heads", "kv_heads", "head_dim", "width", "hidden", "slots",
                "uses_layer_norm", "activation",
            )
        ),
        ("eps", c_double), ("layer", POINTER(_Layer)), ("final_norm", _Norm), ("head", _Matrix),
        ("cos", c_void_p), ("sin", c_void_p),
    ]  # fmt: skip


# Compiling ----------------------------------------------------------------------------------------


@functools.cache
def library():
    """native.cpp as a library, compiled at its first use; None where that does not work."""
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("g++", "clang++"))), ""
    )
    if not compiler or os.name == "nt":
        logger.info("There is no C++ compiler here: decoding takes torch's operations.")
        return None
    if not is_compiled():
        logger.warning("Compiling the decoder for this CPU, once (a few seconds) ...")
    tune = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    for more in ((tune, "-fopenmp"), (tune,), ()):
        try:
            return _load(_compile([compiler, *FLAGS, *more]))
        except (OSError, subprocess.SubprocessError) as error:
            reason = error
    logger.warning("It was not compiled (%s): torch's operations decode, more slowly.", reason)
    return None


def is_compiled() -> bool:
    """Whether the library lies ready."""
    return _library_path().exists()


def _library_path() -> Path:
    """Where the library lies, named by its source and by the machine that it is made for."""
    processor = (platform.machine(), torch.backends.cpu.get_cpu_capability(), _cpu_flags())
    key = repr((SOURCE.read_bytes(), FLAGS, os.environ.get("CXX"), processor)).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptlab"
    return cache / f"native-{hashlib.sha256(key).hexdigest()[:16]}.so"


def _compile(command: list[str]) -> Path:
    """The library, from the cache or anew; in a temporary folder where the cache is read-only."""
    path = _library_path()
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError:
        folder = tempfile.TemporaryDirectory()
        path = Path(tempfile.mkdtemp()) / path.name
    with folder:
        made = Path(folder.name) / path.name
        subprocess.run(
            [*command, str(SOURCE), "-o", str(made)], check=True, capture_output=True, timeout=120
        )
        os.replace(made, path)  # a rename, so that another process never loads half of it
    return path


def _cpu_flags() -> str:
    """What instructions this CPU has, where Linux says it: a home may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _load(path: Path):
    loaded = ctypes.CDLL(str(path))
    loaded.decode_step.argtypes = [POINTER(_Model), c_int64, *[c_void_p] * 4, c_int64]
    loaded.decode_step.restype = None
    return loaded


# Decoding -----------------------------------------------------------------------------------------


class NativeDecoder:
    """The next step of a model on a CPU. dtype: of the weights as they are read.

    The model's float32 weights are used in place; others are packed once, so a model that is
    changed afterwards needs a new one. With another dtype than float32 call
    `quantization.round_weights` first.
    """

    def __init__(self, model: GPT, dtype: str = "float32"):
        self.config, self.dtype = model.config, dtype
        self.token_cost = TOKEN_COST[dtype]
        self.model = model
        self.kept = []  # what the pointers point to
        self.library = library()
        self.layers = (_Layer * self.config.n_layer)(*map(self._layer, model.blocks))
        config = self.config
        self.step_model = _Model(
            config.n_layer, config.n_head, config.n_kv_head, config.head_dim, config.n_embd,
            config.intermediate_size, config.block_size, not config.use_rms_norm,
            0 if config.use_swiglu else ACTIVATIONS[config.activation], config.norm_eps,
            self.layers, self._norm(model.final_norm), self._matrix(model.lm_head),
            self._pointer(model.cos), self._pointer(model.sin),
        )  # fmt: skip

    @classmethod
    def of(cls, model: GPT, dtype: str = "float32") -> "NativeDecoder | None":
        """A decoder for this model, or None where torch has to do it.

        That is also where native.cpp computes something else than the module, which says so.
        """
        weight = next(model.parameters())
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or library() is None:
            return None
        decoder, reason = cls.compared(model, dtype)
        if reason:
            logger.warning("native.cpp does not decode this model (%s): torch does.", reason)
        return decoder

    @classmethod
    def compared(cls, model: GPT, dtype: str) -> "tuple[NativeDecoder | None, str]":
        """(decoder, "") or (None, how it differs): of these weights, and of the code alone."""
        has_experts = "it has experts" if model.config.n_expert else ""
        reason = (
            has_experts
            or unlike_names(model)
            or unlike_in_narrow_copy(model, lambda narrow: cls(narrow)._difference(NARROW_PROBE))
        )
        if reason:
            return None, reason
        decoder = cls(model, dtype)
        reason = decoder._difference(PROBE)
        return (None, reason) if reason else (decoder, "")

    def _difference(self, length: int) -> str:
        """How the logits of some steps differ from the module's, in words, or ""."""
        tokens = probe_tokens(min(length, self.config.block_size), self.config.vocab_size)
        steps, cache = tokens[-PROBE_STEPS:], KVCache(self.config, 1)
        if before := len(tokens) - len(steps):
            with computing_plainly(self.model):
                self.model.features(tokens[None, :before], cache=cache)
        found = self.step(steps[None], cache)[0]
        expected = plain_logits(self.model, tokens)[before:]
        return difference(found, expected, TOLERANCE[self.dtype])

    @classmethod
    def worth_it(cls, model: GPT, dtype: str, tokens: int) -> "NativeDecoder | None":
        """`of`, unless native.cpp is still to be compiled and so many tokens would not pay that."""
        steps = tokens * len(model.blocks)
        saved = SAVED_BY_PARAMETER * tokens * sum(w.numel() for w in model.parameters())
        if not (is_compiled() or saved + SAVED_BY_LAYER * steps > COMPILE_SECONDS):
            return None
        return cls.of(model, dtype)

    def step(self, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Logits [B, T, V] after T more tokens of each row, int64 [B, T], cached as by `features`.

        To the bit those of one token after the other. Raises GenerationError, as `features` does,
        where a row has no slot left.
        """
        rows, length = tokens.shape
        if (longest := max(cache.lengths) + length) > cache.block_size:
            # native.cpp would write behind the cache
            raise GenerationError(
                f"{longest} tokens do not fit the model's window of {cache.block_size}."
            )
        positions = (torch.tensor(cache.lengths)[:, None] + torch.arange(length)).flatten()
        of_row = torch.arange(rows).repeat_interleave(length)
        x = self.model.token_embedding.weight[tokens.flatten()]  # [B * T, C]
        if self.model.position_embedding is not None:
            x = x + self.model.position_embedding.weight[positions]
        if self.model.position_table is not None:
            x = x + self.model.position_table[positions]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        logits = torch.empty(rows, length, self.config.vocab_size)
        self.library.decode_step(
            ctypes.byref(self.step_model), rows * length, of_row.data_ptr(), positions.data_ptr(),
            x.data_ptr(), logits.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        cache.advance(length)
        return logits

    def _layer(self, block) -> _Layer:
        attention, mlp = block.attention, block.mlp  # None in a model without MLPs
        return _Layer(
            self._norm(block.attention_norm), self._norm(block.mlp_norm),
            self._norm(attention.q_norm), self._norm(attention.k_norm),
            self._matrix(attention.q_proj), self._matrix(attention.k_proj),
            self._matrix(attention.v_proj), self._matrix(attention.o_proj),
            *(self._matrix(getattr(mlp, f"{name}_proj", None)) for name in ("gate", "up", "down")),
        )  # fmt: skip

    def _norm(self, norm) -> _Norm:
        if norm is None:
            return _Norm()
        bias = None if isinstance(norm, RMSNorm) else norm.bias
        return _Norm(self._pointer(norm.weight), self._pointer(bias))

    def _matrix(self, linear) -> _Matrix:
        if linear is None:
            return _Matrix()
        weight, scales = linear.weight.detach(), None
        if self.dtype == "bfloat16":
            weight = weight.bfloat16()
        elif self.dtype == "int8":
            weight, scales = quantize(weight)
        rows, cols = weight.shape
        return _Matrix(
            self._pointer(weight), self._pointer(scales), self._pointer(linear.bias),
            rows, cols, TYPES[self.dtype],
        )  # fmt: skip

    def _pointer(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()
