"""Hardware: the report and the choice on faked facts, the trials on this machine."""

import itertools
import json
import os
import platform
import types

import pytest
import torch

from gptlab import hardware
from gptlab.errors import HardwareError
from gptlab.hardware import attention_is_causal, choose, detect, judge, peak_flops
from gptlab.hardware import probe as hardware_probe
from gptlab.hardware import trials as hardware_trials
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts, probe
from gptlab.hardware.trials import Trial, listed_peak_flops, measure_flops, try_precisions

WORKS = {dtype: Trial() for dtype in DTYPES}
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


def cpu(instructions=("avx2",), gain=0.01):
    """A CPU whose bfloat16 products run `gain` times as fast as its float32 ones."""
    trials = {"float32": Trial(flops=1e11), "bfloat16": Trial(flops=gain * 1e11)}
    return DeviceFacts("cpu", "cpu", "Some CPU", instruction_sets=instructions, trials=trials)


def cuda(capability, index=0, trials=WORKS):
    return DeviceFacts(f"cuda:{index}", "cuda", "Card", capability=capability, trials=trials)


def rocm(architecture):
    return DeviceFacts("cuda:0", "rocm", "Instinct", architecture=architecture, trials=WORKS)


def mps(trials=WORKS):
    return DeviceFacts("mps", "mps", "Apple M2 GPU", trials=trials)


XPU = DeviceFacts("xpu:0", "xpu", "Intel Arc", trials=WORKS)
AMX = cpu(("amx_bf16", "avx512_bf16"), gain=3.0)


def machine(*accelerators, processor=None, **more):
    known = {
        "cores": 8,
        "system": "Linux",
        "python_version": "3.12.1",
        "torch_version": "2.13.0+cu130",
        "torch_architectures": ("sm_80", "sm_90"),
        "cpp_compiler": "/usr/bin/g++",
        "python_headers": True,
        "triton": True,
    }
    return judge(Facts(devices=(*accelerators, processor or cpu()), **{**known, **more}))


# choosing


@pytest.mark.parametrize(
    ("hardware", "device", "dtype", "use_scaler"),
    [
        pytest.param(machine(cuda((6, 1))), "cuda:0", "float32", False, id="Pascal"),
        pytest.param(machine(cuda((7, 0))), "cuda:0", "float16", True, id="Volta"),
        pytest.param(machine(cuda((7, 5))), "cuda:0", "float16", True, id="Turing"),
        pytest.param(machine(cuda((8, 0))), "cuda:0", "bfloat16", False, id="Ampere"),
        pytest.param(machine(cuda((9, 0))), "cuda:0", "bfloat16", False, id="H100"),
        pytest.param(machine(cuda((12, 0))), "cuda:0", "bfloat16", False, id="Blackwell"),
        pytest.param(machine(rocm("gfx942")), "cuda:0", "bfloat16", False, id="MI300X"),
        pytest.param(machine(rocm("gfx1100")), "cuda:0", "bfloat16", False, id="RX 7900"),
        pytest.param(machine(rocm("gfx906")), "cuda:0", "float16", True, id="MI50"),
        pytest.param(machine(mps()), "mps", "float32", False, id="Apple"),
        pytest.param(machine(XPU), "xpu:0", "bfloat16", False, id="Intel Arc"),
        pytest.param(machine(), "cpu", "float32", False, id="AVX2 CPU"),
        pytest.param(machine(processor=AMX), "cpu", "bfloat16", False, id="AMX CPU"),
        pytest.param(
            machine(processor=cpu(("avx512_bf16",), 0.9)), "cpu", "float32", False, id="no gain"
        ),
        pytest.param(machine(processor=cpu((), 2.0)), "cpu", "float32", False, id="lucky timing"),
    ],
)
def test_auto_takes_the_fast_precision_of_each_device(hardware, device, dtype, use_scaler):
    choice = choose(hardware)
    assert (choice.device, choice.dtype, choice.use_scaler) == (device, dtype, use_scaler)
    assert not choice.slow
    assert (hardware.recommended.device, hardware.recommended.dtype) == (device, dtype)


