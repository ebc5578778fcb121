"""Plans against networkx on the true graph, against brute force, and walked in the rooms."""

import math
from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import TOL
from numpy.testing import assert_allclose
from worlds import exact_model, room_table

from chmm_pyro.environments import Room, published_room, published_room_names
from chmm_pyro.inference.map_fit import fit_map
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.maps.edits import block, open_edges
from chmm_pyro.planning import UnreachableError, bridge, plan, plan_from_belief
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]


def walked(room, place, actions):
    for action in actions:
        place = room.step(place, action)
    return place


def lengths(room):
    return dict(nx.all_pairs_shortest_path_length(room.place_graph()))


@pytest.mark.parametrize("name", published_room_names())
def test_all_pairs_of_every_room(name):
    room = published_room(name)
    cognitive_map = CognitiveMap.from_room(room)
    for start, to in lengths(room).items():
        for goal, steps in to.items():
            found = plan(cognitive_map, start, goal)
            assert found.num_steps == steps and found.log_prob == 0
            assert walked(room, start, found.actions) == goal
            assert found.states[0] == start and found.states[-1] == goal


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("name", published_room_names())
def test_models_of_rooms_plan_as_short_and_arrive(name, split):
    room = published_room(name)
    model, place_of = exact_model(room, split=split)
    cognitive_map = CognitiveMap.from_model(model, room.random_walk(30_000, seed=1).batch())
    on_map = {
        p: cognitive_map.states[place_of[cognitive_map.states] == p]
        for p in range(place_of.max() + 1)
    }
    rng = np.random.default_rng(0)
    expected = lengths(room)
    starts = range(room.num_places) if split == 1 else rng.choice(room.num_places, 8, replace=False)
    for start in starts:
        state = int(rng.choice(on_map[start]))
        for goal in range(room.num_places):
            found = plan(cognitive_map, state, on_map[goal].tolist())
            assert found.num_steps == expected[start][goal]
            assert walked(room, start, found.actions) == goal
            assert place_of[list(found.states)].tolist()[-1] == goal


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aliased_4x4", "corridors_5x5", "rectangular_room"])
def test_all_pairs_on_maps_learned_from_a_walk(name):
    room = published_room(name)
    result = fit_map(room.random_walk(30_000, seed=3).batch(), seed=0, progress=False)
    cognitive_map = CognitiveMap.from_result(result)
    place_of = isomorphism(cognitive_map, CognitiveMap.from_room(room))
    assert place_of is not None
    expected = lengths(room)
    for start, goal in product(place_of, place_of):
        found = plan(cognitive_map, start, goal)
        assert found.num_steps == expected[place_of[start]][place_of[goal]]
        assert walked(room, place_of[start], found.actions) == place_of[goal]


def test_a_route_never_walked_in_one_episode():
    """Two episodes, each confined to one of two overlapping rooms; the plan joins them."""
    room = published_room("two_rooms_13x9")
    layout = room.layout
    rows = np.arange(len(layout))[:, None]
    upper, lower = layout.copy(), layout.copy()
    upper[(rows >= 8) | (np.arange(9) >= 6)[None]] = -1
    lower[(rows < 5) | (np.arange(9) < 3)[None]] = -1
    walls = "never"  # what a wall of one part does is not what happens there in the whole
    obs, actions, entered = [], [], []
    for part in (upper, lower):
        walk = Room(part, walls=walls).random_walk(6000, seed=0)
        obs.append(walk.obs)
        actions.append(walk.actions)
        entered.append({tuple(p) for p in walk.positions.tolist()})
    batch = SequenceBatch.from_arrays(obs, actions, num_actions=4)
    whole = Room(layout, walls=walls)
    model, place_of = exact_model(whole)
    cognitive_map = CognitiveMap.from_model(model, batch)
    state_of = {int(place_of[s]): int(s) for s in cognitive_map.states}
    start, goal = (0, 0), (12, 8)
    assert start not in entered[1] and goal not in entered[0]
    begin, end = whole.place_of_position([start, goal]).tolist()
    found = plan(cognitive_map, state_of[begin], state_of[end])
    assert found.num_steps == 20  # the least that 12 rows and 8 columns allow
    assert walked(whole, begin, found.actions) == end


def test_symbols_and_sets():
    room = published_room("rectangular_room")
    cognitive_map, expected = (
        CognitiveMap.from_room(room),
        lengths(published_room("rectangular_room")),
    )
    for symbol, other in product(range(4), range(4)):
        starts, goals = cognitive_map.of_symbol(symbol), cognitive_map.of_symbol(other)
        best = min(expected[i][j] for i in starts for j in goals)
        assert plan(cognitive_map, starts, goals).num_steps == best
        one = min(expected[starts[0]][j] for j in goals)
        found = plan(cognitive_map, starts[0], goals)
        assert found.num_steps == one
        assert room.symbols[walked(room, starts[0], found.actions)] == other


