"""Maps with walls put in or taken out, or without some nodes: nothing is learned again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from .cognitive_map import CognitiveMap

__all__ = ["block", "open_edges", "recurrent", "without"]


def block(
    cognitive_map: CognitiveMap, pairs: Iterable[tuple[int, int]], *, bump: bool = False
) -> CognitiveMap:
    """A map with walls between pairs of states, both ways.

    Args:
        cognitive_map: the map; unchanged.
        pairs: states that no action joins any longer.
        bump: whether an action that led through a wall now stays where it is; otherwise its
            other outcomes share its probability, and without any it cannot be tried.

    Raises:
        ValueError: a pair that no edge joins.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> block(cognitive_map, [(1, 2)]).graph.edges(keys=True)
        OutMultiEdgeView([(0, 1, 1), (1, 0, 0)])
    """
    edges, weights = cognitive_map.edges.copy(), cognitive_map.probabilities
    gone = np.zeros(len(edges), dtype=bool)
    for pair in pairs:
        one, other = cognitive_map.node_of(pair)
        cut = (edges[:, [0, 2]] == (one, other)).all(1)
        cut |= (edges[:, [0, 2]] == (other, one)).all(1)
        if not cut.any():
            raise ValueError(f"states {tuple(pair)} have no edge, expected neighbours.")
        gone |= cut
    if bump:
        edges[gone, 2] = edges[gone, 0]
        gone[:] = False
    return cognitive_map.with_edges(edges[~gone], cognitive_map.counts[~gone], weights[~gone])


def open_edges(cognitive_map: CognitiveMap, edges: Iterable[tuple[int, int, int]]) -> CognitiveMap:
    """A map with new certain edges, such as a door that has been opened.

    Args:
        cognitive_map: the map; unchanged.
        edges: old state, action and new state; the action leads nowhere else any longer.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> open_edges(cognitive_map, [(0, 0, 2), (2, 1, 0)])
        CognitiveMap(3 nodes, 6 edges, 3 symbols, 4 actions)
    """
    kept, counts = cognitive_map.edges, cognitive_map.counts
    weights = cognitive_map.probabilities
    for old, action, new in edges:
        if not 0 <= action < cognitive_map.num_actions:
            raise ValueError(
                f"action = {action}, expected 0 <= action < {cognitive_map.num_actions}."
            )
        start, end = cognitive_map.node_of([old, new])
        other = ~(kept[:, :2] == (start, action)).all(1)
        kept = np.concatenate([kept[other], [[start, action, end]]])
        counts = np.append(counts[other], 0.0)
        weights = np.append(weights[other], 1.0)
    return cognitive_map.with_edges(kept, counts, weights)


def without(
    cognitive_map: CognitiveMap,
    *,
    symbols: Iterable[int] = (),
    actions: Iterable[int] = (),
    states: Any = (),
) -> CognitiveMap:
    """A map without some of its nodes and actions, such as the markers of episode starts.

    Args:
        cognitive_map: the map; unchanged.
        symbols: whose nodes are dropped.
        actions: whose edges are dropped.
        states: nodes that are dropped.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> without(cognitive_map, symbols=[0])
        CognitiveMap(2 nodes, 2 edges, 2 symbols, 4 actions)
    """
    drop = np.isin(cognitive_map.symbols, list(symbols))
    drop |= np.isin(cognitive_map.states, list(states))
    if drop.all():
        raise ValueError("without drops every node, expected at least one that is left.")
    old, action, new = cognitive_map.edges.T
    kept = ~(drop[old] | drop[new] | np.isin(action, list(actions)))
    edges = cognitive_map.edges[kept]
    edges[:, [0, 2]] = (np.cumsum(~drop) - 1)[edges[:, [0, 2]]]
    positions = cognitive_map.positions
    smaller = replace(
        cognitive_map,
        states=cognitive_map.states[~drop],
        symbols=cognitive_map.symbols[~drop],
        usage=cognitive_map.usage[~drop],
        positions=None if positions is None else positions[~drop],
    )
    return smaller.with_edges(edges, cognitive_map.counts[kept], cognitive_map.probabilities[kept])


def recurrent(cognitive_map: CognitiveMap) -> CognitiveMap:
    """A map without nodes that no other leads to: where sequences begin and never return.

    Args:
        cognitive_map: the map; unchanged.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> one_way = open_edges(cognitive_map, [(1, 0, 2)])
        >>> recurrent(one_way).states
        array([1, 2])
    """
    current = cognitive_map
    while True:
        old, _, new = current.edges.T
        entered = np.zeros(current.num_nodes, dtype=bool)
        entered[new[old != new]] = True
        if entered.all() or not entered.any():
            return current
        current = without(current, states=current.states[~entered])
