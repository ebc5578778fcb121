"""Planning on two levels: from room to room over their gateways, then within the rooms.

Communities of a map (its rooms) are joined by few edges.  The nodes on these, the *gateways*, make
a small graph of their own, with the shortest ways between the gateways of one community found once
and for all.  A shortest path leaves and enters communities only at gateways, so searching that
graph, and only the start's and the goal's own community in detail, finds a path as short as the
flat search does, after looking at far fewer nodes (hierarchical path finding, Botea et al. 2004,
with every gateway kept, which makes it exact).

References:
    A. Botea, M. Müller, J. Schaeffer 2004, "Near optimal hierarchical path-finding", Journal of
    Game Development 1:7; George et al. 2021, Nature Communications 12:2392, fig. 7.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..maps.cognitive_map import CognitiveMap
from .plans import Plan, States, node_list, unreachable

__all__ = ["Hierarchy", "communities"]

Edge = tuple[int, int, float]  # action, other node, -log probability
Tree = dict[int, tuple[int, Edge | None]]  # node: steps from the root, edge from its parent
Path = list[tuple[int, Edge | None]]  # node, edge taken from it; the last has none


def communities(
    cognitive_map: CognitiveMap, *, resolution: float = 1.0, seed: int = 0
) -> NDArray[np.int64]:
    """Groups of nodes that have more edges with each other than with others (Louvain).

    Args:
        cognitive_map: directions and actions of its edges are ignored, their probabilities add up.
        resolution: larger values give more, smaller groups.
        seed: of the order in which nodes are visited.

    Returns:
        ``(N,)`` labels; 0 is the largest group.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> wall = [((row, 2), (row, 3)) for row in (0, 2)]
        >>> rooms = Room(np.zeros((3, 6), int), blocked=wall)
        >>> communities(CognitiveMap.from_room(rooms)).reshape(3, 6)
        array([[0, 0, 0, 1, 1, 1],
               [0, 0, 0, 1, 1, 1],
               [0, 0, 0, 1, 1, 1]])
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(cognitive_map.num_nodes))
    for (old, _, new), probability in zip(
        cognitive_map.edges.tolist(), cognitive_map.probabilities.tolist(), strict=True
    ):
        if old != new:
            weight = graph.get_edge_data(old, new, {"weight": 0.0})["weight"]
            graph.add_edge(old, new, weight=weight + probability)
    groups = nx.community.louvain_communities(graph, resolution=resolution, seed=seed)
    labels = np.zeros(cognitive_map.num_nodes, dtype=np.int64)
    for label, group in enumerate(sorted(groups, key=lambda group: (-len(group), min(group)))):
        labels[list(group)] = label
    return labels


