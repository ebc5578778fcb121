"""Maps read from expected counts: their length, and the copies of places that they merge."""

from __future__ import annotations

import math

import numpy as np
import torch
from conftest import TOL

from chmm_pyro import CloneHMM, CloneStructure
from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.chance import expected_map, read_length
from chmm_pyro.inference.consolidate import model_of_counts
from chmm_pyro.inference.merging import description_length


def build(counts, symbols):
    return model_of_counts(counts, symbols, 4, dtype=torch.float64)


def test_the_length_of_a_crisp_path_is_its_description_length():
    room = Room([[0, 1], [2, 3]])
    walk = room.random_walk(200, seed=0)
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, (walk.actions, walk.places[:-1], walk.places[1:]), 1.0)
    model = build(counts, np.asarray(room.symbols))
    found = read_length(model, walk.batch(), counts)
    np.testing.assert_allclose(found, description_length(counts), **TOL["exact"][torch.float64])


def test_what_is_taken_off_is_the_entropy_of_the_paths():
    """Against all paths of a short walk, one by one."""
    walk = Room([[0, 1], [1, 0]]).random_walk(5, seed=1)
    rng = np.random.default_rng(0)
    model = model_of_counts(rng.random((4, 5, 5)), np.array([0, 0, 0, 1, 1]), 2)
    hmm = model.distribution(walk.batch())
    own = CloneStructure([1] * 5)
    given = CloneHMM(own, hmm.log_initial, hmm.table.values, walk.actions)
    paths = np.stack(np.meshgrid(*[range(5)] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    symbols = np.array([0, 0, 0, 1, 1])
    paths = paths[(symbols[paths] == np.asarray(walk.obs)).all(1)]
    with torch.no_grad():
        joint = given.log_prob(torch.as_tensor(paths)).double().numpy()
    log_prob = np.logaddexp.reduce(joint)
    entropy = -(np.exp(joint - log_prob) * (joint - log_prob)).sum()
    counts = np.ones((4, 5, 5))
    expected = description_length(counts) - entropy
    with torch.no_grad():
        found = read_length(model, walk.batch(), counts)
    np.testing.assert_allclose(found, expected, **TOL["exact"][torch.float64])
    assert math.isfinite(entropy) and entropy > 0.1


def test_copies_of_places_in_a_world_with_slips_merge():
    room = published_room("aliased_4x4")
    walk = room.random_walk(4_000, seed=3, slip=0.1)
    copies = np.asarray(walk.places) * 2 + np.random.default_rng(0).integers(2, size=4_000)
    counts = np.zeros((4, 32, 32))
    np.add.at(counts, (walk.actions, copies[:-1], copies[1:]), 1.0)
    model = model_of_counts(counts, np.repeat(np.asarray(room.symbols), 2), 4, pseudocount=1e-3)
    found = expected_map(model, walk.batch(), build)
    assert len(found.symbols) == room.num_places
    np.testing.assert_allclose(found.counts.sum(), 3_999, rtol=0.01)  # rare moves are left out
