"""How a device computes: its number format (float32, bfloat16, float16 with a loss scaler) and its threads."""

import contextlib
import ctypes
import os
import platform
import re
from dataclasses import dataclass

import torch

from bundle.configuration import checked_number
from bundle.errors import BundleError

MODES = ("auto", "bf16", "fp16", "off")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_kept_for: tuple[int, ...] = ()  # of this process, whose memory it is


@dataclass(frozen=True)
class Precision:
    """Number format of the forward pass; `dtype` None means float32 throughout."""

    device_type: str
    dtype: torch.dtype | None

    @property
    def needs_scaler(self) -> bool:
        """Float16 gradients underflow without a loss scaler; bfloat16 has float32's range."""
        return self.dtype is torch.float16

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a forward pass runs."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)


def resolve_precision(mode: str | bool, device: torch.device | str) -> Precision:
    """Turn the `mixed_precision` key into a format that `device` has.

    Args:
        mode: 'auto' (bfloat16 where the device is faster in it, else float16 on CUDA, else float32), 'bf16',
            'fp16', 'off'; True and False stand for 'auto' and 'off'.
        device: where the networks run.

    Raises:
        BundleError: for an unknown mode or device, 'fp16' on a CPU, which has no fast float16, CUDA where there is
            none, or a GPU that this build of torch was not compiled for.
    """
    kind = named_device(device).type
    mode = {True: "auto", False: "off"}.get(mode, mode) if isinstance(mode, bool) else mode
    if mode not in MODES:
        raise BundleError(f"mixed_precision must be one of {', '.join(MODES)}, not '{mode}'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BundleError("device 'cuda': torch finds no GPU here", hint="ask for a GPU node, or use --device cpu")
    if kind == "cuda":
        _require_kernels(device)
    if mode == "off":
        return Precision(kind, None)
    if kind == "cuda":
        # Before compute capability 8 (V100: 7.0) bfloat16 is emulated and slow.
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        use_bfloat16 = mode == "bf16" or (mode == "auto" and has_bfloat16)
        return Precision(kind, torch.bfloat16 if use_bfloat16 else torch.float16)
    if mode == "fp16":
        raise BundleError("mixed_precision 'fp16' needs a CUDA device", hint="use bf16 or off on a CPU")
    if mode == "bf16" or _cpu_is_faster_in_bfloat16():
        return Precision(kind, torch.bfloat16)
    return Precision(kind, None)


def named_device(device: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        BundleError: when there is none such.
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BundleError(f"device '{device}' is unknown", hint="use cpu, cuda or cuda:1") from error


def _require_kernels(device: torch.device | str) -> None:
    """Refuse a GPU that torch would find, and fail on at the first operation: builds drop old ones (V100: CUDA 13)."""
    major, minor = torch.cuda.get_device_capability(device)
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    for match in known:
        # What is compiled runs on its generation from its own number on; `compute` is compiled when loaded.
        of = (int(match[2]), int(match[3])) if match else (major, minor)  # AMD's names say nothing here
        if of <= (major, minor) and (match is None or match[1] == "compute" or of[0] == major):
            return
    if known:
        raise BundleError(
            f"device 'cuda': this build of torch cannot run on a GPU of compute capability {major}.{minor}",
            hint="install torch from another of PyTorch's indexes; that of CUDA 12.6 serves V100 (7.0)",
        )


def _cpu_is_faster_in_bfloat16() -> bool:
    """Without these instructions bfloat16 convolutions run slower than float32.

    AVX-512's alone make them twice as fast on AMD's processors and slower on Intel's, where AMX is what counts
    (which virtual machines may hide; docs/performance.md).
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16") or capabilities.get("bf16"):
        return True
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in str(capabilities.get("cpu_name"))


def prepare_cpu(threads: int) -> None:
    """Make this process ready for networks on a CPU.

    Args:
        threads: CPU threads; 0 leaves torch's choice. More than the cores there are slows everything.

    Raises:
        BundleError: when it is no whole number of at least 0.
    """
    if checked_number("threads", threads, int, low=0):
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    _keep_freed_memory()


def keep_memory_for(shape: tuple[int, ...]) -> None:
    """Give freed memory back to the system when tiles of another shape begin, which kept blocks would not serve."""
    global _kept_for
    if shape != _kept_for and (library := _glibc()):
        library.malloc_trim(0)
    _kept_for = shape


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next tile, where it is glibc.

    It returns every block above 32 MiB at once otherwise, and the kernel's clearing of new pages then takes a good
    part of the time of one step on 512 x 512 slices.
    """
    if library := _glibc():
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if platform.libc_ver()[0] == "glibc" and hasattr(library, "mallopt") else None
