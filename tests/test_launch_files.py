"""The files of config/launch: their syntax, words, signals and restarts, without a cluster.

Programs of clusters (srun, scontrol, scancel) are small scripts here that do what matters of them.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptlab.cli.main import main
from gptlab.model.config import PRESETS
from gptlab.training.config import build
from gptlab.training.times import saving_seconds

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "config" / "launch"
SHOW = '#!/bin/bash\nprintf "%s\\n" "$@"\n'  # in place of a program: its words, one a line


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(NAME=SCRIPT, ...): found before those of the machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("VIRTUAL_ENV", "active")
    for name in ("RECIPE", "NODES", "GPUS", "FIRST", "JOB"):
        monkeypatch.delenv(name, raising=False)

    def write(**scripts):
        for name, text in scripts.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    return write


def bash(*words, **variables):
    """What bash prints, from the repository's folder."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        ["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_torchrun(printed: str):
    """The words of a torchrun that was called, as torch reads them."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(printed.splitlines())


def kubernetes():
    """The file's content, and its container."""
    content = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    pod = content["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return content, pod, pod["containers"][0]


def skypilot():
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def grace() -> dict[str, int]:
    """Seconds from the signal to the end, by who gives them."""
    script = (LAUNCH / "torchrun.sh").read_text()
    slurm = (LAUNCH / "slurm.sbatch").read_text()
    return {
        "torchrun": int(re.search(r"--shutdown_timeout (\d+)", script)[1]),
        "slurm": int(re.search(r"#SBATCH --signal=B:USR1@(\d+)", slurm)[1]),
        "kubernetes": kubernetes()[1]["terminationGracePeriodSeconds"],
    }


# Words --------------------------------------------------------------------------------------------


def test_scripts_are_bash():
    for text in (skypilot()["setup"], skypilot()["run"]):
        bash("-n", "-c", text)
    for name in ("torchrun.sh", "slurm.sbatch"):
        bash("-n", str(LAUNCH / name))


def test_torchrun_gets_words_that_it_knows_on_one_machine_and_on_four(programs):
    programs(torchrun=SHOW)
    one = as_torchrun(bash("config/launch/torchrun.sh", GPUS="2"))
    assert (one.nnodes, one.nproc_per_node, one.standalone) == ("1", "2", True)
    four = as_torchrun(bash("config/launch/torchrun.sh", NODES="4", FIRST="node1"))
    assert (four.nnodes, four.nproc_per_node, four.standalone) == ("4", "8", False)
    assert (four.rdzv_backend, four.rdzv_endpoint) == ("c10d", "node1:29500")
    for each in (one, four):
        assert each.max_restarts == 3
        assert {"SIGTERM", "SIGUSR1"} <= set(each.signals_to_handle.split(","))
        assert each.training_script == "train.py"
        assert each.training_script_args[-2:] == ["--resume", "auto"]


def test_its_words_for_train_are_options_of_train(programs, capsys, monkeypatch):
    programs(torchrun=SHOW)
    words = bash("config/launch/torchrun.sh", "--parallelism", "fsdp")
    monkeypatch.chdir(ROOT)
    options = as_torchrun(words).training_script_args
    assert main(["train", *options, "--learning_rate", "fast"]) == 2  # the first that is wrong
    assert "learning_rate" in capsys.readouterr().err


def test_several_machines_without_a_meeting_place_are_refused(programs):
    programs(torchrun=SHOW)
    done = subprocess.run(
        ["bash", "config/launch/torchrun.sh"], cwd=ROOT, env={**os.environ, "NODES": "4"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "set FIRST" in done.stderr and not done.stdout


def test_a_pod_starts_as_many_processes_as_it_has_gpus_and_meets_the_first(programs):
    programs(torchrun=SHOW)
    content, _, container = kubernetes()
    variables = {each["name"]: each["value"] for each in container["env"]}
    words = as_torchrun(bash(*container["command"][1:], **variables))
    job = content["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    assert words.nnodes == variables["NODES"] == str(spec["parallelism"])
    assert spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    assert words.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    name = content["metadata"]["name"]  # JobSet's names: set-job-0-0.set
    assert words.rdzv_endpoint == f"{name}-{job['name']}-0-0.{name}:29500"


def test_a_pod_that_fails_is_replaced_with_all_others_by_the_set_alone():
    content, pod, container = kubernetes()
    assert (content["apiVersion"], content["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert content["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert content["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    home = next(each["value"] for each in container["env"] if each["name"] == "GPTLAB_HOME")
    assert mounts["shared"] == home and mounts["memory"] == "/dev/shm"


def test_skypilot_meets_at_its_first_machine(programs):
    programs(torchrun=SHOW)
    task = skypilot()
    words = as_torchrun(
        bash(
            "-c", task["run"], SKYPILOT_NUM_NODES="4", SKYPILOT_NUM_GPUS_PER_NODE="8",
            SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4", **task["envs"],
        )
    )  # fmt: skip
    assert (words.nnodes, words.nproc_per_node) == ("4", "8")
    assert words.rdzv_endpoint == "10.0.0.1:29500"
    assert task["envs"]["GPTLAB_HOME"] in task["setup"]
    assert task["num_nodes"] == 4 and task["resources"]["use_spot"] is True


@pytest.mark.parametrize("preset", ["gpt2", "gpt2-xl"])
def test_there_is_time_to_save_before_anything_is_killed(preset):
    config = build({**PRESETS[preset], "vocab_size": 50257})
    seconds = grace()
    assert saving_seconds(config) < seconds["torchrun"]
    assert seconds["torchrun"] < min(seconds["slurm"], seconds["kubernetes"])


# Slurm --------------------------------------------------------------------------------------------

# one machine: srun notes its process and becomes its command; scancel signals all of the step
SRUN = """#!/bin/bash
echo "$$" > "$NOTES/step"
exec "${@:2}"
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "$NOTES/scancel"
step="$(cat "$NOTES/step")"
kill -s "${1#--signal=}" "$step" $(cat "/proc/$step/task/$step/children" 2>/dev/null)
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) printf "node1\\nnode2\\n" ;;
    requeue) echo "$2" >> "$NOTES/requeue" ;;
esac
"""
# a training that ends with this code, or waits for a signal and has then saved
TRAINING = """#!{python}
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
print("training", *sys.argv[1:], flush=True)
if os.environ["CODE"]:
    sys.exit(int(os.environ["CODE"]))
while True:
    time.sleep(60)
"""


def start_slurm(tmp_path, **variables):
    """The batch script as Slurm starts it; its notes are in `tmp_path`."""
    return subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={
            **os.environ, "NOTES": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", **variables,
        },
    )  # fmt: skip


def test_slurm_stops_the_training_before_its_time_is_up_and_queues_it_again(programs, tmp_path):
    training = TRAINING.format(python=sys.executable)
    programs(srun=SRUN, scancel=SCANCEL, scontrol=SCONTROL, torchrun=training)
    process = start_slurm(tmp_path, CODE="")
    first = process.stdout.readline().splitlines()[0].removeprefix("training ")
    words = as_torchrun("\n".join(first.split()))
    assert (words.nnodes, words.nproc_per_node) == ("2", "2")
    assert words.rdzv_endpoint == "node1:29500" and words.rdzv_id == "7"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 138
    assert (tmp_path / "scancel").read_text() == "--signal=USR1 7.0\n"
    assert (tmp_path / "requeue").read_text() == "7\n"


@pytest.mark.parametrize("code", [0, 2])
def test_a_training_that_ends_by_itself_is_not_queued_again(code, programs, tmp_path):
    training = TRAINING.format(python=sys.executable)
    programs(srun=SRUN, scancel=SCANCEL, scontrol=SCONTROL, torchrun=training)
    process = start_slurm(tmp_path, CODE=str(code))
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not (tmp_path / "requeue").exists()


RECIPE = """
dataset = "words"
n_layer, n_head, n_embd, block_size, batch_size = 1, 1, 16, 16, 4
max_iters, eval_interval, eval_tokens, log_interval = 600, 300, 256, 1
device, compile_model, dtype = "cpu", False, "float32"
"""


@pytest.mark.slow
def test_a_job_that_slurm_stops_and_starts_again_goes_on(programs, tmp_path):
    """Real torchrun and training, two processes: stopped by the warning, saved, continued."""
    (tmp_path / "words.txt").write_text("to be or not to be that is the question\n" * 700)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f'out_dir = "{tmp_path / "lab"}"\n{RECIPE}')
    torchrun = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    programs(srun=SRUN, scancel=SCANCEL, scontrol=SCONTROL, torchrun=torchrun)
    variables = {
        "RECIPE": str(recipe), "GPTLAB_HOME": str(tmp_path), "OMP_NUM_THREADS": "1",
        "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    words = ["prepare.py", str(tmp_path / "words.txt"), "--tokenizer", "char"]
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **variables}, check=True,
        capture_output=True,
    )  # fmt: skip
    metrics, signalled = tmp_path / "lab" / "metrics.jsonl", False
    process = start_slurm(tmp_path, **variables)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if metrics.exists() and metrics.stat().st_size and not signalled:
            process.send_signal(signal.SIGUSR1)
            signalled = True
    process.communicate(timeout=60)
    assert process.returncode != 0, "".join(printed)
    assert (tmp_path / "requeue").read_text() == "7\n"
    stopped = len(metrics.read_text().splitlines())
    assert 0 < stopped < 600

    process = start_slurm(tmp_path, **variables)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert (tmp_path / "requeue").read_text() == "7\n"
    records = map(json.loads, metrics.read_text().splitlines())
    steps = [record["step"] for record in records if "step" in record]
    assert steps[-1] == 600 and steps == sorted(steps) and len(steps) > stopped
