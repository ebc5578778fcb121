"""Rooms against the published walks, a naive walker and brute force over all mergers."""

import json
import time
from itertools import combinations

import numpy as np
import pytest
from conftest import TEST_DATA
from scipy.stats import chisquare

from chmm_pyro.environments import (
    ACTIONS,
    Room,
    published_room,
    published_room_names,
    random_room,
)

HOLED = [[0, 1, 2], [3, -1, 1], [0, 2, -1]]
BLOCKED = [((0, 0), (0, 1)), ((1, 0), (2, 0))]


def naive_step(layout, blocked, cell, action):
    row, column = cell
    target = (row + (0, 0, -1, 1)[action], column + (-1, 1, 0, 0)[action])
    inside = 0 <= target[0] < len(layout) and 0 <= target[1] < len(layout[0])
    if not inside or layout[target[0]][target[1]] < 0:
        return cell
    return cell if (cell, target) in blocked or (target, cell) in blocked else target


@pytest.mark.parametrize("case", ["small", "medium", "large"])
def test_moves_like_the_published_walks(case):
    golden = json.loads((TEST_DATA / f"{case}_case.json").read_text())["input"]
    room = Room(golden["room"])
    places = [room.place_of_position(golden["rc"][0])]
    for action in golden["a"][:-1]:
        places.append(room.step(places[-1], action))
    np.testing.assert_array_equal(room.positions[places], golden["rc"])
    np.testing.assert_array_equal(room.symbols[places], golden["x"])


@pytest.mark.parametrize("walls", ["bump", "never"])
@pytest.mark.parametrize("num_episodes", [None, 7])
def test_walk_follows_the_layout(walls, num_episodes):
    room = Room(HOLED, walls=walls, blocked=BLOCKED[:1])
    walk = room.random_walk(400, seed=3, num_episodes=num_episodes)
    fields = (walk.obs, walk.actions, walk.positions, walk.places)
    episodes = [fields] if num_episodes is None else list(zip(*fields, strict=True))
    assert len(episodes) == (num_episodes or 1)
    for obs, actions, positions, places in episodes:
        assert obs.shape == (400,) and actions.shape == (399,) and positions.shape == (400, 2)
        np.testing.assert_array_equal(room.place_of_position(positions), places)
        np.testing.assert_array_equal(np.array(HOLED)[tuple(positions.T)], obs)
        cells = list(map(tuple, positions.tolist()))
        for cell, action, successor in zip(cells, actions.tolist(), cells[1:], strict=False):
            assert naive_step(HOLED, BLOCKED[:1], cell, action) == successor
            assert walls == "bump" or cell != successor


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_tried_actions_are_equally_probable(walls):
    room = Room(HOLED, walls=walls)
    walk = room.random_walk(60_000, seed=1)
    for place in range(room.num_places):
        counts = np.bincount(walk.actions[walk.places[:-1] == place], minlength=4)
        assert (counts[~room.tried[place]] == 0).all()
        if room.tried[place].sum() > 1:
            assert chisquare(counts[room.tried[place]]).pvalue > 1e-4


def test_blocked_edges_block_both_ways():
    room = Room([[0, 1], [2, 3]], blocked=[((0, 0), (0, 1))])
    assert (room.step(0, 1), room.step(1, 0)) == (0, 1)
    assert (room.step(0, 3), room.step(1, 3)) == (2, 3)


def test_seeds_decide_the_walk_and_nothing_else_does():
    room = published_room("rectangular_room")
    before = np.random.get_state()[1].copy()
    walk = room.random_walk(500, seed=5)
    np.testing.assert_array_equal(walk.obs, room.random_walk(500, seed=5).obs)
    assert (walk.obs != room.random_walk(500, seed=6).obs).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    generator = np.random.default_rng(5)
    np.testing.assert_array_equal(walk.obs, room.random_walk(500, seed=generator).obs)
    assert (walk.obs != room.random_walk(500, seed=generator).obs).any()


def test_start():
    room = published_room("rectangular_room")
    assert room.random_walk(3, start=(2, 5)).positions[0].tolist() == [2, 5]
    walk = room.random_walk(3, num_episodes=2, start=[(2, 5), (0, 1)])
    assert [p[0].tolist() for p in walk.positions] == [[2, 5], [0, 1]]
    begins = [int(p[0]) for p in room.random_walk(1, seed=0, num_episodes=4800).places]
    assert chisquare(np.bincount(begins, minlength=48)).pvalue > 1e-4


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_slips_replace_the_move_but_not_the_record(walls):
    room = Room(np.arange(16).reshape(4, 4), walls=walls)
    walk = room.random_walk(40_000, seed=2, slip=0.25)
    inner = np.isin(walk.places[:-1], [5, 6, 9, 10])
    meant = room.next_place[walk.places[:-1], walk.actions]
    slipped = (meant != walk.places[1:])[inner]
    assert abs(slipped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / slipped.size)
    moved = walk.places[:-1][inner][slipped]
    made = (room.next_place[moved] == walk.places[1:][inner][slipped][:, None]).argmax(1)
    other = (made - walk.actions[inner][slipped]) % 4
    assert chisquare(np.bincount(other, minlength=4)[1:]).pvalue > 1e-4
    reached = room.next_place[walk.places[:-1]] == walk.places[1:, None]
    assert (reached & room.tried[walk.places[:-1]]).any(1).all()


