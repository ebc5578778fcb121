r"""Normalised transition tables and how their entries become the blocks of a kernel.

A table knows four things: ``blocks(layout)`` gathers the flat log-potentials ``(*P, F)`` that a
:class:`~chmm_pyro._kernels.layout.Layout` asks for, ``counts(layout, block_counts)`` adds expected
counts of those entries back in the shape of the table (the adjoint of the gather), and
``rows`` and ``propagate`` look one step ahead.  A new kind of storage is one class.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import messages
from ._kernels.layout import IntArray, Layout
from .clones import MISSING, CloneStructure
from .data_layout import symbol_of_state
from .logits import log_normalise, refuse_bad
from .sequences import SequenceBatch

__all__ = ["BlockColumns", "BlockTable", "DenseTable", "StepTable", "Table", "as_table"]


class Table:
    """What :class:`~chmm_pyro.distribution.CloneHMM` asks of a transition table.

    Attributes:
        clones: the clone structure.
        num_actions: ``A``.
        action_model: ``"conditional"`` or ``"joint"``.
        batch_shape: ``*P``.
        values: the log-potentials, for their dtype and device.
        per_step: whether every transition of the data has a block of its own.
    """

    clones: CloneStructure
    num_actions: int
    action_model: str
    batch_shape: torch.Size
    values: Tensor
    per_step = False

    def blocks(self, layout: Layout) -> Tensor:
        """Log-potentials of all blocks, ``(*P, F)``; differentiable."""
        raise NotImplementedError

    def counts(self, layout: Layout, block_counts: Tensor) -> Tensor:
        """Sum ``(*K, F)`` expected counts into ``(*K, ...)`` in the shape of the table."""
        raise NotImplementedError

    def count(self, actions: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """How often each entry is used by transitions ``(n,)``, in the shape of the table."""
        raise NotImplementedError

    def rows(self, actions: Tensor, states: Tensor) -> Tensor:
        """Log-probabilities ``(*B, S)`` of the successors of ``(*B,)`` states under actions."""
        raise NotImplementedError

    def propagate(self, probs: Tensor, actions: Tensor) -> Tensor:
        """``(*B, S)`` state probabilities, one step after ``(*B,)`` actions; unnormalised."""
        raise NotImplementedError


def _add_up(index: Tensor, block_counts: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``(*K, F)`` counts into ``(*K, *shape)`` by flat index."""
    flat = block_counts.new_zeros(*block_counts.shape[:-1], shape.numel())
    return flat.index_add_(-1, index, block_counts).view(*block_counts.shape[:-1], *shape)


def _rows_of(values: Tensor, actions: Tensor, states: Tensor) -> Tensor:
    """``values[..., action, state, :]``; ``*P`` of ``(*P, A, S, L)`` broadcasts with ``*B``."""
    if values.ndim == 3:
        return values[actions, states]
    batch = torch.broadcast_shapes(values.shape[:-3], actions.shape)
    row = (actions * values.shape[-2] + states).expand(batch)[..., None, None]
    flat = values.flatten(-3, -2)
    flat = flat.expand(*batch, *flat.shape[-2:])
    return flat.gather(-2, row.expand(*batch, 1, flat.shape[-1])).squeeze(-2)


def _matrices_of(values: Tensor, actions: Tensor) -> Tensor:
    """``values[..., action, :, :]``; ``*P`` of ``(*P, A, S, L)`` broadcasts with ``*B``."""
    if values.ndim == 3:
        return values[actions]
    batch = torch.broadcast_shapes(values.shape[:-3], actions.shape)
    at = actions.expand(batch)[..., None, None, None].expand(*batch, 1, *values.shape[-2:])
    return values.expand(*batch, *values.shape[-3:]).gather(-3, at).squeeze(-3)


