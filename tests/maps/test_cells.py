"""Place cells, splitter cells, lap cells and remapping."""

import numpy as np
import pytest
import torch
from conftest import TOL
from instances import random_instance
from numpy.testing import assert_allclose
from torch.testing import assert_close
from worlds import exact_model

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.environments import published_room, random_room
from chmm_pyro.environments.tracks import lap_track, t_maze
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.cells import context_selectivity, noisy_evidence, noisy_filter, recognise
from chmm_pyro.maps.usage import place_fields
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

EXACT = TOL["exact"][torch.float64]


def published_forward(model, obs, actions, pseudocount):
    """The forward messages of the published notebook, written out with its emission table."""
    clones = model.clones
    table = model.transition.table().values.exp().detach().numpy()
    emission = np.eye(clones.num_symbols)[clones.symbol_of_state] + pseudocount
    emission /= emission.sum(1, keepdims=True)
    messages = [np.full(clones.num_states, 1 / clones.num_states) * emission[:, obs[0]]]
    for t in range(1, len(obs)):
        messages.append((messages[-1] @ table[actions[t - 1]]) * emission[:, obs[t]])
        messages[-1] /= messages[-1].sum()
    return np.array([message / message.sum() for message in messages])


@pytest.mark.parametrize("pseudocount", [1e-3, 0.1, 2.0])
def test_noisy_filter_is_the_published_one(pseudocount):
    instance = random_instance(seed=3, num_clones=(2, 1, 3), num_actions=2, num_steps=9)
    model = PointCHMM.from_counts(instance.clones, np.exp(instance.transition_logits))
    obs, actions = np.array([0, 2, 2, 1, 0, 2, 1, 1, 0]), instance.actions
    batch = SequenceBatch.from_arrays(obs, actions, num_actions=2)
    found = noisy_filter(model, batch, pseudocount).dense().numpy()
    assert_allclose(found, published_forward(model, obs, actions, pseudocount), **EXACT)


def test_noisy_evidence_of_missing_steps_and_batches():
    obs = torch.tensor([[0, MISSING], [2, 1]])
    found = noisy_evidence(obs, 3, 0.5, dtype=torch.float64).exp()
    assert found.shape == (2, 2, 3)
    assert_close(found[0, 1], torch.ones(3, dtype=torch.float64))
    expected = torch.tensor([0.5, 0.5, 1.5], dtype=torch.float64) / 2.5
    assert_close(found[1, 0], expected)
    for pseudocount in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="pseudocount = "):
            noisy_evidence(obs, 3, pseudocount)
    with pytest.raises(ValueError, match="obs holds 2, expected less than 2"):
        noisy_evidence(obs, 2, 0.1)


def test_a_place_cell_has_one_field_even_with_noise():
    room = published_room("rectangular_room")
    model, place_of = exact_model(room, pseudocount=1e-6)
    walk = room.random_walk(6000, seed=2, observation_noise=0.05)
    batch = walk.batch()
    fields = place_fields(noisy_filter(model, batch, 0.02), walk.positions, room.layout.shape)
    peaks = fields.reshape(48, -1).argmax(1)
    assert (peaks == place_of).all()  # places are numbered row by row, like the grid
    own = fields.reshape(48, -1)[np.arange(48), place_of]
    assert own.min() > 0.8 and (fields.reshape(48, -1).sum(1) - own).max() < 0.3
    exact = exact_model(room)[0].distribution(batch)
    with pytest.raises(ValueError, match="impossible at step"):
        exact.filter(batch.obs)


def test_context_selectivity():
    fields = np.zeros((4, 3, 5))
    fields[0, 1, 2] = 0.4  # one context only
    fields[1, :, 3] = 0.2  # all the same
    fields[2, :, 0] = [0.6, 0.2, 0.0]
    fields[2, :, 1] = [0.5, 0.5, 0.5]  # not its peak
    found = context_selectivity(fields)
    assert_allclose(found[:3], [1, 1 / 3, 0.75])
    assert np.isnan(found[3])
    fields[:, :, 4] = np.nan  # never visited
    assert_allclose(context_selectivity(fields)[:3], [1, 1 / 3, 0.75])
    with pytest.raises(ValueError, match=r"fields has shape \(2,\)"):
        context_selectivity([1.0, 2.0])