def test_observation_noise_shows_another_symbol():
    room = Room([[0, 1], [2, 3]])
    clean, noisy = (room.random_walk(30_000, 4, observation_noise=p) for p in (0.0, 0.2))
    np.testing.assert_array_equal(clean.places, noisy.places)
    wrong = noisy.obs != clean.obs
    assert abs(wrong.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / wrong.size)
    shift = (noisy.obs - clean.obs)[wrong] % 4
    assert chisquare(np.bincount(shift, minlength=4)[1:]).pvalue > 1e-4


def test_batch_of_a_walk():
    room = published_room("empty_room")
    batch = room.random_walk(20, seed=0).batch()
    assert batch.obs.shape == (20,) and batch.positions.shape == (20, 2) and batch.num_actions == 4
    batch = room.random_walk(20, seed=0, num_episodes=3).batch()
    assert batch.obs.shape == (3, 20) and batch.actions.shape == (3, 19)
    assert room.random_walk(1, seed=0).batch().actions.shape == (0,)


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_place_graph_holds_what_a_walker_can_try(walls):
    room = Room(HOLED, walls=walls, blocked=BLOCKED[:1])
    graph = room.place_graph()
    cells = {node: data["position"] for node, data in graph.nodes(data=True)}
    seen = {data["position"]: data["symbol"] for _, data in graph.nodes(data=True)}
    assert seen == {(r, c): s for r, row in enumerate(HOLED) for c, s in enumerate(row) if s >= 0}
    expected = set()
    for cell in cells.values():
        for action in range(len(ACTIONS)):
            target = naive_step(HOLED, BLOCKED[:1], cell, action)
            if walls == "bump" or target != cell:
                expected.add((cell, target, action))
    found = {(cells[u], cells[v], data["action"]) for u, v, data in graph.edges(data=True)}
    assert found == expected and graph.number_of_edges() == len(expected)


def partitions(items):
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for k in range(len(rest)):
            yield [*rest[:k], [items[0], *rest[k]], *rest[k + 1 :]]


def mergeable_by_enumeration(room):
    """Pairs that some deterministic merger of places, of all there are, puts together."""
    found = set()
    for classes in partitions(list(range(room.num_places))):
        of = {place: k for k, members in enumerate(classes) for place in members}
        explains = all(
            len({room.symbols[p] for p in members}) == 1
            and all(
                len({of[int(room.next_place[p, a])] for p in members if room.tried[p, a]}) <= 1
                for a in range(4)
            )
            for members in classes
        )
        if explains:
            found |= {pair for members in classes for pair in combinations(sorted(members), 2)}
    return found


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_identifiable_agrees_with_all_mergers(walls):
    verdicts = set()
    for seed in range(40):
        num_symbols = 2 + seed % 3
        room = random_room(2, 3, num_symbols, seed, identifiable=False, walls=walls)
        expected = mergeable_by_enumeration(room)
        assert set(room.confusable_places()) == expected, room.layout
        assert room.is_identifiable() == (not expected)
        verdicts.add(not expected)
    assert verdicts == {True, False}


@pytest.mark.parametrize("layout", [[[0, 1], [0, -1], [0, 0]], [[0, 0, 0, 0], [1, 0, 0, 0]]])
def test_merging_two_places_can_force_a_contradiction(layout):
    """Here pairs agree wherever both try an action, and yet no map merges them."""
    blocked = [((1, 1), (1, 2)), ((0, 0), (1, 0))] if len(layout[0]) == 4 else []
    room = Room(layout, walls="never", blocked=blocked)
    assert set(room.confusable_places()) == mergeable_by_enumeration(room)


PUBLISHED = {
    "rectangular_room": (48, []),
    "empty_room": (48, []),
    "stitched_room_1": (48, [((0, 0), (6, 5)), ((1, 0), (7, 5))]),
    "stitched_room_2": (48, [((0, 5), (7, 0))]),
    "aliased_4x4": (16, []),
    "corridors_5x5": (19, []),
    "ring_6x6": (36, []),
    "two_rooms_13x9": (87, []),
}


