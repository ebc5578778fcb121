r"""Which transitions of a fitted model are edges of its map, and which are noise.

A fitted table is nowhere zero, and the expected counts of the data leak into transitions that the
world does not have.  An edge is therefore *tested*: it is kept if neither of two kinds of noise
explains its count.

**Noise.** A share :math:`\varepsilon` of all steps is noise of one of two kinds:

* *misplaced*: the walk was elsewhere.  The symbols :math:`v, w` and the action :math:`a` of the
  step are data, so its count lands on one of the :math:`N_v N_w` pairs of used states that show
  them.  A pair expects :math:`n_{avw}\,\varepsilon / (N_v N_w)` of the :math:`n_{avw}` steps;
* *outlier*: the walk was at :math:`i`, but the outcome is not one of action :math:`a` there (the
  sensor or the world slipped once).  A successor expects :math:`n_{ia}\,\varepsilon / N` of the
  row's :math:`n_{ia}` steps, with :math:`N` used states.

**Test.** The count :math:`c` (expected counts are rounded: a sum of independent indicators has its
mode within one of its mean, Darroch 1964) has under each kind the p-value

.. math::

    P(\mathrm{Binomial}(n, q) \ge c) = I_q(c, n - c + 1),

the regularised incomplete beta function, and the larger one counts.  All :math:`A N^2` possible
edges are candidates, so an edge is kept if its p-value is at most :math:`\alpha / (A N^2)`
(Bonferroni): with probability :math:`1 - \alpha` no noise edge is kept anywhere in the map.

**How much noise.** A transition expects :math:`\lambda = \varepsilon s` events of one kind of
noise, :math:`s = n_{avw} / (N_v N_w)` or :math:`n_{ia} / N`, and edges are mostly used more than
once.  So :math:`\varepsilon` is estimated, for each kind, from the possible transitions that are
counted *at most once*, the most frequent outcome of each state and action apart: a Poisson count
that is at most one is one with probability :math:`\lambda / (1 + \lambda)`, and the likelihood is
largest where

.. math::

    \sum_c \frac{\varepsilon s_c}{1 + \varepsilon s_c} = \text{number of single counts}

(the singletons tell how much is unseen, Good 1953).  Two consequences: in data that a
deterministic map explains exactly there are none and every transition that was used is an edge,
however rare; and a few stray events never become edges, because they are the noise that they are
compared with.

References:
    J. N. Darroch 1964, "On the distribution of the number of successes in independent trials",
    Annals of Mathematical Statistics 35:1317; I. J. Good 1953, "The population frequencies of
    species and the estimation of population parameters", Biometrika 40:237.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc

__all__ = ["EdgeTest", "significant_edges"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class EdgeTest(NamedTuple):
    """What the test found; ``E`` candidate transitions were given.

    Attributes:
        kept: ``(E,)`` bool.
        p_values: ``(E,)`` not corrected for the number of candidates.
        noise: the estimated share of the steps that are noise, of the kind with more.
        level: the largest p-value of a kept edge, ``alpha / (A N^2)``.
    """

    kept: NDArray[np.bool_]
    p_values: FloatArray
    noise: float
    level: float


def significant_edges(
    transitions: IntArray,
    counts: FloatArray,
    symbol_of_state: IntArray,
    usage: FloatArray,
    *,
    num_actions: int,
    unattributed: float = 0.0,
    alpha: float = 0.05,
) -> EdgeTest:
    """Test every counted transition; see the module docstring.

    Args:
        transitions: ``(E, 3)`` old state, action, new state, each once.
        counts: ``(E,)`` how often, expected or observed.
        symbol_of_state: ``(S,)``.
        usage: ``(S,)`` visits; states with less than half a visit are not used.
        num_actions: ``A``.
        unattributed: steps of the data that the counts leave out; they are noise.
        alpha: probability of any noise edge in the map.

    Example:
        >>> transitions = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 1]])
        >>> significant_edges(
        ...     transitions, np.array([500.0, 499.0, 1.0]), np.array([0, 1]),
        ...     np.array([500.0, 501.0]), num_actions=1
        ... ).kept
        array([ True,  True, False])
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha = {alpha}, expected a probability above 0, at most 1.")
    old, action, new = transitions.T
    total = float(counts.sum()) + unattributed
    used = np.rint(usage) >= 1
    num_used = max(int(used.sum()), 1)
    level = alpha / (num_actions * num_used**2)
    if not len(counts) or total == 0:
        return EdgeTest(np.zeros(len(counts), dtype=bool), np.ones(len(counts)), 0.0, level)
    symbols = int(symbol_of_state.max()) + 1
    per_symbol = np.maximum(np.bincount(symbol_of_state[used], minlength=symbols), 1)
    shown, next_shown = symbol_of_state[old], symbol_of_state[new]
    row = old * num_actions + action
    block = (action * symbols + shown) * symbols + next_shown
    events = np.rint(counts)
    most = _most_frequent(row, counts)
    p_values = np.zeros(len(counts))
    noise = 0.0
    for group, cells in (
        (block, per_symbol[shown] * per_symbol[next_shown]),
        (row, np.full(len(counts), num_used)),
    ):
        share = _noise_share(counts, most, group, cells, unattributed)
        trials = _total(group, counts)
        p_values = np.maximum(p_values, _tail(events, trials, share / cells))
        noise = max(noise, share)
    return EdgeTest(p_values <= level, p_values, noise, level)


def _most_frequent(row: IntArray, counts: FloatArray) -> NDArray[np.bool_]:
    """``(E,)`` whether an entry has the largest count of its row; one in each row."""
    order = np.lexsort((-counts, row))
    most = np.zeros(len(counts), dtype=bool)
    most[order[np.r_[True, np.diff(row[order]) != 0]]] = True
    return most


def _noise_share(
    counts: FloatArray,
    most: NDArray[np.bool_],
    group: IntArray,
    cells: IntArray,
    unattributed: float,
) -> float:
    """The share of noise that makes single counts as frequent as they are.

    Args:
        counts: ``(E,)``.
        most: ``(E,)`` whether an entry is its row's most frequent outcome.
        group: ``(E,)`` over which noise is spread evenly.
        cells: ``(E,)`` number of transitions in the group, counted or not.
        unattributed: steps that the counts leave out.
    """
    rare = ~most & (np.rint(counts) <= 1)
    events = float(counts[rare].sum()) + unattributed
    if events == 0:
        return 0.0
    _, first, index = np.unique(group, return_index=True, return_inverse=True)
    rate = np.bincount(index, weights=counts) / cells[first]
    free = cells[first] - np.bincount(index, weights=~rare)

    def surplus(share: float) -> float:
        expected = share * rate
        return float((free * expected / (1 + expected)).sum()) - events

    # Noise is at most what lies outside the most frequent outcomes.
    bound = (float(counts[~most].sum()) + unattributed) / (float(counts.sum()) + unattributed)
    return bound if surplus(bound) <= 0 else float(brentq(surplus, 0.0, bound))


def _total(group: IntArray, counts: FloatArray) -> FloatArray:
    """``(E,)`` sum of the counts of each entry's group."""
    _, index = np.unique(group, return_inverse=True)
    return np.bincount(index, weights=counts)[index].astype(np.float64)


def _tail(events: FloatArray, trials: FloatArray, probs: FloatArray) -> FloatArray:
    """``(E,)`` probability of at least so many events; one where there is none."""
    some = np.maximum(events, 1.0)
    tail = betainc(some, np.maximum(trials, some) - some + 1, probs)
    return np.where(events >= 1, tail, 1.0)
