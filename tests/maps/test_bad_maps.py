"""One table: what maps, plans and pictures refuse, with the value, what was expected, a remedy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from test_bad_input import refused
from worlds import exact_model

from chmm_pyro.beliefs import Posterior
from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.inference.consolidate import consolidate
from chmm_pyro.maps import CognitiveMap, UncertainMapError
from chmm_pyro.maps.cells import recognise
from chmm_pyro.maps.edits import block, open_edges, without
from chmm_pyro.maps.usage import state_usage
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.planning import UnreachableError, bridge, plan, plan_from_belief
from chmm_pyro.planning.hierarchy import Hierarchy, communities
from chmm_pyro.planning.navigation import navigate
from chmm_pyro.planning.policies import shortest_policy
from chmm_pyro.plotting import plot_map, plot_place_fields, plot_plan
from chmm_pyro.sequences import SequenceBatch

ROOM = Room([[0, 1, 2], [2, 0, 1]])
MAP = CognitiveMap.from_room(ROOM)
EDGELESS = without(MAP, actions=range(4))
BATCH = ROOM.random_walk(500, seed=0).batch()
NAN = math.nan


def never_fitted():
    return PointCHMM(CloneStructure([4, 4, 4]), 4, seed=0)


def diverged():
    model = never_fitted()
    with torch.no_grad():
        model.transition.logits[0, 0, 0] = NAN
    return model


def walk(obs, actions, num_actions=4):
    return SequenceBatch.from_arrays(obs, actions, num_actions=num_actions)


def nan_posterior():
    return Posterior(torch.full((500, 1), NAN), torch.zeros(500, dtype=torch.long), num_states=6)


PLANNERS = {
    "plan": partial(plan, MAP),
    "bridge": partial(bridge, MAP),
    "two levels": Hierarchy(MAP).plan,
}
BELIEVERS = {
    "plan": lambda belief: plan_from_belief(MAP, belief, 0),
    "localise": lambda belief: MAP.localise(BATCH, belief=belief),
    "follow": lambda belief: MAP.follow(belief, [0]),
    "navigate": lambda belief: navigate(MAP, 0, lambda _: 0, first_symbol=0, belief=belief),
}
NOWHERE = ("cannot be reached", "expected a path", "learn from more data")

ROWS = {
    "a model never fitted": (
        lambda: CognitiveMap.from_model(never_fitted(), BATCH),
        (
            UncertainMapError,
            r"\d+% of the steps lie on no edge",
            "expected",
            "fit it first",
            "path",
        ),
    ),
    "a large model never fitted": (
        lambda: CognitiveMap.from_model(PointCHMM(CloneStructure([40] * 3), 4, seed=0), BATCH),
        (
            UncertainMapError,
            r"none of \d+ transitions",
            "noise",
            "expected at least one",
            "fit the model",
        ),
    ),
    "a model for a result": (
        lambda: CognitiveMap.from_result(never_fitted()),
        (TypeError, "result", "PointCHMM", "expected what a fit returned", "from_model"),
    ),
    "a single step": (
        lambda: CognitiveMap.from_model(never_fitted(), walk([0], [])),
        (
            UncertainMapError,
            "none of 0 transitions",
            "noise",
            "expected at least one edge",
            "more data",
        ),
    ),
    "symbols of another vocabulary": (
        lambda: CognitiveMap.from_model(never_fitted(), walk([0, 1, 3], [0, 0])),
        (ValueError, r"obs\[2\]", "= 3", "expected a symbol below 3", "renumber"),
    ),
    "actions of another vocabulary": (
        lambda: CognitiveMap.from_model(never_fitted(), walk([0, 1], [5], num_actions=6)),
        (ValueError, r"actions\[0\]", "= 5", r"expected an action in 0 \.\. 3", "renumber"),
    ),
    "a walk in another vocabulary": (
        lambda: MAP.localise(walk([0, 9], [0])),
        (ValueError, "step 1", "symbol 9", "no place", "pseudocount|another world"),
    ),
    "a walk with other actions": (
        lambda: MAP.localise(walk([0, 1], [7], num_actions=8)),
        (ValueError, "actions", "7", "expected less than", "4"),
    ),
    "a walk in no known world": (
        lambda: recognise([MAP], walk([0, 9], [0])),
        (ValueError, "no map explains", "expected one", "pseudocount", "noisy"),
    ),
    "NaN parameters": (
        lambda: CognitiveMap.from_model(diverged(), BATCH),
        (ValueError, r"transition_logits\[0, 0, 0\]", "NaN", "expected finite", "diverged"),
    ),
    "NaN parameters to consolidate": (
        lambda: consolidate(diverged(), BATCH),
        (ValueError, r"transition_logits\[0, 0, 0\]", "NaN", "expected finite", "diverged"),
    ),
    "a NaN posterior of states": (
        lambda: state_usage(nan_posterior()),
        (ValueError, r"posterior\.probs", "NaN at step 0", "expected", "evidence"),
    ),
    "a NaN posterior drawn": (
        lambda: plot_place_fields(nan_posterior(), BATCH.positions, ROOM),
        (ValueError, r"posterior\.probs", "NaN at step 0", "expected", "evidence"),
    ),
    **{
        f"{label}: {name}": (
            partial(call, belief),
            (ValueError, *patterns),
        )
        for name, call in BELIEVERS.items()
        for label, belief, patterns in (
            ("NaN belief", [0.5, NAN, 0, 0, 0, 0], (r"belief\[1\]", "= nan", "expected", "NaN")),
            ("infinite belief", [math.inf] + [0] * 5, (r"belief\[0\]", "= inf", "expected", ".")),
            ("negative belief", [1, -1, 0, 0, 0, 0], (r"belief\[1\]", "= -1", "expected", ".")),
            ("belief in nothing", [0] * 6, ("belief", "zero", "expected a place", "leave")),
            ("belief over less", [0.5, 0.5], ("belief", r"\(2,\)", r"expected \(6,\)", ".")),
        )
    },
    **{
        f"{label}: {name}": (partial(call, 0, goal), (kind, *patterns))
        for name, call in PLANNERS.items()
        for label, goal, kind, patterns in (
            ("goal off the map", 9, ValueError, ("state", "9", "not on the map", "expected")),
            ("one goal off the map", [1, 9], ValueError, ("state", "9", "not on the map", "6")),
            ("no goal", [], ValueError, ("goal", "empty", "expected at least one", ".")),
            ("a label for a goal", "door", TypeError, ("goal", "'door'", "expected", "of_symbol")),
            ("half a goal", 1.5, TypeError, ("goal", "= 1.5", "expected a state", "of_symbol")),
            ("None for a goal", None, TypeError, ("goal", "= None", "expected", "of_symbol")),
        )
    },
    "policy for a goal off the map": (
        lambda: shortest_policy(MAP, 9),
        (ValueError, "state", "9", "not on the map", "expected one of"),
    ),
    "symbol off the map": (
        lambda: MAP.of_symbol(7),
        (ValueError, "symbol", "7", "not on the map", "expected one of 0, 1, 2"),
    ),
    "plan over other states": (
        lambda: plot_plan(without(MAP, states=[0]), plan(MAP, 0, 5)),
        (ValueError, "state", "0", "not on the map", "expected one of"),
    ),
    "wall where no edge is": (
        lambda: block(MAP, [(0, 5)]),
        (ValueError, "states", r"\(0, 5\)", "no edge", "expected neighbours"),
    ),
    "door to nowhere": (
        lambda: open_edges(MAP, [(0, 0, 9)]),
        (ValueError, "state", "9", "not on the map", "expected one of"),
    ),
    "unknown action": (
        lambda: MAP.follow(np.ones(6), [9]),
        (ValueError, "actions", "9", "expected 0 <= action < 4", "."),
    ),
    "no edge: plan": (lambda: plan(EDGELESS, 0, 1), (UnreachableError, *NOWHERE)),
    "no edge: bridge": (lambda: bridge(EDGELESS, 0, 1), (UnreachableError, *NOWHERE)),
    "no edge: two levels": (lambda: Hierarchy(EDGELESS).plan(0, 1), (UnreachableError, *NOWHERE)),
    "no edge: belief": (
        lambda: plan_from_belief(EDGELESS, [1, 0, 0, 0, 0, 0], 1),
        (UnreachableError, *NOWHERE),
    ),
    "no edge: policy": (
        lambda: shortest_policy(EDGELESS, 0).action(1),
        (UnreachableError, *NOWHERE),
    ),
    "no edge: localise": (
        lambda: EDGELESS.localise(walk([0, 1], [0])),
        (ValueError, "step 1", "symbol 1", "no place", "another world"),
    ),
}


@pytest.mark.parametrize(("call", "expected"), ROWS.values(), ids=ROWS)
def test_refused(call, expected):
    refused(call, *expected)


def test_what_a_map_without_edges_can_do():
    """It is a map of places nobody has left."""
    assert plan(EDGELESS, 2, 2).num_steps == 0
    assert communities(EDGELESS).tolist() == list(range(6))
    ax = plot_map(EDGELESS)
    ax.figure.canvas.draw()
    assert ax.get_title() == "6 places, 3 symbols"


def test_a_fitted_model_is_not_refused():
    model, _ = exact_model(ROOM, split=2)
    assert CognitiveMap.from_model(model, BATCH).noise < 0.05
    belief = np.array([2.0, 0, 0, 0, 0, 0])
    assert plan_from_belief(MAP, belief, 0).log_prob == 0  # weights are normalised