class DenseTable(Table):
    """Every transition stored.

    Args:
        clones: the clone structure.
        log_transition: ``(*P, A, S, S)`` normalised log-probabilities: action, old, new state.
        action_model: over which axes the rows were normalised.
    """

    def __init__(
        self, clones: CloneStructure, log_transition: Tensor, action_model: str = "conditional"
    ) -> None:
        states = clones.num_states
        if log_transition.ndim < 3 or log_transition.shape[-2:] != (states, states):
            raise ValueError(
                f"transition_logits has shape {tuple(log_transition.shape)}, expected "
                f"(..., A, {states}, {states}): action, old state, new state of {clones}."
            )
        self.clones = clones
        self.action_model = action_model
        self.values = log_transition
        self.num_actions = log_transition.shape[-3]
        self.batch_shape = log_transition.shape[:-3]

    def blocks(self, layout: Layout) -> Tensor:
        shape = self.values.shape[-3:]
        blocks = messages.gather(self.values.reshape(-1, *shape), layout)
        return blocks.view(*self.batch_shape, layout.num_block_entries)

    def counts(self, layout: Layout, block_counts: Tensor) -> Tensor:
        lead = block_counts.shape[:-1]
        flat = block_counts.reshape(lead.numel(), layout.num_block_entries)
        counts = messages.scatter(flat, layout, self.num_actions)
        return counts.view(*lead, *self.values.shape[-3:])

    def count(self, actions: Tensor, old: Tensor, new: Tensor) -> Tensor:
        states = self.clones.num_states
        shape = self.values.shape[-3:]
        index = (actions * states + old) * states + new
        return torch.bincount(index, minlength=shape.numel()).view(shape)

    def rows(self, actions: Tensor, states: Tensor) -> Tensor:
        return _rows_of(self.values, actions, states)

    def propagate(self, probs: Tensor, actions: Tensor) -> Tensor:
        matrices = _matrices_of(self.values, actions).exp()
        return (probs.unsqueeze(-2) @ matrices).squeeze(-2)


class BlockColumns:
    """Which successors an action and a symbol have a stored logit for.

    Only symbol pairs seen in data are stored; the mass of all other successors of a row shares one
    logit (the *lump*, last column) and is spread evenly over them.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        triples: ``(n, 3)`` observed ``(action, symbol, next symbol)``.

    Attributes:
        width: number of stored logits of the longest row, lump included.
        column: ``(A, V, S)`` column of a successor state; ``width - 1`` is the lump.
        num_lumped: ``(A, V)`` number of successors that share the lump.

    Example:
        >>> columns = BlockColumns(CloneStructure([2, 1]), 1, np.array([[0, 0, 1], [0, 1, 0]]))
        >>> columns.width, columns.triples.tolist()
        (3, [[0, 0, 1], [0, 1, 0]])
    """

    def __init__(self, clones: CloneStructure, num_actions: int, triples: IntArray) -> None:
        self.clones, self.num_actions = clones, num_actions
        symbols, states = clones.num_symbols, clones.num_states
        seen = np.zeros((num_actions, symbols, symbols), dtype=bool)
        seen[tuple(np.asarray(triples, np.int64).reshape(-1, 3).T)] = True
        stored = seen[:, :, clones.symbol_of_state]
        self.num_lumped = states - stored.sum(-1)
        self.width = int(stored.sum(-1).max()) + 1
        self.column = np.where(stored, stored.cumsum(-1) - 1, self.width - 1)

    @classmethod
    def from_batch(cls, clones: CloneStructure, num_actions: int, batch: SequenceBatch) -> Any:
        """The symbol pairs that a batch of sequences shows; missing steps show none."""
        obs = np.asarray(batch.flat_obs)
        old, new = obs[:-1], obs[1:]
        inside = np.ones(len(obs), dtype=bool)
        inside[np.asarray(batch.offsets)[1:] - 1] = False
        seen = inside[:-1] & (old != MISSING) & (new != MISSING)
        actions = np.asarray(batch.flat_actions)[:-1]
        return cls(clones, num_actions, np.stack([actions, old, new], axis=1)[seen])

    @property
    def triples(self) -> IntArray:
        """``(n, 3)`` the distinct ``(action, symbol, next symbol)`` that are stored."""
        first = np.asarray(self.clones.offsets[:-1])
        return np.argwhere(self.column[:, :, first] != self.width - 1)

    def exists(self) -> Tensor:
        """``(A, S, width)`` which logits exist: rows differ in how many successors they store."""
        used = self.clones.num_states - self.num_lumped
        local = np.arange(self.width)
        exists = local < used[..., None]
        exists[..., -1] = self.num_lumped > 0
        return torch.as_tensor(exists[:, self.clones.symbol_of_state])