# ------------------------------------------------------------------------------ stochastic


def random_map(seed, num_nodes=5, num_actions=2):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.ones(num_nodes), size=(num_actions, num_nodes))
    table[rng.random(table.shape) < 0.5] = 0
    table[rng.random((num_actions, num_nodes)) < 0.2] = 0
    base = CognitiveMap.from_room(Room(np.arange(num_nodes)[None]))
    action, old, new = table.nonzero()
    weights = table[action, old, new]
    edges = np.stack([old, action, new], axis=1)
    return base.with_edges(edges, weights, weights)


def paths(cognitive_map, start, goal, most):
    """Every path of at most so many edges, with its log-probability."""
    out = {}
    for (i, a, j), p in zip(cognitive_map.edges.tolist(), cognitive_map.probabilities, strict=True):
        out.setdefault(i, []).append((a, j, math.log(p)))
    todo = [((start,), (), 0.0)]
    while todo:
        states, actions, log_prob = todo.pop()
        if states[-1] == goal:
            yield states, actions, log_prob
        if len(actions) < most:
            todo += [
                ((*states, j), (*actions, a), log_prob + c) for a, j, c in out.get(states[-1], [])
            ]


@pytest.mark.parametrize("seed", range(12))
def test_stochastic_plans_and_bridges_are_the_best_of_all_paths(seed):
    cognitive_map = random_map(seed)
    for start, goal in product(range(5), range(5)):
        everything = list(paths(cognitive_map, start, goal, 5))
        if not everything:
            with pytest.raises(UnreachableError):
                plan(cognitive_map, start, goal)
            with pytest.raises(UnreachableError):
                bridge(cognitive_map, start, goal)
            continue
        shortest = min(len(actions) for _, actions, _ in everything)
        at_best = max(c for _, actions, c in everything if len(actions) == shortest)
        found = plan(cognitive_map, start, goal)
        assert found.num_steps == shortest
        assert_allclose(found.log_prob, at_best, **EXACT)
        likely = plan(cognitive_map, start, goal, criterion="probability")
        assert_allclose(likely.log_prob, max(c for *_, c in everything), **EXACT)
        for one in (found, likely):
            assert any(
                (one.states, one.actions) == (s, a) and math.isclose(one.log_prob, c, abs_tol=1e-12)
                for s, a, c in everything
            )
        loops = [(len(actions), -c) for _, actions, c in everything if actions]
        if loops:
            bridged = bridge(cognitive_map, start, goal)
            steps, surprise = min(loops)
            assert bridged.num_steps == steps
            assert_allclose(bridged.log_prob, -surprise, **EXACT)
            assert (bridged.states, bridged.actions, bridged.log_prob) in [
                (s, a, pytest.approx(c)) for s, a, c in everything
            ]


def test_probability_and_steps_differ():
    base = CognitiveMap.from_room(Room([[0, 1, 2]]))
    edges = np.array([[0, 0, 0], [0, 0, 2], [0, 1, 1], [1, 1, 2]])
    cognitive_map = base.with_edges(edges, np.ones(4), np.array([0.9, 0.1, 1, 1]))
    assert plan(cognitive_map, 0, 2).actions == (0,)
    assert plan(cognitive_map, 0, 2, criterion="probability").actions == (1, 1)
    assert plan(cognitive_map, 0, 2).log_prob == pytest.approx(math.log(0.1))


@pytest.mark.parametrize("name", ["rectangular_room", "two_rooms_13x9"])
def test_bridges_are_shortest_paths(name):
    room = published_room(name)
    cognitive_map, expected = CognitiveMap.from_room(room), lengths(room)
    rng = np.random.default_rng(0)
    for start, goal in rng.integers(room.num_places, size=(60, 2)).tolist():
        if start != goal:
            found = bridge(cognitive_map, start, goal)
            assert found.num_steps == expected[start][goal]
            assert walked(room, start, found.actions) == goal
    assert bridge(cognitive_map, 0, 0).num_steps == 1  # bump into a wall
    far = max(expected[0], key=expected[0].get)
    with pytest.raises(UnreachableError, match="within 3 steps"):
        bridge(cognitive_map, 0, far, max_steps=3)


def test_from_a_belief():
    for seed in range(8):
        cognitive_map = random_map(seed)
        belief = np.random.default_rng(seed).dirichlet(np.ones(5))
        belief[seed % 5] = 0
        belief /= belief.sum()
        options = [
            (math.log(belief[start]) + log_prob, start)
            for start in np.flatnonzero(belief)
            for *_, log_prob in paths(cognitive_map, int(start), 2, 5)
        ]
        if options:
            found = plan_from_belief(cognitive_map, belief, 2)
            assert_allclose(found.log_prob, max(options)[0], **EXACT)
            assert found.states[0] == max(options)[1]


