"""Planning on a map: sequences of actions that lead from where one is to where one wants to be.

States, sets of states and, through :meth:`~chmm_pyro.maps.CognitiveMap.of_symbol`, symbols can be
starts and goals.  A plan is a path: on a stochastic map it may fail, with a known probability; see
:mod:`chmm_pyro.planning.policies` for plans that take any outcome into account.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..beliefs import checked_belief
from ..maps.cognitive_map import CognitiveMap

__all__ = [
    "Plan",
    "States",
    "UnreachableError",
    "bridge",
    "node_list",
    "plan",
    "plan_from_belief",
    "unreachable",
]

States = int | Iterable[int]
"""A state of the map, or several."""

Criterion = Literal["steps", "probability"]
_Cost = tuple[float, float]


class UnreachableError(ValueError):
    """No sequence of actions on the map leads to the goal."""


@dataclass(frozen=True)
class Plan:
    """A path on a map.

    Attributes:
        states: the ``K + 1`` states of the path.
        actions: the ``K`` actions to take.
        log_prob: log-probability that every action leads where the path says (and, from a belief,
            that it starts where the path does).
        num_expanded: nodes that the search looked beyond.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    log_prob: float
    num_expanded: int

    @property
    def num_steps(self) -> int:
        """``K``."""
        return len(self.actions)

    def __repr__(self) -> str:
        return (
            f"Plan({self.num_steps} steps from {self.states[0]} to {self.states[-1]}, "
            f"probability {math.exp(self.log_prob):.3g}, {self.num_expanded} nodes expanded)"
        )


def plan(
    cognitive_map: CognitiveMap, start: States, goal: States, *, criterion: Criterion = "steps"
) -> Plan:
    """The shortest or the most probable path from a start to a goal.

    Args:
        cognitive_map: where to plan.
        start: a state, or several of which the best is chosen.
        goal: a state, or several of which any will do.
        criterion: ``"steps"`` for the fewest actions (the most probable such path), or
            ``"probability"`` for the largest probability (the shortest such path).

    Raises:
        UnreachableError: there is no path.
        ValueError: states that are not on the map.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1], [-1, 2]]))
        >>> plan(cognitive_map, 0, cognitive_map.of_symbol(2)).actions
        (1, 3)
    """
    nodes = node_list(cognitive_map, "start", start)
    return _search(cognitive_map, [(0.0, node) for node in nodes], goal, criterion)


def plan_from_belief(cognitive_map: CognitiveMap, belief: ArrayLike, goal: States) -> Plan:
    """The most probable pair of a start and a path from it to the goal.

    The path is right only if the start is: with a wide belief act step by step instead, see
    :func:`~chmm_pyro.planning.navigation.navigate`.

    Args:
        cognitive_map: where to plan.
        belief: ``(N,)`` where one may be, from :meth:`~chmm_pyro.maps.CognitiveMap.localise`.
        goal: a state, or several.

    Returns:
        A plan whose ``log_prob`` includes that of its start.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 0, 2]]))
        >>> plan_from_belief(cognitive_map, [0.7, 0, 0.3, 0], goal=3)
        Plan(3 steps from 0 to 3, probability 0.7, 4 nodes expanded)
    """
    probs = checked_belief(belief, cognitive_map.num_nodes)
    possible = np.flatnonzero(probs).tolist()
    starts = [(-math.log(probs[node]), node) for node in possible]
    return _search(cognitive_map, starts, goal, "probability")