@lru_cache(maxsize=8)
def _block_index(
    layout: Layout, columns: BlockColumns, device: torch.device
) -> tuple[Tensor, Tensor]:
    action, old, new = layout.entry_states
    symbol = columns.clones.symbol_of_state[old]
    column = columns.column[action, symbol, new]
    index = (action * columns.clones.num_states + old) * columns.width + column
    lumped = np.maximum(columns.num_lumped[action, symbol], 1)
    offset = np.where(column == columns.width - 1, -np.log(lumped), 0.0)
    return torch.as_tensor(index, device=device), torch.as_tensor(offset, device=device)


class BlockTable(Table):
    """Observed blocks stored, the rest of each row lumped: thousands of states in little memory.

    Args:
        columns: which successors are stored.
        log_table: ``(*P, A, S, width)`` log-probabilities; the last column is the lump's total.
        action_model: over which axes the rows were normalised.
    """

    def __init__(
        self, columns: BlockColumns, log_table: Tensor, action_model: str = "conditional"
    ) -> None:
        expected = (columns.num_actions, columns.clones.num_states, columns.width)
        if log_table.shape[-3:] != expected:
            raise ValueError(
                f"log_table has shape {tuple(log_table.shape)}, expected (..., {expected}) as "
                "BlockColumns says."
            )
        self.columns = columns
        self.clones = columns.clones
        self.action_model = action_model
        self.values = log_table
        self.num_actions = columns.num_actions
        self.batch_shape = log_table.shape[:-3]

    def blocks(self, layout: Layout) -> Tensor:
        index, offset = _block_index(layout, self.columns, self.values.device)
        return self.values.flatten(-3).index_select(-1, index) + offset.to(self.values.dtype)

    def counts(self, layout: Layout, block_counts: Tensor) -> Tensor:
        index, _ = _block_index(layout, self.columns, block_counts.device)
        return _add_up(index, block_counts, self.values.shape[-3:])

    def count(self, actions: Tensor, old: Tensor, new: Tensor) -> Tensor:
        columns = self.columns
        symbol = symbol_of_state(self.clones, old.device)[old]
        column = torch.as_tensor(columns.column, device=old.device)[actions, symbol, new]
        index = (actions * self.clones.num_states + old) * columns.width + column
        shape = self.values.shape[-3:]
        return torch.bincount(index, minlength=shape.numel()).view(shape)

    def _spread(self, stored: Tensor, actions: Tensor, states: Tensor) -> Tensor:
        """Stored rows ``(..., width)`` as dense ones ``(..., S)``."""
        symbol = symbol_of_state(self.clones, states.device)[states]
        column = torch.as_tensor(self.columns.column, device=states.device)[actions, symbol]
        lumped = torch.as_tensor(self.columns.num_lumped, device=states.device)[actions, symbol]
        offset = -lumped.clamp(min=1).to(self.values.dtype).log()
        stored = torch.cat([stored[..., :-1], stored[..., -1:] + offset.unsqueeze(-1)], -1)
        return stored.gather(-1, column.expand(*stored.shape[:-1], -1))

    def rows(self, actions: Tensor, states: Tensor) -> Tensor:
        return self._spread(_rows_of(self.values, actions, states), actions, states)

    def dense(self) -> DenseTable:
        """The same distribution with every transition stored."""
        actions = torch.arange(self.num_actions, device=self.values.device)[:, None]
        states = torch.arange(self.clones.num_states, device=self.values.device)
        table = self._spread(self.values, *torch.broadcast_tensors(actions, states))
        return DenseTable(self.clones, table, self.action_model)

    def propagate(self, probs: Tensor, actions: Tensor) -> Tensor:
        # States of one symbol store the same successors, so their mass adds up before it spreads.
        leaving = probs.unsqueeze(-1) * _matrices_of(self.values, actions).exp()
        of_state = symbol_of_state(self.clones, probs.device)
        mass = leaving.new_zeros(*leaving.shape[:-2], self.clones.num_symbols, leaving.shape[-1])
        mass = mass.index_add(-2, of_state, leaving)
        lumped = torch.as_tensor(self.columns.num_lumped, device=probs.device)[actions]
        share = mass[..., -1] / lumped.clamp(min=1)
        mass = torch.cat([mass[..., :-1], share.unsqueeze(-1)], -1)
        column = torch.as_tensor(self.columns.column, device=probs.device)[actions]
        return mass.gather(-1, column.expand(*mass.shape[:-1], -1)).sum(-2)


