"""Where to draw the nodes of a learned graph, so that a room looks like a room."""

from __future__ import annotations

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path

__all__ = ["unfold"]

_MAX_REFINED = 300  # beyond, the closed-form layout has to do


def unfold(num_nodes: int, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Places for the nodes of an undirected graph such that neighbours are neighbours.

    Args:
        num_nodes: ``N``; nodes without an edge stand alone.
        pairs: ``(E, 2)`` distinct edges between different nodes.

    Returns:
        ``(N, 2)`` coordinates; half of the edges are shorter than one.  Components stand side by
        side, the largest first.

    Example:
        >>> square = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
        >>> xy = unfold(4, square)
        >>> sides = np.linalg.norm(xy[square[:, 0]] - xy[square[:, 1]], axis=1)
        >>> bool(np.allclose(sides, 1, atol=0.05))
        True
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(pairs.tolist())
    xy = np.zeros((num_nodes, 2))
    right = 0.0
    for component in sorted(nx.connected_components(graph), key=len, reverse=True):
        members = sorted(component)
        placed = _upright(*_component_layout(graph.subgraph(members), members))
        placed -= placed.min(0) - [right, 0]
        placed[:, 1] -= np.ptp(placed[:, 1]) / 2
        right = placed[:, 0].max() + 1.5
        xy[members] = placed
    return xy


def _component_layout(
    graph: nx.Graph, members: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Coordinates whose distances resemble numbers of steps, and the edges between them."""
    adjacency = nx.to_scipy_sparse_array(graph, nodelist=members)
    steps = shortest_path(adjacency, unweighted=True)
    pairs = np.argwhere(np.triu(adjacency.toarray()))
    if len(members) < 3:
        return np.stack([np.arange(len(members)), np.zeros(len(members))], axis=1), pairs
    # Classical scaling unfolds the graph from any start; springs then even out the distances.
    centred = steps**2 - (steps**2).mean(0)
    values, vectors = np.linalg.eigh(-(centred - centred.mean(1, keepdims=True)) / 2)
    xy = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    if len(members) <= _MAX_REFINED:
        # Twins (states with the same neighbours) must not start on the same spot.
        xy += np.random.default_rng(0).normal(scale=0.01, size=xy.shape)
        by_member = [dict(zip(members, row, strict=True)) for row in steps]
        refined = nx.kamada_kawai_layout(
            graph,
            dist=dict(zip(members, by_member, strict=True)),
            pos=dict(zip(members, xy, strict=True)),
        )
        xy = np.array([refined[member] for member in members])
    lengths = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
    return xy / np.median(lengths), pairs


def _upright(xy: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Turned so that edges run along the axes, as in a room, the longer side lying down."""
    along = xy[pairs[:, 0]] - xy[pairs[:, 1]]
    # Directions count modulo a right angle: their fourth powers agree.
    turn = np.angle(np.sum((along[:, 0] + 1j * along[:, 1]) ** 4)) / 4 if len(pairs) else 0.0
    turned = (xy[:, 0] + 1j * xy[:, 1]) * np.exp(-1j * turn)
    if np.ptp(turned.imag) > np.ptp(turned.real):
        turned = turned * 1j
    return np.stack([turned.real, turned.imag], axis=1)
