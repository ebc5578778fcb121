"""The data that implementations are timed on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import published_room
from chmm_pyro.sequences import SequenceBatch

__all__ = ["INSTANCES", "PSEUDOCOUNT", "TINY", "Instance"]

PSEUDOCOUNT = 0.002
"""Of the first table and of every EM update, as published."""


@dataclass(frozen=True)
class Instance:
    """Sequences and the table that every implementation starts from.

    Every symbol has equally many clones, and all sequences are equally long, so that peers without
    ragged storage can take part.

    Attributes:
        name: for the command line and the tables.
        num_symbols: ``V``.
        clones_per_symbol: ``M``.
        num_steps: ``T`` of each sequence.
        num_sequences: ``B``; None for one sequence without a batch dimension.
        seed: of data and table.
        walk: whether the data are a walk in the published 6x8 room instead of uniformly random
            symbols.  Random symbols spread the steps over most of the blocks there are, the least
            favourable case for code that groups equal blocks.
        with_actions: False drives the same symbols by one action, for peers that have none.
    """

    name: str
    num_symbols: int
    clones_per_symbol: int
    num_steps: int
    num_sequences: int | None = None
    seed: int = 42
    walk: bool = False
    with_actions: bool = True

    @property
    def num_actions(self) -> int:
        return 4 if self.with_actions else 1

    @property
    def num_states(self) -> int:
        return self.num_symbols * self.clones_per_symbol

    @property
    def total_steps(self) -> int:
        return self.num_steps * (self.num_sequences or 1)

    @cached_property
    def clones(self) -> CloneStructure:
        return CloneStructure([self.clones_per_symbol] * self.num_symbols)

    @cached_property
    def _data(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.walk:
            room = published_room("rectangular_room")
            walk = room.random_walk(num_steps=self.num_steps, seed=self.seed)
            obs, actions = walk.obs[None], walk.actions[None]
        else:
            rng = np.random.default_rng(self.seed)
            shape = (self.num_sequences or 1, self.num_steps)
            obs = rng.integers(self.num_symbols, size=shape)
            actions = rng.integers(4, size=(shape[0], shape[1] - 1))
        return obs, actions if self.with_actions else np.zeros_like(actions)

    @property
    def obs(self) -> NDArray[np.int64]:
        """``(B, T)``."""
        return self._data[0]

    @property
    def actions(self) -> NDArray[np.int64]:
        """``(B, T - 1)``."""
        return self._data[1]

    @cached_property
    def batch(self) -> SequenceBatch:
        obs, actions = self._data
        if self.num_sequences is None:
            obs, actions = obs[0], actions[0]
        return SequenceBatch.from_arrays(obs, actions, num_actions=self.num_actions)

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """``(A, S, S)`` random transition probabilities, action, old state, new state."""
        rng = np.random.default_rng([self.seed, 1])
        counts = rng.random((self.num_actions, self.num_states, self.num_states)) + PSEUDOCOUNT
        return (counts / counts.sum(-1, keepdims=True)).astype(np.float32)


INSTANCES: dict[str, Instance] = {
    instance.name: instance
    for instance in (
        Instance("small", num_symbols=3, clones_per_symbol=3, num_steps=50),
        Instance("medium", num_symbols=9, clones_per_symbol=3, num_steps=200),
        Instance("large", num_symbols=27, clones_per_symbol=3, num_steps=1000),
        Instance("episodes", 16, 16, num_steps=200, num_sequences=64),
        Instance("room", 4, 70, num_steps=50_000, walk=True),
    )
}

TINY = Instance("tiny", num_symbols=2, clones_per_symbol=2, num_steps=10)
"""Loads the compiled code without noticeable work."""
