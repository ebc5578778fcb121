"""Value iteration against closed forms, linear systems and all policies; walks to a goal."""

from dataclasses import replace
from itertools import product

import networkx as nx
import numpy as np
import pytest
from numpy.testing import assert_allclose
from worlds import exact_model, room_table

from chmm_pyro.environments import Room, published_room, published_room_names
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.planning import UnreachableError
from chmm_pyro.planning.navigation import distinguishing_actions, navigate
from chmm_pyro.planning.policies import shortest_policy

LOOSE = {"rtol": 1e-7}


def steps_of(table, actions, goal):
    """Expected steps of a fixed policy by solving its linear system; inf if it never arrives."""
    inner = [n for n in range(len(actions)) if n != goal]
    matrix = np.array([table[actions[n], n] for n in inner])[:, inner]
    if np.abs(np.linalg.eigvals(matrix)).max(initial=0) > 1 - 1e-9:
        return np.full(len(actions), np.inf)
    values = np.zeros(len(actions))
    values[inner] = np.linalg.solve(np.eye(len(inner)) - matrix, np.ones(len(inner)))
    return values


@pytest.mark.parametrize("name", published_room_names())
def test_deterministic_maps_have_shortest_paths(name):
    room = published_room(name)
    cognitive_map = CognitiveMap.from_room(room)
    for goal in (0, room.num_places - 1):
        expected = nx.shortest_path_length(room.place_graph(), target=goal)
        policy = shortest_policy(cognitive_map, goal)
        assert {n: policy.expected_steps(n) for n in range(room.num_places)} == expected
        for start in range(room.num_places):
            place, walked = start, 0
            while place != goal:
                place, walked = room.step(place, policy.action(place)), walked + 1
            assert walked == expected[start]


def test_a_coin_at_each_step_doubles_the_way():
    """With chance q each step stays, so n steps take n / (1 - q) on average."""
    base = CognitiveMap.from_room(Room([[0, 1, 2, 3]]))
    edges = np.array([[i, 0, j] for i in range(3) for j in (i, i + 1)])
    for stay in (0.5, 0.9, 0.0):
        weights = np.tile([stay, 1 - stay], 3)
        some = weights > 0
        found = shortest_policy(base.with_edges(edges[some], weights[some], weights[some]), 3)
        assert_allclose(found.values, np.arange(3, -1, -1) / (1 - stay), **LOOSE)


@pytest.mark.parametrize("seed", range(15))
def test_best_of_all_policies(seed):
    rng = np.random.default_rng(seed)
    nodes, num_actions, goal = 5, 3, 0
    table = rng.dirichlet(np.full(nodes, 0.5), size=(num_actions, nodes))
    table[table < 0.15] = 0
    table[:, 1] = np.eye(nodes)[1 if seed % 3 == 0 else 0]  # sometimes a trap
    table /= np.maximum(table.sum(-1, keepdims=True), 1e-300)
    base = CognitiveMap.from_room(Room(np.arange(nodes)[None]))
    action, old, new = table.nonzero()
    weights = table[action, old, new]
    cognitive_map = base.with_edges(np.stack([old, action, new], axis=1), weights, weights)
    best = np.full(nodes, np.inf)
    best[goal] = 0
    for inner in product(range(num_actions), repeat=nodes - 1):
        policy = np.array([0, *inner])
        # A policy that is sure to arrive from some nodes only counts for those.
        reach = np.eye(nodes)[goal]
        chain = np.array(
            [table[policy[n], n] if n != goal else np.eye(nodes)[n] for n in range(nodes)]
        )
        for _ in range(5000):
            reach = chain @ reach
        sure = np.flatnonzero(reach > 1 - 1e-9)
        within = [n for n in sure if n != goal]
        matrix = chain[np.ix_(within, within)]
        values = np.linalg.solve(np.eye(len(within)) - matrix, np.ones(len(within)))
        best[within] = np.minimum(best[within], values)
    found = shortest_policy(cognitive_map, goal)
    assert_allclose(found.values, best, rtol=1e-6)
    for node in range(1, nodes):
        if np.isinf(best[node]):
            with pytest.raises(UnreachableError, match="with certainty"):
                found.action(node)
    if np.isfinite(best).all():
        chosen = np.where(found.actions < 0, 0, found.actions)
        assert_allclose(steps_of(table, chosen, goal), best, rtol=1e-6)


