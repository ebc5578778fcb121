r"""Maps of worlds with chance in them, read from expected counts instead of a path.

Where moves fail now and then, or symbols are seen wrongly, the most probable path is a poor
witness: it prefers one of two equal copies of a place for what is likely and the other for what is
not, so that they no longer look equal.  The counts that the posterior expects treat them alike.

Their description length (:mod:`chmm_pyro.inference.merging`) is the one of a *distribution* of
paths.  It needs fewer nats than it says, because any path drawn from it explains the data: with
:math:`D(n)` nats for counts :math:`n`, transitions :math:`\theta` and data :math:`x`,

.. math::

    F = D(\mathbb E\, n) - \Big[ \log p(x) - \sum \mathbb E\, n \log \theta \Big] ,

where the bracket is the entropy of the paths plus what the evidence for symbols costs.  This is the
free energy of variational Bayes (M. Beal 2003, "Variational algorithms for approximate Bayesian
inference", chapter 3) under the prior of the description length.  A crisp path has no entropy and
:math:`F` is its description length, so maps of both kinds are compared in one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.base import CloneModel
from ..sequences import SequenceBatch
from .consolidate import expected_moves
from .em import fit_em
from .merging import description_length, merge_states

__all__ = ["ExpectedMap", "expected_map", "read_length"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Build = Callable[[FloatArray, IntArray], CloneModel]

_SUSPECTS = 5  # states, the least visited, that are tried without
_RARE = (1.0, 2.0, 4.0, 8.0)  # moves expected less often than this are tried without


class ExpectedMap(NamedTuple):
    """A map: expected counts ``(A, C, C)``, the symbol of each state, and ``F`` in nats."""

    counts: FloatArray
    symbols: IntArray
    length: float


@torch.no_grad()
def expected_map(
    model: CloneModel, batch: SequenceBatch, build: Build, *, num_iters: int = 20
) -> ExpectedMap:
    """The map that a fitted model makes of the data, as small as ``F`` allows.

    States are merged on expected counts.  Then the cheapest merge of two more states, and the map
    without its rarest moves, are refitted and stay if ``F`` falls.

    Args:
        model: a model that explains the data, with more states than there are places.
        batch: the data.
        build: makes a model of counts ``(A, C, C)`` and symbols ``(C,)``; zeros stay zeros.
        num_iters: EM updates of each refit at most.
    """

    def refit(counts: FloatArray, symbols: IntArray) -> ExpectedMap | None:
        start = build(counts, symbols)
        if torch.isneginf(start.distribution(batch).log_prob(batch.obs)).any():
            return None
        fit = fit_em(start, batch, num_iters=num_iters, tol=1e-6, progress=False)
        if fit.interrupted:
            raise KeyboardInterrupt
        return _read(fit.model, batch)

    path = model.distribution(batch).posterior_mode(batch.obs)
    merging = merge_states(*expected_moves(model, batch, path), alone=True)
    best = refit(merging.counts, merging.symbols)
    assert best is not None  # merged states explain what the states they are made of did
    while True:
        tried = (refit(*simpler) for simpler in _simpler(best))
        found = next((x for x in tried if x is not None and x.length < best.length), None)
        if found is None:
            return best
        best = found


@torch.no_grad()
def read_length(model: CloneModel, batch: SequenceBatch, counts: FloatArray) -> float:
    """``F`` of counts ``(A, C, C)`` that ``model`` expects of the data, in nats."""
    hmm = model.distribution(batch)
    log_prob, initial_counts, expected = hmm.expected_counts(batch.obs)
    log_table = hmm.table.values.double()
    known = torch.where(expected > 0, expected.double() * log_table, 0.0).sum()
    known = known + (initial_counts.double() * hmm.log_initial.double()).sum()
    return description_length(counts) - float(log_prob.sum() - known)


def _read(model: CloneModel, batch: SequenceBatch) -> ExpectedMap:
    path = model.distribution(batch).posterior_mode(batch.obs)
    counts, symbols = expected_moves(model, batch, path)
    return ExpectedMap(counts, symbols, read_length(model, batch, counts))


def _simpler(found: ExpectedMap) -> Iterator[tuple[FloatArray, IntArray]]:
    """Maps with a state less, or without their rarest moves."""
    counts, symbols = found.counts, found.symbols
    order = np.argsort(counts.sum((0, 2)), kind="stable")
    pairs = [
        (int(other), int(rare))
        for at, rare in enumerate(order[:_SUSPECTS])
        for other in order[at + 1 :]
        if symbols[other] == symbols[rare]
    ]
    if pairs:
        merged = [_joined(counts, *pair) for pair in pairs]
        cheapest = int(np.argmin([description_length(one) for one in merged]))
        yield merged[cheapest], np.delete(symbols, pairs[cheapest][1])
    likely = counts == counts.max(-1, keepdims=True)
    for rare in _RARE:
        kept = (counts >= rare) | likely
        if not kept[counts > 0].all():
            yield np.where(kept, counts, 0.0), symbols


def _joined(counts: FloatArray, one: int, other: int) -> FloatArray:
    joined = counts.copy()
    joined[:, one] += joined[:, other]
    joined[:, :, one] += joined[:, :, other]
    return np.delete(np.delete(joined, other, axis=1), other, axis=2)
