r"""Split states that no evidence holds together: passages through them that share no action.

Two places of one symbol where a walker never tries the same action, such as two opposite corners of
a room whose walls it avoids, can be one state without any contradiction: the likelihood given the
actions is the same.  So every fit may join them.  But a *passage* through such a state tells them
apart: it comes in by one move and goes out by an action, and the moves in and actions out fall into
groups that are never mixed.

Each group is a place of its own if the actions say so: within a sequence the walker chose from
other actions there.  With :math:`n_{bga}` passages of group *g* in sequence *b* that left by action
*a*, and :math:`D` the evidence of counts under a Dirichlet prior of concentrations 1/2, a state is
split if

.. math::

    \sum_b \Big[ \sum_g \log D(n_{bg\cdot}) - \log D\Big(\sum_g n_{bg\cdot}\Big) \Big] > 0 .

Sequences count apart, because what a walker tries at a place may differ from one to the next.
Where every action is tried everywhere there is one group, and nothing is split.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln

from ..clones import MISSING

__all__ = ["split_passages"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def split_passages(states: IntArray, actions: IntArray, num_actions: int) -> IntArray:
    """States of paths, with more of them where passages share no action.

    Args:
        states: ``(B, T)`` numbers from 0, MISSING after the end of a sequence.
        actions: ``(B, T - 1)``, or more columns, which are ignored.
        num_actions: ``A``.

    Returns:
        ``(B, T)``; the first group of each state keeps its number, others get new ones.

    Example:
        Two opposite corners of one symbol, taken for one place:

        >>> from chmm_pyro.environments import Room
        >>> room = Room([[0, 1, 2], [3, 4, 5], [6, 7, 0]], walls="never")
        >>> walk = room.random_walk(500, seed=0)
        >>> states = np.where(walk.places == 8, 0, walk.places)[None]
        >>> split = split_passages(states, walk.actions[None], num_actions=4)
        >>> len(np.unique(states)), len(np.unique(split))
        (8, 9)
    """
    states = np.array(states)
    inside = states != MISSING
    while True:
        group, owner = _groups(states, actions, num_actions)
        divided = _gains(states, actions, group, owner, num_actions) > 0
        first = np.unique(owner, return_index=True)[1]  # groups are numbered state by state
        new = divided[owner]
        new[first] = False
        if not new.any():
            return states
        number = owner.copy()
        number[new] = states.max() + 1 + np.arange(new.sum())
        states[inside] = number[group[inside]]


def _groups(states: IntArray, actions: IntArray, num_actions: int) -> tuple[IntArray, IntArray]:
    """The group ``(B, T)`` of each step, MISSING outside, and the state ``(G,)`` of each group."""
    inside = states != MISSING
    moved = inside[:, 1:]  # a step that was moved to, and at which the one before was left
    taken = actions[:, : moved.shape[1]]
    ways_in, ways_out = np.full((2, *states.shape), MISSING)
    size = int(states.max()) + 1
    came = (states[:, :-1] * num_actions + taken) * size + states[:, 1:]
    ways_in[:, 1:][moved] = np.unique(came[moved], return_inverse=True)[1]
    ways_out[:, :-1][moved] = (states[:, :-1] * num_actions + taken)[moved]
    offset = size * num_actions
    num_nodes = offset + int(ways_in.max()) + 1
    passed = (ways_in != MISSING) & (ways_out != MISSING)
    ends = offset + ways_in[passed], ways_out[passed]
    links = sp.coo_matrix((np.ones(len(ends[0])), ends), shape=(num_nodes, num_nodes))
    component = connected_components(links, directed=False)[1]
    node = np.where(ways_out != MISSING, ways_out, offset + ways_in)
    node = np.where((ways_out == MISSING) & (ways_in == MISSING), 0, node)
    key = np.where(inside, states * num_nodes + component[node], MISSING)
    keys, group = np.unique(key[inside], return_inverse=True)
    groups = np.full(states.shape, MISSING)
    groups[inside] = group
    return groups, keys // num_nodes


def _gains(
    states: IntArray, actions: IntArray, group: IntArray, owner: IntArray, num_actions: int
) -> FloatArray:
    """``(S,)`` how much better each state's actions are explained group by group, in nats."""
    num_sequences, num_groups, size = len(states), len(owner), int(states.max()) + 1
    left = states[:, 1:] != MISSING
    sequence = np.broadcast_to(np.arange(num_sequences)[:, None], left.shape)[left]
    taken = actions[:, : left.shape[1]][left]
    several = np.flatnonzero(np.bincount(owner, minlength=size)[owner] > 1)
    gains = np.zeros(size)
    counts = np.zeros((num_sequences, num_groups, num_actions))
    np.add.at(counts, (sequence, group[:, :-1][left], taken), 1.0)
    np.add.at(gains, owner[several], _log_evidence(counts[:, several]).sum(0))
    for state in np.unique(owner[several]):
        gains[state] -= _log_evidence(counts[:, owner == state].sum(1)).sum()
    return gains


def _log_evidence(counts: FloatArray) -> FloatArray:
    """Of counts ``(..., A)`` under a symmetric Dirichlet prior of concentrations 1/2."""
    num_actions = counts.shape[-1]
    rows = gammaln(counts + 0.5).sum(-1) - gammaln(counts.sum(-1) + num_actions / 2)
    return rows + gammaln(num_actions / 2) - num_actions * gammaln(0.5)