@pytest.fixture
def one_thread():
    """Many small updates: threads that wait for each other cost more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fields_and_map(model, run):
    batch = run.batch()
    result = fit_viterbi(model, batch, progress=False)
    fields = place_fields(noisy_filter(result.model, batch, 1e-3), run.cells, run.shape)
    return fields, CognitiveMap.from_result(result)


def test_splitter_cells_on_a_t_maze(one_thread):
    run = t_maze(120)
    start = PointCHMM(CloneStructure([4] * 10), num_actions=1, seed=0)
    result = fit_em(start, run.batch(), num_iters=100, progress=False)
    fields, cognitive_map = fields_and_map(result.model, run)
    assert cognitive_map.num_nodes == 2 * (4 + 3)
    stem = cognitive_map.states[cognitive_map.symbols < 4]
    assert len(stem) == 8
    selectivity = context_selectivity(fields)[stem]
    assert selectivity.min() > 0.95
    preferred = fields[stem][..., :4].max(-1).argmax(-1)
    assert sorted(preferred.tolist()) == [0] * 4 + [1] * 4


def test_no_splitter_cells_where_the_turn_is_random(one_thread):
    run = t_maze(120, alternate=False)
    start = PointCHMM(CloneStructure([4] * 10), num_actions=1, seed=0)
    result = fit_em(start, run.batch(), num_iters=100, progress=False)
    fields, cognitive_map = fields_and_map(result.model, run)
    stem = cognitive_map.states[cognitive_map.symbols < 4]
    assert context_selectivity(fields)[stem].max() < 0.75


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lap_cells_on_a_track(one_thread, seed):
    """Gradients with a large learning rate count laps with one state for each place and lap."""
    run = lap_track(30, length=5)
    start = PointCHMM(CloneStructure([12] * 6), num_actions=1, seed=seed)
    result = fit_svi(start, run.batch(), num_iters=150, learning_rate=0.5, progress=False)
    fields, cognitive_map = fields_and_map(result.model, run)
    assert cognitive_map.num_nodes == 4 * 5
    assert context_selectivity(fields)[cognitive_map.states].min() > 0.9
    cells = np.nan_to_num(fields[cognitive_map.states]).reshape(20, -1).argmax(1)
    assert sorted(cells.tolist()) == list(range(20))  # one for each place in each lap


def test_remapping_a_short_walk_tells_the_room():
    rooms = [random_room(6, 6, num_symbols=4, seed=seed) for seed in range(5)]
    maps = []
    for room in rooms:
        model, _ = exact_model(room)
        maps.append(CognitiveMap.from_model(model, room.random_walk(15_000, seed=0).batch()))
    short, right = [], 0
    for number, room in enumerate(rooms):
        walk = room.random_walk(20, seed=9, num_episodes=8)
        probs = recognise(maps, walk.batch())
        assert probs.shape == (8, 5)
        assert_allclose(probs.sum(1), 1.0, **EXACT)
        assert (probs.argmax(1) == number).all()
        right += int((probs.max(1) > 0.99).sum())
        short.append(recognise(maps, walk.batch()[0].segments(2).batch)[0].max())
        belief = maps[number].localise(walk.batch()).belief
        last = [places[-1] for places in walk.places]
        model, place_of = exact_model(room)
        assert (place_of[maps[number].states[belief.argmax(1)]] == last).mean() > 0.8
    assert right >= 38 and np.mean(short) < 0.9  # two steps do not tell yet


def test_remapping_by_summing():
    rooms = [random_room(2, 2, num_symbols=2, seed=seed, identifiable=False) for seed in (0, 3)]
    maps = [CognitiveMap.from_room(room) for room in rooms]
    batch = SequenceBatch.from_arrays([0, 1, 1], [1, 3], num_actions=4)
    pseudocount = 0.3
    weights = []
    for room in rooms:
        total = 0.0
        for start in range(4):
            path = [start]
            for action in (1, 3):
                path.append(room.step(path[-1], action))
            seen = room.symbols[path] == [0, 1, 1]
            total += np.prod((seen + pseudocount) / (1 + 2 * pseudocount)) / 4
        weights.append(total)
    found = recognise(maps, batch, pseudocount=pseudocount)
    assert_allclose(found, np.array(weights) / sum(weights), **EXACT)


def test_recognise_bad_input():
    maps = [CognitiveMap.from_room(random_room(2, 2, num_symbols=2, seed=0, identifiable=False))]
    with pytest.raises(ValueError, match="maps is empty"):
        recognise([], SequenceBatch.from_arrays([0, 1], [0]))
    with pytest.raises(ValueError, match="no map explains the walk"):
        recognise(maps, SequenceBatch.from_arrays([0, 5], [0]))
