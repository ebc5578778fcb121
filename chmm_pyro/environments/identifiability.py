"""Which places of a world no walk can tell apart: partition refinement of the true graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["confusable_pairs"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def confusable_pairs(
    symbols: IntArray, next_place: IntArray, tried: BoolArray
) -> Iterator[tuple[int, int]]:
    """The pairs of places that a smaller map could merge without contradicting any walk.

    Args:
        symbols: ``(P,)`` what each place shows.
        next_place: ``(P, A)`` where each action leads.
        tried: ``(P, A)`` whether it is ever tried there.
    """
    compatible = symbols[:, None] == symbols
    while True:
        refined = compatible.copy()
        for successor, by in zip(next_place.T, tried.T, strict=True):
            refined &= ~(by[:, None] & by) | compatible[np.ix_(successor, successor)]
        if (refined == compatible).all():
            break
        compatible = refined
    # Pairwise compatibility is not transitive where actions are never tried: fold each pair.
    everything_tried = bool(tried.all())
    outcomes = [
        {action: target for action, target in enumerate(row) if by[action]}
        for row, by in zip(next_place.tolist(), tried.tolist(), strict=True)
    ]
    for one, other in np.argwhere(np.triu(compatible, k=1)).tolist():
        if everything_tried or _folds(symbols, outcomes, one, other):
            yield one, other


def _folds(symbols: IntArray, outcomes: list[dict[int, int]], one: int, other: int) -> bool:
    """Whether merging two places, and all that this forces, meets no contradiction."""
    parent = list(range(len(symbols)))
    outcome = [dict(known) for known in outcomes]

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    todo = [(one, other)]
    while todo:
        kept, merged = map(root, todo.pop())
        if kept == merged:
            continue
        if symbols[kept] != symbols[merged]:
            return False
        parent[merged] = kept
        for action, target in outcome[merged].items():
            todo.append((outcome[kept].setdefault(action, target), target))
    return True
