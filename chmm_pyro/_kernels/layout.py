"""Where every step of a data set lives in flat storage: the integer half of the kernel contract.

A *support* is the contiguous range of states that a step allows: the clones of its symbol, or all
``S`` states where the symbol is missing.  A *block* holds the potentials between two supports
under one action.  Messages, evidence and blocks are stored flat and ragged, so nothing is padded.

A *job* is one run of an algorithm: one sequence with one row of initial probabilities and one row
of blocks.  Parameter batches and sequence batches both become jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..clones import MISSING, CloneStructure

__all__ = ["IntArray", "Jobs", "Layout", "build_layout"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Supports, messages and blocks of ``N`` sequences with ``Q`` steps in all.

    Attributes:
        clones: the clone structure.
        lengths: ``(N,)`` number of steps of each sequence.
        step_start: ``(N + 1,)`` steps of sequence ``n`` are ``step_start[n]:step_start[n + 1]``.
        flat_obs: ``(Q,)`` symbols.
        support_start: ``(Q,)`` first state that a step allows.
        support_size: ``(Q,)`` how many it allows.
        message_start: ``(Q + 1,)`` a step's slice of flat message storage.
        block_index: ``(Q,)`` block that leads from a step to the next one (0 at a last step).
        block_action: ``(G,)`` action of a block; ``(G,)`` zeros for per-step blocks.
        block_from: ``(G, 2)`` start and size of its old support.
        block_to: ``(G, 2)`` start and size of its new support.
        block_start: ``(G + 1,)`` its slice of flat, row-major block storage of ``F`` entries.
    """

    clones: CloneStructure
    lengths: IntArray
    step_start: IntArray
    flat_obs: IntArray
    support_start: IntArray
    support_size: IntArray
    message_start: IntArray
    block_index: IntArray
    block_action: IntArray
    block_from: IntArray
    block_to: IntArray
    block_start: IntArray

    @property
    def num_sequences(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        return int(self.step_start[-1])

    @property
    def num_blocks(self) -> int:
        return len(self.block_action)

    @property
    def num_block_entries(self) -> int:
        return int(self.block_start[-1])

    @cached_property
    def max_support(self) -> int:
        return int(self.support_size.max())

    @cached_property
    def work(self) -> NDArray[np.float64]:
        """``(N,)`` rough multiply-adds of one pass over each sequence."""
        size = self.support_size.astype(np.float64)
        return np.add.reduceat(size * size + 40, self.step_start[:-1])

    @cached_property
    def sequence_of_step(self) -> IntArray:
        """``(Q,)`` which sequence a step belongs to."""
        return np.repeat(np.arange(self.num_sequences), self.lengths)

    @cached_property
    def time_of_step(self) -> IntArray:
        """``(Q,)`` position of a step within its sequence."""
        return np.arange(self.num_steps) - np.repeat(self.step_start[:-1], self.lengths)

    @cached_property
    def state_of_message(self) -> IntArray:
        """``(messages,)`` global state of every entry of flat message storage."""
        size = self.support_size
        within = np.arange(int(self.message_start[-1])) - np.repeat(self.message_start[:-1], size)
        return np.repeat(self.support_start, size) + within

    @cached_property
    def step_of_message(self) -> IntArray:
        """``(messages,)`` step of every entry of flat message storage."""
        return np.repeat(np.arange(self.num_steps), self.support_size)

    @cached_property
    def grouped_steps(self) -> tuple[IntArray, IntArray]:
        """Steps that are left through a block, sorted by block, and ``(G + 1,)`` group bounds."""
        leaving = np.ones(self.num_steps, dtype=bool)
        leaving[self.step_start[1:] - 1] = False
        steps = np.flatnonzero(leaving)
        blocks = self.block_index[steps]
        order = steps[np.argsort(blocks, kind="stable")]
        sizes = np.bincount(blocks, minlength=self.num_blocks)
        return order, np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def block_sizes(self) -> IntArray:
        """``(G,)`` number of entries of every block."""
        return np.diff(self.block_start)

    @cached_property
    def count_work(self) -> NDArray[np.float64]:
        """``(G,)`` rough multiply-adds of counting how often the entries of each block are used."""
        return (np.diff(self.grouped_steps[1]) + 4.0) * self.block_sizes

    @cached_property
    def block_of_entry(self) -> IntArray:
        """``(F,)`` block of every entry of flat block storage."""
        return np.repeat(np.arange(self.num_blocks), self.block_sizes)

    @cached_property
    def entry_states(self) -> tuple[IntArray, IntArray, IntArray]:
        """Action, old state and new state of every entry of flat block storage, each ``(F,)``."""
        block = self.block_of_entry
        within = np.arange(self.num_block_entries) - self.block_start[block]
        columns = self.block_to[block, 1]
        old = self.block_from[block, 0] + within // columns
        new = self.block_to[block, 0] + within % columns
        return self.block_action[block], old, new

    def steps_of(self, sequences: IntArray) -> IntArray:
        """The steps of some sequences, one sequence after the other."""
        return _ranges(self.step_start[sequences], self.lengths[sequences])

    def messages_of(self, sequences: IntArray) -> IntArray:
        """The entries of flat message storage of some sequences, likewise."""
        start = self.message_start[self.step_start[sequences]]
        return _ranges(start, self.message_start[self.step_start[sequences + 1]] - start)

    def repeat(self, sequences: IntArray) -> Layout:
        """The layout whose sequence ``j`` is ``sequences[j]`` of this one; blocks are shared."""
        steps = self.steps_of(sequences)
        size = self.support_size[steps]
        lengths = self.lengths[sequences]
        return Layout(
            self.clones,
            lengths,
            _starts(lengths),
            self.flat_obs[steps],
            self.support_start[steps],
            size,
            _starts(size),
            self.block_index[steps],
            self.block_action,
            self.block_from,
            self.block_to,
            self.block_start,
        )


@dataclass(frozen=True, eq=False)
class Jobs:
    """``J`` runs over one :class:`Layout` whose sequences are numbered like the jobs.

    Attributes:
        initial: ``(J,)`` row of the initial probabilities that a job uses.
        blocks: ``(J,)`` row of the blocks that a job uses.
    """

    initial: IntArray
    blocks: IntArray


def _ranges(first: IntArray, sizes: IntArray) -> IntArray:
    """``first[0], first[0] + 1, ...``, ``sizes[0]`` of them, then on from ``first[1]``."""
    return np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)


