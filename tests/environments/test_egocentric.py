"""The egocentric walker against a room turned by hand, and the published number of views."""

import numpy as np
import pytest
from scipy.stats import chisquare

from chmm_pyro.environments import (
    EGOCENTRIC_ACTIONS,
    HEADINGS,
    EgocentricRoom,
    Room,
    bordered_room,
    published_room,
)
from chmm_pyro.inference.map_fit import fit_map
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.scores import score_map

HOLED = [[0, 1, 2, 0, 3], [3, -1, 1, -1, 0], [0, 2, -1, 1, 1], [1, 0, 0, 2, 0]]


def turned_by_hand(layout, depth, width, behind):
    """The view at each row, column and heading: turn the whole room, cut out, hide columns."""
    layout = np.asarray(layout)
    views = {}
    for heading in range(4):
        framed = np.rot90(np.pad(layout, 9, constant_values=-1), heading)
        rows, columns = (
            np.rot90(np.pad(index, 9, constant_values=-1), heading)
            for index in np.indices(layout.shape)
        )
        for r, c in np.argwhere((rows >= 0) & (framed >= 0)):
            view = framed[
                r - (depth - 1 - behind) : r + behind + 1, c - width // 2 : c + width // 2 + 1
            ].copy()
            for column in view.T:
                blind = False
                for k in range(depth - 1 - behind, -1, -1):
                    blind = blind or column[k] < 0
                    column[k] = -1 if blind else column[k]
            views[int(rows[r, c]), int(columns[r, c]), heading] = view
    return views


@pytest.mark.parametrize(("depth", "width", "behind"), [(4, 3, 1), (3, 3, 0), (2, 5, 1), (1, 1, 0)])
@pytest.mark.parametrize("layout", [HOLED, bordered_room(5, 6).layout])
def test_views_are_those_of_the_turned_room(layout, depth, width, behind):
    world = EgocentricRoom(Room(layout), depth=depth, width=width, behind=behind)
    expected = turned_by_hand(layout, depth, width, behind)
    assert len(expected) == world.num_places
    for pose, view in expected.items():
        np.testing.assert_array_equal(world.views[world.symbols[world.pose_of(pose)]], view)
    assert len(np.unique(world.views, axis=0)) == world.num_symbols


@pytest.mark.parametrize("size", [7, 8, 11])
def test_the_published_view_has_117_appearances(size):
    world = EgocentricRoom(bordered_room(size, size, walls="never"))
    assert world.num_symbols == 117 and world.num_places == 4 * size**2
    assert world.is_identifiable()


def test_turns_and_steps():
    world = EgocentricRoom(Room(HOLED))
    ahead = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
    for pose in range(world.num_places):
        (row, column), heading = world.positions[pose].tolist(), int(world.headings[pose])
        assert world.pose_of((row, column, heading)) == pose
        forward, right, left = (world.step(pose, action) for action in range(3))
        assert HEADINGS[world.headings[right]] == HEADINGS[(heading + 1) % 4]
        assert world.step(right, 2) == pose == world.step(left, 1)
        for turned in (right, left):
            assert world.positions[turned].tolist() == [row, column]
        there = row + ahead[HEADINGS[heading]][0], column + ahead[HEADINGS[heading]][1]
        inside = 0 <= there[0] < 4 and 0 <= there[1] < 5 and HOLED[there[0]][there[1]] >= 0
        assert tuple(world.positions[forward].tolist()) == (there if inside else (row, column))
        assert world.headings[forward] == heading


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_walks(walls):
    world = EgocentricRoom(Room(HOLED, walls=walls))
    walk = world.random_walk(20_000, seed=1, start=(3, 4, 2))
    assert walk.places[0] == world.pose_of((3, 4, 2))
    moved = world.next_place[walk.places[:-1], walk.actions]
    np.testing.assert_array_equal(moved, walk.places[1:])
    np.testing.assert_array_equal(world.symbols[walk.places], walk.obs)
    bumps = (moved == walk.places[:-1]).sum()
    assert (bumps == 0) == (walls == "never")
    free = world.next_place[:, 0] != np.arange(world.num_places)
    counts = np.bincount(walk.actions[free[walk.places[:-1]]], minlength=3)
    assert chisquare(counts).pvalue > 1e-4
    batch = walk.batch()
    assert batch.num_actions == len(EGOCENTRIC_ACTIONS) and batch.positions.shape == (20_000, 2)


def test_slips_in_a_world_of_three_actions():
    world = EgocentricRoom(bordered_room(5, 5))
    walk = world.random_walk(30_000, seed=0, slip=0.2)
    meant = world.next_place[walk.places[:-1], walk.actions]
    wrong = (meant != walk.places[1:]).mean()
    # The three actions lead to three poses, so every slip shows.
    assert abs(wrong - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(meant))


def learned(world, num_steps, seed):
    walk = world.random_walk(num_steps, seed=seed)
    batch = walk.batch()
    result = fit_map(batch, seed=seed, progress=False)
    states = result.model.distribution(batch).posterior_mode(batch.obs).states
    truth = CognitiveMap.from_room(world)
    found = CognitiveMap.from_result(result, counts="path")
    return score_map(found, truth, states, walk.places)


def test_a_small_room_is_learned_exactly():
    world = EgocentricRoom(bordered_room(5, 5, walls="never"), depth=2, width=1, behind=0)
    assert world.num_places == 100 and world.num_symbols == 37
    scores = learned(world, 6_000, seed=0)
    assert scores.isomorphic, scores.difference


@pytest.mark.slow
def test_the_published_room_is_learned_exactly():
    scores = learned(EgocentricRoom(bordered_room(7, 7, walls="never")), 50_000, seed=0)
    assert scores.num_nodes == 196 and scores.isomorphic, scores.difference


WORLD = EgocentricRoom(Room(HOLED))
BAD = [
    (lambda: EgocentricRoom(Room(HOLED), width=4), ValueError, "width = 4, expected an odd"),
    (lambda: EgocentricRoom(Room(HOLED), depth=0), ValueError, "depth = 0, expected at least 1"),
    (lambda: EgocentricRoom(Room(HOLED), depth=2.0), TypeError, "depth = 2.0, expected an integer"),
    (lambda: EgocentricRoom(Room(HOLED), behind=4), ValueError, "behind = 4, expected 0 <= behind"),
    (
        lambda: EgocentricRoom(Room(HOLED, blocked=[((0, 0), (0, 1))])),
        ValueError,
        "room = Room.*walls between cells.*make the walls holes",
    ),
    (lambda: WORLD.pose_of((0, 0)), ValueError, r"pose has shape \(2,\)"),
    (lambda: WORLD.pose_of((0, 0, 4)), ValueError, "pose has heading 4, expected 0 to 3"),
    (lambda: WORLD.pose_of((1, 1, 0)), ValueError, r"position = \[1, 1\] is a hole"),
    (
        lambda: WORLD.random_walk(5, num_episodes=3, start=[(0, 0, 0), (0, 1, 0)]),
        ValueError,
        r"start has shape \(2, 3\), expected \(3,\) or \(3, 3\)",
    ),
    (lambda: WORLD.step(0, 3), ValueError, "action = 3, expected one of 0 to 2"),
    (lambda: bordered_room(2, 5), ValueError, "height = 2, expected at least 3"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


def test_the_bordered_room_is_the_published_empty_room():
    ours, theirs = bordered_room(6, 8), published_room("empty_room")
    names = set(zip(ours.symbols.tolist(), theirs.symbols.tolist(), strict=True))
    assert len(names) == 9
