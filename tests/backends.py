"""Kernel problems made of tiny instances, and one row for each kernel and precision.

A new kernel joins every test in ``tests/kernels`` by adding its rows to :data:`BACKENDS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
import torch
from instances import Instance
from numpy.typing import NDArray
from torch import Tensor

from chmm_pyro._kernels.interface import Counts, Forward, Path, Problem
from chmm_pyro._kernels.layout import Jobs, Layout, build_layout
from chmm_pyro.clones import CloneStructure

__all__ = [
    "BACKENDS",
    "FLOAT64_BACKENDS",
    "Backend",
    "Case",
    "block_counts_as_table",
    "by_state",
    "enumerated",
    "make_problem",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Backend:
    """One kernel in one precision; tensors go in and come out, whatever the kernel works on."""

    module: str
    dtype: torch.dtype
    on_arrays: bool

    def __call__(self, function: str, problem: Problem, *arguments: Any) -> Any:
        kernel = importlib.import_module(self.module)
        if not self.on_arrays:
            return getattr(kernel, function)(problem, *arguments)
        plain = [x.numpy() if isinstance(x, Tensor) else x for x in arguments]
        potentials = {
            name: None if x is None else x.numpy()
            for name, x in problem._asdict().items()
            if name.startswith("log_")
        }
        found = getattr(kernel, function)(problem._replace(**potentials), *plain)
        if isinstance(found, tuple):
            return type(found)(*(None if x is None else torch.from_numpy(x) for x in found))
        return torch.from_numpy(found)

    def forward(self, problem: Problem, keep_messages: bool = True) -> Forward:
        return self("forward", problem, keep_messages)

    def forward_backward(
        self, problem: Problem, weights: Tensor | None = None, marginals: bool = True
    ) -> Counts:
        return self("forward_backward", problem, weights, marginals)

    def viterbi(self, problem: Problem, generator_seed: int | None = None) -> Path:
        return self("viterbi", problem, generator_seed)

    def ffbs(self, problem: Problem, uniforms: Tensor) -> Tensor:
        return self("ffbs", problem, uniforms).states


def _rows(name: str, module: str, on_arrays: bool, needs: str) -> list[Any]:
    missing = importlib.util.find_spec(needs) is None
    return [
        pytest.param(
            Backend(module, dtype, on_arrays),
            id=f"{name}-{str(dtype).removeprefix('torch.')}",
            marks=pytest.mark.skipif(missing, reason=f"{needs} is not installed"),
        )
        for dtype in (torch.float64, torch.float32)
    ]


BACKENDS = [
    *_rows("numba", "chmm_pyro._kernels.numba_cpu", True, "numba"),
    *_rows("torch", "chmm_pyro._kernels.torch_any", False, "torch"),
]

FLOAT64_BACKENDS = [row for row in BACKENDS if row.values[0].dtype == torch.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """Potentials and data of one job, as the kernel sees them (rounded to its precision).

    Attributes:
        num_clones: ``(V,)``.
        log_initial: ``(S,)``.
        log_transition: ``(A, S, S)``, or ``(T - 1, S, S)`` for per-step blocks.
        actions: ``(T - 1,)``.
        obs: ``(T,)``.
        log_evidence: ``(T, S)`` or None.
    """

    num_clones: tuple[int, ...]
    log_initial: Array
    log_transition: Array
    actions: NDArray[np.int64]
    obs: NDArray[np.int64]
    log_evidence: Array | None = None

    @classmethod
    def of(cls, instance: Instance) -> Case:
        clones, initial, transition, actions, obs, evidence = instance.potentials
        if evidence is not None and evidence.shape[1] != len(initial):
            evidence = np.repeat(evidence, clones, axis=1)
        return cls(clones, initial, transition, actions, obs, evidence)

    def per_step(self) -> Case:
        """The same with a table for every transition."""
        steps = np.arange(len(self.actions))
        table = self.log_transition[self.actions]
        return Case(self.num_clones, self.log_initial, table, steps, self.obs, self.log_evidence)


def _rounded(values: Array, dtype: torch.dtype) -> Array:
    return torch.tensor(values, dtype=dtype).double().numpy()


def enumerated(
    cases: Sequence[Case],
    dtype: torch.dtype,
    initial: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
) -> list[reference.Exact]:
    """Everything about the jobs of :func:`make_problem`, by enumeration."""
    initial = initial or [0] * len(cases)
    blocks = blocks or [0] * len(cases)
    return [
        reference.enumerate_paths(
            case.num_clones,
            _rounded(cases[i].log_initial, dtype),
            _rounded(cases[k].log_transition, dtype),
            case.actions,
            case.obs,
            None if case.log_evidence is None else _rounded(case.log_evidence, dtype),
        )
        for case, i, k in zip(cases, initial, blocks, strict=True)
    ]


def make_problem(
    cases: Sequence[Case],
    dtype: torch.dtype,
    initial: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    *,
    per_step: bool = False,
) -> Problem:
    """One job per case: its data under the parameters of the cases ``initial`` and ``blocks``.

    By default all jobs use the parameters of the first case.  With ``per_step`` there is one case.
    """
    initial = initial or [0] * len(cases)
    blocks = blocks or [0] * len(cases)
    layout = build_layout(
        CloneStructure(cases[0].num_clones),
        np.concatenate([case.obs for case in cases]),
        np.concatenate([np.append(case.actions, 0) for case in cases]),
        np.array([len(case.obs) for case in cases]),
        per_step=per_step,
    )
    action, old, new = layout.entry_states
    if per_step:
        action = layout.block_of_entry  # blocks are numbered like the steps of the one case
    tables = [cases[k].log_transition for k in range(max(blocks) + 1)]
    evidence = None
    if cases[0].log_evidence is not None:
        steps = np.concatenate([case.log_evidence for case in cases])
        evidence = steps[layout.step_of_message, layout.state_of_message]
        evidence = torch.tensor(evidence, dtype=dtype)
    starts = [cases[i].log_initial for i in range(max(initial) + 1)]
    return Problem(
        layout,
        Jobs(np.array(initial), np.array(blocks)),
        torch.tensor(np.stack(starts), dtype=dtype),
        torch.tensor(np.stack([table[action, old, new] for table in tables]), dtype=dtype),
        evidence,
    )


def by_state(layout: Layout, flat: Tensor) -> Array:
    """Flat messages as ``(Q, S)``."""
    dense = np.zeros((layout.num_steps, layout.clones.num_states))
    dense[layout.step_of_message, layout.state_of_message] = flat.double().numpy()
    return dense


def block_counts_as_table(
    layout: Layout, block_counts: Tensor, num_tables: int, *, per_step: bool = False
) -> Array:
    """``(K, F)`` block counts as ``(K, A or T - 1, S, S)``."""
    action, old, new = layout.entry_states
    if per_step:
        action = layout.block_of_entry
    states = layout.clones.num_states
    table = np.zeros((len(block_counts), num_tables, states, states))
    for row, counts in zip(table, block_counts.double().numpy(), strict=True):
        np.add.at(row, (action, old, new), counts)
    return table