def _starts(sizes: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def build_layout(
    clones: CloneStructure,
    flat_obs: IntArray,
    flat_actions: IntArray,
    lengths: IntArray,
    *,
    per_step: bool = False,
) -> Layout:
    """Lay out ``N`` sequences.

    Args:
        clones: the clone structure.
        flat_obs: ``(Q,)`` symbols or :data:`~chmm_pyro.clones.MISSING`, sequence after sequence.
        flat_actions: ``(Q,)``; entry ``t`` drives ``t -> t + 1``, each last entry is unused.
        lengths: ``(N,)`` steps of each sequence, at least 1.
        per_step: give every transition a block of its own instead of sharing blocks between steps
            with the same action and symbols.
    """
    num_symbols, num_states = clones.num_symbols, clones.num_states
    symbol = np.where(flat_obs == MISSING, num_symbols, flat_obs)
    start = np.append(clones.offsets[:-1], 0)[symbol]
    size = np.append(np.asarray(clones.num_clones), num_states)[symbol]
    step_start = _starts(lengths)

    leaving = np.ones(len(symbol), dtype=bool)
    leaving[step_start[1:] - 1] = False
    steps = np.flatnonzero(leaving)
    block_index = np.zeros(len(symbol), np.int64)
    if per_step:
        first = steps
        block_index[steps] = np.arange(len(steps))
    else:
        # A table over all keys costs less than sorting, unless most keys never occur.
        width = num_symbols + 1
        key = (flat_actions[steps] * width + symbol[steps]) * width + symbol[steps + 1]
        bound = int(key.max()) + 1 if len(key) else 0
        if bound <= 8 * len(key) + 4096:
            first_of_key = np.full(bound, -1, np.int64)
            first_of_key[key[::-1]] = steps[::-1]
            used = np.flatnonzero(first_of_key >= 0)
            first = first_of_key[used]
            number = np.zeros(bound, np.int64)
            number[used] = np.arange(len(used))
            block_index[steps] = number[key]
        else:
            _, position, inverse = np.unique(key, return_index=True, return_inverse=True)
            first = steps[position]
            block_index[steps] = inverse
    action = np.zeros(len(first), np.int64) if per_step else flat_actions[first]
    block_from = np.stack([start[first], size[first]], axis=1)
    block_to = np.stack([start[first + 1], size[first + 1]], axis=1)
    return Layout(
        clones,
        lengths,
        step_start,
        flat_obs,
        start,
        size,
        _starts(size),
        block_index,
        action,
        block_from,
        block_to,
        _starts(block_from[:, 1] * block_to[:, 1]),
    )
