"""Compact maps from walks: exact on a small world, reproducible, and honest about failure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TOL

from chmm_pyro import CloneStructure, SequenceBatch
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.environments import Room, published_room, random_room
from chmm_pyro.environments.tracks import lap_track
from chmm_pyro.inference import consolidate, fit_em, fit_map, fit_svi, map_fit
from chmm_pyro.inference.consolidate import model_of_counts
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.models import NoisyCHMM, PointCHMM
from chmm_pyro.tables import BlockColumns


@pytest.fixture(scope="module")
def walk():
    return published_room("aliased_4x4").random_walk(8_000, seed=5)


@pytest.fixture(scope="module")
def found(walk):
    return fit_map(walk.batch(), seed=0, progress=False)


def is_exact(model, walk) -> bool:
    """States and places determine each other, and every tried move has the true outcome."""
    states = model.distribution(walk.batch()).posterior_mode(walk.obs).states.numpy()
    places = np.asarray(walk.places)
    pairs = set(zip(states, places, strict=True))
    return len(pairs) == len(set(states)) == len(set(places))


def test_every_place_has_one_state(found, walk):
    assert is_exact(found.model, walk)
    assert found.converged
    assert found.model.clones.num_states == 16
    assert found.bits_per_step < 0.01
    assert (np.diff(found.objective_history) >= 0).all()


def test_a_seed_decides_everything(found, walk):
    again = fit_map(walk.batch(), seed=0, progress=False)
    table = found.model.transition.table().values
    assert torch.equal(again.model.transition.table().values, table)
    assert again.settings["attempts"] == found.settings["attempts"]


@pytest.mark.parametrize("num_clones", [24, 32])
def test_repair_tells_mixed_places_apart(walk, num_clones):
    """Too few updates at the start: states stand for several places until they are repaired."""
    options = {"num_iters": 6, "num_rounds": 1, "seed": 1, "progress": False}
    result = fit_map(walk.batch(), num_clones=num_clones, **options)
    attempts = result.settings["attempts"]
    assert attempts[0]["num_mixed_moves"] > 0
    assert "repair" in [attempt["kind"] for attempt in attempts]
    assert is_exact(result.model, walk)


def test_a_map_grows_beyond_the_clones_of_its_start(walk):
    result = fit_map(walk.batch(), num_clones=8, seed=0, progress=False)
    first, *_, last = result.settings["attempts"]
    assert first["num_clones"] < 16 < last["num_clones"]
    assert is_exact(result.model, walk)


def test_lack_of_clones_is_not_taken_for_chance():
    walk = random_room(6, 6, 4, seed=3).random_walk(10_000, seed=1)
    result = fit_map(walk.batch(), num_clones=8, seed=0, progress=False)
    assert {attempt["kind"] for attempt in result.settings["attempts"]} == {"round", "repair"}
    assert is_exact(result.model, walk)


def test_em_reads_samples_and_the_map_all_data(monkeypatch):
    """A hundred steps a state; the places of a room entered once, at the end, are in the map."""
    read = []

    def spied(model, batch, **options):
        read.append((batch.num_steps, model.clones.num_states))
        return fit_em(model, batch, **options)

    monkeypatch.setattr(map_fit, "fit_em", spied)
    room = Room([[0, 1, 2], [1, 2, 0], [3, 0, 1]])
    other = Room([[4, 5], [5, 4]])
    walks = [room.random_walk(20_000, seed=0), other.random_walk(300, seed=1)]
    batch = SequenceBatch.from_arrays([w.obs for w in walks], [w.actions for w in walks])
    result = fit_map(batch, num_clones=40, seed=0, progress=False)
    assert result.converged
    assert result.model.clones.num_states == 13
    segment = 1_001
    assert all(steps <= 100 * states + segment < batch.num_steps for steps, states in read)


def test_rows_of_large_models_get_no_more_pseudocounts(walk, monkeypatch):
    shares = []

    def spied(model, batch, **options):
        states = model.clones.num_states
        shares.append((states, options["pseudocount"] * states / batch.num_steps))
        return fit_em(model, batch, **options)

    monkeypatch.setattr(map_fit, "fit_em", spied)
    once = {"num_iters": 15, "num_rounds": 1, "num_repairs": 0, "num_starts": 1, "progress": False}
    for num_clones in (80, 240):
        fit_map(walk.batch(), num_clones=num_clones, **once)
    (small, share), (large, given) = shares
    assert small < 160 < large
    np.testing.assert_allclose(given, share * 160 / small, **TOL["exact"][torch.float64])


def test_a_uniform_core_is_found():
    """Six places of one symbol without a landmark, known only by what lies around them."""
    room = Room([[1, 5, 5, 5, 2], [7, 0, 0, 0, 8], [7, 0, 0, 0, 8], [3, 6, 6, 6, 4]])
    walk = room.random_walk(10_000, seed=3)
    result = fit_map(walk.batch(), seed=0, progress=False)
    assert is_exact(result.model, walk)
    assert result.model.clones.num_clones == tuple(np.bincount(room.symbols))


@pytest.mark.slow
def test_the_published_empty_room_is_found():
    walk = published_room("empty_room").random_walk(50_000, seed=1)
    result = fit_map(walk.batch(), seed=1, progress=False)
    assert result.converged
    assert is_exact(result.model, walk)


def test_laps_are_counted():
    """A reward every fourth lap: six states with one toss of a coin are fewer, but not the map."""
    result = fit_map(lap_track(30, length=5).batch(), seed=0, progress=False)
    assert result.converged
    assert result.model.clones.num_states == 20


def test_corners_that_no_move_tells_apart_are_two_places():
    """Walls that are never tried: both corners of symbol 0 as one state explain every move."""
    room = Room([[0, 1, 2], [3, 4, 5], [6, 7, 0]], walls="never")
    walk = room.random_walk(5_000, seed=0)
    result = fit_map(walk.batch(), seed=0, progress=False)
    assert result.model.clones.num_states == 9
    assert result.model.clones.num_clones == (2, 1, 1, 1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def small_room():
    return Room([[0, 1, 0], [0, 2, 3]])


def test_a_world_where_moves_fail(small_room):
    """Every move has several outcomes: the data say that it is the world, not the fit."""
    walk = small_room.random_walk(6_000, seed=0, slip=0.1)
    result = fit_map(walk.batch(), num_clones=24, seed=0, progress=False)
    assert result.model.clones.num_clones == (3, 1, 1, 1)
    assert result.converged
    found = CognitiveMap.from_result(result)
    truth = CognitiveMap.from_room(small_room, slip=0.1)
    # Slips of 1 in 30 are seen seldom; probabilities come from hundreds of moves.
    assert isomorphism(found, truth, tolerance=0.1, negligible=0.15) is not None


def test_chance_where_a_symbol_is_never_seen(small_room):
    walk = small_room.random_walk(6_000, seed=0, slip=0.1)
    result = fit_map(walk.batch(), num_symbols=5, num_clones=24, seed=0, progress=False)
    assert "doubled" in {attempt["kind"] for attempt in result.settings["attempts"]}
    assert result.model.clones.num_clones == (3, 1, 1, 1, 1)


def test_a_world_seen_through_noise(small_room):
    walk = small_room.random_walk(3_000, seed=0, observation_noise=0.05)
    options = {"num_clones": 40, "seed": 0, "progress": False}
    result = fit_map(walk.batch(), observation_noise=0.05, **options)
    assert isinstance(result.model, NoisyCHMM)
    assert result.converged
    truth = CognitiveMap.from_room(small_room)
    assert isomorphism(CognitiveMap.from_result(result), truth) is not None
    path = result.model.distribution(walk.batch()).posterior_mode(walk.obs).states.numpy()
    wrong = np.asarray(small_room.symbols)[walk.places] != np.asarray(walk.obs)
    seen = np.asarray(result.model.clones.symbol_of_state)[path]
    assert wrong.mean() > 0.04
    assert (seen == np.asarray(small_room.symbols)[walk.places]).mean() > 0.99


def test_episodes_are_one_map(walk):
    cut = walk.batch().segments(500).batch
    result = fit_map(cut, seed=0, progress=False)
    assert result.model.clones.num_states == 16
    assert result.converged


def test_consolidation_of_an_em_fit(walk):
    batch = walk.batch()
    start = PointCHMM(CloneStructure([20] * 4), num_actions=4, seed=0)
    fit = fit_em(start, batch, num_iters=60, pseudocount=0.005, progress=False)
    smaller = consolidate(fit, batch)
    report = smaller.settings["report"]
    assert report["merged"]
    assert report["num_states_before"] == 80
    assert report["num_states"] == smaller.model.clones.num_states < report["num_states_used"]
    assert smaller.bits_per_step <= fit.bits_per_step + 0.01


def test_consolidation_that_costs_likelihood_is_undone():
    """Coin flips: two states explain nothing more than one, and no tolerance is overstepped."""
    obs = np.random.default_rng(0).integers(0, 2, 2_000)
    batch = SequenceBatch.from_arrays(obs)
    model = PointCHMM(CloneStructure([3, 3]), num_actions=1, seed=0)
    fit = fit_em(model, batch, num_iters=30, pseudocount=0.01, progress=False)
    smaller = consolidate(fit, batch, tolerance=0.02)
    assert smaller.bits_per_step <= fit.bits_per_step + 0.02
    assert smaller.model.clones.num_states <= 6


def test_consolidation_beyond_the_tolerance_returns_the_model_given():
    """A pseudocount that no smaller model can afford."""
    batch = SequenceBatch.from_arrays([0, 1] * 100)
    model = PointCHMM(CloneStructure([2, 2]), num_actions=1, seed=3)
    fit = fit_em(model, batch, num_iters=20, progress=False)
    smaller = consolidate(fit, batch, pseudocount=50.0, tolerance=0.1)
    assert smaller.bits_per_step == fit.bits_per_step
    assert smaller.model is not fit.model
    for one, other in zip(smaller.model.parameters(), fit.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # Nothing of the refits that were turned down is reported.
    report = smaller.settings["report"]
    assert (report["merged"], report["counted"], report["num_folds"]) == (False, None, 0)
    assert report["description_length"] == report["description_length_before"]
    assert len(smaller.objective_history) == len(smaller.seconds_history) == 0
    assert (smaller.num_iters, smaller.converged) == (0, False)


def test_consolidation_of_a_soft_fit_keeps_the_data_possible():
    """Moves that the posterior spreads thinly over many states are needed all the same."""
    batch = published_room("aliased_4x4").random_walk(3_000, seed=1, slip=0.05).batch()
    model = PointCHMM(CloneStructure([12] * 4), num_actions=4, seed=1)
    fit = fit_em(model, batch, num_iters=15, pseudocount=0.03, progress=False)
    smaller = consolidate(fit, batch)
    assert smaller.bits_per_step <= fit.bits_per_step + 0.01


@pytest.mark.parametrize(
    "options",
    [{"action_model": "joint"}, {"learn_actions": True}, {"learn_initial": True}, {"blocks": True}],
    ids=lambda options: next(iter(options)),
)
def test_consolidation_keeps_the_kind_of_the_model(walk, options):
    """The smaller model has the terms of the larger, so that the tolerance compares like."""
    batch = walk.batch()
    clones = CloneStructure([12] * batch.num_symbols)
    if options.pop("blocks", False):
        columns = BlockColumns.from_batch(clones, 4, batch)
        options = {"parameterization": "blocks", "columns": columns}
    start = PointCHMM(clones, num_actions=4, dtype=torch.float64, **options)
    fit = fit_em(start, batch, num_iters=60, pseudocount=0.01, progress=False)
    smaller = consolidate(fit, batch)
    assert smaller.model.action_model == fit.model.action_model == smaller.settings["action_model"]
    assert (smaller.model.action_logits is None) == (fit.model.action_logits is None)
    assert smaller.model.initial.learned == fit.model.initial.learned
    assert smaller.model.clones.num_states < clones.num_states
    assert smaller.bits_per_step <= fit.bits_per_step + 0.01


def test_consolidation_decodes_the_paths_once(walk, monkeypatch):
    decoded = []
    decode = CloneHMM.posterior_mode

    def counted(hmm, *args, **kwargs):
        decoded.append(hmm)
        return decode(hmm, *args, **kwargs)

    monkeypatch.setattr(CloneHMM, "posterior_mode", counted)
    start = PointCHMM(CloneStructure([6] * 4), num_actions=4, seed=0)
    consolidate(start, walk.batch())
    assert len(decoded) == 1


def test_consolidation_of_sequences_without_moves():
    batch = SequenceBatch.from_arrays([[0], [1]])
    smaller = consolidate(PointCHMM(CloneStructure([2, 2]), num_actions=1), batch)
    assert smaller.model.clones.num_clones == (1, 1)


def test_consolidation_never_returns_more_states_than_were_used():
    """States of few, soft data are divided, and find no partner to be merged with."""
    batch = published_room("rectangular_room").random_walk(4_000, seed=42).batch()
    start = PointCHMM(CloneStructure([20] * 4), num_actions=4, seed=0)
    fit = fit_svi(start, batch, num_iters=30, pseudocount=1.6e-3, progress=False)
    report = consolidate(fit, batch).settings["report"]
    assert report["num_states"] <= report["num_states_used"] <= 80


def test_consolidation_of_a_world_with_slips():
    """Two copies of every place, and moves that fail one time in ten."""
    room = published_room("aliased_4x4")
    walk = room.random_walk(20_000, seed=3, slip=0.1)
    copies = np.asarray(walk.places) * 2 + np.random.default_rng(0).integers(2, size=20_000)
    counts = np.zeros((4, 32, 32))
    np.add.at(counts, (walk.actions, copies[:-1], copies[1:]), 1.0)
    symbols = np.repeat(np.asarray(room.symbols), 2)
    model = model_of_counts(counts, symbols, 4, pseudocount=1e-3)
    smaller = consolidate(model, walk.batch(), tolerance=0.02)
    report = smaller.settings["report"]
    assert report["merged"]
    assert report["counted"] == "expected"
    assert report["num_states"] == room.num_places
    assert smaller.bits_per_step <= report["bits_per_step_before"] + 0.02


def test_bad_options():
    batch = SequenceBatch.from_arrays([0, 1, 0, 1])
    with pytest.raises(ValueError, match="num_clones = 0, expected at least 1"):
        fit_map(batch, num_clones=0, progress=False)
    with pytest.raises(ValueError, match="num_rounds = 0, expected at least 1"):
        fit_map(batch, num_rounds=0, progress=False)
    unseen = SequenceBatch.from_arrays([-1, -1, -1])
    with pytest.raises(ValueError, match="3 steps and none observed, expected at least one; check"):
        fit_map(unseen, progress=False)
    with pytest.raises(ValueError, match="num_symbols = 1, expected at least the 2 of batch"):
        fit_map(batch, num_symbols=1, progress=False)
    with pytest.raises(ValueError, match="observation_noise = 1, expected a probability"):
        fit_map(batch, observation_noise=1, progress=False)
    with pytest.raises(ValueError, match="smoothing = -1"):
        fit_map(batch, smoothing=-1, progress=False)
    with pytest.raises(ValueError, match="tolerance = -1"):
        consolidate(PointCHMM(CloneStructure([1, 1]), num_actions=1), batch, tolerance=-1)
