"""Small random models with a tokenizer, as the runs that interop reads and writes."""

import pytest
import torch

from gptlab.data.tokenizer import char_tokenizer, train_bpe
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint, model_content

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


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_model():
    """Builds a small model whose weights are all random: no norm is 1, no bias is 0."""

    def build(seed=0, noise=0.1, **settings):
        torch.manual_seed(seed)
        small = dict(block_size=200, vocab_size=400, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
        model = GPT(GPTConfig(**(small | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        return model.eval()

    return build


@pytest.fixture(scope="package")
def bpe():
    return train_bpe(["\n".join(MIXED) * 3], 400)


@pytest.fixture(scope="package")
def characters():
    return char_tokenizer("\n abcdefghijklmnopqrstuvwxyzé漢'.,!?ABC")


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