def test_the_precision_follows_the_device_that_was_asked_for():
    box = machine(cuda((9, 0)), cuda((7, 5), index=1), processor=AMX)
    assert choose(box, "cpu").dtype == "bfloat16"
    assert choose(machine(cuda((9, 0))), "cpu").dtype == "float32"
    assert choose(box, "cuda:1").dtype == "float16"
    assert choose(box, "cuda").device == "cuda:0"
    assert choose(box, "gpu").device == "cuda:0"


MACHINES = {
    "cpu": machine(),
    "amx": machine(processor=AMX),
    "pascal": machine(cuda((6, 1))),
    "hopper": machine(cuda((9, 0))),
    "untried": machine(cuda((9, 0), trials={})),
    "rocm": machine(rocm("gfx90a")),
    "mps": machine(mps()),
    "xpu": machine(XPU),
    "no kernels": machine(cuda((12, 0), trials=dict.fromkeys(DTYPES, Trial(NO_KERNEL)))),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_request_ends_in_a_device_that_exists_or_in_a_sentence(name):
    hardware = MACHINES[name]
    for device, dtype in itertools.product(
        ["auto", "cpu", "cuda", "cuda:3", "gpu", "rocm", "mps", "xpu", "tpu", ""],
        ["auto", *DTYPES, "fp8"],
    ):
        try:
            choice = choose(hardware, device, dtype)
        except HardwareError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
            assert (device, dtype) != ("auto", "auto")
            continue
        chosen = hardware.device(choice.device)
        assert chosen.usable and chosen.precision(choice.dtype).supported
        assert dtype in ("auto", choice.dtype)
        is_cuda_float16 = choice.dtype == "float16" and chosen.kind in ("cuda", "rocm")
        assert choice.use_scaler == is_cuda_float16
        assert choice.dtype != "float16" or choice.use_scaler


@pytest.mark.parametrize("request_", ["cuda", "cuda:3", "gpu", "mps", "xpu", "tpu"])
def test_an_absent_device_is_refused_with_what_exists(request_):
    with pytest.raises(HardwareError, match=rf"'{request_}'.*this machine has cpu; .*--device cpu"):
        choose(machine(), request_)


def test_an_absent_index_names_the_cards_that_exist():
    with pytest.raises(HardwareError, match="has cuda:0, cuda:1, cpu; use --device cuda:0"):
        choose(machine(cuda((9, 0)), cuda((9, 0), index=1)), "cuda:3")


def test_a_driver_without_a_fitting_torch_is_named_in_the_refusal():
    box = machine(driver="NVIDIA", torch_version="2.13.0+cpu")
    with pytest.raises(HardwareError, match=r"NVIDIA.*2\.13\.0\+cpu.*pytorch\.org"):
        choose(box, "cuda")
    assert machine(cuda((9, 0)), driver="NVIDIA").notes == ()


def test_an_available_card_whose_first_operation_fails_is_left_for_the_cpu():
    box = MACHINES["no kernels"]
    choice = choose(box)
    assert choice.device == "cpu"
    assert "no kernels for Card (sm_120; it has sm_80, sm_90)" in choice.reason
    with pytest.raises(HardwareError, match=r"cuda:0 cannot be used: .*sm_120.*pytorch\.org"):
        choose(box, "cuda")


def test_a_broken_first_card_leaves_the_second():
    broken = cuda((9, 0), trials=dict.fromkeys(DTYPES, Trial("CUDA error: out of memory")))
    box = machine(broken, cuda((9, 0), index=1))
    assert choose(box).device == choose(box, "cuda").device == "cuda:1"
    with pytest.raises(HardwareError, match=r"cuda:0 cannot be used: .*out of memory"):
        choose(box, "cuda:0")


@pytest.mark.parametrize("name", ["cpu", "amx", "mps", "xpu"])
def test_float16_is_refused_where_there_is_no_loss_scaler(name):
    with pytest.raises(HardwareError, match=r"loss scaler.*--dtype"):
        choose(MACHINES[name], "auto", "float16")


def test_a_slow_precision_is_obeyed_with_a_warning():
    choice = choose(machine(), "cpu", "bfloat16")
    assert (choice.dtype, choice.slow) == ("bfloat16", True)
    assert "100.0 times slower" in choice.reason
    assert choose(machine(cuda((7, 5))), "auto", "bfloat16").slow
    assert choose(machine(cuda((6, 1))), "auto", "float16").slow
    assert not choose(machine(cuda((9, 0))), "auto", "float16").slow
    assert not choose(machine(cuda((9, 0))), "auto", "float32").slow


def test_bfloat16_on_apple_follows_its_trial():
    assert choose(machine(mps()), "mps", "bfloat16").dtype == "bfloat16"
    old = {**WORKS, "bfloat16": Trial("BFloat16 is not supported on MPS")}
    with pytest.raises(HardwareError, match=r"BFloat16 is not supported.*--dtype float32"):
        choose(machine(mps(old)), "mps", "bfloat16")


def test_rocm_is_named_and_answers_to_both_names():
    box = MACHINES["rocm"]
    assert box.devices[0].kind == "rocm"
    assert choose(box, "rocm").device == choose(box, "cuda").device == "cuda:0"
    with pytest.raises(HardwareError):
        choose(MACHINES["hopper"], "rocm")


@pytest.mark.parametrize(
    ("device", "missing", "available", "word"),
    [
        (None, {}, True, "g++"),
        (None, {"cpp_compiler": ""}, False, "g++"),
        (None, {"python_headers": False}, False, "Python.h"),
        (None, {"torch_folder": "/home/a b/.venv/torch"}, False, "space"),
        (cuda((9, 0)), {"torch_folder": "/home/a b/.venv/torch"}, True, "triton"),
        (cuda((9, 0)), {"cpp_compiler": ""}, True, "triton"),
        (cuda((9, 0)), {"triton": False}, False, "triton"),
        (cuda((6, 1)), {}, False, "7.0"),
        (rocm("gfx942"), {}, True, "triton"),
        (mps(), {}, False, "Apple"),
    ],
)
def test_compile_is_judged_by_its_toolchain(device, missing, available, word):
    box = machine(*([device] if device else []), **missing)
    assert (box.recommended.compile, word in box.recommended.compile_reason) == (available, True)


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [
        (None, {"cpp_compiler": ""}, "apt-get install g++"),
        (None, {"cpp_compiler": "", "system": "Darwin"}, "xcode-select"),
        (None, {"cpp_compiler": "", "system": "Windows"}, "Visual Studio"),
        (None, {"python_headers": False}, "python3-dev"),
        (None, {"torch_folder": "/home/a b/.venv/torch"}, "folder without"),
        (cuda((9, 0)), {"triton": False}, "pip install triton"),
        (cuda((6, 1)), {}, "nothing can be done"),
    ],
)
def test_whatever_compilation_lacks_has_its_own_remedy(device, missing, words):
    support = machine(*([device] if device else []), **missing).devices[0].compile
    assert not support.available and words in support.fix


