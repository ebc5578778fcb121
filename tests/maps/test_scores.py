"""Scores of maps with known flaws, counted by hand."""

import math

import numpy as np
import pytest
from worlds import exact_model

from chmm_pyro.clones import MISSING
from chmm_pyro.environments import Room, published_room
from chmm_pyro.inference.result import bits_per_step
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.edits import block, open_edges, without
from chmm_pyro.maps.scores import edge_scores, places_of_states, score_map

ROW = Room([[0, 1, 2, 3]], walls="never")  # edges 0>1 1>0 1>2 2>1 2>3 3>2
SAME = {0: 0, 1: 1, 2: 2, 3: 3}


def scored(cognitive_map, room=ROW, **options):
    walk = room.random_walk(200, seed=0)
    truth = CognitiveMap.from_room(room)
    return score_map(cognitive_map, truth, walk.places, walk.places, **options)


def test_the_truth_is_perfect():
    scores = scored(CognitiveMap.from_room(ROW), min_count=0.5)
    assert scores.as_row() == {
        "num_nodes": 4,
        "num_places": 4,
        "purity": 1.0,
        "place_recall": 1.0,
        "edge_precision": 1.0,
        "edge_recall": 1.0,
        "edge_f1": 1.0,
        "busy_edge_precision": 1.0,
        "busy_edge_recall": 1.0,
        "busy_edge_f1": 1.0,
        "outcome_accuracy": 1.0,
        "isomorphic": True,
        "held_out_bits_per_step": None,
    }
    assert scores.difference.is_empty


def test_a_missing_and_a_wrong_edge():
    truth = CognitiveMap.from_room(ROW)
    missing = scored(block(truth, [(2, 3)]))
    assert (missing.edges.precision, missing.edges.recall) == (1.0, 4 / 6)
    assert missing.edges.f1 == pytest.approx(0.8)
    assert missing.outcome_accuracy == pytest.approx(4 / 6)
    wrong = scored(open_edges(truth, [(0, 1, 2)]))
    assert (wrong.edges.precision, wrong.edges.recall) == (5 / 6, 5 / 6)
    assert wrong.outcome_accuracy == pytest.approx(5 / 6)
    assert not wrong.isomorphic and wrong.difference.extra_edges == [(0, 1, 2)]
    added = open_edges(truth, [(0, 3, 2)])  # an action that no walker tries there
    assert scored(added).edges.precision == 6 / 7 and scored(added).outcome_accuracy == 1.0


def test_a_missing_place():
    scores = scored(without(CognitiveMap.from_room(ROW), states=[3]))
    assert scores.place_recall == 0.75 and scores.num_nodes == 3
    assert scores.difference.missing_places == [3]


def test_traffic_cut_off():
    truth = CognitiveMap.from_room(ROW)
    edges = np.concatenate([truth.edges, [[0, 1, 3]]])
    noisy = truth.with_edges(edges, np.array([9.0] * 6 + [1.0]), np.array([9.0] * 6 + [1.0]))
    scores = scored(noisy, min_count=2.0)
    assert scores.edges.precision == 6 / 7 and scores.edges.num_edges == 7
    assert scores.busy_edges.f1 == 1.0 and scores.busy_edges.num_edges == 6
    assert scores.outcome_accuracy == pytest.approx((5 + 0.9) / 6)


def test_mixed_states():
    """Places 1 and 2 share state 1: purity by visits, and the lower of equal places."""
    places = np.array([0, 1, 2, 3, 2, 1, 0, 1])
    states = np.array([0, 1, 1, 3, 1, 1, 0, 1])
    truth = CognitiveMap.from_room(ROW)
    merged = without(truth, states=[2])
    scores = score_map(merged, truth, states, places)
    assert scores.purity == 6 / 8
    assert scores.place_recall == 0.75  # state 1 is at place 1 three times of five
    assert places_of_states([5, 5, MISSING], [3, 2, 9]) == {5: 2}


def test_outcome_accuracy_weights_clones_by_usage():
    room = Room([[0, 1]], walls="never")
    truth = CognitiveMap.from_room(room)
    base = CognitiveMap.from_room(Room([[0, 1, 0]], walls="never"))
    # State 2 is a rarer clone of place 0 that goes nowhere else.
    edges = np.array([[0, 1, 1], [1, 0, 0], [2, 1, 2]])
    clone = base.with_edges(edges, np.ones(3), np.ones(3))
    clone.usage[:] = [3.0, 4.0, 1.0]
    scores = score_map(clone, truth, [0, 1, 0, 1, 2], [0, 1, 0, 1, 0])
    assert scores.outcome_accuracy == pytest.approx((0.75 + 1) / 2)
    assert scores.edges.precision == 2 / 3 and scores.edges.recall == 1.0


def test_stochastic_truth():
    room = published_room("aliased_4x4")
    truth = CognitiveMap.from_room(room, slip=0.2)
    same = {s: s for s in range(16)}
    certain = CognitiveMap.from_room(room)
    assert edge_scores(certain, truth, same).precision == 1.0
    assert edge_scores(certain, truth, same).recall == len(certain.edges) / len(truth.edges)
    walk = room.random_walk(500, seed=0)
    scores = score_map(certain, truth, walk.places, walk.places)
    overlap = [
        matrix.toarray()[np.arange(16), room.next_place[:, a]]
        for a, matrix in enumerate(truth.matrices)
    ]
    assert scores.outcome_accuracy == pytest.approx(np.mean(overlap))


@pytest.mark.parametrize("split", [1, 2])
def test_of_a_model_with_held_out_data(split):
    room = published_room("corridors_5x5")
    model, _ = exact_model(room, split=split, pseudocount=1e-9)
    walk = room.random_walk(20_000, seed=1)
    batch = walk.batch()
    held_out = room.random_walk(300, seed=2, num_episodes=3).batch()
    states = model.distribution(batch).posterior_mode(batch.obs).states.numpy()
    scores = score_map(
        CognitiveMap.from_model(model, batch),
        CognitiveMap.from_room(room),
        states,
        walk.places,
        model=model,
        held_out=held_out,
    )
    assert scores.num_nodes == split * 19 and scores.isomorphic is (split == 1)
    assert scores.edges.f1 == scores.purity == scores.place_recall == 1.0
    assert scores.outcome_accuracy == pytest.approx(1.0)
    assert len(scores.difference.split_places) == (19 if split == 2 else 0)
    assert not scores.difference.missing_edges and not scores.difference.extra_edges
    log_prob = model.distribution(held_out).log_prob(held_out.obs).sum().item()
    expected = -log_prob / math.log(2) / 900
    assert scores.held_out_bits_per_step == pytest.approx(expected)
    assert scores.held_out_bits_per_step == pytest.approx(bits_per_step(model, held_out))


def test_bad_input():
    truth = CognitiveMap.from_room(ROW)
    with pytest.raises(ValueError, match=r"places has shape \(2,\), expected \(3,\)"):
        places_of_states([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match="without model"):
        score_map(truth, truth, [0], [0], held_out=ROW.random_walk(5).batch())
