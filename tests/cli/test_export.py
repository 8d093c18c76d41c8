"""The export command: where the folder goes, what it says, what it refuses before writing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.checkpoints import model_content
from gptlab.cli.main import run_command
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint

TEXT = "To be, or not to be: that is the question.\n" * 60
ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def write_run(home):
    """Writes a run that was trained on the dataset hamlet."""
    (home / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    dataset = prepare(str(home / "hamlet.txt"), PrepareOptions(tokenizer="char")).dataset

    def write(name="mine", **settings):
        small = dict(block_size=16, n_layer=1, n_head=2, n_embd=16)
        model = GPT(GPTConfig(vocab_size=dataset.vocab_size, **(small | settings)))
        run = Run(home / "out" / name)
        run.begin()
        run.save_best(
            model_content(
                model,
                dataset.tokenizer,
                step=30,
                val_loss=1.25,
                val_bits_per_byte=1.75,
                dataset={"name": "hamlet", "fingerprint": dataset.fingerprint},
                train_config={
                    "resolved": {
                        "batch_size": 4,
                        "gradient_accumulation_steps": 2,
                        "block_size": 16,
                        "init_from": str(home / "out" / "base"),
                    }
                },
            )
        )
        run.end()
        return run.folder

    return write


@pytest.fixture
def export(capsys):
    """Run the command: (exit code, stdout, stderr)."""

    def run(*argv):
        code = run_command("export", list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_run_becomes_a_whole_folder(write_run, export, home):
    write_run()
    code, out, _ = export("out/mine", "--format", "hf", "--output", "there/it")
    assert code == 0 and out.startswith("Wrote there/it (") and "from_pretrained" in out
    assert {path.name for path in (home / "there/it").iterdir()} == FILES
    assert {path.name for path in (home / "there").iterdir()} == {"it"}  # nothing left beside it


def test_the_newest_run_and_a_folder_in_it_are_the_defaults(write_run, export, home):
    write_run("first")
    write_run("second")
    assert export()[0] == 0
    assert (home / "out/second/hf/config.json").is_file()
    assert export("first")[0] == 0
    assert (home / "out/first/hf/config.json").is_file()
    assert export("out/first/best.pt", "--output", "third")[0] == 0
    assert load_checkpoint(home / "out/first").step == 30  # still a run


def test_the_model_card_has_the_runs_figures_and_its_data(write_run, export, home):
    write_run()
    export("mine", "--output", "it")
    card = (home / "it/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# mine" in card and "(LlamaForCausalLM), trained with gptlab" in card
    assert "| training steps | 30 |" in card and "| started from | base |" in card
    assert f"| tokens trained on | {30 * 4 * 2 * 16:,} |" in card
    assert "| validation loss | 1.2500 nats per token, 1.750 bits per byte |" in card
    assert "hamlet.txt" in card and f"{len(TEXT):,} bytes" in card and "5gram" in card
    assert "bytes_used" not in card  # a size is no program
    assert str(home) not in card  # what is published tells nothing of this machine


def test_a_card_names_no_folder_where_the_text_came_from_elsewhere(write_run, export, home):
    write_run()
    path = home / "data/hamlet/meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta["source"]["label"] = "/home/anna/texts/diary.txt"
    path.write_text(json.dumps(meta), encoding="utf-8")
    export("mine", "--output", "it")
    card = (home / "it/README.md").read_text(encoding="utf-8")
    assert "diary.txt" in card and "anna" not in card


def test_a_dataset_that_changed_is_not_described(write_run, export, home):
    write_run()
    meta = json.loads((home / "data/hamlet/meta.json").read_text(encoding="utf-8"))
    meta["tokenizer"]["fingerprint"] = "0"
    (home / "data/hamlet/meta.json").write_text(json.dumps(meta), encoding="utf-8")
    export("mine", "--output", "it")
    card = (home / "it/README.md").read_text(encoding="utf-8")
    assert "The dataset hamlet, as it was prepared then." in card and "5gram" not in card


def test_a_folder_that_is_not_empty_is_left_alone_unless_it_is_an_export(write_run, export, home):
    write_run()
    assert export("mine", "--output", "it")[0] == 0
    (home / "it/notes.txt").write_text("mine", encoding="utf-8")
    code, _, err = export("mine", "--output", "it")
    assert code == 2 and "it is not empty" in err and (home / "it/notes.txt").is_file()
    assert export("mine", "--output", "it", "--overwrite")[0] == 0
    assert {path.name for path in (home / "it").iterdir()} == FILES
    (home / "precious").mkdir()
    (home / "precious/thesis.txt").write_text("years", encoding="utf-8")
    code, _, err = export("mine", "--output", "precious", "--overwrite")
    assert code == 2 and "not an exported model" in err
    assert (home / "precious/thesis.txt").is_file()
    (home / "empty").mkdir()
    assert export("mine", "--output", "empty")[0] == 0


@pytest.mark.parametrize("output", ["out/mine", "out", ".", "out/mine/best.pt"])
def test_the_run_itself_is_never_replaced(write_run, export, home, output):
    write_run()
    before = sorted(home.rglob("*"))
    code, _, err = export("mine", "--output", output, "--overwrite")
    assert code == 2 and err.count("\n") == 1
    assert sorted(home.rglob("*")) == before


def test_a_setting_that_no_architecture_has_is_refused_before_anything_is_written(
    write_run, export, home
):
    write_run(use_swiglu=False)
    before = sorted(home.rglob("*"))
    code, _, err = export("mine")
    assert code == 2 and "use_swiglu false" in err and err.count("\n") == 1
    assert sorted(home.rglob("*")) == before


def test_a_failed_write_leaves_nothing(write_run, export, home, monkeypatch):
    write_run()
    before = sorted(home.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gptlab.interop.write.huggingface.model_card", full)
    code, _, err = export("mine")
    assert code == 2 and "The disk is full" in err
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing"], "no run 'nothing'"),
        (["mine", "--format", "torch"], "format cannot be 'torch'"),
        (["mine", "--outputs", "x"], "did you mean output?"),
        (["mine", "more"], "is not an option"),
    ],
)
def test_a_wrong_word_is_one_sentence(write_run, export, argv, words):
    write_run()
    code, _, err = export(*argv)
    assert code == 2 and words in err and err.count("\n") == 1


def test_help_opens_with_an_example(capsys):
    with pytest.raises(SystemExit):
        run_command("export", ["--help"])
    assert capsys.readouterr().out.startswith("python gpt.py export")


def test_gguf_takes_the_run_s_name_and_quantize_belongs_to_it(write_run, export, home):
    write_run()
    code, out, _ = export("out/mine", "--format", "gguf", "--quantize", "f16")
    assert code == 0 and "llama-cli -m out/mine/mine.gguf" in out
    assert (home / "out/mine/mine.gguf").read_bytes()[:4] == b"GGUF"
    code, _, err = export("out/mine", "--format", "hf", "--quantize", "f16")
    assert code == 2 and "--quantize is an option of --format gguf" in err
    code, _, err = export("out/mine", "--format", "gguf", "--quantize", "Q4_K_M")
    assert code == 2 and "llama-quantize FILE.gguf q4_k_m" in err and err.count("\n") == 1
    code, _, err = export("out/mine", "--format", "gguf")
    assert code == 2 and "is there already" in err


def test_html_is_one_page_that_names_the_run_and_its_data(write_run, export, home):
    write_run("to <be>")
    code, out, _ = export("out/to <be>", "--format", "html", "--output", "page.html")
    assert code == 0 and out.startswith("Wrote page.html (") and "any browser" in out
    page = (home / "page.html").read_text(encoding="utf-8")
    assert "<title>to &lt;be&gt;</title>" in page and "trained on hamlet" in page
    assert "validation loss 1.25 (1.75 bits per byte)" in page


def test_dtype_belongs_to_hf_and_the_refusal_names_what_the_format_has(write_run, export, home):
    write_run()
    code, _, err = export("out/mine", "--quantize", "f16")
    assert code == 2 and "use --dtype float16 or bfloat16" in err
    code, _, err = export("out/mine", "--format", "gguf", "--dtype", "bfloat16")
    assert code == 2 and "use --quantize f16 or bf16" in err
    code, _, err = export("out/mine", "--format", "html", "--dtype", "bfloat16")
    assert code == 2 and "leave it out" in err
    sizes = []
    for dtype in ("float32", "bfloat16"):
        assert export("out/mine", "--dtype", dtype, "--output", dtype)[0] == 0
        sizes.append((home / dtype / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


NO_CHMOD = """
#include <errno.h>
#include <sys/types.h>
#include <sys/stat.h>
int chmod(const char *path, mode_t mode) { errno = EPERM; return -1; }
int fchmod(int file, mode_t mode) { errno = EPERM; return -1; }
int fchmodat(int folder, const char *path, mode_t mode, int flags) { errno = EPERM; return -1; }
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_mount_that_cannot_set_permissions_gets_every_format_all_the_same(write_run, home):
    write_run()
    (home / "no_chmod.c").write_text(NO_CHMOD)
    library = home / "no_chmod.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(home / "no_chmod.c")]
    subprocess.run(command, check=True)
    for format in ("hf", "gguf", "html"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "gpt.py"), "export", "out/mine", "--format", format],
            env=os.environ | {"LD_PRELOAD": str(library), "GPTLAB_HOME": str(home)},
            cwd=home, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (home / "out/mine/hf").iterdir()} == FILES
