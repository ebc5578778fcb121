"""From parameters and data to kernel jobs, and from flat kernel results back to padded batches.

A parameter batch and a sequence batch broadcast to one *full* batch shape; every element of it is
one kernel job.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ._kernels.interface import Problem
from ._kernels.layout import IntArray, Jobs, Layout
from .beliefs import Posterior
from .clones import MISSING
from .data_layout import broadcast_shapes, lay_out
from .tables import StepTable, Table

__all__ = ["JobBatch", "pose"]


@lru_cache(maxsize=8)
def _repeated(layout: Layout, sequences: bytes) -> Layout:
    return layout.repeat(np.frombuffer(sequences, np.int64))


def _rows(batch: torch.Size, full: torch.Size) -> IntArray:
    """Which element of ``batch`` every element of ``full`` uses, flat."""
    if batch.numel() == 1:
        return np.zeros(full.numel(), np.int64)
    rows = np.broadcast_to(np.arange(batch.numel()).reshape(batch), full)
    return rows.flatten()  # a copy: torch takes no read-only arrays


@dataclass(frozen=True)
class JobBatch:
    """A kernel problem whose jobs are the elements of a batch of padded sequences.

    Attributes:
        problem: what the kernels take.
        shape: the full batch shape, with one job for each element.
        num_steps: ``T``, the padded length.
    """

    problem: Problem
    shape: torch.Size
    num_steps: int

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """Flat per-step values ``(*L, Q)`` as ``(*L, *shape, T)``."""
        lead, size = values.shape[:-1], self.shape.numel() * self.num_steps
        if self.layout.num_steps == size:
            return values.reshape(*lead, *self.shape, self.num_steps)
        at = self.layout.sequence_of_step * self.num_steps + self.layout.time_of_step
        out = values.new_full((*lead, size), fill)
        out = out.index_copy(-1, torch.as_tensor(at, device=values.device), values)
        return out.view(*lead, *self.shape, self.num_steps)

    def posterior(self, flat: Tensor) -> Posterior:
        """Flat messages as padded probabilities."""
        layout, width = self.layout, self.layout.max_support
        step = layout.step_of_message
        row = layout.sequence_of_step[step] * self.num_steps + layout.time_of_step[step]
        local = layout.state_of_message - layout.support_start[step]
        at = torch.as_tensor(row * width + local, device=flat.device)
        out = flat.new_zeros(self.shape.numel() * self.num_steps * width).index_copy(0, at, flat)
        start = torch.as_tensor(layout.support_start, device=flat.device)
        return Posterior(
            out.view(*self.shape, self.num_steps, width),
            self.padded(start, 0),
            layout.clones.num_states,
        )

    def global_states(self, local: Tensor) -> Tensor:
        """Positions within supports ``(*L, Q)`` as global states ``(*L, *shape, T)``."""
        start = torch.as_tensor(self.layout.support_start, device=local.device)
        return self.padded(local + start, MISSING)

    def raise_if_impossible(self, log_steps: Tensor) -> None:
        """Name the first step that no path explains, if there is one."""
        impossible = torch.isneginf(log_steps.detach())
        if not impossible.any():
            return
        step = int(impossible.nonzero()[0, 0])
        time = int(self.layout.time_of_step[step])
        where = f"step {time}"
        if self.shape:
            index = np.unravel_index(int(self.layout.sequence_of_step[step]), self.shape)
            where += f" of sequence {[int(i) for i in index]}"
        raise ValueError(
            f"obs is impossible at {where} (symbol {int(self.layout.flat_obs[step])}): every path "
            "that explains the steps before it has probability zero there, so its states have no "
            "posterior; use a pseudocount when fitting, or mark the step as MISSING (-1)."
        )


def pose(
    table: Table,
    log_initial: Tensor,
    log_evidence: Tensor | None,
    obs: Tensor,
    actions: Tensor,
    lengths: Tensor | None,
    *,
    batch_shape: torch.Size,
) -> JobBatch:
    """Lay out the data and gather the potentials of every job; differentiable in them."""
    full = broadcast_shapes(batch_shape, obs.shape[:-1])
    shapes = (obs.shape[:-1], actions.shape[:-1], () if lengths is None else lengths.shape)
    # Blocks of a StepTable belong to the jobs, all others to actions and symbols.
    shape = full if table.per_step else broadcast_shapes(*shapes)
    layout = lay_out(
        table.clones,
        obs,
        actions,
        lengths,
        shape=shape,
        num_actions=table.num_actions,
        per_step=table.per_step,
    )
    if isinstance(table, StepTable):
        expanded = table.values.expand(*full, *table.values.shape[-3:])
        blocks = StepTable(table.clones, expanded).blocks(layout)[None]
        block_rows = _rows(torch.Size(), full)
    else:
        blocks = table.blocks(layout)
        block_rows = _rows(blocks.shape[:-1], full)
        blocks = blocks.reshape(blocks.shape[:-1].numel(), blocks.shape[-1])
    if full.numel() != layout.num_sequences:
        layout = _repeated(layout, _rows(shape, full).tobytes())
    jobs = Jobs(_rows(log_initial.shape[:-1], full), block_rows)
    initial = log_initial.reshape(-1, log_initial.shape[-1])
    evidence = None if log_evidence is None else _flat_evidence(log_evidence, layout, full)
    return JobBatch(Problem(layout, jobs, initial, blocks, evidence), full, obs.shape[-1])


def _flat_evidence(log_evidence: Tensor, layout: Layout, full: torch.Size) -> Tensor:
    """``(*B, T, V or S)`` evidence for every entry of flat message storage."""
    steps, width = log_evidence.shape[-2:]
    state, clones = layout.state_of_message, layout.clones
    column = state if width == clones.num_states else clones.symbol_of_state[state]
    step = layout.step_of_message
    row = _rows(log_evidence.shape[:-2], full)[layout.sequence_of_step[step]]
    index = (row * steps + layout.time_of_step[step]) * width + column
    flat = torch.as_tensor(index, device=log_evidence.device)
    return log_evidence.reshape(-1).index_select(0, flat)
