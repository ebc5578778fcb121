"""Acting towards a goal without knowing where one is: look, believe, step, look again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..clones import MISSING
from ..maps.cognitive_map import CognitiveMap
from ..sequences import SequenceBatch
from .plans import States, UnreachableError
from .policies import Policy, shortest_policy

__all__ = ["Journey", "distinguishing_actions", "navigate"]

_TIE = 1 - 1e-9


class Journey(NamedTuple):
    """How a goal was reached.

    Attributes:
        actions: what was done.
        obs: what was seen, one more.
        belief: ``(N,)`` where the map thinks this has led.
    """

    actions: list[int]
    obs: list[int]
    belief: NDArray[np.float64]


def distinguishing_actions(cognitive_map: CognitiveMap, one: int, other: int) -> list[int]:
    """The fewest actions after which two states are expected to show different symbols.

    Args:
        cognitive_map: the map; of several outcomes the most probable counts.
        one: a state.
        other: another.

    Returns:
        Actions, none if the states show different symbols themselves.  All have been tried along
        both paths.

    Raises:
        ValueError: no such actions, so that the states are one place as far as the map can tell.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> cognitive_map = CognitiveMap.from_room(Room([[0, 0, 0, 1]]))
        >>> distinguishing_actions(cognitive_map, 0, 1)
        [1, 1]
    """
    nodes = cognitive_map.node_of([one, other]).tolist()
    likely = cognitive_map.likely_targets
    symbols = cognitive_map.symbols
    start = (nodes[0], nodes[1])
    came: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = {start: None}
    queue = deque([start])
    while queue:
        pair = queue.popleft()
        if symbols[pair[0]] != symbols[pair[1]]:
            actions: list[int] = []
            while (step := came[pair]) is not None:
                pair, action = step
                actions.append(action)
            return actions[::-1]
        for action, (first, second) in enumerate(zip(*likely[list(pair)].tolist(), strict=True)):
            if first >= 0 and second >= 0 and (first, second) not in came:
                came[first, second] = (pair, action)
                queue.append((first, second))
    raise ValueError(
        f"states {one} and {other} cannot be told apart by any actions tried at both, expected a "
        "map without such twins; merge them first."
    )


def navigate(
    cognitive_map: CognitiveMap,
    goal: States,
    act: Callable[[int], int],
    *,
    first_symbol: int,
    belief: ArrayLike | None = None,
    confidence: float = 0.99,
    max_steps: int = 1000,
) -> Journey:
    """Walk to a goal in a world, starting from a belief.

    Each step takes the best action of the most probable state and believes what is then seen
    (the most-likely-state heuristic, Nourbakhsh et al. 1995).  That alone may wander forever
    between hypotheses that look alike, so an arrival that is not certain enough is followed by
    the actions that tell this state from the next most probable one.

    The best action of a wrong hypothesis may never have been tried where the walker really is, such
    as a step into a wall; it is believed to do nothing there.

    Args:
        cognitive_map: of the world.
        goal: a state, or several.
        act: does an action in the world and returns the symbol seen after it.
        first_symbol: what is seen before the first action.
        belief: ``(N,)`` before anything is seen, by default uniform.
        confidence: probability of being at a goal that ends the walk.
        max_steps: actions after which it gives up.

    Raises:
        UnreachableError: the goal cannot be reached for certain, or not within ``max_steps``.
        ValueError: the world does what the map excludes, or the map has places that nothing
            tells apart.

    References:
        I. Nourbakhsh, R. Powers, S. Birchfield 1995, "DERVISH, an office-navigating robot", AI
        Magazine 16(2):53.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> room, place = Room([[0, 1, 0, 2]]), 0
        >>> def act(action):
        ...     global place
        ...     place = room.step(place, action)
        ...     return int(room.symbols[place])
        >>> navigate(CognitiveMap.from_room(room), 3, act, first_symbol=0).obs
        [0, 1, 0, 2]
    """
    if not 0 < confidence <= 1:
        raise ValueError(f"confidence = {confidence}, expected a probability above 0.")
    policy = shortest_policy(cognitive_map, goal)
    believing = _idle_where_untried(cognitive_map)
    obs, actions = [int(first_symbol)], list[int]()
    first = SequenceBatch.from_arrays(obs, num_actions=cognitive_map.num_actions)
    current = believing.localise(first, belief=belief).belief
    hypothesis = int(current.argmax())
    to_do: deque[int] = deque()
    while current[policy.goal].sum() < _TIE * confidence:  # equal beliefs add up to almost one
        if len(actions) == max_steps:
            raise UnreachableError(
                f"goal = {goal} was not reached in max_steps = {max_steps} actions; the most "
                f"probable place is state {int(cognitive_map.states[current.argmax()])} with "
                f"probability {current.max():.2f}."
            )
        if not to_do:
            to_do.extend(_next_actions(policy, current, hypothesis))
        action = to_do.popleft()
        actions.append(action)
        obs.append(int(act(action)))
        step = SequenceBatch.from_arrays([MISSING, obs[-1]], [action])
        current = believing.localise(step, belief=current).belief
        # Among equals the hypothesis pursued so far wins: changing it might undo the last step.
        hypothesis = int(cognitive_map.likely_targets[hypothesis, action])
        if hypothesis < 0 or current[hypothesis] < _TIE * current.max():
            hypothesis = int(current.argmax())
    return Journey(actions, obs, current)


def _idle_where_untried(cognitive_map: CognitiveMap) -> CognitiveMap:
    """The map with a loop wherever it does not know what an action does."""
    node, action = np.nonzero(~cognitive_map.tried)
    loops = np.stack([node, action, node], axis=1)
    return cognitive_map.with_edges(
        np.concatenate([cognitive_map.edges, loops]),
        np.concatenate([cognitive_map.counts, np.zeros(len(loops))]),
        np.concatenate([cognitive_map.probabilities, np.ones(len(loops))]),
    )


def _next_actions(policy: Policy, belief: NDArray[np.float64], hypothesis: int) -> list[int]:
    """The best action of the hypothesis, or those that confirm or exclude an arrival."""
    states = policy.cognitive_map.states
    if not policy.goal[hypothesis]:
        return [policy.action(int(states[hypothesis]))]
    rival = int(np.where(policy.goal, -1.0, belief).argmax())
    pair = int(states[hypothesis]), int(states[rival])
    return distinguishing_actions(policy.cognitive_map, *pair)
