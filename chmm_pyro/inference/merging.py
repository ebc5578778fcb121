r"""Merge hidden states that predict the same futures, judged by how well merged counts compress.

A decoded path gives counts :math:`n_{acj}` of moves from class *c* under action *a* to class *j*.
A row that was tried has one outcome, any of ``K``, or several, and either is as likely beforehand.
Several have a symmetric Dirichlet prior of total concentration one, and so the evidence of a row
(Cooper & Herskovits 1992 give that of multinomial rows)

.. math::

    D_{ac} = \frac{1}{\Gamma(1 + n_{ac\cdot})}
        \prod_{j: n_{acj} > 0} \frac{\Gamma(1/K + n_{acj})}{\Gamma(1/K)} .

The negative log evidence of all rows,

.. math::

    L = -\sum_{(a, c)\ \mathrm{tried}} \log \tfrac12
        \Big( \tfrac1K [\text{one } n_{acj} > 0] + D_{ac} \Big) ,

is the description length of the path in nats.  With the Dirichlet prior alone every row would pay
:math:`\log n` nats to be believed to have one outcome, and a small map that leaves something to
chance would beat a large one where nothing does, unless the walk is long.  ``K`` stays the number
of states that one started with: two states that share no tried action then gain nothing by merging,
so a merge needs positive evidence.

A merge is judged together with what follows from it.  If two states are one, so are their
successors under a shared action (as in evidence-driven state merging, Lang et al. 1998): the whole
*fold* is accepted or not.  Both readings of a row with several successors of one symbol are tried:
duplicates of one place, or places that a stochastic move reaches.  Folds are accepted greedily in
two orders, by what they save and by what they save for each state merged (a large wrong fold may
save more than a small right one); the shorter description wins.  A fold is worked out again only
after another one has changed a row that it reads.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from math import exp, lgamma, log

import numpy as np
from numpy.typing import NDArray

__all__ = ["Merging", "description_length", "merge_states"]

Row = dict[int, float]
Question = tuple[int, int, bool | None]
# Whether successors of one symbol are taken for duplicates, None for pairs alone; in order.
Tiers = tuple[tuple[bool | None, ...], ...]

# Duplicates within rows are judged in groups of so many; the first group with a fold decides.
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class Merging:
    """Which states are one.

    Attributes:
        labels: ``(K,)`` class of each state, numbered ``0 .. C - 1`` in order of first states.
        counts: ``(A, C, C)`` merged counts.
        symbols: ``(C,)`` symbol of each class.
        description_length: of the merged counts, in nats, with ``K`` in the prior.
        description_length_before: of the counts as given.
        num_folds: how many folds were accepted.
    """

    labels: NDArray[np.int64]
    counts: NDArray[np.float64]
    symbols: NDArray[np.int64]
    description_length: float
    description_length_before: float
    num_folds: int


def description_length(counts: NDArray[np.float64], num_states: int | None = None) -> float:
    """Nats that the counts ``(A, C, C)`` cost under the prior of the module docstring.

    Args:
        counts: counts of moves, none negative.
        num_states: ``K`` in the prior; by default ``C``, which compares models of any origin.
    """
    prior = 1.0 / (num_states or counts.shape[-1])
    entries = [row[row > 0].tolist() for row in counts.reshape(-1, counts.shape[-1])]
    return sum(_row_length(row, prior) for row in entries if row)


def _row_length(values: Collection[float], prior: float) -> float:
    total, length, unit = 0.0, 0.0, lgamma(prior)
    for value in values:
        total += value
        length += unit - lgamma(prior + value)
    length += lgamma(1.0 + total)
    if len(values) == 1:
        length = -log(prior + exp(-length))
    return length + log(2.0)


class _Graph:
    """Sparse counts of classes, with the lengths of their rows."""

    def __init__(self, counts: NDArray[np.float64], symbols: NDArray[np.int64]) -> None:
        self.symbols = symbols.tolist()
        self.prior = 1.0 / max(len(symbols), 1)
        self.rows: dict[tuple[int, int], Row] = {}
        self.leading: dict[int, set[tuple[int, int]]] = {c: set() for c in range(len(symbols))}
        for action, old, new in zip(*np.nonzero(counts), strict=True):
            row = self.rows.setdefault((int(old), int(action)), {})
            row[int(new)] = float(counts[action, old, new])
            self.leading[int(new)].add((int(old), int(action)))
        self.num_actions = len(counts)
        self.length = {key: _row_length(row.values(), self.prior) for key, row in self.rows.items()}
        self.parent: dict[int, int] = {}
        self.num_folds = 0
        self._known: dict[Question, _Fold | None] = {}
        self._asked_about: dict[int, set[Question]] = {}

    def copy(self) -> _Graph:
        other = copy.copy(self)
        for name in ("rows", "length", "parent", "_known"):
            setattr(other, name, dict(getattr(self, name)))
        for name in ("leading", "_asked_about"):
            setattr(other, name, {key: set(some) for key, some in getattr(self, name).items()})
        return other

    def fold(self, one: int, other: int, duplicates: bool | None) -> _Fold | None:
        """What merging two classes entails, or None if it contradicts their symbols.

        ``duplicates`` None merges the two alone.
        Most folds stay the same when another one is accepted, so they are remembered.
        """
        question = one, other, duplicates
        if question not in self._known:
            self._known[question], read = self._fold(*question)
            for c in read:
                self._asked_about.setdefault(c, set()).add(question)
        return self._known[question]

    def _fold(self, one: int, other: int, duplicates: bool | None) -> tuple[_Fold | None, set[int]]:
        """The fold, and the classes whose rows it depends on."""
        parent: dict[int, int] = {}

        def find(c: int) -> int:
            while c in parent:
                c = parent[c]
            return c

        members: dict[int, list[int]] = {}
        read: set[int] = set()
        todo = [(one, other)]
        while todo:
            first, second = (find(c) for c in todo.pop())
            if first == second:
                continue
            if self.symbols[first] != self.symbols[second]:
                return None, read
            if first > second:
                first, second = second, first
            parts = members.pop(first, [first]), members.pop(second, [second])
            parent[second] = first
            members[first] = parts[0] + parts[1]
            read.update(members[first])
            if duplicates is None:
                break
            for action in range(self.num_actions):
                sides = [self._successors(part, action, find) for part in parts]
                if not (sides[0] and sides[1]):
                    continue
                if not sides[0].keys() & sides[1].keys():
                    return None, read  # the same move shows symbols that never agree
                todo += _entailed(sides[0], sides[1], duplicates)
        fold = self._assess(parent, members, find)
        return fold, read | {old for old, _ in fold.keys}

    def _successors(self, part: list[int], action: int, find) -> dict[int, set[int]]:
        """Classes that a set of classes moves to, by symbol."""
        found: dict[int, set[int]] = {}
        for c in part:
            for new in self.rows.get((c, action), ()):
                found.setdefault(self.symbols[new], set()).add(find(new))
        return found

    def _assess(self, parent: dict[int, int], members: dict[int, list[int]], find) -> _Fold:
        """New rows of everything touched, and how much shorter they are."""
        touched = {c for group in members.values() for c in group}
        keys = {(c, a) for c in touched for a in range(self.num_actions) if (c, a) in self.rows}
        for c in parent:
            keys |= self.leading[c]
        rows: dict[tuple[int, int], Row] = {}
        saved = 0.0
        for old, action in keys:
            saved += self.length[old, action]
            row = rows.setdefault((find(old), action), {})
            for new, count in self.rows[old, action].items():
                new = find(new)
                row[new] = row.get(new, 0.0) + count
        lengths = {key: _row_length(row.values(), self.prior) for key, row in rows.items()}
        return _Fold(saved - sum(lengths.values()), parent, keys, rows, lengths)

    def accept(self, fold: _Fold) -> None:
        for c in {*fold.parent, *fold.parent.values(), *(old for old, _ in fold.keys)}:
            for question in self._asked_about.pop(c, ()):
                self._known.pop(question, None)
        for key in fold.keys:
            for new in self.rows[key]:
                self.leading[new].discard(key)
            del self.rows[key], self.length[key]
        for key, row in fold.rows.items():
            self.rows[key] = row
            self.length[key] = fold.lengths[key]
            for new in row:
                self.leading[new].add(key)
        self.parent.update(fold.parent)
        self.num_folds += 1

    def merging(self, before: float) -> Merging:
        """What has become of the states, that took ``before`` nats."""
        roots = np.arange(len(self.symbols))
        for state in range(len(roots)):
            root = state
            while root in self.parent:
                root = self.parent[root]
            roots[state] = root
        kept, labels = np.unique(roots, return_inverse=True)
        number = {int(root): c for c, root in enumerate(kept)}
        merged = np.zeros((self.num_actions, len(kept), len(kept)))
        for (old, action), row in self.rows.items():
            for new, count in row.items():
                merged[action, number[old], number[new]] = count
        after = sum(self.length.values())
        symbols = np.array(self.symbols)[kept]
        return Merging(labels, merged, symbols, after, before, self.num_folds)

    def pairs_in_rows(self) -> list[tuple[int, int]]:
        """Pairs of one symbol that one move leads to, the most often seen first."""
        found: dict[tuple[int, int], float] = {}
        for row in self.rows.values():
            news = sorted(row)
            for i, one in enumerate(news):
                for other in news[i + 1 :]:
                    if self.symbols[one] == self.symbols[other]:
                        seen = found.get((one, other), 0.0)
                        found[one, other] = seen + min(row[one], row[other])
        return sorted(found, key=lambda pair: (-found[pair], pair))

    def pairs_with_shared_moves(self) -> list[tuple[int, int]]:
        """Pairs of one symbol with a move that both tried."""
        tried: dict[int, list[int]] = {}
        for old, action in self.rows:
            tried.setdefault(self.symbols[old] * self.num_actions + action, []).append(old)
        found: set[tuple[int, int]] = set()
        for group in tried.values():
            group.sort()
            for i, one in enumerate(group):
                found.update((one, other) for other in group[i + 1 :])
        return sorted(found)


@dataclass(frozen=True)
class _Fold:
    gain: float
    parent: dict[int, int]
    keys: set[tuple[int, int]]
    rows: dict[tuple[int, int], Row]
    lengths: dict[tuple[int, int], float]


def _entailed(
    left: dict[int, set[int]], right: dict[int, set[int]], duplicates: bool
) -> list[tuple[int, int]]:
    """Successors that are one if the states they come from are."""
    pairs = []
    for symbol in left.keys() & right.keys():
        if duplicates:
            both = sorted(left[symbol] | right[symbol])
            pairs += [(both[0], c) for c in both[1:]]
        elif len(left[symbol]) == len(right[symbol]) == 1:
            pairs.append((min(left[symbol]), min(right[symbol])))
    return pairs


def merge_states(
    counts: NDArray[np.float64],
    symbols: NDArray[np.int64],
    *,
    min_gain: float = 1e-6,
    alone: bool = False,
) -> Merging:
    """Merge states while the description length falls, the best fold first.

    Args:
        counts: ``(A, K, K)`` counts of moves along decoded paths.
        symbols: ``(K,)`` symbol of each state; only states of one symbol merge.
        min_gain: nats that a fold has to save.
        alone: try each pair without what follows from it first, for worlds with chance in them:
            there the rare outcomes of two states need not agree, and entail wrong merges.

    Returns:
        The :class:`Merging`; its classes are numbered in order of their first states.

    Example:
        Two copies of one place, each leading to the other and back:

        >>> counts = np.array([[[0.0, 9.0, 9.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
        >>> merge_states(counts, np.array([0, 1, 1])).labels
        array([0, 1, 1])
    """
    counts, symbols = np.asarray(counts, np.float64), np.asarray(symbols)
    tiers: Tiers = ((None,), (True, False)) if alone else ((True, False),)
    graph = _Graph(counts, symbols)
    before = sum(graph.length.values())
    ends: list[_Graph] = []
    runs = [(graph, [_saved_per_state, _saved])]
    while runs:
        graph, orders = runs.pop()
        folds = _worthwhile(graph, min_gain, tiers)
        if not folds:
            ends.append(graph)
            continue
        # The orders share their work until they choose different folds.
        first, *others = (max(folds, key=order) for order in orders)
        if any(other is not first for other in others):
            runs.append((graph.copy(), orders[1:]))
            orders = orders[:1]
            runs[-1][0].accept(others[0])
        graph.accept(first)
        runs.append((graph, orders))
    return min(
        (graph.merging(before) for graph in ends), key=lambda merging: merging.description_length
    )


def _worthwhile(graph: _Graph, min_gain: float, tiers: Tiers) -> list[_Fold]:
    """Folds that save something, of the strongest evidence there is.

    Duplicates within a row are the strongest; all other pairs wait for them, and are all judged
    against each other.
    """
    likely = graph.pairs_in_rows()
    groups = [likely[i : i + _PAIRS_AT_ONCE] for i in range(0, len(likely), _PAIRS_AT_ONCE)]
    groups.append(graph.pairs_with_shared_moves())
    for readings, pairs in product(tiers, groups):
        folds = [
            fold
            for one, other in pairs
            for duplicates in readings
            if (fold := graph.fold(one, other, duplicates)) is not None and fold.gain > min_gain
        ]
        if folds:
            return folds
    return []


def _saved(fold: _Fold) -> float:
    return fold.gain


def _saved_per_state(fold: _Fold) -> float:
    return fold.gain / len(fold.parent)