def bridge(
    cognitive_map: CognitiveMap, start: States, goal: States, *, max_steps: int = 100
) -> Plan:
    """A path found by max-product messages, as in the published code.

    Messages spread from the start, one action a round, until they reach the goal; the path is
    then traced back.  At least one action is taken, so a state is bridged to itself by a loop.
    This is the path of :func:`plan` by steps, found without its queue.

    Args:
        cognitive_map: where to plan.
        start: a state, or several.
        goal: a state, or several.
        max_steps: rounds before giving up (the published code counts the start as one).

    Raises:
        UnreachableError: no path of so few steps.

    References:
        George et al. 2021, Nature Communications 12:2392, methods "Vicarious evaluation".

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> bridge(cognitive_map, 0, 2).states, bridge(cognitive_map, 0, 0).states
        ((0, 1, 2), (0, 1, 0))
    """
    if max_steps < 1:
        raise ValueError(f"max_steps = {max_steps}, expected at least 1.")
    goals = node_list(cognitive_map, "goal", goal)
    old, action, new = cognitive_map.edges.T
    log_probs = np.log(cognitive_map.probabilities)
    message = np.full(cognitive_map.num_nodes, -np.inf)
    message[node_list(cognitive_map, "start", start)] = 0.0
    messages: list[NDArray[np.float64]] = [message]
    while not (len(messages) > 1 and np.isfinite(messages[-1][goals]).any()):
        reached = np.full_like(message, -np.inf)
        np.maximum.at(reached, new, messages[-1][old] + log_probs)
        if len(messages) > max_steps or np.isneginf(reached).all():
            raise unreachable(cognitive_map, start, goal, f" within {max_steps} steps")
        messages.append(reached)
    node = goals[int(np.argmax(messages[-1][goals]))]
    states, actions = [node], []
    for before in messages[-2::-1]:
        score = np.where(new == states[-1], before[old] + log_probs, -np.inf)
        edge = int(np.argmax(score))
        states.append(int(old[edge]))
        actions.append(int(action[edge]))
    return Plan(
        states=tuple(cognitive_map.states[states[::-1]].tolist()),
        actions=tuple(actions[::-1]),
        log_prob=float(messages[-1][node]),
        num_expanded=int(np.isfinite(np.array(messages[:-1])).any(0).sum()),
    )


def node_list(cognitive_map: CognitiveMap, name: str, states: States) -> list[int]:
    """Node indices of a start or goal, each once.

    Raises:
        TypeError: no states at all.
        ValueError: no state, or one that is not on the map.
    """
    if not isinstance(states, (int, np.integer)) and (
        isinstance(states, str) or not isinstance(states, Iterable)
    ):
        raise TypeError(
            f"{name} = {states!r}, expected a state or several states; use map.of_symbol(symbol) "
            "for all that show a symbol."
        )
    given = [states] if isinstance(states, (int, np.integer)) else list(states)
    if not given:
        raise ValueError(f"{name} is empty, expected at least one state of the map.")
    return np.unique(cognitive_map.node_of(given)).tolist()


def unreachable(
    cognitive_map: CognitiveMap, start: States, goal: States, how: str = ""
) -> UnreachableError:
    """The error that says between what there is no path."""
    begin, end = (
        states if isinstance(states, (int, np.integer)) else list(states)
        for states in (start, goal)
    )
    return UnreachableError(
        f"goal = {end} cannot be reached from start = {begin}{how} on {cognitive_map}, expected a "
        "path of its edges; see `networkx.weakly_connected_components(map.graph)` for the parts "
        "of the map, and learn from more data if they should be joined."
    )


def _search(
    cognitive_map: CognitiveMap,
    starts: list[tuple[float, int]],
    goal: States,
    criterion: Criterion,
) -> Plan:
    """Dijkstra's algorithm with costs (first criterion, second criterion), compared in order."""
    if criterion not in ("steps", "probability"):
        raise ValueError(f"criterion = {criterion!r}, expected 'steps' or 'probability'.")
    by_steps = criterion == "steps"
    goals = set(node_list(cognitive_map, "goal", goal))
    successors = cognitive_map.successors
    cost: dict[int, _Cost] = {
        node: (0.0, offset) if by_steps else (offset, 0.0) for offset, node in starts
    }
    came: dict[int, tuple[int, int]] = {}
    queue = [(value, node) for node, value in cost.items()]
    heapq.heapify(queue)
    settled: set[int] = set()
    while queue:
        (first, second), node = heapq.heappop(queue)
        if node in settled:
            continue
        settled.add(node)
        if node in goals:
            log_prob = -(second if by_steps else first)
            return _traced(cognitive_map, came, node, log_prob, len(settled))
        for action, target, surprise in successors[node]:
            step = (1.0, surprise) if by_steps else (surprise, 1.0)
            total = (first + step[0], second + step[1])
            if target not in settled and total < cost.get(target, (math.inf, math.inf)):
                cost[target] = total
                came[target] = (node, action)
                heapq.heappush(queue, (total, target))
    names = [int(cognitive_map.states[node]) for _, node in starts]
    raise unreachable(cognitive_map, names[0] if len(names) == 1 else names, goal)


def _traced(
    cognitive_map: CognitiveMap,
    came: dict[int, tuple[int, int]],
    node: int,
    log_prob: float,
    num_expanded: int,
) -> Plan:
    nodes, actions = [node], []
    while nodes[-1] in came:
        before, action = came[nodes[-1]]
        nodes.append(before)
        actions.append(action)
    return Plan(
        states=tuple(cognitive_map.states[nodes[::-1]].tolist()),
        actions=tuple(actions[::-1]),
        log_prob=log_prob or 0.0,
        num_expanded=num_expanded,
    )
