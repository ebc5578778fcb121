"""How often data use each transition of a model: a sparse list, from the posterior or a path."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..beliefs import Posterior
from ..clones import MISSING
from ..distribution import CloneHMM
from ..sequences import SequenceBatch
from ..tables import BlockTable, DenseTable
from .usage import mass_of_states

__all__ = [
    "Entries",
    "expected_entries",
    "expected_positions",
    "mean_positions",
    "path_entries",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Entries(NamedTuple):
    """Counted transitions.

    Attributes:
        transitions: ``(E, 3)`` old state, action, new state; each once, in order.
        counts: ``(E,)`` positive.
        usage: ``(S,)`` visits of each state, first steps of sequences included.
        unattributed: steps that the list leaves out because the model's storage does not say
            between which states they went.
    """

    transitions: IntArray
    counts: FloatArray
    usage: FloatArray
    unattributed: float = 0.0


@torch.no_grad()
def expected_entries(hmm: CloneHMM, batch: SequenceBatch) -> Entries:
    """Expected counts under the posterior of the paths.

    Args:
        hmm: the distribution of ``batch`` under one model.
        batch: the data.

    Raises:
        ValueError: data impossible under the model, NaN counts, or several models at once.
    """
    if hmm.table.batch_shape or hmm.log_initial.ndim > 1:
        raise ValueError(
            f"the model has a parameter batch {tuple(hmm.table.batch_shape)}, expected a single "
            "model; take one draw of it."
        )
    if not isinstance(hmm.table, (DenseTable, BlockTable)):
        raise ValueError(
            f"the model has a {type(hmm.table).__name__}, which has no transitions between states "
            "to count; use counts='path'."
        )
    log_prob, initial, counts = hmm.expected_counts(batch.obs)
    if torch.isneginf(log_prob).any():
        hmm.filter(batch.obs)  # raises, naming the step
    if torch.isnan(log_prob).any() or torch.isnan(counts).any():
        raise ValueError(
            "the expected counts are NaN, expected finite numbers; look for NaN parameters of the "
            "model (a diverged fit?)."
        )
    unattributed = 0.0
    if isinstance(hmm.table, BlockTable):
        columns = hmm.table.columns
        column = columns.column[:, hmm.clones.symbol_of_state]  # (A, S, S)
        stored = column != columns.width - 1
        stored |= columns.num_lumped[:, hmm.clones.symbol_of_state, None] == 0
        action, old, new = np.nonzero(stored)
        values = _numpy(counts)[action, old, column[action, old, new]]
        unattributed = float(counts.sum()) - float(values.sum())
    else:
        found = _numpy(counts.nonzero())
        action, old, new = found.T
        values = _numpy(counts[counts != 0])
    some = values > 0
    transitions = np.stack([old, action, new], axis=1)[some]
    values = values[some].astype(np.float64)
    usage = _numpy(initial).astype(np.float64)
    usage = usage + np.bincount(transitions[:, 2], weights=values, minlength=len(usage))
    order = np.lexsort(transitions.T[::-1])
    return Entries(transitions[order], values[order], usage, max(unattributed, 0.0))


def path_entries(states: Tensor, batch: SequenceBatch, num_states: int) -> Entries:
    """Counts of a decoded path.

    Args:
        states: ``(T,)`` or ``(B, T)`` global states, MISSING in the padding.
        batch: the data that were decoded.
        num_states: ``S``.
    """
    path = _numpy(states)
    inside = path[..., 1:] != MISSING
    actions = _numpy(batch.actions)
    steps = np.stack([path[..., :-1][inside], actions[inside], path[..., 1:][inside]], axis=1)
    transitions, counts = np.unique(steps, axis=0, return_counts=True)
    usage = np.bincount(path[path != MISSING], minlength=num_states)
    return Entries(transitions, counts.astype(np.float64), usage.astype(np.float64))


def mean_positions(states: Tensor, batch: SequenceBatch, num_states: int) -> FloatArray:
    """``(S, D)`` mean known position of the steps at each state of a path, NaN where there is none.

    Args:
        states: as in :func:`path_entries`.
        batch: data with positions.
        num_states: ``S``.
    """
    path = _numpy(states)
    state = path[path != MISSING]  # padding out, what is left is in the order of flat storage
    return _weighted_means(state[:, None], np.ones((len(state), 1)), batch, num_states)


def expected_positions(posterior: Posterior, batch: SequenceBatch) -> FloatArray:
    """``(S, D)`` mean known position of each state under the posterior of its steps.

    Args:
        posterior: of the states of all steps, usually smoothed.
        batch: data with positions.
    """
    probs, state = mass_of_states(posterior)
    if batch.lengths is not None:
        steps = np.arange(posterior.probs.shape[-2])
        inside = (steps < _numpy(batch.lengths)[:, None]).reshape(-1)
        probs, state = probs[inside], state[inside]
    return _weighted_means(state, probs, batch, posterior.num_states)


def _weighted_means(
    state: IntArray, weights: FloatArray, batch: SequenceBatch, num_states: int
) -> FloatArray:
    """Of the known positions of ``(N, M)`` states, each with its weight."""
    assert batch.flat_positions is not None
    where = _numpy(batch.flat_positions).reshape(len(state), -1).astype(np.float64)
    known = np.isfinite(where).all(1)
    state, weights, where = state[known], weights[known], where[known]
    flat = state.reshape(-1)
    visits = np.bincount(flat, weights=weights.reshape(-1), minlength=num_states)
    sums = [
        np.bincount(flat, weights=(weights * axis[:, None]).reshape(-1), minlength=num_states)
        for axis in where.T
    ]
    with np.errstate(invalid="ignore"):
        return np.stack(sums, axis=1) / visits[:, None]


def _numpy(value: Tensor) -> NDArray:
    return value.detach().cpu().numpy()
