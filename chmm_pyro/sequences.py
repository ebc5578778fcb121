"""One or many sequences of observations and actions, stored flat, seen padded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from ._readers.arrays import FlatEpisodes, flatten_arrays, ramp
from ._readers.files import read_file, table_of, write_file
from ._readers.labelled import Labels, TableOptions, flatten_episodes, flatten_table
from .flat_sequences import FlatSequences
from .vocabulary import Unseen

__all__ = ["Minibatch", "Segments", "SequenceBatch"]


class SequenceBatch(FlatSequences):
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

    @classmethod
    def concatenate(cls, batches: Sequence[SequenceBatch]) -> SequenceBatch:
        """The sequences of several batches as one batch, in order.

        Args:
            batches: at least one, on one device.  Labels of those that have any must agree, for
                equal symbols to mean the same; positions and names stay if all have them.

        Example:
            >>> one, two = SequenceBatch.from_arrays([0, 1]), SequenceBatch.from_arrays([[2], [3]])
            >>> SequenceBatch.concatenate([one, two]).lengths
            tensor([2, 1, 1])
        """
        if not batches:
            raise ValueError("batches is empty, expected at least one SequenceBatch.")
        shared: dict[str, Any] = {}
        for name in ("vocabulary", "action_vocabulary"):
            known = {getattr(batch, name) for batch in batches} - {None}
            if len(known) > 1:
                raise ValueError(
                    f"batches have {len(known)} different {name} attributes, expected one; read "
                    f"all files with the {name} of the first."
                )
            shared[name] = next(iter(known), None)
        sizes = np.concatenate([batch._sizes.cpu().numpy() for batch in batches])
        positions = [x.flat_positions for x in batches if x.flat_positions is not None]
        names = [batch.names for batch in batches if batch.names is not None]
        return cls(
            flat_obs=torch.cat([batch.flat_obs for batch in batches]),
            flat_actions=torch.cat([batch.flat_actions for batch in batches]),
            offsets=batches[0]._tensor(np.concatenate([[0], np.cumsum(sizes)])),
            single=False,
            num_actions=max(batch.num_actions for batch in batches),
            flat_positions=torch.cat(positions) if len(positions) == len(batches) else None,
            names=tuple(chain(*names)) if len(names) == len(batches) else None,
            **shared,
        )

    def to_file(self, path: str | PathLike[str]) -> None:
        """Write ``.npz`` (exact, with vocabularies), or the table as ``.csv`` or ``.parquet``.

        A table holds labels; read back, its vocabulary has only the labels it shows, so symbols
        without a vocabulary may be renumbered.  Use ``.npz`` to keep everything.
        """
        write_file(self._flat(), path)

    def to_dataframe(self) -> pd.DataFrame:
        """The table that :meth:`from_dataframe` reads, with labels where there is a vocabulary."""
        return table_of(self._flat())

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
