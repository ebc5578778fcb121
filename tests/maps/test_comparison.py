"""Isomorphism of maps against a general graph matcher and against brute force."""

from dataclasses import replace
from itertools import permutations

import networkx as nx
import numpy as np
import pytest

from chmm_pyro.environments import Room, published_room, published_room_names, random_room
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import compare_maps, isomorphism
from chmm_pyro.maps.edits import block, open_edges, without


def renamed(cognitive_map, seed):
    """The same map under other names in another order, and the names."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(cognitive_map.num_nodes)  # new node k was node order[k]
    states = np.sort(rng.choice(1000, cognitive_map.num_nodes, replace=False))
    back = np.argsort(order)
    edges = cognitive_map.edges.copy()
    edges[:, [0, 2]] = back[edges[:, [0, 2]]]
    twin = replace(
        cognitive_map,
        states=states,
        symbols=cognitive_map.symbols[order],
        usage=rng.uniform(1, 2, cognitive_map.num_nodes),
    )
    names = dict(zip(states.tolist(), cognitive_map.states[order].tolist(), strict=True))
    return twin.with_edges(edges, cognitive_map.counts, cognitive_map.probabilities), names


def random_map(rng, num_nodes=5, num_actions=2, num_symbols=2, branching=False):
    """A map with holes in its table, often with symmetries."""
    edges = []
    for node in range(num_nodes):
        for action in range(num_actions):
            if rng.random() < 0.8:
                size = 1 + (branching and rng.random() < 0.5)
                targets = rng.choice(num_nodes, size=size, replace=False)
                edges += [(node, action, int(target)) for target in targets]
    room = CognitiveMap.from_room(Room(np.arange(num_nodes)[None]))
    base = replace(room, symbols=rng.integers(num_symbols, size=num_nodes), num_actions=num_actions)
    return base.with_edges(np.array(edges), np.ones(len(edges)), np.ones(len(edges)))


def matched(one, other):
    return nx.is_isomorphic(
        one.to_networkx(),
        other.to_networkx(),
        node_match=lambda a, b: a["symbol"] == b["symbol"],
        edge_match=lambda a, b: set(a) == set(b),
    )


def is_isomorphism(mapping, one, other):
    back = {(i, a, j) for i, j, a in other.graph.edges(keys=True)}
    image = {(mapping[i], a, mapping[j]) for i, j, a in one.graph.edges(keys=True)}
    symbols = all(
        one.graph.nodes[s]["symbol"] == other.graph.nodes[mapping[s]]["symbol"] for s in one.graph
    )
    return symbols and image == back and sorted(mapping.values()) == other.states.tolist()


@pytest.mark.parametrize("slip", [0.0, 0.2])
@pytest.mark.parametrize("name", published_room_names())
def test_a_renamed_map_is_found_out(name, slip):
    truth = CognitiveMap.from_room(published_room(name), slip=slip)
    twin, names = renamed(truth, seed=1)
    assert isomorphism(twin, truth) == names
    assert compare_maps(twin, truth).is_empty


@pytest.mark.parametrize("branching", [False, True])
def test_agrees_with_a_general_matcher(branching):
    rng = np.random.default_rng(0)
    found = {True: 0, False: 0}
    for seed in range(150):
        one = random_map(rng, branching=branching)
        other = renamed(one, seed)[0] if rng.random() < 0.4 else random_map(rng, 4 + seed % 2)
        if rng.random() < 0.5 and len(other.edges) > 1:
            # A single edge led elsewhere.
            edges = other.edges.copy()
            edges[0, 2] = (edges[0, 2] + 1) % other.num_nodes
            other = other.with_edges(edges, other.counts, np.ones(len(edges)))
        mapping = isomorphism(one, other, tolerance=1.0)
        assert (mapping is not None) == matched(one, other)
        found[mapping is not None] += 1
        if mapping is not None:
            assert is_isomorphism(mapping, one, other)
    assert min(found.values()) > 20


def test_symmetric_maps_have_one_of_their_automorphisms():
    truth = CognitiveMap.from_room(Room(np.zeros((3, 3), int)))
    unlabelled = replace(truth, edges=truth.edges * [1, 0, 1])  # all actions the same
    ring = unlabelled.with_edges(unlabelled.edges, truth.counts, np.ones(len(truth.edges)))
    twin, _ = renamed(ring, seed=0)
    mapping = isomorphism(twin, ring)
    assert is_isomorphism(mapping, twin, ring)


def test_probabilities_decide_between_automorphisms():
    """Two targets look alike; only one pairing gives both their probabilities."""
    base = CognitiveMap.from_room(Room([[0, 1, 1]]))
    edges = np.array([[0, 0, 1], [0, 0, 2], [1, 0, 0], [2, 0, 0]])
    one = base.with_edges(edges, np.ones(4), np.array([0.3, 0.7, 1, 1]))
    other = base.with_edges(edges, np.ones(4), np.array([0.69, 0.31, 1, 1]))
    assert isomorphism(one, other) == {0: 0, 1: 2, 2: 1}
    assert isomorphism(one, other, tolerance=0.001) is None
    brute = [
        dict(enumerate(p))
        for p in permutations(range(3))
        if is_isomorphism(dict(enumerate(p)), one, other)
    ]
    assert len(brute) == 2


def test_disconnected_maps():
    base = CognitiveMap.from_room(Room([[0, 1, 0, 1]]))
    edges = np.array([[0, 0, 1], [1, 0, 0], [2, 0, 3], [3, 0, 2]])
    two = base.with_edges(edges, np.ones(4), np.ones(4))
    assert is_isomorphism(isomorphism(*[renamed(two, 3)[0], two]), renamed(two, 3)[0], two)
    four = base.with_edges(
        np.array([[0, 0, 1], [1, 0, 2], [2, 0, 3], [3, 0, 0]]), *[np.ones(4)] * 2
    )
    assert isomorphism(two, four) is None and isomorphism(four, four) is not None


@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_edge_is_reported(seed):
    truth = CognitiveMap.from_room(random_room(5, 5, num_symbols=5, seed=seed))
    twin, names = renamed(truth, seed)
    right = twin.edges[seed]
    name = twin.states.tolist()
    old, action, new = name[right[0]], int(right[1]), name[right[2]]
    wrong = next(s for s in name if s != new)
    broken = open_edges(twin, [(old, action, wrong)])
    assert isomorphism(broken, truth) is None
    difference = compare_maps(broken, truth)
    assert difference.mapping == names
    assert difference.extra_edges == [(old, action, wrong)]
    assert difference.missing_edges == [(names[old], action, names[new])]
    assert not difference.missing_places and not difference.split_places
    assert str(difference) == "missing edges: 1, extra edges: 1"


def test_a_missing_node_and_a_missing_try_are_reported():
    truth = CognitiveMap.from_room(published_room("aliased_4x4"))
    smaller = without(truth, states=[5])
    difference = compare_maps(smaller, truth)
    assert difference.missing_places == [5]
    lost = {(i, a, j) for i, a, j in truth.edges.tolist() if 5 in (i, j)}
    assert set(difference.missing_edges) == lost and not difference.extra_edges
    untried = block(truth, [(0, 1)])
    assert isomorphism(untried, truth) is None
    assert compare_maps(untried, truth).missing_edges == [(0, 1, 1), (1, 0, 0)]


def test_split_places_are_reported():
    truth = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
    base = CognitiveMap.from_room(Room([[0, 1, 2, 1]], walls="never"))
    edges = np.array([[0, 1, 1], [0, 1, 3], [1, 0, 0], [1, 1, 2], [2, 0, 3], [3, 0, 0], [3, 1, 2]])
    split = base.with_edges(edges, np.ones(7), np.array([0.4, 0.6, 1, 1, 1, 1, 1]))
    difference = compare_maps(split, truth)
    assert difference.split_places == {1: [1, 3]}
    assert not (difference.missing_edges or difference.extra_edges or difference.missing_places)
    assert not difference.wrong_probabilities  # 0.4 and 0.6 lie over the same place
    given = compare_maps(split, truth, mapping={0: 0, 1: 1, 2: 2})
    assert given.unmapped_states == [3] and len(given.extra_edges) == 4


def test_wrong_probabilities_are_reported():
    room = published_room("aliased_4x4")
    truth = CognitiveMap.from_room(room, slip=0.2)
    found = CognitiveMap.from_room(room, slip=0.4)
    difference = compare_maps(found, truth, mapping={s: s for s in range(16)}, tolerance=0.1)
    shown = {(i, a, j): (p, q) for i, a, j, p, q in difference.wrong_probabilities}
    assert shown[5, 0, 4] == pytest.approx((0.6, 0.8))
    assert not (difference.missing_edges or difference.extra_edges)


def test_rare_outcomes_may_be_missing_if_one_says_so():
    """Slips that a walk did not show: no isomorphism, unless such outcomes are negligible."""
    room = published_room("aliased_4x4")
    slips, certain = CognitiveMap.from_room(room, slip=0.05), CognitiveMap.from_room(room)
    assert isomorphism(certain, slips, tolerance=0.1) is None
    places = {place: place for place in range(room.num_places)}
    assert isomorphism(certain, slips, tolerance=0.1, negligible=0.1) == places
    assert isomorphism(certain, slips, tolerance=0.02, negligible=0.1) is None
    other = CognitiveMap.from_room(Room(np.rot90(np.asarray(room.layout))), slip=0.05)
    assert isomorphism(certain, other, tolerance=0.1, negligible=0.1) is None
