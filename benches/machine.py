"""What a result says about the machine it is from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

#: Instructions that matrix kernels choose by.
_INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
_PACKAGES = ("torch", "torchvision", "transformers", "peft", "opacus")


def facts() -> dict[str, Any]:
    """Processor, memory, versions and threads."""
    cpu = _fields("/proc/cpuinfo")
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "memory_mib": int(_fields("/proc/meminfo")["MemTotal"].split()[0]) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def peak_mib(process: int | str) -> float:
    """The most memory a process has held so far, in MiB."""
    return _status_mib(process, "VmHWM")


def resident_mib(process: int | str) -> float:
    """The memory a process holds, in MiB."""
    return _status_mib(process, "VmRSS")


def _status_mib(process: int | str, field: str) -> float:
    return int(_fields(f"/proc/{process}/status")[field].split()[0]) / 1024


def _fields(path: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in Path(path).read_text().splitlines())
    # Of several processors the first.
    fields: dict[str, str] = {}
    for name, _, value in pairs:
        fields.setdefault(name.strip(), value.strip())
    return fields