def test_a_note_has_a_problem_and_a_fix_and_is_a_sentence_in_json():
    box = machine(driver="NVIDIA", complaints=("the driver is too old",))
    assert box.notes[0].problem == "torch says: the driver is too old"
    assert box.notes[1].fix.startswith("install the build of torch")
    assert json.loads(json.dumps(box.to_dict()))["notes"] == [str(note) for note in box.notes]


def test_the_report_is_plain_json():
    report = json.loads(json.dumps(MACHINES["hopper"].to_dict()))
    assert report["devices"][0]["capability"] == [9, 0]
    assert report["recommended"]["dtype"] == "bfloat16"


# probing


def test_this_machine_is_reported():
    hardware = detect()
    processor = hardware.devices[-1]
    assert processor.name == "cpu" and processor.usable
    assert processor.precision("float32").supported
    assert "plain" in processor.attention_kernels
    assert 1 <= hardware.cores <= os.cpu_count()
    assert 0 < processor.memory_free <= processor.memory_total
    if hasattr(os, "sysconf"):
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert processor.memory_total <= pages
    assert choose(hardware).device == hardware.recommended.device


def fake_cuda(monkeypatch, count=1, hip=None):
    """Let torch say that it has cards; their operations fail all the same."""
    properties = types.SimpleNamespace(
        name="Some card", total_memory=2**34, major=9, minor=4, gcnArchName="gfx942:sramecc+"
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**33, 2**34))


@pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a card that must not be there")
def test_rocm_is_told_apart_without_any_command_of_a_vendor(monkeypatch):
    fake_cuda(monkeypatch, hip="7.0")
    monkeypatch.setenv("PATH", "")
    device = probe().devices[0]
    assert (device.kind, device.architecture, device.capability) == ("rocm", "gfx942", None)
    assert device.memory_free == 2**33
    assert device.trials["float32"].error  # there is no card: the trial notices
    fake_cuda(monkeypatch, hip=None)
    device = probe().devices[0]
    assert (device.kind, device.capability) == ("cuda", (9, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a card that must not be there")
def test_a_process_can_name_the_one_device_that_it_tries(monkeypatch):
    fake_cuda(monkeypatch, count=3)
    facts = probe("cuda:1")
    assert [bool(device.trials) for device in facts.devices] == [False, True, False, False]
    assert [device.memory_free for device in facts.devices[:3]] == [None, 2**33, None]


def test_a_trial_leaves_the_number_of_threads_as_it_was():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        speeds = [trial.flops for trial in try_precisions("cpu", ["float32", "bfloat16"]).values()]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert all(1e7 < flops < 1e13 for flops in speeds)


def test_an_operation_that_fails_is_a_fact_and_not_an_exception():
    assert try_precisions("meta", ["float32"])["float32"].error
    trials = try_precisions("cpu", ["float32", "int8"])
    assert (trials["float32"].error, bool(trials["int8"].error)) == ("", True)


@pytest.mark.parametrize("wrong", ["forward", "gradient"])
def test_a_product_that_comes_out_wrong_fails_its_trial(monkeypatch, wrong):
    class WrongProduct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return torch.mm(x, weight) + (wrong == "forward")

        @staticmethod
        def backward(ctx, gradient):
            return None, torch.mm(ctx.saved_tensors[0].T, gradient) + (wrong == "gradient")

    def product(x, weight):
        return WrongProduct.apply(x, weight) if weight.requires_grad else torch.mm(x, weight)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    error = try_precisions("cpu", ["float32"])["float32"].error
    assert "came out wrong" in error and ("gradient" in error) == (wrong == "gradient")


@pytest.mark.parametrize(
    ("files", "driver"),
    [
        ((), ""),
        (("/proc/driver/nvidia/version",), "NVIDIA"),
        (("/dev/nvidiactl",), "NVIDIA"),
        (("/dev/kfd",), "AMD"),
    ],
)
def test_the_driver_is_read_from_the_system_files(monkeypatch, files, driver):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(os.path, "exists", lambda path: path in files)
    assert hardware_probe.accelerator_driver() == driver


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 16), ("150000 100000", 2), ("50000 100000", 1), ("", 16)]
)
def test_a_containers_quota_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(hardware_probe, "_read", lambda path: quota)
    assert hardware_probe.usable_cores() == cores


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", (64, 48)), ("8", (8, 5)), ("96", (64, 48)), ("", (64, 48))]
)
def test_a_containers_limit_counts_as_the_memory(monkeypatch, limit, expected):
    def gib(text):
        return str(int(text) * 2**30) if text.isdigit() else text

    system_files = {
        "/proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {48 * 2**20} kB",
        "/sys/fs/cgroup/memory.max": gib(limit),
        "/sys/fs/cgroup/memory.current": gib("4"),
        "/sys/fs/cgroup/memory.stat": f"file 5\ninactive_file {2**30}\n",
    }
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware_probe, "_read", lambda path: system_files[path])
    assert hardware_probe.system_memory() == tuple(size * 2**30 for size in expected)


