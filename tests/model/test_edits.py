"""An edited transformer.py decides: what computes it again follows, steps aside or refuses."""

import contextlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gptlab
from gptlab import code_changes
from gptlab.checkpoints import model_content
from gptlab.cli.main import run_command
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import CheckpointError, ConfigError
from gptlab.inference import native
from gptlab.inference.native import NativeDecoder
from gptlab.interop.write.export import export
from gptlab.model import arithmetic, memory, proof, transformer
from gptlab.model import config as settings
from gptlab.runs import Run, load_checkpoint
from gptlab.training import provenance

PACKAGE = Path(gptlab.__file__).parent
TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n"
PLAIN_MLP = dict(use_swiglu=False, activation="gelu_tanh")
GPT2 = PLAIN_MLP | dict(position_encoding="learned", use_rms_norm=False)
FIRST_BRANCH = "x = x + self.dropout(y, masks[0])"
SECOND_BRANCH = "return x + self.dropout(self.mlp(self.mlp_norm(x)), masks[1])"
# what a hacker changes: (settings, [(before, after), ...])
EDITS = {
    "parallel residual": (dict(), [
        (FIRST_BRANCH, FIRST_BRANCH.replace("x = x +", "attended =")),
        (SECOND_BRANCH, SECOND_BRANCH.replace("return x +", "return x + attended +")),
    ]),
    "silu in a plain MLP": (GPT2, [
        ("else ACTIVATIONS[config.activation]", "else F.silu"),
    ]),
    "soft cap": (dict(tie_weights=False), [
        ("return self.lm_head(hidden)", "return 15 * torch.tanh(self.lm_head(hidden) / 15)"),
    ]),
    "a learned scale per block": (dict(), [
        ("self.mlp = None", "self.mlp = None; "
         "self.scale = nn.Parameter(torch.full((config.n_embd,), 0.5))"),
        (SECOND_BRANCH, SECOND_BRANCH.replace("x + ", "x + self.scale * ")),
    ]),
    "GeGLU": (dict(), [("F.silu(self.gate_proj(x))", "F.gelu(self.gate_proj(x))")]),
}  # fmt: skip
each_edit = pytest.mark.parametrize(("options", "edit"), EDITS.values(), ids=EDITS)


@pytest.fixture(autouse=True)
def native_library():
    native.library()  # compiled, so that short texts take it too


@pytest.fixture
def hamlet(home):
    """A home with the dataset hamlet."""
    (home / "hamlet.txt").write_text(TEXT * 40, encoding="utf-8")
    return prepare(str(home / "hamlet.txt"), PrepareOptions(tokenizer="char")).dataset