def test_from_a_filtered_posterior():
    """After a short walk a learned map knows the way from where it is."""
    room = published_room("rectangular_room")
    model, place_of = exact_model(room)
    cognitive_map = CognitiveMap.from_model(model, room.random_walk(20_000, seed=1).batch())
    expected = lengths(room)
    walk = room.random_walk(25, seed=5, num_episodes=10)
    beliefs = cognitive_map.localise(walk.batch()).belief
    for belief, places in zip(beliefs, walk.places, strict=True):
        goal = int(cognitive_map.states[7])
        found = plan_from_belief(cognitive_map, belief, goal)
        assert found.num_steps == expected[int(places[-1])][int(place_of[goal])]
        assert walked(room, int(places[-1]), found.actions) == place_of[goal]
        arrives = cognitive_map.follow(belief, found.actions)[cognitive_map.node_of(goal)]
        assert arrives > 0.99


# -------------------------------------------------------------------- detours and shortcuts


@pytest.mark.parametrize("bump", [False, True])
def test_detours_and_shortcuts_without_learning_again(bump):
    room = published_room("rectangular_room")
    model, place_of = exact_model(room)
    cognitive_map = CognitiveMap.from_model(model, room.random_walk(30_000, seed=1).batch())
    state_of = {int(place_of[s]): int(s) for s in cognitive_map.states}
    wall = [((row, 3), (row, 4)) for row in range(5)]
    walled = Room(room.layout, blocked=wall)
    pairs = [room.place_of_position(pair).tolist() for pair in wall]
    closed = block(cognitive_map, [[state_of[p] for p in pair] for pair in pairs], bump=bump)
    expected, before = lengths(walled), lengths(room)
    longer = 0
    for start, goal in product(range(0, 48, 5), range(48)):
        found = plan(closed, state_of[start], state_of[goal])
        assert found.num_steps == expected[start][goal]
        assert walked(walled, start, found.actions) == goal
        longer += found.num_steps > before[start][goal]
    assert longer > 50
    one, other = (state_of[p] for p in pairs[2])
    opened = open_edges(closed, [(one, 1, other), (other, 0, one)])
    expected = lengths(Room(room.layout, blocked=[w for w in wall if w != wall[2]]))
    for start, goal in product(range(0, 48, 5), range(48)):
        found = plan(opened, state_of[start], state_of[goal])
        assert found.num_steps == expected[start][goal]


# ------------------------------------------------------------------------------------ errors


def test_unreachable_goals_and_bad_input():
    cognitive_map = CognitiveMap.from_room(Room([[0, 1, -1, 2, 0]]))
    with pytest.raises(UnreachableError, match=r"goal = 2 cannot be reached from start = 0"):
        plan(cognitive_map, 0, 2)
    with pytest.raises(UnreachableError, match=r"goal = \[2, 3\] .* start = \[0, 1\]"):
        plan(cognitive_map, [0, 1], [2, 3])
    with pytest.raises(UnreachableError, match="goal = 2"):
        plan_from_belief(cognitive_map, [0.5, 0.5, 0, 0], 2)
    with pytest.raises(UnreachableError, match="goal = 2"):
        bridge(cognitive_map, 0, 2)
    assert plan(cognitive_map, 0, [2, 1]).states == (0, 1)
    with pytest.raises(ValueError, match="state 9 is not on the map"):
        plan(cognitive_map, 0, 9)
    with pytest.raises(ValueError, match="goal is empty"):
        plan(cognitive_map, 0, [])
    with pytest.raises(ValueError, match="criterion = 'fast'"):
        plan(cognitive_map, 0, 1, criterion="fast")
    with pytest.raises(ValueError, match="max_steps = 0"):
        bridge(cognitive_map, 0, 1, max_steps=0)
    for belief in ([1.0], [0, 0, 0, 0], [1, -1, 1, 0], [math.nan, 1, 0, 0]):
        with pytest.raises(ValueError, match="belief"):
            plan_from_belief(cognitive_map, belief, 1)


def test_a_plan_to_where_one_is():
    found = plan(CognitiveMap.from_room(Room([[0, 1]])), 1, 1)
    assert (found.states, found.actions, found.num_steps) == ((1,), (), 0)
    assert repr(found) == "Plan(0 steps from 1 to 1, probability 1, 1 nodes expanded)"


def test_tables_and_maps_agree_on_success():
    room = published_room("aliased_4x4")
    cognitive_map, table = CognitiveMap.from_room(room, slip=0.2), room_table(room, 0.2)
    found = plan(cognitive_map, 0, 15, criterion="probability")
    steps = zip(found.states[:-1], found.actions, found.states[1:], strict=True)
    assert_allclose(found.log_prob, sum(math.log(table[a, i, j]) for i, a, j in steps), **EXACT)
