"""Data files in the symbols of a model."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..clones import MISSING
from ..sequences import SequenceBatch
from ..vocabulary import Unseen, Vocabulary

__all__ = ["hold_out", "in_symbols_of", "read"]


def read(
    path: Path,
    *,
    observation: str | None,
    action: str | None,
    episode: str | None,
    position: Sequence[str] | None,
) -> SequenceBatch:
    """The sequences of a file, with the labels that it has."""
    return SequenceBatch.from_file(
        path,
        observation=observation,
        action=action,
        episode=episode,
        position=list(position) if position else None,
    )


def in_symbols_of(
    batch: SequenceBatch, checkpoint: Checkpoint, unseen: Unseen = "error"
) -> SequenceBatch:
    """The same sequences, numbered as in the data that the model was fitted to.

    Raises:
        ValueError: labels that the model does not know (observations: unless ``unseen`` is
            ``"missing"``), or no actions for a model with several.
    """
    model = checkpoint.model
    moves = batch.num_steps > batch.num_sequences
    unnamed = batch.num_actions == 1 and batch.action_vocabulary is None
    if moves and unnamed and model.num_actions > 1:
        raise ValueError(
            f"the data have no actions, expected them for a model with {model.num_actions}; name "
            "their column with --action."
        )
    symbols = checkpoint.vocabulary or Vocabulary(range(model.clones.num_symbols))
    found = _labels(batch.flat_obs, batch.vocabulary)
    obs = symbols.encode(found, unseen=unseen, name="observation", by_text=True)
    actions = np.zeros(batch.num_steps, dtype=np.int64)
    known = checkpoint.action_vocabulary
    if known is not None or model.num_actions > 1 or batch.num_actions > 1:
        driving = np.ones(batch.num_steps, dtype=bool)
        driving[batch.offsets[1:].numpy() - 1] = False
        known = known or Vocabulary(range(model.num_actions))
        taken = batch.flat_actions[torch.as_tensor(driving)]
        labels = _labels(taken, batch.action_vocabulary)
        actions[driving] = known.encode(labels, name="action", by_text=True)
    return replace(
        batch,
        flat_obs=torch.from_numpy(obs),
        flat_actions=torch.from_numpy(actions),
        num_actions=model.num_actions,
        vocabulary=checkpoint.vocabulary,
        action_vocabulary=checkpoint.action_vocabulary,
    )


def _labels(symbols: torch.Tensor, vocabulary: Vocabulary | None) -> NDArray[np.object_]:
    """Labels of any kind as an array of objects; None where a symbol is missing."""
    codes = symbols.numpy()
    known: Iterable[Hashable] = vocabulary or range(int(codes.max(initial=0)) + 1)
    assert MISSING == -1  # reads the last entry
    return np.fromiter((*known, None), dtype=object)[codes]


def hold_out(batch: SequenceBatch, amount: float, seed: int) -> tuple[SequenceBatch, SequenceBatch]:
    """Training and held-out sequences: random episodes, or the end of a single sequence.

    Raises:
        ValueError: an amount out of range, or either part without any observation.
    """
    parts = _divided(batch, amount, seed)
    for name, part in zip(("leaves for training", "keeps out"), parts, strict=True):
        if part.num_observed == 0:
            raise ValueError(
                f"held-out = {amount:g} {name} {part.num_steps} steps without any observation, "
                "expected at least one observed; choose another amount or seed."
            )
    return parts


def _divided(batch: SequenceBatch, amount: float, seed: int) -> tuple[SequenceBatch, SequenceBatch]:
    if not batch.single:
        if amount >= 1 and amount != int(amount):
            raise ValueError(
                f"held-out = {amount:g}, expected a fraction below 1 or a whole number of episodes."
            )
        return batch.split(int(amount) if amount >= 1 else amount, seed=seed)
    if not 0 < amount < 1:
        raise ValueError(
            f"held-out = {amount:g}, expected a fraction between 0 and 1: the data are a single "
            "sequence, of which the last part is held out."
        )
    steps = batch.num_steps
    cut = min(max(round((1 - amount) * steps), 1), steps - 1)
    if cut < 1:
        raise ValueError("held-out was asked for, expected a sequence of at least 2 steps.")
    return _part(batch, 0, cut), _part(batch, cut, steps)


def _part(batch: SequenceBatch, first: int, last: int) -> SequenceBatch:
    actions = batch.flat_actions[first:last].clone()
    actions[-1] = 0
    positions = batch.flat_positions
    return replace(
        batch,
        flat_obs=batch.flat_obs[first:last],
        flat_actions=actions,
        offsets=torch.tensor([0, last - first]),
        flat_positions=None if positions is None else positions[first:last],
    )
