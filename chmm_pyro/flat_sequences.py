"""Ragged sequences end to end in flat storage, and padded views of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ._readers.arrays import IntArray, ramp
from .clones import MISSING
from .vocabulary import Vocabulary

__all__ = ["FlatSequences"]


@dataclass(frozen=True, eq=False, repr=False)
class FlatSequences:
    """What a :class:`~chmm_pyro.sequences.SequenceBatch` holds; its attributes are described there.

    A ragged batch costs no padding until :attr:`obs` is asked for.
    """

    flat_obs: Tensor
    flat_actions: Tensor
    offsets: Tensor
    single: bool
    num_actions: int
    flat_positions: Tensor | None = None
    names: tuple[Hashable, ...] | None = None
    vocabulary: Vocabulary | None = None
    action_vocabulary: Vocabulary | None = None
    population: int | None = None

    @cached_property
    def obs(self) -> Tensor:
        """``(T,)`` for a single sequence, else padded with 0 to ``(B, T_max)``."""
        return self.flat_obs if self.single else self._padded(self.flat_obs)

    @cached_property
    def actions(self) -> Tensor:
        """``(T - 1,)`` for a single sequence, else padded with 0 to ``(B, T_max - 1)``."""
        if self.single:
            return self.flat_actions[:-1]
        return self._padded(self.flat_actions)[:, :-1].contiguous()

    @cached_property
    def positions(self) -> Tensor | None:
        """``(T, D)`` for a single sequence, else padded with 0 to ``(B, T_max, D)``; or None."""
        if self.flat_positions is None or self.single:
            return self.flat_positions
        return self._padded(self.flat_positions)

    @cached_property
    def lengths(self) -> Tensor | None:
        """``(B,)`` number of steps of each sequence; None for a single sequence."""
        return None if self.single else self._sizes

    @property
    def num_sequences(self) -> int:
        """``B``; 1 for a single sequence."""
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        """Steps of all sequences together, missing ones included."""
        return len(self.flat_obs)

    @cached_property
    def num_observed(self) -> int:
        """Steps whose symbol is known: what ``bits_per_step`` divides by."""
        return int((self.flat_obs != MISSING).sum())

    @cached_property
    def num_symbols_seen(self) -> int:
        """How many different symbols occur."""
        counts = torch.bincount(self.flat_obs + 1)
        return int((counts[1:] > 0).sum())

    @cached_property
    def num_symbols(self) -> int:
        """Symbols that a model of these data needs: of the vocabulary, else the largest plus 1."""
        return len(self.vocabulary) if self.vocabulary else int(self.flat_obs.max()) + 1

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.flat_obs.device

    def to(self, device: torch.device | str) -> Self:
        """The same data on another device."""
        if torch.device(device) == self.device:
            return self
        positions = None if self.flat_positions is None else self.flat_positions.to(device)
        return replace(
            self,
            flat_obs=self.flat_obs.to(device),
            flat_actions=self.flat_actions.to(device),
            offsets=self.offsets.to(device),
            flat_positions=positions,
        )

    def action_counts(self, num_actions: int) -> Tensor:
        """``(num_actions,)`` how often each action drives a transition."""
        driving = torch.ones(len(self.flat_actions), dtype=torch.bool, device=self.device)
        driving[self.offsets[1:] - 1] = False
        return torch.bincount(self.flat_actions[driving], minlength=num_actions)

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> Self:
        if not isinstance(index, (int, np.integer)):
            raise TypeError(f"index = {index!r}, expected an integer; use `select` for several.")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index = {index}, expected 0 <= index < {len(self)}.")
        index = int(index) % len(self)
        first, last = self._bounds[index : index + 2].tolist()
        positions = self.flat_positions
        return replace(
            self,
            flat_obs=self.flat_obs[first:last],
            flat_actions=self.flat_actions[first:last],
            offsets=torch.tensor([0, last - first], device=self.device),
            single=True,
            flat_positions=None if positions is None else positions[first:last],
            names=self.names and (self.names[index],),
        )

    def __iter__(self) -> Iterator[Self]:
        """Each sequence as a single one."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        low, high = int(self._sizes.min()), int(self._sizes.max())
        count = "1 sequence" if len(self) == 1 else f"{len(self):,} sequences"
        what = "single sequence" if self.single else count
        span = f"{low:,} to {high:,}" if low < high else f"{low:,}"
        parts = [f"{what} of {span} steps"]
        if len(self) > 1:
            parts.append(f"{self.num_steps:,} steps")
        if self.num_observed < self.num_steps:
            parts.append(f"{self.num_steps - self.num_observed:,} missing")
        parts += [f"{self.num_symbols_seen:,} symbols seen", f"{self.num_actions:,} actions"]
        if self.device.type != "cpu":
            parts.append(f"on {self.device}")
        return f"SequenceBatch({', '.join(parts)})"

    @cached_property
    def _sizes(self) -> Tensor:
        return self.offsets.diff()

    @cached_property
    def _bounds(self) -> IntArray:
        # Index arithmetic is NumPy's: torch.repeat_interleave starts threads even for ten entries.
        return self.offsets.cpu().numpy()

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _padded(self, flat: Tensor) -> Tensor:
        sizes = self._sizes
        width = int(sizes.max())
        if width * len(self) == len(flat):
            return flat.view(len(self), width, *flat.shape[1:])
        out = flat.new_zeros(len(self), width, *flat.shape[1:])
        out[torch.arange(width, device=flat.device) < sizes[:, None]] = flat
        return out

    def _gather(self, starts: IntArray, lengths: IntArray) -> Self:
        """The pieces ``starts[k] : starts[k] + lengths[k]`` of the flat storage, as a batch."""
        offsets = self._tensor(np.concatenate([[0], np.cumsum(lengths)]))
        steps = self._tensor(ramp(starts, lengths))
        actions = self.flat_actions[steps]
        actions[offsets[1:] - 1] = 0
        positions = self.flat_positions
        return replace(
            self,
            flat_obs=self.flat_obs[steps],
            flat_actions=actions,
            offsets=offsets,
            single=False,
            flat_positions=None if positions is None else positions[steps],
            names=None,
        )
