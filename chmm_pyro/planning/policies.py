r"""Policies on stochastic maps: what to do at each place, whatever happened on the way.

The goal is to be reached in as few steps as possible on average:

.. math::

    V(s) = \min_a \Big(1 + \sum_{s'} p(s' \mid s, a)\, V(s')\Big), \qquad V(goal) = 0.

Only states from which some policy reaches the goal with probability one have a finite value.  They
are found first, from the edges alone (de Alfaro 1997), and value iteration keeps to actions that
stay among them; it starts below the values and rises to them.

References:
    L. de Alfaro 1997, "Formal verification of probabilistic systems", Stanford; D. P. Bertsekas
    and J. N. Tsitsiklis 1991, "An analysis of stochastic shortest path problems", Mathematics of
    Operations Research 16:580.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..maps.cognitive_map import CognitiveMap
from .plans import States, node_list, unreachable

__all__ = ["Policy", "shortest_policy"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Policy:
    """The best action of every node.

    Attributes:
        cognitive_map: where it acts.
        goal: ``(N,)`` bool, the goals.
        values: ``(N,)`` expected steps to the goal, ``inf`` where no policy is sure to arrive.
        actions: ``(N,)``; -1 at goals and where the value is infinite.
        num_iters: rounds of value iteration.
    """

    cognitive_map: CognitiveMap
    goal: NDArray[np.bool_]
    values: FloatArray
    actions: NDArray[np.int64]
    num_iters: int

    def action(self, state: int) -> int:
        """What to do at a state.

        Raises:
            UnreachableError: no policy is sure to arrive from there.
            ValueError: a goal, where nothing is left to do.
        """
        node = int(self.cognitive_map.node_of(state))
        if self.goal[node]:
            raise ValueError(f"state = {state} is a goal, expected a state that is not yet there.")
        if self.actions[node] < 0:
            goals = self.cognitive_map.states[self.goal].tolist()
            raise unreachable(self.cognitive_map, state, goals, " with certainty")
        return int(self.actions[node])

    def expected_steps(self, state: int) -> float:
        """Steps to the goal on average; ``inf`` where arrival is not certain."""
        return float(self.values[self.cognitive_map.node_of(state)])


def shortest_policy(
    cognitive_map: CognitiveMap, goal: States, *, tol: float = 1e-10, max_iters: int = 100_000
) -> Policy:
    """The policy with the fewest expected steps to a goal, by value iteration.

    Args:
        cognitive_map: where to act.
        goal: a state, or several of which any will do.
        tol: stop when no value rises by more than this share of it.
        max_iters: rounds after which it gives up.

    Raises:
        ValueError: a goal that is not on the map, or no convergence.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"), slip=0.5)
        >>> policy = shortest_policy(cognitive_map, goal=2)
        >>> [round(value, 6) for value in policy.values.tolist()], policy.action(0)
        ([4.0, 3.0, 0.0], 1)
    """
    target = np.zeros(cognitive_map.num_nodes, dtype=bool)
    target[node_list(cognitive_map, "goal", goal)] = True
    sure, allowed, hops = _almost_sure(cognitive_map, target)
    # The least number of steps bounds the expected number from below, and equals it on
    # deterministic maps; from below the values rise monotonically to the solution.
    values = np.where(sure, hops, np.inf)
    for iteration in range(1, max_iters + 1):
        costs = _action_values(cognitive_map, allowed, values)
        before, values = values, np.where(target, 0.0, costs.min(0))
        if np.all(values[sure] - before[sure] <= tol * np.maximum(values[sure], 1.0)):
            actions = np.where(target | ~sure, -1, costs.argmin(0))
            return Policy(cognitive_map, target, values, actions, iteration)
    raise ValueError(
        f"value iteration has not converged in max_iters = {max_iters} rounds (tol = {tol}), "
        "expected a map on which actions lead somewhere; raise one of them."
    )


def _action_values(
    cognitive_map: CognitiveMap, allowed: NDArray[np.bool_], values: FloatArray
) -> FloatArray:
    """``(A, N)`` expected steps if the action is taken first, ``inf`` where it is not allowed."""
    finite = np.where(np.isfinite(values), values, 0.0)
    costs = np.stack([1 + matrix @ finite for matrix in cognitive_map.matrices])
    return np.where(allowed, costs, np.inf)


def _almost_sure(
    cognitive_map: CognitiveMap, target: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], FloatArray]:
    """Where a policy reaches the target with probability one.

    Returns:
        ``(N,)`` these nodes; ``(A, N)`` the actions that stay among them; ``(N,)`` the fewest
        steps that such actions can need.
    """
    tried = cognitive_map.tried.T
    inside = np.ones(cognitive_map.num_nodes, dtype=bool)
    while True:
        leaves = np.stack([matrix @ (~inside).astype(float) for matrix in cognitive_map.matrices])
        allowed = tried & (leaves == 0)
        hops = np.where(target, 0.0, np.inf)
        for step in range(1, cognitive_map.num_nodes + 1):
            reached = np.isfinite(hops)
            enters = np.stack([matrix @ reached.astype(float) for matrix in cognitive_map.matrices])
            new = ~reached & (allowed & (enters > 0)).any(0)
            if not new.any():
                break
            hops[new] = step
        reached = np.isfinite(hops)
        if (reached == inside).all():
            return inside, allowed, hops
        inside = reached