@contextlib.contextmanager
def edited(folder: Path, *changes: tuple[str, str], file: str = "transformer.py"):
    """A context in which a file of gptlab/model/ was edited before it was imported."""
    module = sys.modules[f"gptlab.model.{file.removesuffix('.py')}"]
    text = (PACKAGE / "model" / file).read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    copy = folder / "edited" / "gptlab"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (copy / "model" / file).write_text(text, encoding="utf-8")
    original = dict(vars(module))

    def take(now: dict, instead_of: dict) -> None:
        """Let every module have what it imported from one text from the other one."""
        for other in [m for name, m in sys.modules.items() if name.startswith("gptlab.")]:
            for name, value in list(vars(other).items()):
                if other is not module and name in now and instead_of.get(name) is value:
                    setattr(other, name, now[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "CODE", copy / "model")
        patch.setattr(provenance, "_PACKAGE", copy)
        proof.code_texts.cache_clear()
        try:
            exec(compile(text, module.__file__, "exec"), vars(module))
            take(vars(module), original)
            yield
        finally:
            take(original, dict(vars(module)))
            vars(module).clear()
            vars(module).update(original)
            proof.code_texts.cache_clear()


def train(home: Path, name: str = "run", **options) -> Path:
    """Three steps of a tiny model whose branches and opinions are large."""
    small = dict(
        dataset="hamlet", n_layer=2, n_head=2, n_kv_head=2, n_embd=16, block_size=24, dropout=0.0,
        init_std=0.5, init_projection="scaled", batch_size=2, max_iters=3, eval_tokens=48,
        eval_interval=3, quiet=True, device="cpu", dtype="float32", compile_model=False,
    )  # fmt: skip
    if options.get("resume"):
        small = dict(quiet=True)
    gptlab.train(**small | options, out_dir=str(home / "out" / name))
    return home / "out" / name


def samples(run: Path, capsys, *more: str) -> tuple[list[str], str]:
    """(the texts of sample.py, what it noted)."""
    ask = "--prompt that --temperature 0 --max_tokens 40 --device cpu --dtype float32".split()
    capsys.readouterr()
    assert run_command("sample", ["--out_dir", str(run), *ask, *more]) == 0
    out, err = capsys.readouterr()
    texts = out.split("=== sample ")[1:] or [f"\n{out}"]
    return [text.partition("\n")[2].rstrip("\n") for text in texts], err


def slowly_written(run: Path) -> str:
    """What `GPT.generate` writes behind the same prompt, up to an end of the text."""
    checkpoint = load_checkpoint(run)
    tokenizer = checkpoint.tokenizer
    prompt = tokenizer.encode("that")
    ids = checkpoint.model.generate(torch.tensor([prompt]), 40, temperature=0)[0].tolist()
    written = ids[len(prompt) :]
    if tokenizer.eot_id in written:
        written = written[: written.index(tokenizer.eot_id)]
    return tokenizer.decode(prompt + written).rstrip("\n")


# Text ---------------------------------------------------------------------------------------------


@each_edit
def test_what_an_edited_model_writes_exports_and_leaves_to_an_unedited_one(
    hamlet, home, capsys, monkeypatch, options, edit
):
    with edited(home, *edit):
        run = train(home, **options)
        expected = slowly_written(run)
        written, notes = samples(run, capsys)
        assert written == [expected] and "native.cpp does not decode this model (" in notes
        assert samples(run, capsys, "--num_samples", "3")[0] == [expected] * 3
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what could run the graph
        before = sorted(run.parent.rglob("*"))
        for format in ("hf", "gguf", "html", "onnx"):
            assert run_command("export", [str(run), "--format", format]) == 2
            said = capsys.readouterr().err
            reason = "it has a parameter blocks.0." if "scale" in edit[0][1] else "logits differ by"
            assert f"cannot be exported as {format}:" in said and reason in said, said
        assert sorted(run.parent.rglob("*")) == before

    place = r"gptlab/model/transformer\.py:\d+ was '.*' and is '"
    with pytest.raises(CheckpointError, match=place):
        train(home, resume=True)
    with edited(home, *edit):  # or, as the sentence says, undo the change
        train(home, resume=True, max_iters=4)
    if "scale" in edit[0][1]:  # a weight that nothing takes
        with pytest.raises(CheckpointError, match=rf"lacks: blocks\.0\.scale.*{place}"):
            load_checkpoint(run)
        return
    _, notes = samples(run, capsys)
    assert "was trained by other code, and here its logits differ by up to" in notes
    assert "gptlab/model/transformer.py:" in notes
    train(home, "new", init_from=str(run))  # the other thing that the sentence says


def test_the_unedited_model_is_decoded_by_native_and_nothing_is_said(hamlet, home, capsys):
    for name, options in {"llama": {}, "gpt2": GPT2}.items():
        run = train(home, name, **options)
        written, notes = samples(run, capsys)
        assert written == [slowly_written(run)] and notes.count("\n") == 1
        assert NativeDecoder.of(load_checkpoint(run).model) is not None
        for format in ("hf", "gguf", "html"):
            assert run_command("export", [str(run), "--format", format]) == 0


def test_the_soft_cap_changes_the_loss(home):
    config = settings.GPTConfig(vocab_size=20, block_size=16, n_layer=1, n_embd=48, init_std=0.5)
    tokens, found = torch.randint(20, (2, 17), generator=torch.Generator().manual_seed(0)), []
    for edit in (EDITS["soft cap"][1], []):
        with edited(home, *edit):
            torch.manual_seed(0)
            model = transformer.GPT(config).eval()
            logits, _ = model(tokens[:, :-1])
            found.append(model(tokens[:, :-1], tokens[:, 1:])[1])
            expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            torch.testing.assert_close(found[-1], expected)
    assert abs(found[0] - found[1]) > 0.01


def test_a_branch_that_is_still_zero_hides_no_edit(home):
    zero = dict(tie_weights=False, init_projection="zero", n_layer=2, n_head=2, n_embd=16)
    with edited(home, *EDITS["GeGLU"][1]):
        model = transformer.GPT(settings.GPTConfig(vocab_size=20, block_size=16, **zero)).eval()
        assert NativeDecoder.of(model) is None


def test_with_a_runtime_the_graph_of_an_edited_model_is_its_own(hamlet, home, capsys):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    with edited(home, *EDITS["GeGLU"][1]):
        run = train(home)
        assert run_command("export", [str(run), "--format", "onnx"]) == 0
        session = runtime.InferenceSession(run / "onnx" / "model.onnx")
        tokens = proof.probe_tokens(20, 25)
        found = torch.from_numpy(session.run(None, {"tokens": tokens[None].numpy()})[0][0])
        expected = proof.plain_logits(load_checkpoint(run).model, tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Loading ------------------------------------------------------------------------------------------


def test_an_edit_that_changes_no_logits_is_one_line_and_goes_on(hamlet, home, caplog):
    in_training = ("self.dropout = Dropout(config)", "self.dropout = Dropout(config).train()")
    with edited(home, in_training):
        run = train(home)
    caplog.clear()
    load_checkpoint(run)
    assert len(caplog.records) == 1 and "transformer.py:" in caplog.text
    assert "which computes the same" in caplog.text
    caplog.clear()
    train(home, resume=True, max_iters=4)
    assert "what acts in training only, such as the loss, may differ" in caplog.text
    assert "is 'self.dropout = Dropout(config)'" in caplog.text


def test_what_the_run_no_longer_knows_is_named_by_its_file(hamlet, home, caplog):
    with edited(home, *EDITS["GeGLU"][1]):
        run = train(home)
    (run / "source.zip").unlink()
    load_checkpoint(run)
    assert "logits differ by up to" in caplog.text
    assert "(gptlab/model/transformer.py changed)" in caplog.text


def test_a_file_that_is_edited_while_a_run_goes_on_is_not_what_it_computed(
    hamlet, home, monkeypatch
):
    with edited(home):
        save, changes = Run.save, []

        def edit_then_save(run, state, keep=0):
            text = (proof.CODE / "transformer.py").read_text(encoding="utf-8")
            (proof.CODE / "transformer.py").write_text(text + "\n", encoding="utf-8")
            changes.append(state)
            save(run, state, keep)

        monkeypatch.setattr(Run, "save", edit_then_save)
        train(home, max_iters=6)
        assert len(changes) > 1
        assert len({tuple(state["proof"]["code"].items()) for state in changes}) == 1


def test_each_checkpoint_has_the_proof_of_the_weights_that_are_in_it(hamlet, home):
    run = train(
        home, ema_decay=0.9, learning_rate=0.5, max_iters=30, warmup_iters=0, schedule="constant"
    )
    best, last = (load_checkpoint(run / name) for name in ("best.pt", "ckpt.pt"))
    assert best.content["weights"] == "averaged"
    for checkpoint in (best, last):
        assert proof.difference_from(checkpoint.content["proof"], checkpoint.model) == ""
    assert proof.difference_from(last.content["proof"], best.model)


def test_an_edited_model_with_a_fraction_of_the_weights_loads_its_own_checkpoint(home):
    size = "config.n_embd, config.intermediate_size, config.bias"
    with edited(home, (size, "config.n_embd, 8, config.bias")):
        small = dict(vocab_size=20, block_size=8, n_layer=4, n_head=2, n_embd=128)
        config = settings.GPTConfig(**small, intermediate_size=2000)
        model = transformer.GPT(config).eval()
        own = sum(weight.numel() for weight in model.parameters())
        assert arithmetic.count_parameters(config) > 2 * own + 1_000_000
        run = Run(home / "out" / "run")
        run.begin()
        run.save_best(model_content(model, None))
        run.end()
        load_checkpoint(run.folder)


# A new activation ---------------------------------------------------------------------------------


def test_a_new_activation_costs_two_edits_and_what_lacks_it_says_so(
    home, random_model, monkeypatch, caplog
):
    one = ('"relu", "relu2"]', '"relu", "relu2", "silu"]')
    other = ('"relu": F.relu,', '"relu": F.relu, "silu": F.silu,')
    with edited(home, one, file="config.py"), edited(home, other):
        small = dict(vocab_size=20, block_size=16, n_layer=2, n_head=2, n_embd=16)
        config = settings.GPTConfig(**small | GPT2 | dict(activation="silu"), dropout=0.0)
        torch.manual_seed(0)
        model = transformer.GPT(config).eval()
        assert arithmetic.count_parameters(config) == sum(p.numel() for p in model.parameters())
        assert memory.training_memory(config, 2).total > 0
        assert NativeDecoder.of(model) is None and "it has the activation silu" in caplog.text
        run = Run(home / "out" / "run")
        run.begin()
        from gptlab.data.tokenizer import char_tokenizer

        run.save_best(model_content(model, char_tokenizer("abcdefghijklmnopqrs")))
        run.end()
        checkpoint = load_checkpoint(run.folder)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for format in ("hf", "gguf", "html", "onnx"):
            with pytest.raises(ConfigError, match="activation silu"):
                export(checkpoint, format, home / format)
            assert not (home / format).exists()


def test_changed_places_are_listed_up_to_three_and_only_for_the_text_of_the_hash():
    before = "".join(f"a{n}\nb\n" for n in range(6))
    after = "".join(f"c{n}\nb\n" for n in range(6))
    hashes = {"m.py": code_changes.hashlib.sha256(before.encode()).hexdigest()}
    words = code_changes.code_in_words(hashes, {"m.py": before}, {"m.py": after})
    assert words.startswith("m.py:1 was 'a0' and is 'c0'; m.py:3")
    assert words.endswith("; 3 more such places")
    assert code_changes.code_in_words(hashes, {"m.py": "old"}, {"m.py": after}) == "m.py changed"
    assert code_changes.code_in_words(hashes, {"m.py": before}, {"m.py": before}) == ""