@lru_cache(maxsize=8)
def _step_index(layout: Layout, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    steps, rows, columns = shape
    block = layout.block_of_entry
    within = np.arange(layout.num_block_entries) - layout.block_start[block]
    width = layout.block_to[block, 1]
    leaving = np.argsort(layout.block_index, kind="stable")
    last = layout.step_start[1:] - 1
    leaving = np.setdiff1d(leaving, last)  # step of each block, in order
    step = leaving[block]
    job, time = layout.sequence_of_step[step], layout.time_of_step[step]
    index = ((job * steps + time) * rows + within // width) * columns + within % width
    return torch.as_tensor(index, device=device)


class StepTable(Table):
    """One block for each transition of the data: neural, contextual and attention transitions.

    Args:
        clones: the clone structure.
        log_potentials: ``(*B, T - 1, R, C)``; entry ``[t, i, j]`` moves the ``i``-th state that
            step ``t`` allows to the ``j``-th that step ``t + 1`` allows (clones of the observed
            symbol; all states where it is missing).  Used as they are, never normalised.

    Raises:
        ValueError: fewer than four dimensions' worth of entries for the supports of the data.
    """

    per_step = True

    def __init__(self, clones: CloneStructure, log_potentials: Tensor) -> None:
        if log_potentials.ndim < 3:
            raise ValueError(
                f"log_potentials has shape {tuple(log_potentials.shape)}, expected "
                "(..., T - 1, R, C): step, old clone, new clone."
            )
        self.clones = clones
        self.action_model = "conditional"
        self.values = log_potentials
        self.num_actions = 1
        self.batch_shape = log_potentials.shape[:-3]

    def blocks(self, layout: Layout) -> Tensor:
        steps, rows, columns = self.values.shape[-3:]
        needed = (layout.block_from[:, 1].max(initial=1), layout.block_to[:, 1].max(initial=1))
        if needed[0] > rows or needed[1] > columns:
            raise ValueError(
                f"log_potentials has blocks of {rows} x {columns}, expected at least "
                f"{needed[0]} x {needed[1]}: the most states that a step of the data allows."
            )
        index = _step_index(layout, (steps, rows, columns), self.values.device)
        return self.values.reshape(-1).index_select(0, index)

    def counts(self, layout: Layout, block_counts: Tensor) -> Tensor:
        steps, rows, columns = self.values.shape[-3:]
        index = _step_index(layout, (steps, rows, columns), block_counts.device)
        shape = torch.Size((layout.num_sequences, steps, rows, columns))
        return _add_up(index, block_counts, shape)

    def rows(self, actions: Tensor, states: Tensor) -> Tensor:
        raise ValueError(
            "a StepTable holds only the steps of its data, expected a table of all transitions to "
            "sample or predict; make a DenseTable of the model."
        )

    def propagate(self, probs: Tensor, actions: Tensor) -> Tensor:
        return self.rows(actions, actions)


def as_table(clones: CloneStructure, transition_logits: Tensor | Table, action_model: str) -> Table:
    """A given table, checked, or the normalised table of logits."""
    if isinstance(transition_logits, Table):
        table = transition_logits
        if table.clones != clones:
            raise ValueError(
                f"transition_logits is a table for {table.clones}, expected {clones}; make table "
                "and distribution with the same structure."
            )
        if action_model not in ("conditional", table.action_model):
            raise ValueError(
                f"action_model = {action_model!r}, expected {table.action_model!r} like the table "
                "given as transition_logits; leave action_model out."
            )
        refuse_bad("transition_logits", table.values)
        return table
    if transition_logits.ndim < 3:
        states = clones.num_states
        raise ValueError(
            f"transition_logits has shape {tuple(transition_logits.shape)}, expected (..., A, "
            f"{states}, {states}); for a model without actions pass transition_logits[None]."
        )
    DenseTable(clones, transition_logits)  # its shape, before the softmax spends time on it
    log_transition = log_normalise(transition_logits, action_model)
    return DenseTable(clones, log_transition, action_model)