def test_slips_in_a_room():
    """The optimality equation, with the room's rules rather than the map's arrays."""
    room = published_room("rectangular_room")
    policy = shortest_policy(CognitiveMap.from_room(room, slip=0.3), goal=20)
    costs = 1 + room_table(room, 0.3) @ policy.values
    expected = costs.min(0)
    expected[20] = 0
    assert_allclose(policy.values, expected, **LOOSE)
    assert policy.num_iters > 10


def test_several_goals_and_a_surer_detour():
    room = Room([[0, 1, 2, 3]])
    policy = shortest_policy(CognitiveMap.from_room(room), [0, 3])
    assert policy.values.tolist() == [0, 1, 1, 0] and policy.actions.tolist() == [-1, 0, 1, -1]
    base = CognitiveMap.from_room(Room([[0, 1, 2, 3]]))
    edges = np.array([[0, 0, 0], [0, 0, 3], [0, 1, 1], [1, 1, 2], [2, 1, 3]])
    for chance, expected in ((0.25, (3, 1)), (0.5, (2, 0))):
        weights = np.array([1 - chance, chance, 1, 1, 1])
        found = shortest_policy(base.with_edges(edges, weights, weights), 3)
        assert (round(found.expected_steps(0), 6), found.action(0)) == expected


def test_bad_input():
    cognitive_map = CognitiveMap.from_room(Room([[0, 1, -1, 2]]))
    policy = shortest_policy(cognitive_map, 2)
    assert np.isinf(policy.expected_steps(0))
    with pytest.raises(UnreachableError, match=r"goal = \[2\] cannot be reached from start = 1"):
        policy.action(1)
    with pytest.raises(ValueError, match="state = 2 is a goal"):
        policy.action(2)
    with pytest.raises(ValueError, match="max_iters = 3"):
        shortest_policy(CognitiveMap.from_room(Room([[0, 1, 2]]), slip=0.3), 2, max_iters=3)


# -------------------------------------------------------------------------------- navigation


@pytest.mark.parametrize("name", ["empty_room", "ring_6x6", "stitched_room_1"])
def test_distinguishing_actions_are_the_fewest(name):
    """Against refinement: after k rounds, pairs that k actions cannot tell apart are left."""
    room = published_room(name)
    cognitive_map = CognitiveMap.from_room(room)
    rounds = np.where(room.symbols[:, None] != room.symbols, 0, -1)
    for number in range(1, room.num_places):
        apart = rounds >= 0
        now = np.zeros_like(apart)
        for action in range(4):
            both = room.tried[:, action][:, None] & room.tried[:, action]
            target = room.next_place[:, action]
            now |= both & apart[np.ix_(target, target)]
        rounds[(rounds < 0) & now] = number
    rng = np.random.default_rng(0)
    for one, other in rng.integers(room.num_places, size=(200, 2)).tolist():
        if rounds[one, other] < 0:
            with pytest.raises(ValueError, match=f"states {one} and {other} cannot be told apart"):
                distinguishing_actions(cognitive_map, one, other)
            continue
        actions = distinguishing_actions(cognitive_map, one, other)
        assert len(actions) == rounds[one, other]
        ends = [one, other]
        for action in actions:
            assert room.tried[ends, action].all()
            ends = [room.step(end, action) for end in ends]
        assert room.symbols[ends[0]] != room.symbols[ends[1]]


class World:
    """A walker in a room that only tells what it sees."""

    def __init__(self, room, place, slip=0.0, seed=0):
        self.room, self.place, self.slip = room, place, slip
        self.rng = np.random.default_rng(seed)

    @property
    def symbol(self):
        return int(self.room.symbols[self.place])

    def act(self, action):
        if self.rng.random() < self.slip:
            action = self.rng.choice([a for a in range(4) if a != action])
        self.place = self.room.step(self.place, int(action))
        return self.symbol


