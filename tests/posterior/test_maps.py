"""The posterior over maps: certain where the data are, and plans judged draw by draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from worlds import exact_model

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.planning import plan
from chmm_pyro.posterior.maps import _central, _Division, map_posterior
from chmm_pyro.sequences import SequenceBatch

ROOM = Room([[0, 1, 0], [1, 0, 1]])


@pytest.fixture(scope="module")
def fit():
    """Draws around the room's true map, with two clones for every place."""
    batch = ROOM.random_walk(300, seed=0).batch()
    start, _ = exact_model(ROOM, split=2, pseudocount=0.01)
    model = BayesianCHMM(start.clones, 4, 0.1)
    return fit_gibbs(
        model, batch, num_iters=12, num_warmup=5, num_chains=2, start=start, progress=False
    )


def test_the_consensus_is_the_room(fit):
    found = map_posterior(fit)
    truth = CognitiveMap.from_room(ROOM)
    assert isomorphism(found.map, truth, tolerance=0.05) is not None
    assert (found.num_places >= ROOM.num_places).all()
    assert (found.num_places == ROOM.num_places).mean() > 0.5
    assert found.places.shape == (2, 12, 300)
    # Edges of the true map are nearly certain, others are not.
    true_edges = {tuple(edge) for edge in found.map.states[found.map.edges[:, [0, 2]]].tolist()}
    moves = [(old, new) in true_edges for old, _, new in found.edges.tolist()]
    assert found.probability[np.array(moves)].mean() > 0.9
    table = found.edge_table()
    assert table["inclusion"].is_monotonic_decreasing
    assert table["probability"].between(0, 1).all()
    assert_array_equal(table["symbol"], found.symbols[table["place"]])


def test_transitions_between_places_are_distributions(fit):
    found = map_posterior(fit, num_draws=4)
    rows = found.transition.sum(-1)
    assert (rows <= 1 + 1e-9).all()
    visited = np.zeros(rows.shape, dtype=bool)
    visited[found.map.edges[:, 1], found.map.states[found.map.edges[:, 0]]] = True
    # The rest goes to states that no step is at, which the prior gives a share.
    assert rows[visited].min() > 0.75


def test_success_of_a_plan_is_that_of_each_draw(fit):
    found = map_posterior(fit, num_draws=3)
    goal = found.map.of_symbol(1)[0]
    start = found.map.of_symbol(0)[0]
    actions = plan(found.map, start, goal).actions
    success = found.plan_success(actions, goal, start=start)
    assert success.shape == (2, 3)
    assert success.mean() > 0.7 and success.max() <= 1
    # By hand for one draw: where its path is at the start place, along the actions, at the goal.
    path = found.draws.paths[1, 2]
    table = found.draws.values["transition"][1, 2].numpy()
    at_start = np.bincount(path[found.consensus == start], minlength=len(table[0]))
    belief = at_start / at_start.sum()
    for action in actions:
        belief = belief @ table[action]
    at_goal = np.bincount(path[found.consensus == goal], minlength=len(belief))
    visits = np.maximum(np.bincount(path, minlength=len(belief)), 1)
    assert_allclose(success[1, 2], belief @ (at_goal / visits), rtol=1e-9)
    # No action at all: at the goal already, or not (a draw's place may hold a step of another).
    assert found.plan_success([], start, start=start).min() > 0.9
    assert found.plan_success([], goal, start=start).max() < 0.1
    # From where the data end.
    assert found.plan_success([], int(found.consensus[-1])).mean() > 0.7


def test_states_of_a_single_map_without_merging(fit):
    found = map_posterior(fit, merge=False)
    model = fit.prior_model
    assert_array_equal(found.symbols, model.clones.symbol_of_state)
    assert found.num_places.max() <= model.clones.num_states
    assert ((found.probability > 0) & (found.probability <= 1)).all()
    assert_array_equal(found.places, found.draws.paths)


def test_the_same_map_however_clones_are_numbered(fit):
    rng = np.random.default_rng(0)
    order = torch.arange(fit.prior_model.clones.num_states)
    for symbol in range(2):
        own = order[fit.prior_model.clones.states(symbol)].clone()
        order[fit.prior_model.clones.states(symbol)] = own[rng.permutation(len(own))]
    table = fit.draws["transition"].index_select(3, order).index_select(4, order)
    draws = {**fit.draws, "transition": table}
    one, other = map_posterior(fit), map_posterior(replace(fit, draws=draws))
    assert isomorphism(one.map, other.map, tolerance=0.1) is not None
    assert_allclose(
        np.sort(one.probability)[-len(one.map.edges) :].mean(),
        np.sort(other.probability)[-len(other.map.edges) :].mean(),
        rtol=0.1,
    )


def test_several_sequences_and_a_point_fit():
    walk = ROOM.random_walk(400, seed=1, num_episodes=4).batch()
    start, _ = exact_model(ROOM, pseudocount=0.001)
    found = map_posterior(fit_em(start, walk, num_iters=2, progress=False))
    assert found.num_places.tolist() == [[ROOM.num_places]]
    assert set(found.probability) == {1.0}
    assert found.map.positions is not None


def test_joint_actions():
    batch = SequenceBatch.from_arrays([0, 1, 2, 1] * 20, np.arange(79) % 2)
    model = BayesianCHMM(CloneStructure([1, 2, 1]), 2, 0.1, action_model="joint")
    quick = {"num_iters": 10, "num_warmup": 60, "num_chains": 2, "progress": False}
    found = map_posterior(fit_gibbs(model, batch, **quick))
    goal = found.map.of_symbol(2)[0]
    start = found.map.of_symbol(0)[0]
    success = found.plan_success([0, 1], goal, start=start)
    assert (success > 0.8).all(), "actions are given, not drawn"


def test_the_central_division_has_the_smallest_expected_binder_loss():
    rng = np.random.default_rng(0)
    base = rng.integers(3, size=40)
    divisions = []
    for _ in range(6):
        places = np.where(rng.random(40) < 0.2, rng.integers(4, size=40), base)
        divisions.append(_Division(places, np.zeros(4, dtype=int)))
    same = np.array([d.places[:, None] == d.places for d in divisions]).astype(float)
    losses = [np.abs(one - same.mean(0)).sum() for one in same]
    assert _central(divisions) == int(np.argmin(losses))
