"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe", "num_cores"]

_PACKAGES = (
    *("torch", "pyro-ppl", "numpy", "numba", "scipy", "pandas"),
    *("jax", "jaxlib", "hmmlearn", "dynamax"),
)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    info = Path("/proc/meminfo")
    if not info.exists():
        return "unknown"
    return f"{int(info.read_text().split()[1]) / 2**20:.1f} GiB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe() -> str:
    """Machine, threads, load and versions, one fact a line; no host names or paths."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _cpu_model(),
        "cores": num_cores(),
        "memory": _memory(),
        "load average (1, 5, 15 min)": load,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        **{package: _version(package) for package in _PACKAGES},
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n"
