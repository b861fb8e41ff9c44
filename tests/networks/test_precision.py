import platform
import subprocess
import sys

import pytest
import torch

from bundle.errors import BundleError
from bundle.networks import precision
from bundle.networks.precision import MODES, Precision, prepare_cpu, resolve_precision

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture
def cpu(monkeypatch):
    """Sets whether this CPU computes in bfloat16."""
    return lambda able: monkeypatch.setattr(precision, "_cpu_is_faster_in_bfloat16", lambda: able)


@pytest.fixture
def gpu(monkeypatch):
    """Sets the compute capability of a GPU that need not be there."""

    def there(major):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))

    return there


@pytest.mark.parametrize(("able", "dtype"), [(True, BF16), (False, None)])
@pytest.mark.parametrize("mode", ["auto", True])
def test_auto_on_a_cpu_is_bfloat16_where_the_cpu_is_faster_in_it(cpu, mode, able, dtype):
    cpu(able)
    assert resolve_precision(mode, "cpu") == Precision("cpu", dtype)


@pytest.mark.parametrize(
    ("cpu_name", "able", "dtype"),
    [
        ("AMD EPYC", {"avx512_bf16"}, BF16),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16"}, BF16),
        ("Intel Xeon", {"avx512_bf16"}, None),  # AMX hidden by a virtual machine: half as fast as float32
        ("Intel Xeon", set(), None),
        ("Neoverse V1", {"bf16"}, BF16),
    ],
)
def test_auto_is_what_this_processor_is_fastest_in(monkeypatch, cpu_name, able, dtype):
    names = ("avx512_bf16", "amx_bf16", "bf16")
    capabilities = {"cpu_name": cpu_name, **{name: name in able for name in names}}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", "cpu").dtype == dtype


@pytest.mark.parametrize(("mode", "dtype"), [("bf16", BF16), ("off", None), (False, None)])
@pytest.mark.parametrize("able", [True, False])
def test_what_is_asked_for_is_used_whatever_the_cpu_has(cpu, able, mode, dtype):
    cpu(able)
    assert resolve_precision(mode, torch.device("cpu")) == Precision("cpu", dtype)


@pytest.mark.parametrize(
    ("mode", "major", "dtype"),
    [
        ("auto", 8, BF16),
        ("auto", 9, BF16),
        ("auto", 7, FP16),
        (True, 7, FP16),
        ("bf16", 7, BF16),
        ("fp16", 9, FP16),
        ("off", 9, None),
        (False, 9, None),
    ],
)
def test_formats_of_a_gpu(gpu, mode, major, dtype):
    gpu(major)
    assert resolve_precision(mode, "cuda:0") == Precision("cuda", dtype)


def test_only_float16_needs_a_scaler():
    assert [Precision("cuda", dtype).needs_scaler for dtype in (FP16, BF16, None)] == [True, False, False]


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(BundleError, match="'fp16' needs a CUDA device"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BundleError, match="torch finds no GPU") as caught:
        resolve_precision(mode, "cuda:0")
    assert caught.value.exit_code == 2


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), CUDA_13, False),
        ((7, 0), ["sm_50", "sm_60", "sm_70", "sm_75", "sm_90"], True),
        ((7, 5), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # as 8.6
        ((8, 0), ["sm_86"], False),
        ((11, 0), ["sm_90"], False),
        ((12, 1), CUDA_13, True),
        ((13, 0), CUDA_13, True),  # compiled when loaded
        ((9, 4), ["gfx942"], True),
        ((7, 0), [], True),  # a build that does not say
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_refused(monkeypatch, capability, built_for, runs):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    if runs:
        assert resolve_precision("fp16", "cuda").dtype is FP16
        return
    with pytest.raises(BundleError, match=f"compute capability {capability[0]}.{capability[1]}") as caught:
        resolve_precision("fp16", "cuda")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("mode", ["fp8", "", "BF16", "none"])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode):
    with pytest.raises(BundleError, match="mixed_precision must be one of") as caught:
        resolve_precision(mode, "cpu")
    assert all(known in str(caught.value) for known in MODES)


def test_the_context_computes_in_the_format():
    layer, x = torch.nn.Linear(2, 2), torch.rand(1, 2)
    with resolve_precision("bf16", "cpu").autocast():
        assert layer(x).dtype == BF16
    with resolve_precision("off", "cpu").autocast():
        assert layer(x).dtype == torch.float32


def test_this_machine_resolves_auto_without_error():
    assert resolve_precision("auto", "cpu").dtype in (BF16, None)


def test_threads_are_at_most_the_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for threads in (0, 1, 64):
        prepare_cpu(threads)
    assert asked == [1, 2]


def test_large_blocks_are_used_again_instead_of_cleared_by_the_kernel():
    """In a process of its own: page faults of the same work, before and after; and what is released is given back."""
    code = """
import resource, torch
from bundle.networks.precision import keep_memory_for, prepare_cpu
def resident():
    return int(open('/proc/self/statm').read().split()[1]) // 256  # MiB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
prepare_cpu(1)
faults(), faults()  # the heap grows to what the work needs; how often depends on what lay in it
after, kept = faults(), resident()
keep_memory_for((16, 1024, 1024))
released = kept - resident()
faults()
kept = resident()
keep_memory_for((16, 1024, 1024))
print(before, after, released, kept - resident())
"""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after, released, released_for_the_same = map(int, shown.split())
    assert before > 8 * 10_000  # 64 MiB are 16,384 pages
    assert after < before / 10
    assert released >= 60
    assert released_for_the_same <= 1
