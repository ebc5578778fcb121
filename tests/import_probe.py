"""Imports every module of the package from one folder and prints what that changed, as JSON.

Run as a program, in a process of its own: ``python -I import_probe.py FOLDER``.
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import os
import pkgutil
import random
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyro
import torch
from pyro.distributions.util import is_validation_enabled

__all__ = ["SETTINGS"]

SETTINGS: dict[str, Callable[[], Any]] = {
    "environment": lambda: dict(os.environ),
    "logging": lambda: (logging.root.level, logging.root.handlers),
    "matplotlib": lambda: dict(mpl.rcParams),
    "NumPy errors": np.geterr,
    "NumPy random state": lambda: [str(part) for part in np.random.get_state()],
    "Pyro parameters": lambda: sorted(pyro.get_param_store().keys()),
    "Pyro settings": pyro.settings.get,
    "Pyro validation": is_validation_enabled,
    "Python random state": random.getstate,
    "signals": lambda: [signal.getsignal(number) for number in signal.valid_signals()],
    "torch default device": lambda: str(torch.get_default_device()),
    "torch default dtype": torch.get_default_dtype,
    "torch determinism": torch.are_deterministic_algorithms_enabled,
    "torch gradients": torch.is_grad_enabled,
    "torch random state": lambda: torch.get_rng_state().tolist(),
    "torch threads": torch.get_num_threads,
    "torch validation": lambda: torch.distributions.Distribution._validate_args,
    "warning filters": lambda: list(warnings.filters),
}


def _third_party(package: Path) -> set[str]:
    """Modules of others that the package imports; what those change is not ours."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module)
    return {name for name in found if not name.startswith(package.name)}


def _main(folder: Path) -> None:
    for name in sorted(_third_party(folder / "chmm_pyro")):
        with suppress(ImportError):  # an optional one
            importlib.import_module(name)
    before = {name: read() for name, read in SETTINGS.items()}
    sys.path.insert(0, str(folder))
    package = importlib.import_module("chmm_pyro")
    names = [info.name for info in pkgutil.walk_packages(package.__path__, "chmm_pyro.")]
    modules = [package, *map(importlib.import_module, names)]
    changed = [name for name, read in SETTINGS.items() if read() != before[name]]
    files = {module.__name__: module.__file__ for module in modules}
    print(json.dumps({"files": files, "changed": changed, "version": package.__version__}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