def test_packaged_layouts_are_the_published_ones():
    golden = json.loads((TEST_DATA / "published_rooms.json").read_text())
    worlds = json.loads((TEST_DATA / "worlds.json").read_text())["worlds"]
    expected = {name: golden[name]["room"] for name in ("rectangular_room", "empty_room")}
    expected |= {f"stitched_room_{k}": golden["stitched_rooms"][f"room{k}"] for k in (1, 2)}
    expected |= {name: world["layout"] for name, world in worlds.items()}
    assert {name: published_room(name).layout.tolist() for name in PUBLISHED} == expected
    assert [name for name in PUBLISHED if published_room(name).walls == "never"] == [
        "stitched_room_1",
        "stitched_room_2",
    ]


def test_published_rooms():
    assert set(published_room_names()) == set(PUBLISHED)
    for name, (num_places, confusable) in PUBLISHED.items():
        room = published_room(name)
        assert room.num_places == num_places
        pairs = [
            tuple(map(tuple, room.positions[list(p)].tolist())) for p in room.confusable_places()
        ]
        assert pairs == confusable, name


def test_random_rooms_are_identifiable_and_seeded():
    for seed in range(5):
        room = random_room(5, 6, num_symbols=3, seed=seed)
        assert room.is_identifiable() and room.layout.shape == (5, 6) and room.num_symbols == 3
        np.testing.assert_array_equal(room.layout, random_room(5, 6, 3, seed).layout)
    assert sorted(random_room(2, 2, 4, 0).symbols.tolist()) == [0, 1, 2, 3]


def test_rooms_cannot_be_changed():
    room = Room(HOLED)
    with pytest.raises(ValueError, match="read-only"):
        room.layout[0, 0] = 5


def test_long_walks_are_fast():
    room = published_room("rectangular_room")
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        room.random_walk(50_000, seed=42)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.2


ROOM = Room(HOLED)
BAD = [
    (lambda: Room([[0, 1], [2]]), ValueError, "layout has rows of different lengths"),
    (lambda: Room([[0.0, 1.0]]), TypeError, "layout has dtype float64.*number the symbols"),
    (lambda: Room([0, 1]), ValueError, r"layout has shape \(2,\)"),
    (lambda: Room([[-1, -1]]), ValueError, "layout has shape .* 0 places"),
    (lambda: Room([[0, -2]]), ValueError, r"layout\[0, 1\] = -2"),
    (lambda: Room([[0, 1]], walls="none"), ValueError, "walls = 'none'.*'bump' or 'never'"),
    (lambda: Room([[0, -1, 1, 1]], walls="never"), ValueError, r"no way out of cell \[0, 0\]"),
    (lambda: Room(HOLED, blocked=[((0, 0), (0, 2))]), ValueError, "blocked.*neighbouring"),
    (lambda: Room(HOLED, blocked=[((0, 1), (1, 1))]), ValueError, r"position = \[1, 1\] is a hole"),
    (lambda: ROOM.place_of_position((3, 0)), ValueError, r"position = \[3, 0\].*3x3"),
    (lambda: ROOM.place_of_position((-1, 0)), ValueError, r"position = \[-1, 0\]"),
    (lambda: ROOM.place_of_position([0.5, 1]), ValueError, "position has shape .* float64"),
    (lambda: ROOM.step(7, 0), ValueError, "place = 7, expected 0 <= place < 7"),
    (lambda: ROOM.step(0, 4), ValueError, "action = 4, expected one of 0 to 3"),
    (lambda: ROOM.random_walk(0), ValueError, "num_steps = 0, expected at least 1"),
    (lambda: ROOM.random_walk(10.0), TypeError, "num_steps = 10.0, expected an integer"),
    (lambda: ROOM.random_walk(9, num_episodes=0), ValueError, "num_episodes = 0"),
    (lambda: ROOM.random_walk(9, start=(1, 1)), ValueError, r"position = \[1, 1\] is a hole"),
    (
        lambda: ROOM.random_walk(9, num_episodes=3, start=[(0, 0), (0, 1)]),
        ValueError,
        r"start has shape \(2, 2\), expected \(2,\) or \(3, 2\)",
    ),
    (lambda: ROOM.random_walk(9, slip=1.5), ValueError, "slip = 1.5.*between 0 and 1"),
    (lambda: ROOM.random_walk(9, slip=float("nan")), ValueError, "slip = nan"),
    (lambda: ROOM.random_walk(9, observation_noise=-1), ValueError, "observation_noise = -1"),
    (
        lambda: Room([[0, 0]]).random_walk(9, observation_noise=0.1),
        ValueError,
        "observation_noise = 0.1, expected 0 in a room of one symbol",
    ),
    (lambda: random_room(2, 2, 5), ValueError, "num_symbols = 5, expected at most 4"),
    (lambda: random_room(2, 2, 1), ValueError, "no identifiable 2x2 room.*use more symbols"),
    (lambda: random_room(0, 2, 1), ValueError, "height = 0"),
    (lambda: published_room("attic"), ValueError, "name = 'attic', expected one of rectangular"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
