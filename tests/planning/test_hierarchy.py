"""Two-level planning is as short as flat planning, whatever the communities, and looks at less."""

import networkx as nx
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from chmm_pyro.environments import Room, published_room
from chmm_pyro.environments.tracks import grid_of_rooms
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.planning import UnreachableError, plan
from chmm_pyro.planning.hierarchy import Hierarchy, communities


def walk(cognitive_map, actions, state):
    edges = {(i, a): j for i, a, j in cognitive_map.edges.tolist()}
    states = [state]
    for action in actions:
        states.append(edges[states[-1], action])
    return tuple(states)


def random_map(seed, num_nodes=14, num_actions=2):
    """A random deterministic directed graph, often with parts that cannot be reached."""
    rng = np.random.default_rng(seed)
    base = CognitiveMap.from_room(Room(np.arange(num_nodes)[None]))
    old, action = np.nonzero(rng.random((num_nodes, num_actions)) < 0.7)
    edges = np.stack([old, action, rng.integers(num_nodes, size=len(old))], axis=1)
    return base.with_edges(edges, np.ones(len(edges)), np.ones(len(edges)))


@pytest.mark.parametrize("seed", range(25))
def test_as_short_as_flat_with_any_labels(seed):
    cognitive_map = random_map(seed)
    labels = np.random.default_rng(seed).integers(1 + seed % 5, size=14)
    hierarchy = Hierarchy(cognitive_map, labels)
    for start in range(14):
        for goal in range(14):
            try:
                expected = plan(cognitive_map, start, goal)
            except UnreachableError:
                with pytest.raises(UnreachableError, match=f"goal = {goal} "):
                    hierarchy.plan(start, goal)
                continue
            found = hierarchy.plan(start, goal)
            assert found.num_steps == expected.num_steps
            assert found.states == walk(cognitive_map, found.actions, start)
            assert found.states[-1] == goal and found.log_prob == 0
        goals = [goal for goal in range(14) if goal % 3 == seed % 3]
        try:
            expected = plan(cognitive_map, [start, 5], goals).num_steps
        except UnreachableError:
            continue
        assert hierarchy.plan([start, 5], goals).num_steps == expected


def test_communities_are_the_rooms_and_two_levels_look_at_less():
    room, label = grid_of_rooms(3, 3, size=5, num_symbols=4, seed=0)
    cognitive_map = CognitiveMap.from_room(room)
    found = communities(cognitive_map)
    assert adjusted_rand_score(label, found) > 0.9  # a doorstep may count for either side
    assert found.max() == 8
    hierarchy = Hierarchy(cognitive_map)
    exact = Hierarchy(cognitive_map, label)
    crossing = [(i, j) for i, _, j in cognitive_map.edges.tolist() if label[i] != label[j]]
    assert len(crossing) == 24  # 12 doors, both ways
    assert exact.gateways.tolist() == sorted({gate for pair in crossing for gate in pair})
    expected = dict(nx.all_pairs_shortest_path_length(room.place_graph()))
    flat, levels = [], []
    rng = np.random.default_rng(1)
    for start, goal in rng.integers(room.num_places, size=(150, 2)).tolist():
        one, two = plan(cognitive_map, start, goal), hierarchy.plan(start, goal)
        assert one.num_steps == two.num_steps == expected[start][goal]
        assert exact.plan(start, goal).num_steps == one.num_steps
        place = start
        for action in two.actions:
            place = room.step(place, action)
        assert place == goal
        flat.append(one.num_expanded)
        levels.append(two.num_expanded)
    assert np.mean(levels) < 0.7 * np.mean(flat)


def test_stochastic_maps_and_learned_names():
    room, label = grid_of_rooms(2, 2, size=3, num_symbols=3, seed=2)
    slippery = CognitiveMap.from_room(room, slip=0.1)
    hierarchy = Hierarchy(slippery, label)
    for start, goal in ((0, 35), (30, 3), (7, 7)):
        found = hierarchy.plan(start, goal)
        assert found.num_steps == plan(slippery, start, goal).num_steps
        steps = zip(found.states[:-1], found.actions, found.states[1:], strict=True)
        log_prob = sum(np.log(slippery.graph.edges[i, j, a]["probability"]) for i, a, j in steps)
        assert found.log_prob == pytest.approx(log_prob)


def test_communities_do_not_depend_on_anything_but_the_seed():
    cognitive_map = CognitiveMap.from_room(published_room("two_rooms_13x9"))
    first = communities(cognitive_map, seed=3)
    np.testing.assert_array_equal(first, communities(cognitive_map, seed=3))
    assert len(np.unique(first)) == first.max() + 1
    sizes = np.bincount(first)
    assert (np.diff(sizes) <= 0).all()
    finer = communities(cognitive_map, resolution=5.0, seed=3)
    assert finer.max() > first.max()


def test_bad_input():
    cognitive_map = CognitiveMap.from_room(Room([[0, 1, -1, 2]]))
    with pytest.raises(ValueError, match=r"labels has shape \(2,\)"):
        Hierarchy(cognitive_map, [0, 1])
    hierarchy = Hierarchy(cognitive_map, [0, 0, 1])
    assert hierarchy.gateways.tolist() == []
    with pytest.raises(UnreachableError, match="goal = 2"):
        hierarchy.plan(0, 2)
    with pytest.raises(ValueError, match="state 8"):
        hierarchy.plan(0, 8)