@pytest.mark.parametrize("name", ["rectangular_room", "empty_room", "two_rooms_13x9"])
def test_walks_to_the_goal_from_anywhere_without_knowing_where(name):
    room = published_room(name)
    model, place_of = exact_model(room)
    cognitive_map = CognitiveMap.from_model(model, room.random_walk(30_000, seed=1).batch())
    goal = int(cognitive_map.states[-3])
    for start in range(0, room.num_places, 7):
        world = World(room, start)
        journey = navigate(cognitive_map, goal, world.act, first_symbol=world.symbol)
        assert world.place == place_of[goal]
        assert journey.belief[cognitive_map.node_of(goal)] > 0.99
        assert len(journey.obs) == len(journey.actions) + 1


def test_steps_into_walls_that_were_never_tried_do_not_confuse_the_walker():
    """A wrong hypothesis leads into walls about which the map knows nothing."""
    room = Room(published_room("two_rooms_13x9").layout, walls="never")
    cognitive_map = CognitiveMap.from_room(room)
    bumps = 0
    for start, goal in np.random.default_rng(0).integers(room.num_places, size=(40, 2)).tolist():
        world = World(room, start)
        journey = navigate(cognitive_map, goal, world.act, first_symbol=world.symbol)
        assert world.place == goal
        place = start
        for action in journey.actions:
            bumps += not room.tried[place, action]
            place = room.step(place, action)
    assert bumps > 0


@pytest.mark.parametrize("seed", range(4))
def test_hypotheses_that_look_alike_are_pursued_to_the_end(seed):
    """In a uniform core under shuffled names, changing one's mind would be going in circles."""
    layout = np.full((9, 9), 4)
    layout[0], layout[-1], layout[:, 0], layout[:, -1] = 0, 1, 2, 3
    room = Room(layout)
    order = np.random.default_rng(seed).permutation(room.num_places)  # state k is place order[k]
    truth = CognitiveMap.from_room(room)
    edges = truth.edges.copy()
    edges[:, [0, 2]] = np.argsort(order)[edges[:, [0, 2]]]
    named = replace(truth, symbols=truth.symbols[order])
    cognitive_map = named.with_edges(edges, truth.counts, truth.probabilities)
    goal = int(np.argsort(order)[40])
    for start in (10, 24, 52, 70):
        world = World(room, start)
        journey = navigate(cognitive_map, goal, world.act, first_symbol=world.symbol)
        assert world.place == 40 and len(journey.actions) < 120


def test_walks_to_the_goal_though_it_slips():
    room = published_room("aliased_4x4")
    cognitive_map = CognitiveMap.from_room(room, slip=0.2)
    arrived = 0
    for start in range(16):
        world = World(room, start, slip=0.2, seed=start)
        navigate(cognitive_map, 10, world.act, first_symbol=world.symbol, confidence=0.95)
        arrived += world.place == 10
    assert arrived >= 13  # 95 % confident


def test_arrival_with_certainty_allows_for_rounding():
    """Ten equal beliefs do not add up to one exactly."""
    room = Room([[1] + [0] * 10])
    cognitive_map = CognitiveMap.from_room(room)
    goals = cognitive_map.of_symbol(0)
    found = navigate(cognitive_map, goals, lambda action: 0, first_symbol=0, confidence=1.0)
    assert found.actions == []


def test_navigation_errors():
    cognitive_map = CognitiveMap.from_room(Room([[0, 1, -1, 2, 0]]))
    world = World(Room([[0, 1, -1, 2, 0]]), 0)
    with pytest.raises(UnreachableError, match="with certainty"):
        navigate(cognitive_map, 2, world.act, first_symbol=1)
    long = Room([[0, 1, 2, 3, 4, 5]])
    with pytest.raises(UnreachableError, match="max_steps = 3 actions"):
        navigate(CognitiveMap.from_room(long), 5, World(long, 0).act, first_symbol=0, max_steps=3)
    swapped = cognitive_map.with_edges(np.array([[0, 0, 3], [3, 0, 0]]), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="states 0 and 3 cannot be told apart"):
        navigate(swapped, 0, lambda action: 0, first_symbol=0)
    with pytest.raises(ValueError, match="confidence = 0"):
        navigate(cognitive_map, 0, world.act, first_symbol=1, confidence=0)
    with pytest.raises(ValueError, match="cannot explain step 1"):
        navigate(cognitive_map, 0, lambda action: 2, first_symbol=1)
