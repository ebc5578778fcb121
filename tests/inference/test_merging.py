"""Merging states by description length: closed forms, brute force, and published rooms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import TOL

from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.merging import _Graph, description_length, merge_states


def counts_of(states, actions, num_states, num_actions=4):
    counts = np.zeros((num_actions, num_states, num_states))
    np.add.at(counts, (np.asarray(actions), states[:-1], states[1:]), 1.0)
    return counts


def walk_with_copies(room: Room, num_steps: int, num_copies: int, seed: int):
    """A walk whose places each appear as one of several copies, drawn at random."""
    walk = room.random_walk(num_steps, seed=seed)
    places = np.asarray(walk.places)
    copies = np.random.default_rng(seed).integers(num_copies, size=len(places))
    states = places * num_copies + copies
    used, dense = np.unique(states, return_inverse=True)
    symbols = np.asarray(room.symbols)[used // num_copies]
    return counts_of(dense, walk.actions, len(used)), symbols, used // num_copies


def test_length_of_a_row_is_its_evidence():
    # Three outcomes seen 2, 1, 0 times: chain rule of the Polya urn with concentration 1/3 each.
    urn = (1 / 3) / 1 * (1 / 3 + 1) / 2 * (1 / 3) / 3
    counts = np.zeros((1, 3, 3))
    counts[0, 0, :2] = 2, 1
    found = description_length(counts)
    np.testing.assert_allclose(found, -math.log(urn / 2), **TOL["exact"][torch.float64])
    # One outcome seen three times: it is the only one, or another might come.
    urn = (1 / 3) / 1 * (1 / 3 + 1) / 2 * (1 / 3 + 2) / 3
    counts[0, 0, :2] = 3, 0
    found = description_length(counts)
    np.testing.assert_allclose(found, -math.log((1 / 3 + urn) / 2), **TOL["exact"][torch.float64])


def partitions(symbols, labels=()):
    """All ways to merge states of equal symbols, as labels."""
    if len(labels) == len(symbols):
        yield np.array(labels)
        return
    state = len(labels)
    for c in {*labels, state}:
        if symbols[c] == symbols[state]:
            yield from partitions(symbols, (*labels, c))


@pytest.mark.parametrize("seed", range(5))
def test_small_graphs_reach_the_best_of_all_partitions(seed):
    room = Room([[0, 1], [1, 2]])
    counts, symbols, _ = walk_with_copies(room, 300, num_copies=2, seed=seed)
    best = math.inf
    for labels in partitions(symbols):
        merged = np.zeros_like(counts)
        action, old, new = np.nonzero(counts)
        np.add.at(merged, (action, labels[old], labels[new]), counts[action, old, new])
        best = min(best, description_length(merged, num_states=len(symbols)))
    merging = merge_states(counts, symbols)
    np.testing.assert_allclose(merging.description_length, best, **TOL["exact"][torch.float64])


@pytest.mark.parametrize("name", ["rectangular_room", "aliased_4x4", "corridors_5x5", "ring_6x6"])
def test_copies_of_places_merge_into_the_places(name):
    room = published_room(name)
    counts, symbols, places = walk_with_copies(room, 20_000, num_copies=2, seed=1)
    merging = merge_states(counts, symbols)
    assert len(merging.symbols) == room.num_places
    # One class a place: labels and places determine each other.
    assert len(set(zip(merging.labels, places, strict=True))) == room.num_places
    assert ((merging.counts > 0).sum(-1) <= 1).all()
    np.testing.assert_allclose(merging.counts.sum(), counts.sum())
    np.testing.assert_array_equal(symbols, merging.symbols[merging.labels])


def test_two_rooms_fold_on_their_shared_patch_and_nowhere_else():
    """96 cells explain as much as the 87 places; 86 would too, without positive evidence."""
    rooms = [published_room(f"stitched_room_{i}") for i in (1, 2)]
    walks = [room.random_walk(50_000, seed=i) for i, room in enumerate(rooms)]
    offset = rooms[0].num_places
    size = offset + rooms[1].num_places
    counts = counts_of(np.asarray(walks[0].places), walks[0].actions, size)
    counts += counts_of(np.asarray(walks[1].places) + offset, walks[1].actions, size)
    symbols = np.concatenate([np.asarray(room.symbols) for room in rooms])
    merging = merge_states(counts, symbols)
    assert (size, len(merging.symbols)) == (96, 87)
    # The patch: rows 5-7, columns 3-5 of the first room are rows 0-2, columns 0-2 of the second.
    for row, column in itertools.product(range(3), range(3)):
        one = rooms[0].place_of_position((5 + row, 3 + column))
        other = rooms[1].place_of_position((row, column))
        assert merging.labels[one] == merging.labels[offset + other]


def test_states_without_a_shared_move_stay_apart():
    counts = np.zeros((2, 3, 3))
    counts[0, 0, 2] = counts[1, 1, 2] = 50
    assert len(merge_states(counts, np.array([0, 0, 1])).symbols) == 3


@pytest.mark.parametrize("alone", [False, True])
def test_slips_do_not_merge_different_places(alone):
    room = published_room("aliased_4x4")
    walk = room.random_walk(30_000, seed=3, slip=0.1)
    places = np.asarray(walk.places)
    copies = places * 2 + np.random.default_rng(0).integers(2, size=len(places))
    counts = counts_of(copies, walk.actions, 2 * room.num_places)
    symbols = np.repeat(np.asarray(room.symbols), 2)
    merging = merge_states(counts, symbols, alone=alone)
    assert len(set(zip(merging.labels, np.arange(32) // 2, strict=True))) == room.num_places
    assert len(merging.symbols) == room.num_places


@pytest.mark.parametrize("seed", range(2))
def test_remembered_folds_are_what_they_would_be_anew(seed, monkeypatch):
    """Mixed states and slips: many folds of which each changes others."""
    room = published_room("aliased_4x4")
    walk = room.random_walk(5_000, seed=seed, slip=0.1)
    rng = np.random.default_rng(seed)
    places = np.asarray(walk.places)
    places = np.where(places == 5, 10, places) * 3 + rng.integers(3, size=len(places))
    counts = counts_of(places, walk.actions, 48)
    symbols = np.repeat(np.asarray(room.symbols), 3)
    found = merge_states(counts, symbols)
    monkeypatch.setattr(_Graph, "fold", lambda graph, *question: graph._fold(*question)[0])
    anew = merge_states(counts, symbols)
    assert found.num_folds > 10
    np.testing.assert_array_equal(found.labels, anew.labels)
    np.testing.assert_array_equal(found.counts, anew.counts)
