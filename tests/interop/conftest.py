"""Small random models with a tokenizer as runs, GGUF files as llama.cpp writes them, llama.cpp."""

import functools
import json
import urllib.request

import gguf
import numpy as np
import pytest

from gptlab.checkpoints import model_content
from gptlab.data.tokenizer import char_tokenizer, train_bpe
from gptlab.runs import Run, load_checkpoint

# what splits and joins differently in tokenizers that are nearly the same
MIXED = [
    "Hello, world! It's 7:30 and I'll pay $1,234.56 for 3 of them.",
    "naïve café façade — “quoted” ‘text’ … ½ ² №5",  # noqa: RUF001
    "日本語のテキスト、漢字とかな。中文，没有空格。한국어도 있다",  # noqa: RUF001
    "Привет, мир! Ελληνικά. עברית العربية हिन्दी ไทย",
    "🙂🙃👩‍👩‍👧 🇩🇪 e\u0301 vs é \u200b zero",
    "  two  spaces   three\ttab\t\ttabs \n\n\n newlines\r\n and \x0b\x0c",
    "don't DON'T we've WE'VE I'M y'all's 'tis rock'n'roll ''",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x**2}  # comment\n",
    "1234567890 12 345 6,789 0x1F 3.14e-10 ١٢٣ ⅷ",
    "<|endoftext|> and <s> </s> <|im_end|> are text here, [INST] too",
    "",
    " ",
    "\n",
    "a" * 300,
    "ALLCAPS MiXeD snake_case kebab-case CamelCase http://x.y/z?q=1&r=2#s",
]


@pytest.fixture
def random_model(random_model):
    """The same with a window and a vocabulary for texts."""
    return functools.partial(random_model, block_size=200, vocab_size=400)


@pytest.fixture(scope="package")
def bpe():
    return train_bpe(["\n".join(MIXED) * 3], 400)


@pytest.fixture(scope="package")
def characters():
    """One whose capitals and marks were added later, behind the end of text."""
    return char_tokenizer("\n abcdefghijklmnopqrstuvwxyzé漢").extended("'.,!?ABC")


@pytest.fixture
def make_run(home):
    """Writes a model as the run out/NAME and loads it again; the home is empty before."""

    def make(model, tokenizer, name="run", **more):
        run = Run(home / "out" / name)
        run.begin()
        run.save_best(model_content(model, tokenizer, **{"step": 7, "val_loss": 1.5} | more))
        run.end()
        return load_checkpoint(run.folder)

    return make


@pytest.fixture(scope="package")
def mixed():
    return MIXED


# GGUF files as the converter of llama.cpp writes them ---------------------------------------------


GGUF_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_TOP = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "lm_head": "output",
}


def interleaved(weight: np.ndarray, n_head: int) -> np.ndarray:
    """The rows of Q or K in the order that llama.cpp rotates: neighbours instead of halves."""
    rows, columns = weight.shape
    halves = weight.reshape(n_head, 2, rows // n_head // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def tensors_of(model, architecture: str) -> dict[str, np.ndarray]:
    """A model's weights under llama.cpp's names."""
    config, found = model.config, {}
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if not module.startswith("blocks."):
            found[f"{GGUF_TOP[module]}.{leaf}"] = value
            continue
        _, layer, part = module.split(".", 2)
        if architecture == "llama" and part in ("attention.q_proj", "attention.k_proj"):
            heads = config.n_head if part == "attention.q_proj" else config.n_kv_head
            value = interleaved(value.reshape(len(value), -1), heads).reshape(value.shape)
        found[f"blk.{layer}.{GGUF_NAMES[part]}.{leaf}"] = value
    if architecture == "gpt2":
        for layer in range(config.n_layer):
            for leaf in ("weight", "bias"):
                parts = [found.pop(f"blk.{layer}.attn_{x}.{leaf}") for x in "qkv"]
                found[f"blk.{layer}.attn_qkv.{leaf}"] = np.concatenate(parts)
    return found


def write_gguf_file(path, model, architecture, tokenizer, quantization=None, **more) -> None:
    """A whole file.

    tokenizer: fields of tokenizer.ggml by name. quantization: of all matrices whose rows allow it.
    more: fields to add or, with None, to leave out.
    """
    config = model.config
    fields = {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "attention.layer_norm_epsilon": float(config.norm_eps),
    }
    writer = gguf.GGUFWriter(path, architecture)
    everything = {f"{architecture}.{name}": value for name, value in fields.items()}
    everything |= {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
    for name, value in (everything | more).items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, value in tensors_of(model, architecture).items():
        if quantization is not None and value.ndim == 2:
            data = gguf.quantize(value, quantization)
            writer.add_tensor(name, data, raw_dtype=quantization)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_fields_of(tokenizer, pre="gpt-2"):
    """The fields of tokenizer.ggml for a byte-level BPE."""
    spec = json.loads(tokenizer.to_json())
    vocab = spec["model"]["vocab"]
    merges = [" ".join(pair) for pair in spec["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*sorted(vocab, key=vocab.get), "<|endoftext|>"],
        "token_type": [1] * len(vocab) + [3],
        "merges": merges,
        "eos_token_id": len(vocab),
        "bos_token_id": len(vocab),
        "add_bos_token": False,
    }


@pytest.fixture(scope="package")
def fields_of():
    """`gguf_fields_of`."""
    return gguf_fields_of


@pytest.fixture(scope="package")
def gguf_fields(bpe):
    """The tokenizer's fields of a file with the tokenizer `bpe`."""
    return gguf_fields_of(bpe)


@pytest.fixture(scope="package")
def write_gguf():
    """`write_gguf_file`."""
    return write_gguf_file


# llama.cpp ----------------------------------------------------------------------------------------


class LlamaCpp:
    """A loaded file."""

    def __init__(self, path, n_ctx: int = 256):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = n_ctx
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        parameters.fit_params = False
        # one: two would wait for each other, half a second a token on a busy machine
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        # a float16 cache of keys and values would be another model
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # and its flash attention computes in float16 on a CPU: logits are off by up to 0.005
        kinds = xllamacpp.llama_flash_attn_type
        parameters.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(parameters)

    def greedy(self, prompt: str, max_tokens: int) -> str:
        """What follows a prompt, always the likeliest token."""
        options = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "top_k": 1}
        return self.server.handle_completions(options)["choices"][0]["text"]

    def logprobs(self, prompt: str, vocab_size: int) -> dict[int, float]:
        """What the next token may be, with the logarithm of its probability."""
        options = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "n_probs": vocab_size}
        first = self.server.handle_completions(options)["choices"][0]["logprobs"]["content"][0]
        return {each["id"]: each["logprob"] for each in first["top_logprobs"]}

    def ids(self, text: str) -> list[int]:
        """The tokens of plain text."""
        content = {"content": text, "add_special": False, "parse_special": False}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())["tokens"]


@pytest.fixture(scope="package")
def llama_cpp():
    """The class LlamaCpp; skips where the package is missing."""
    pytest.importorskip("xllamacpp")
    return LlamaCpp