# attention


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_this_machine_is_causal(dtype):
    assert attention_is_causal("cpu", dtype)
    assert attention_is_causal("cpu", dtype, head_dim=32)


def sdpa(q, k, v, **mask):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **mask)


def leaks(q, k, v, **mask):
    return sdpa(q, k, v)


def leaks_with_a_mask(q, k, v, is_causal=False, attn_mask=None):
    return sdpa(q, k, v, is_causal=is_causal)


def leaks_a_little(q, k, v, **mask):
    return sdpa(q, k, v, **mask) + 0.02 * v[:, :, -1:]


def leaks_without_a_gradient(q, k, v, **mask):
    return sdpa(q, k, v, **mask) + 1e-4 * v[:, :, -1:].detach()


def leaks_in_the_gradient(q, k, v, **mask):
    return sdpa(q, k, v, **mask) + (v[:, :, -1:] - v[:, :, -1:].detach())


def is_not_finite(q, k, v, **mask):
    return sdpa(q, k, v, **mask) * float("nan")


def is_not_finite_backward(q, k, v, **mask):
    return sdpa(q, k, v, **mask) + (q * 0).abs().sqrt()  # the slope of a root at 0


def is_scaled_wrongly(q, k, v, **mask):
    return sdpa(q, k, v, scale=1.0, **mask)


@pytest.mark.parametrize(
    "attention",
    [
        leaks,
        leaks_with_a_mask,
        leaks_a_little,
        leaks_without_a_gradient,
        leaks_in_the_gradient,
        is_not_finite,
        is_not_finite_backward,
        is_scaled_wrongly,
    ],
)
def test_attention_that_is_wrong_is_found(attention):
    assert attention_is_causal("cpu", "float32", sdpa)
    assert not attention_is_causal("cpu", "float32", attention)


def test_a_leak_in_half_precision_only_is_found():
    def leaks_in_half(q, k, v, **mask):
        return (
            leaks_a_little(q, k, v, **mask) if q.dtype == torch.bfloat16 else sdpa(q, k, v, **mask)
        )

    assert attention_is_causal("cpu", "float32", leaks_in_half)
    assert not attention_is_causal("cpu", "bfloat16", leaks_in_half)


# peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA A10G", None),
        ("Quadro P400", None),
        ("", None),
    ],
)
def test_the_table_knows_whole_names_only(name, tflops):
    assert listed_peak_flops(name, "bfloat16") == (tflops and tflops * 1e12)
    assert listed_peak_flops(name, "float32") is None


def test_cards_without_bfloat16_have_a_float16_peak_only():
    assert listed_peak_flops("Tesla T4", "float16") == 65e12
    assert listed_peak_flops("Tesla T4", "bfloat16") is None


def test_a_device_outside_the_table_is_measured():
    assert peak_flops("cpu", "bfloat16", "NVIDIA L4").source == "table"
    peak = peak_flops("cpu", "float32", "Card of tomorrow")
    assert peak.source == "measured"
    assert 1e8 < peak.value < 1e14


def test_the_measured_rate_is_two_operations_per_multiply_add_of_the_best_run(monkeypatch):
    # two runs of 4 ms, two looks at the clock, then a run of 2 ms and more of 4 ms
    clock = itertools.accumulate(itertools.chain([0.0], [0.004] * 6, [0.002], [0.004] * 1000))
    monkeypatch.setattr(hardware_trials.time, "perf_counter", lambda: next(clock))
    rate = measure_flops("cpu", "float32", seconds=0.05, size=64)
    assert rate == pytest.approx(2 * 64**3 / 0.002)


def test_the_package_gives_every_name_that_it_offers():
    assert set(hardware.__all__) == set(hardware._HOME_OF)
    assert all(hasattr(hardware, name) for name in hardware.__all__)
