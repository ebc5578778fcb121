"""The table of tolerances, and fixtures that every test shares."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
from numpy.typing import NDArray
from pyro.distributions.util import is_validation_enabled
from pyro.poutine.runtime import _PYRO_STACK

from chmm_pyro import messages

__all__ = ["TEST_DATA", "TOL", "Golden", "import_benchmark", "load_golden"]

TEST_DATA = Path(__file__).parents[1] / "test_data"

TOL: dict[str, dict[torch.dtype, dict[str, float]]] = {
    # One pass over the data: values, messages, counts and first gradients.
    "exact": {
        torch.float64: {"rtol": 1e-9, "atol": 1e-12},
        torch.float32: {"rtol": 1e-4, "atol": 1e-6},
    },
    # Second derivatives, and gradients through a chain of operations of our own.
    "gradient": {
        torch.float64: {"rtol": 1e-8, "atol": 1e-10},
        torch.float32: {"rtol": 1e-3, "atol": 1e-5},
    },
    "finite_difference": {torch.float64: {"rtol": 1e-5, "atol": 1e-7}},
    # A hundred updates, each fed with the last one's result.
    "em_curve": {
        torch.float64: {"rtol": 1e-6, "atol": 0.0},
        torch.float32: {"rtol": 1e-3, "atol": 0.0},
    },
    # Another library's arithmetic, which floors or normalises differently.
    "peer": {torch.float64: {"rtol": 1e-8, "atol": 1e-11}},
}
"""``TOL[kind][dtype]``, passed on as keywords: ``assert_close(a, b, **TOL["exact"][dtype])``."""


class Golden(NamedTuple):
    """Numbers of the published reference implementation for one case.

    Attributes:
        name: ``"small"``, ``"medium"`` or ``"large"``.
        num_clones: ``(V,)``.
        obs: ``(T,)``.
        actions: ``(T - 1,)``; the published unused last action is dropped.
        pseudocount: of the initial table and of EM.
        counts: ``(A, S, S)`` the random initial counts.
        checkpoints: values at the initial table, as in the file.
        em: the EM curve, as in the file.
        viterbi_training: the curve of Viterbi training after EM, as in the file.
    """

    name: str
    num_clones: tuple[int, ...]
    obs: NDArray[np.int64]
    actions: NDArray[np.int64]
    pseudocount: float
    counts: NDArray[np.float64]
    checkpoints: dict[str, NDArray[Any]]
    em: dict[str, Any]
    viterbi_training: dict[str, Any]

    @property
    def log_transition(self) -> NDArray[np.float64]:
        """``(A, S, S)`` of the initial table."""
        smoothed = self.counts + self.pseudocount
        return np.log(smoothed / smoothed.sum(-1, keepdims=True))


@lru_cache
def load_golden(name: str) -> Golden:
    """One golden case of ``test_data/``; treat its arrays as read-only."""
    case = json.loads((TEST_DATA / f"{name}_case.json").read_text())
    checkpoints = {key: np.array(value) for key, value in case["checkpoints"].items()}
    return Golden(
        name=name,
        num_clones=tuple(case["input"]["n_clones"]),
        obs=np.array(case["input"]["x"]),
        actions=np.array(case["input"]["a"][:-1]),
        pseudocount=case["metadata"]["pseudocount"],
        counts=checkpoints.pop("counts_init"),
        checkpoints=checkpoints,
        em=case["em"],
        viterbi_training=case["viterbi_training"],
    )


def import_benchmark(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A script of ``benchmarks/``, for its functions."""
    monkeypatch.syspath_prepend(str(TEST_DATA.parent / "benchmarks"))
    return importlib.import_module(name)


@pytest.fixture(params=["small", "medium", "large"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["numba", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on each kernel."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
        monkeypatch.delenv("CHMM_PYRO_KERNEL", raising=False)
    else:
        monkeypatch.setenv("CHMM_PYRO_KERNEL", "torch")
    assert messages.kernel_name(torch.device("cpu")) == request.param
    return request.param


@pytest.fixture(autouse=True)
def isolation() -> Iterator[None]:
    """Every test starts seeded with an empty parameter store and leaves global settings alone."""
    pyro.set_rng_seed(0)  # also seeds torch, NumPy and random
    pyro.clear_param_store()
    before = _settings()
    yield
    after = _settings()
    pyro.clear_param_store()
    if after != before:
        torch.set_default_dtype(before["default dtype"])
        torch.set_grad_enabled(before["gradients enabled"])
        torch.set_num_threads(before["threads"])
        pyro.enable_validation(before["validation"])
        del _PYRO_STACK[:]
    assert after == before, "the test (or the code it ran) changed a global setting"


def _settings() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "validation": is_validation_enabled(),
        "open Pyro handlers": len(_PYRO_STACK),
    }
