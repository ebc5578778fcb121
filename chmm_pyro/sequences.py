"""One or many sequences of observations and actions, stored flat, seen padded."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from ._readers.arrays import FlatEpisodes, IntArray, flatten_arrays, ramp
from ._readers.files import read_file, table_of, write_file
from ._readers.labelled import Labels, TableOptions, flatten_episodes, flatten_table
from .clones import MISSING
from .vocabulary import Unseen, Vocabulary

__all__ = ["Minibatch", "Segments", "SequenceBatch"]


@dataclass(frozen=True, eq=False, repr=False)
class SequenceBatch:
    """Sequences of symbols and actions, checked once and never changed.

    Make one with :meth:`from_arrays` (integer symbols as they are), :meth:`from_episodes`,
    :meth:`from_dataframe` or :meth:`from_file` (labels); the fields below are trusted as given.
    Storage is flat, so a ragged batch costs no padding until :attr:`obs` is asked for.

    Attributes:
        flat_obs: ``(N,)`` int64 symbols of all sequences, end to end.
        flat_actions: ``(N,)`` int64; entry ``t`` of a sequence drives ``t -> t + 1``, so the
            last entry of each sequence is unused and 0.
        offsets: ``(B + 1,)`` int64; sequence ``b`` is ``offsets[b]:offsets[b + 1]``.
        single: one sequence without a batch dimension.
        num_actions: ``A``.
        flat_positions: ``(N, D)`` where the walker was, or None.
        names: what the data call each sequence, or None.
        vocabulary: the labels of the symbols, or None.
        action_vocabulary: the labels of the actions, or None.
        population: how many sequences a minibatch stands for, by which models scale its
            likelihood; None for data that stand for themselves.

    Example:
        >>> batch = SequenceBatch.from_arrays([[0, 1, 1], [2, 0]], [[0, 1], [1]])
        >>> batch
        SequenceBatch(2 sequences of 2 to 3 steps, 5 steps, 3 symbols seen, 2 actions)
        >>> batch.obs
        tensor([[0, 1, 1],
                [2, 0, 0]])
        >>> batch.lengths
        tensor([3, 2])
        >>> SequenceBatch.from_arrays([0, 1, 1]).obs.shape
        torch.Size([3])
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

    @classmethod
    def from_arrays(
        cls,
        obs: Any,
        actions: Any = None,
        *,
        lengths: Any = None,
        positions: Any = None,
        num_actions: int | None = None,
    ) -> SequenceBatch:
        """Integer symbols and actions as they are.

        Args:
            obs: ``(T,)`` for a single sequence; ``(B, T)`` padded, or a list of 1-d arrays, for a
                batch (also of one).  :data:`MISSING` is the only legal negative.
            actions: the same with ``T - 1`` entries; of ``T`` entries the last is ignored.
                None stands for the single action 0.
            lengths: ``(B,)`` for padded ``obs``; entries beyond them are not read.
            positions: ``(T,)`` or ``(T, D)`` (or padded, or a list of these).
            num_actions: ``A``; by default the largest action used plus one.
        """
        return cls._of(
            flatten_arrays(
                obs, actions, lengths=lengths, positions=positions, num_actions=num_actions
            )
        )

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Any],
        *,
        vocabulary: Labels = None,
        action_vocabulary: Labels = None,
        unseen: Unseen = "error",
    ) -> SequenceBatch:
        """Episodes of labels of any hashable kind.

        Args:
            episodes: each a list, array or str (one label per character) of observations, a tuple
                ``(obs, actions)`` or ``(obs, actions, positions)``, or a dict with the keys
                ``obs``, ``actions``, ``positions``.  None and NaN are missing observations.
            vocabulary: labels in the order of their symbols, usually those of the training data;
                by default made from the data.
            action_vocabulary: the same for actions, where an unknown label is always an error.
            unseen: whether an observation outside ``vocabulary`` is an error or missing.

        Example:
            >>> batch = SequenceBatch.from_episodes([(["door", "wall"], ["left"])])
            >>> batch.vocabulary, batch.flat_obs
            (Vocabulary(['door', 'wall']), tensor([0, 1]))
            >>> text = SequenceBatch.from_episodes(
            ...     ["ab", "bc"], vocabulary=["a", "b"], unseen="missing"
            ... )
            >>> text.flat_obs
            tensor([ 0,  1,  1, -1])
        """
        labels = {"vocabulary": vocabulary, "action_vocabulary": action_vocabulary}
        return cls._of(flatten_episodes(episodes, unseen=unseen, **labels))

    @classmethod
    def from_dataframe(cls, df: pd.DataFrame, **options: Unpack[TableOptions]) -> SequenceBatch:
        """A table with a row per step, in order within each episode.

        Args:
            df: the table.  The action of a row leads to the next row of its episode; an
                episode's last action is ignored.  Empty cells are missing observations.
            options: the columns and vocabularies; all may be left out.

        Keyword Args:
            episode: column that tells the episodes apart (default ``"episode"`` if the table has
                it; a table without one is a single sequence).
            observation: column of labels (default ``"observation"``).
            action: column of labels (default ``"action"`` if the table has it).
            position: column or columns (default: all called ``"position_..."``).
            vocabulary: as in :meth:`from_episodes`, like ``action_vocabulary`` and ``unseen``.

        Example:
            >>> table = pd.DataFrame({"observation": ["b", "a", None]})
            >>> SequenceBatch.from_dataframe(table).obs
            tensor([ 1,  0, -1])
        """
        return cls._of(flatten_table(df, **options))

    @classmethod
    def from_file(cls, path: str | PathLike[str], **options: Unpack[TableOptions]) -> SequenceBatch:
        """A ``.csv`` or ``.parquet`` table, or an ``.npz`` archive; nothing is unpickled.

        Args:
            path: the file.  The arrays of an ``.npz`` are the columns, and there integers are
                symbols as they are; one written by :meth:`to_file` needs no options.
            options: as in :meth:`from_dataframe`.
        """
        return cls._of(read_file(path, **options))

    def to_file(self, path: str | PathLike[str]) -> None:
        """Write ``.npz`` (exact, with vocabularies), or the table as ``.csv`` or ``.parquet``.

        A table holds labels; read back, its vocabulary has only the labels it shows, so symbols
        without a vocabulary may be renumbered.  Use ``.npz`` to keep everything.
        """
        write_file(self._flat(), path)

    def to_dataframe(self) -> pd.DataFrame:
        """The table that :meth:`from_dataframe` reads, with labels where there is a vocabulary."""
        return table_of(self._flat())

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

    def select(self, indices: Any) -> SequenceBatch:
        """Some of the sequences, in the order asked for; always batched.

        Args:
            indices: ``(K,)`` integers, repeats allowed.
        """
        index = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
        if index.dtype == bool:
            raise TypeError("indices is a mask, expected integers; use `mask.nonzero()[0]`.")
        if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
            raise ValueError(
                f"indices has shape {index.shape} and dtype {index.dtype}, expected a non-empty "
                "(K,) list of integers; use batch[i] for one sequence."
            )
        if index.min() < 0 or index.max() >= len(self):
            bad = index.min() if index.min() < 0 else index.max()
            raise ValueError(f"indices holds {bad}, expected 0 <= index < {len(self)}.")
        kept = self._gather(self._bounds[index], np.diff(self._bounds)[index])
        return replace(kept, names=self.names and tuple(self.names[i] for i in index.tolist()))

    def split(
        self, held_out: float, *, seed: int | np.random.Generator = 0
    ) -> tuple[SequenceBatch, SequenceBatch]:
        """Training and held-out sequences, drawn at random, each side in the original order.

        Args:
            held_out: a fraction between 0 and 1 (at least one sequence), or an integer number.
            seed: of the draw.

        Returns:
            ``(training, held_out)``.

        Example:
            >>> batch = SequenceBatch.from_arrays([[0, 1], [1, 1], [1, 0], [0, 0]])
            >>> [len(part) for part in batch.split(0.25, seed=0)]
            [3, 1]
        """
        total = len(self)
        count = held_out
        if isinstance(held_out, float):
            count = max(round(held_out * total), 1) if 0 < held_out < 1 else 0
        if isinstance(count, bool) or count != int(count) or not 1 <= count < total:
            raise ValueError(
                f"held_out = {held_out!r} of {total} sequences, expected a fraction between 0 and "
                f"1 or an integer from 1 to {total - 1} (both sides need a sequence); "
                "cut one long sequence with `segments` first."
            )
        chosen = np.zeros(total, dtype=bool)
        chosen[np.random.default_rng(seed).permutation(total)[: int(count)]] = True
        return self.select(np.flatnonzero(~chosen)), self.select(np.flatnonzero(chosen))

    def minibatches(
        self, batch_size: int, *, seed: int | np.random.Generator = 0, shuffle: bool = True
    ) -> Iterator[Minibatch]:
        """One epoch of whole sequences, each once.

        Args:
            batch_size: sequences in each minibatch; the last one holds what is left.
            seed: of the order; pass one ``np.random.Generator`` to each epoch for new orders.
            shuffle: False keeps the order.

        Yields:
            Minibatches whose ``scale`` makes a sum over them unbiased for the sum over all.

        Example:
            >>> batch = SequenceBatch.from_arrays([[0, 1], [1, 1], [1, 0]])
            >>> [(len(part.batch), part.scale) for part in batch.minibatches(2)]
            [(2, 1.5), (1, 3.0)]
        """
        _at_least("batch_size", batch_size, 1, "use batch_size=len(batch) for full batches")
        order = np.arange(len(self))
        if shuffle:
            np.random.default_rng(seed).shuffle(order)
        return self._minibatches(order, batch_size)

    def _minibatches(self, order: Any, batch_size: int) -> Iterator[Minibatch]:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            part = replace(self.select(chosen), population=len(self))
            yield Minibatch(part, self._tensor(chosen))

    def segments(self, length: int) -> Segments:
        """Each sequence in pieces that share one step with the next piece.

        Segment ``k + 1`` begins at the last step of segment ``k``, so that every transition lies
        in exactly one segment.

        Args:
            length: steps of a segment, the shared one included; the last may be shorter.

        Example:
            >>> parts = SequenceBatch.from_arrays([0, 1, 2, 3, 4, 5]).segments(3)
            >>> parts.batch.obs
            tensor([[0, 1, 2],
                    [2, 3, 4],
                    [4, 5, 0]])
            >>> parts.starts
            tensor([0, 2, 4])
        """
        _at_least("length", length, 2, "a segment holds at least one transition")
        sizes = np.diff(self._bounds)
        counts = np.maximum(-(-(sizes - 1) // (length - 1)), 1)
        sequence = np.repeat(np.arange(len(self)), counts)
        starts = ramp(np.zeros_like(counts), counts) * (length - 1)
        lengths = np.minimum(sizes[sequence] - starts, length)
        batch = self._gather(self._bounds[sequence] + starts, lengths)
        return Segments(batch, self._tensor(starts), self._tensor(sequence))

    def windows(self, sequence: Tensor, starts: Tensor, lengths: Tensor) -> SequenceBatch:
        """The steps ``starts[k] .. starts[k] + lengths[k] - 1`` of sequences ``sequence[k]``.

        Args:
            sequence: ``(K,)`` in ``[0, B)``.
            starts: ``(K,)`` first steps.
            lengths: ``(K,)`` at least 1, within the sequences.

        Example:
            >>> batch = SequenceBatch.from_arrays([0, 1, 2, 3, 4, 5])
            >>> batch.windows(*torch.tensor([[0, 0], [1, 4], [3, 2]])).obs
            tensor([[1, 2, 3],
                    [4, 5, 0]])
        """
        which, first, size = (x.cpu().numpy() for x in (sequence, starts, lengths))
        available = np.append(np.diff(self._bounds), 0)[which]
        wrong = (which < 0) | (first < 0) | (size < 1) | (first + size > available)
        if wrong.any():
            k = int(wrong.argmax())
            raise ValueError(
                f"starts[{k}] = {first[k]} and lengths[{k}] = {size[k]} leave sequence {which[k]}, "
                f"expected at least one of its {available[k]} steps and no others."
            )
        return self._gather(self._bounds[which] + first, size)

    def to(self, device: torch.device | str) -> SequenceBatch:
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

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, index: int) -> SequenceBatch:
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

    def __iter__(self) -> Iterator[SequenceBatch]:
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

    @classmethod
    def _of(cls, flat: FlatEpisodes) -> SequenceBatch:
        positions = None if flat.positions is None else torch.from_numpy(flat.positions)
        return cls(
            flat_obs=torch.from_numpy(flat.obs),
            flat_actions=torch.from_numpy(flat.actions),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(flat.lengths)])),
            single=flat.single,
            num_actions=flat.num_actions,
            flat_positions=positions,
            names=flat.names,
            vocabulary=flat.vocabulary,
            action_vocabulary=flat.action_vocabulary,
        )

    def _flat(self) -> FlatEpisodes:
        positions = None if self.flat_positions is None else self.flat_positions.cpu().numpy()
        return FlatEpisodes(
            obs=self.flat_obs.cpu().numpy(),
            actions=self.flat_actions.cpu().numpy(),
            lengths=self._sizes.cpu().numpy(),
            single=self.single,
            num_actions=self.num_actions,
            positions=positions,
            names=self.names,
            vocabulary=self.vocabulary,
            action_vocabulary=self.action_vocabulary,
        )

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

    def _gather(self, starts: IntArray, lengths: IntArray) -> SequenceBatch:
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


class Minibatch(NamedTuple):
    """Some of the sequences of a batch.

    Attributes:
        batch: the sequences.
        indices: ``(b,)`` their places in the whole batch.
    """

    batch: SequenceBatch
    indices: Tensor

    @property
    def scale(self) -> float:
        """``B / b``: what makes a sum over the minibatch unbiased for the sum over all."""
        assert self.batch.population is not None
        return self.batch.population / len(self.batch)


class Segments(NamedTuple):
    """Pieces of sequences that overlap by one step.

    Attributes:
        batch: the ``K`` segments.
        starts: ``(K,)`` the step of its sequence at which each segment begins.
        sequence: ``(K,)`` the sequence that each segment is cut from.
    """

    batch: SequenceBatch
    starts: Tensor
    sequence: Tensor


def _at_least(name: str, value: Any, low: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} = {value!r}, expected an integer >= {low}; {why}.")
    if value < low:
        raise ValueError(f"{name} = {value}, expected at least {low}; {why}.")
