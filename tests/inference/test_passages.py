"""Splitting of states whose passages share no action."""

from __future__ import annotations

import numpy as np
import pytest

from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.passages import split_passages

CORNERS = Room([[0, 1, 2], [3, 4, 5], [6, 7, 0]], walls="never")


def same_partition(one, other) -> bool:
    pairs = set(zip(np.ravel(one).tolist(), np.ravel(other).tolist(), strict=True))
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))


def joined(places, one, other):
    return np.where(places == other, one, places)


def test_corners_that_share_no_action_come_apart():
    walk = CORNERS.random_walk(300, seed=0)
    places = np.asarray(walk.places)[None]
    split = split_passages(joined(places, 0, 8), walk.actions[None], 4)
    assert same_partition(split, places)


def test_places_that_share_an_action_stay_joined():
    """Here the moves themselves contradict each other; that is for the fit to see."""
    walk = CORNERS.random_walk(300, seed=0)
    states = joined(np.asarray(walk.places)[None], 1, 3)  # down and right, left and up: both share
    assert same_partition(split_passages(states, walk.actions[None], 4), states)


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_true_places_are_never_split(walls):
    room = Room(published_room("rectangular_room").layout, walls=walls)
    walk = room.random_walk(5_000, seed=1)
    places = np.asarray(walk.places)[None]
    assert same_partition(split_passages(places, walk.actions[None], 4), places)


def test_what_is_tried_in_one_sequence_says_nothing_about_another():
    """The same place, left by other actions in each of two sequences, is one place."""
    states = np.array([[1, 0] * 50 + [1], [2, 0] * 50 + [2]])
    actions = np.array([[0, 1] * 50, [0, 2] * 50])
    assert same_partition(split_passages(states, actions, 3), states)


def test_sequences_of_other_lengths_are_padded():
    walk = CORNERS.random_walk(300, seed=0, num_episodes=2)
    places = np.stack(walk.places)
    places[1, 200:] = -1
    states = np.where(places == 8, 0, places)
    split = split_passages(states, np.stack(walk.actions), 4)
    assert same_partition(split, places)
    assert (split[1, 200:] == -1).all()


def test_a_single_observation_is_left_alone():
    one = split_passages(np.array([[0]]), np.zeros((1, 0), dtype=int), 2)
    np.testing.assert_array_equal(one, [[0]])