class Hierarchy:
    """A map with its communities, prepared for planning on two levels.

    Args:
        cognitive_map: the map.
        labels: ``(N,)`` the community of each node; by default :func:`communities`.

    Attributes:
        labels: as given or found.
        gateways: ``(G,)`` node indices with an edge to or from another community.
        num_prepared: nodes expanded in the preparation, once for all plans.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> wall = [((row, 2), (row, 3)) for row in (0, 2)]
        >>> rooms = CognitiveMap.from_room(Room(np.zeros((3, 6), int), blocked=wall))
        >>> hierarchy = Hierarchy(rooms)
        >>> hierarchy.gateways, hierarchy.plan(0, 17).num_steps
        (array([8, 9]), 7)
    """

    def __init__(self, cognitive_map: CognitiveMap, labels: ArrayLike | None = None) -> None:
        self.cognitive_map = cognitive_map
        self.labels = communities(cognitive_map) if labels is None else np.asarray(labels)
        if self.labels.shape != (cognitive_map.num_nodes,):
            raise ValueError(
                f"labels has shape {self.labels.shape}, expected ({cognitive_map.num_nodes},): a "
                "community for each node of the map."
            )
        self._label: list[Any] = self.labels.tolist()
        self._forward = cognitive_map.successors
        self._backward: list[list[Edge]] = [[] for _ in self._forward]
        gateways: set[int] = set()
        for node, edges in enumerate(self._forward):
            for action, target, surprise in edges:
                self._backward[target].append((action, node, surprise))
                if self._label[node] != self._label[target]:
                    gateways |= {node, target}
        self.gateways = np.array(sorted(gateways), dtype=np.int64)
        self._members: defaultdict[Any, list[int]] = defaultdict(list)
        for gate in sorted(gateways):
            self._members[self._label[gate]].append(gate)
        self._trees = {gate: self._tree([gate], self._forward) for gate in sorted(gateways)}
        self.num_prepared = sum(map(len, self._trees.values()))

    def plan(self, start: States, goal: States) -> Plan:
        """A path with the fewest steps; the arguments and errors are those of ``planning.plan``.

        ``num_expanded`` counts the nodes seen in the communities of start and goal and the
        gateways settled in between.
        """
        starts = node_list(self.cognitive_map, "start", start)
        goals = node_list(self.cognitive_map, "goal", goal)
        leaving = self._tree(starts, self._forward)
        arriving = self._tree(goals, self._backward)
        # Within one community the trees meet; elsewhere the way leads over gateways.
        meeting = {node: leaving[node][0] + arriving[node][0] for node in leaving.keys() & arriving}
        turn = min(meeting, key=lambda node: (meeting[node], node), default=None)
        best: float = math.inf if turn is None else meeting[turn]
        over_gateways = False
        cost = {gate: leaving[gate][0] for gate in self._trees if gate in leaving}
        came: dict[int, tuple[int, Edge | None]] = {}
        queue = [(steps, gate) for gate, steps in cost.items()]
        heapq.heapify(queue)
        settled: set[int] = set()
        while queue and queue[0][0] < best:
            steps, gate = heapq.heappop(queue)
            if gate in settled:
                continue
            settled.add(gate)
            if gate in arriving and steps + arriving[gate][0] < best:
                best, turn, over_gateways = steps + arriving[gate][0], gate, True
            for other, length, edge in self._abstract_edges(gate):
                total = steps + length
                if other not in settled and total < cost.get(other, math.inf):
                    cost[other], came[other] = total, (gate, edge)
                    heapq.heappush(queue, (total, other))
        if turn is None:
            raise unreachable(self.cognitive_map, start, goal)
        path = _climb(arriving, turn, [(turn, None)], towards_root=True)
        gate = turn
        while over_gateways and gate in came:
            before, crossing = came[gate]
            if crossing is None:
                path = _climb(self._trees[before], gate, path)
            else:
                path = [(before, crossing), *path]
            gate = before
        path = _climb(leaving, gate, path)
        return self._as_plan(path, len(leaving) + len(arriving) + len(settled))

    def _tree(self, roots: list[int], edges: list[list[Edge]]) -> Tree:
        """Breadth-first search from the roots that stays in each one's community."""
        tree: Tree = dict.fromkeys(roots, (0, None))
        queue = deque(roots)
        while queue:
            node = queue.popleft()
            for action, other, surprise in edges[node]:
                if other not in tree and self._label[other] == self._label[node]:
                    tree[other] = (tree[node][0] + 1, (action, node, surprise))
                    queue.append(other)
        return tree

    def _abstract_edges(self, gate: int) -> Iterable[tuple[int, int, Edge | None]]:
        """Gateway, steps to it, and the edge that crosses into another community (or None)."""
        label = self._label[gate]
        for other in self._members[label]:
            if other != gate and other in self._trees[gate]:
                yield other, self._trees[gate][other][0], None
        for action, target, surprise in self._forward[gate]:
            if self._label[target] != label:
                yield target, 1, (action, target, surprise)

    def _as_plan(self, path: Path, num_expanded: int) -> Plan:
        edges = [edge for _, edge in path if edge is not None]
        return Plan(
            states=tuple(self.cognitive_map.states[[node for node, _ in path]].tolist()),
            actions=tuple(action for action, _, _ in edges),
            log_prob=-sum(surprise for _, _, surprise in edges) or 0.0,
            num_expanded=num_expanded,
        )


def _climb(tree: Tree, node: int, path: Path, *, towards_root: bool = False) -> Path:
    """A path that begins at a node, extended by the way between it and its root.

    Args:
        tree: found forwards from its root, or backwards with ``towards_root``.
        node: where ``path`` begins (ends, with ``towards_root``).
        path: ``(node, edge taken from it)``, the last without an edge.
        towards_root: append the way to the root instead of prepending the way from it.
    """
    way: Path = []
    while (edge := tree[node][1]) is not None:
        action, parent, surprise = edge
        way.append((node, edge) if towards_root else (parent, (action, node, surprise)))
        node = parent
    return [*path[:-1], *way, (node, None)] if towards_root else [*way[::-1], *path]
