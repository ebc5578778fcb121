"""Maps read from models that are exactly a room, and filtered against the distribution."""

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import TOL
from numpy.testing import assert_allclose, assert_array_equal
from worlds import exact_model, room_table

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.environments import Room, published_room, published_room_names
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.maps import CognitiveMap
from chmm_pyro.maps.comparison import isomorphism
from chmm_pyro.maps.edits import block, open_edges, recurrent, without
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

EXACT = TOL["exact"][torch.float64]
ROOMS = published_room_names()
SMALL = Room([[0, 1, 0], [1, 1, -1]])


def as_set(cognitive_map, place_of=None):
    names = cognitive_map.states if place_of is None else place_of[cognitive_map.states]
    return {(names[i], a, names[j]) for i, a, j in cognitive_map.edges.tolist()}


def true_edges(room, slip=0.0):
    return {(i, a, j) for a, i, j in np.argwhere(room_table(room, slip) > 0).tolist()}


@pytest.mark.parametrize("slip", [0.0, 0.3])
@pytest.mark.parametrize("name", ["rectangular_room", "stitched_room_1"])
def test_true_map_of_a_room(name, slip):
    room = published_room(name)
    cognitive_map = CognitiveMap.from_room(room, slip=slip)
    table = room_table(room, slip)
    found = np.stack([matrix.toarray() for matrix in cognitive_map.matrices])
    assert_allclose(found, table, **EXACT)
    assert_array_equal(cognitive_map.tried, room.tried)
    assert cognitive_map.is_deterministic is (slip == 0)
    assert_array_equal(cognitive_map.symbols, room.symbols)
    if slip == 0:
        graph, truth = cognitive_map.to_networkx(), room.place_graph()
        assert set(graph.edges(keys=True)) == set(truth.edges(keys=True))
        assert all(graph.nodes[p]["symbol"] == truth.nodes[p]["symbol"] for p in truth)


@pytest.mark.parametrize("counts", ["expected", "path"])
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("name", ROOMS)
def test_no_edge_too_many_or_too_few(name, split, counts):
    room = published_room(name)
    model, place_of = exact_model(room, split=split)
    batch = room.random_walk(30_000, seed=1).batch()
    cognitive_map = CognitiveMap.from_model(model, batch, counts=counts)
    assert as_set(cognitive_map, place_of) == true_edges(room)
    assert_array_equal(cognitive_map.symbols, room.symbols[place_of[cognitive_map.states]])
    row = cognitive_map.edges[:, 0] * 4 + cognitive_map.edges[:, 1]
    assert_allclose(np.bincount(row, cognitive_map.probabilities)[row], 1.0, **EXACT)
    if split == 1:
        assert isomorphism(cognitive_map, CognitiveMap.from_room(room)) == dict(
            zip(cognitive_map.states.tolist(), place_of[cognitive_map.states].tolist(), strict=True)
        )
        # The posterior may leave open where the walk began: a step of hundreds in its state.
        tolerance = EXACT if counts == "path" else {"rtol": 0, "atol": 1e-3}
        true_positions = room.positions[place_of[cognitive_map.states]]
        assert_allclose(cognitive_map.positions, true_positions, **tolerance)


@pytest.mark.parametrize("lengths", [[100], [60, 41, 80]], ids=str)
def test_states_off_the_best_path_have_positions_too(lengths):
    """Of two states for one symbol the path takes the likelier; the counts reach both."""
    counts = torch.tensor([[[0.0, 6, 4], [1, 0, 0], [1, 0, 0]]], dtype=torch.float64)
    model = PointCHMM.from_counts(CloneStructure([1, 2]), counts)
    rng = np.random.default_rng(0)
    obs = [np.arange(length) % 2 for length in lengths]
    where = [rng.integers(9, size=(length, 2)) for length in lengths]
    if len(lengths) == 1:
        batch = SequenceBatch.from_arrays(obs[0], positions=where[0])
    else:
        batch = SequenceBatch.from_arrays(obs, positions=where)
    found = CognitiveMap.from_model(model, batch)
    assert found.states.tolist() == [0, 1, 2]
    assert 2 not in model.distribution(batch).posterior_mode(batch.obs).states
    seen, place = np.concatenate(obs), np.concatenate(where)
    means = [place[seen == symbol].mean(0) for symbol in (0, 1, 1)]
    assert_allclose(found.positions, means, **EXACT)


def test_stochastic_map():
    room = published_room("aliased_4x4")
    model, place_of = exact_model(room, slip=0.1)
    batch = room.random_walk(40_000, seed=1, slip=0.1).batch()
    cognitive_map = CognitiveMap.from_model(model, batch)
    assert as_set(cognitive_map, place_of) == true_edges(room, 0.1)
    assert not cognitive_map.is_deterministic
    truth = CognitiveMap.from_room(room, slip=0.1)
    assert isomorphism(cognitive_map, truth, tolerance=0.05) is not None
    assert isomorphism(cognitive_map, truth, tolerance=1e-4) is None


def test_counts_are_those_of_the_posterior():
    model, _ = exact_model(SMALL, split=2, pseudocount=1e-3)
    batch = SMALL.random_walk(200, seed=0).batch()
    smooth = model.distribution(batch).smooth(batch.obs)
    cognitive_map = CognitiveMap.from_model(model, batch)
    names = cognitive_map.states
    old, action, new = cognitive_map.edges.T
    expected = smooth.transition_counts.detach().numpy()[action, names[old], names[new]]
    assert_allclose(cognitive_map.counts, expected, **EXACT)
    usage = smooth.dense().sum(0).detach().numpy()[names]
    assert_allclose(cognitive_map.usage, usage, **EXACT)


def test_episodes_and_results():
    model, place_of = exact_model(SMALL)
    walk = SMALL.random_walk(400, seed=0, num_episodes=5)
    result = fit_viterbi(model, walk.batch(), num_iters=2, progress=False)
    for counts in ("expected", "path"):
        cognitive_map = CognitiveMap.from_result(result, counts=counts)
        assert as_set(cognitive_map, place_of) == true_edges(SMALL)
        assert cognitive_map.usage.sum() == pytest.approx(2000)
        assert cognitive_map.counts.sum() == pytest.approx(5 * 399)


def test_observed_blocks_give_the_same_map_as_dense_tables():
    dense, place_of = exact_model(SMALL, pseudocount=1e-3)
    walk = SMALL.random_walk(2000, seed=0)
    batch = walk.batch()
    columns = BlockColumns.from_batch(dense.clones, 4, batch)
    blocks = PointCHMM(
        dense.clones, 4, parameterization="blocks", columns=columns, dtype=torch.float64
    )
    probs = dense.transition.table().values.exp()
    stored = torch.zeros(4, dense.clones.num_states, columns.width, dtype=torch.float64)
    column = torch.as_tensor(columns.column[:, dense.clones.symbol_of_state])
    stored.scatter_add_(-1, column, probs)
    with torch.no_grad():
        blocks.transition.logits.copy_(stored.log())
    expected = CognitiveMap.from_model(dense, batch)
    found = CognitiveMap.from_model(blocks, batch)
    assert_array_equal(found.edges, expected.edges)
    assert_allclose(found.counts, expected.counts, rtol=1e-3)
    assert as_set(found, place_of) == true_edges(SMALL)


def test_graph_says_what_the_arrays_say():
    room = published_room("aliased_4x4")
    model, _ = exact_model(room)
    cognitive_map = CognitiveMap.from_model(model, room.random_walk(5000, seed=1).batch())
    graph = cognitive_map.graph
    assert nx.is_frozen(graph) and not nx.is_frozen(cognitive_map.to_networkx())
    assert list(graph) == cognitive_map.states.tolist()
    assert graph.number_of_edges() == len(cognitive_map.edges)
    for node, state in enumerate(cognitive_map.states.tolist()):
        data = graph.nodes[state]
        assert data["symbol"] == cognitive_map.symbols[node]
        assert data["usage"] == cognitive_map.usage[node]
        assert data["position"] == tuple(cognitive_map.positions[node])
    for (i, a, j), p, c in zip(
        cognitive_map.edges.tolist(), cognitive_map.probabilities, cognitive_map.counts, strict=True
    ):
        data = graph.edges[cognitive_map.states[i], cognitive_map.states[j], a]
        assert data == {"action": a, "probability": p, "count": c}
    with pytest.raises(nx.NetworkXError):
        graph.add_node(0)


# ------------------------------------------------------------------------------- localising


def dense_distribution(room, batch, slip):
    """The map as a CloneHMM: one clone for each place, in the order of the states."""
    model, place_of = exact_model(room, slip=slip)
    return model.distribution(batch), place_of


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_localise_is_the_filter(slip):
    room = published_room("corridors_5x5")
    walk = room.random_walk(7, seed=3, num_episodes=6, slip=slip)
    batch = walk.batch()
    hmm, place_of = dense_distribution(room, batch, slip)
    expected = hmm.filter(batch.obs).at(-1).detach().numpy()
    found = CognitiveMap.from_room(room, slip=slip).localise(batch)
    assert_allclose(found.belief[:, place_of], expected, **EXACT)
    log_prob = hmm.log_prob(batch.obs).detach().numpy()
    assert_allclose(found.log_prob, log_prob, **EXACT)
    one = CognitiveMap.from_room(room, slip=slip).localise(batch[2])
    assert one.belief.shape == (room.num_places,) and one.log_prob.shape == ()
    assert_allclose(one.belief, found.belief[2], **EXACT)


def test_localise_by_summing_over_all_paths():
    room, obs, actions = SMALL, [0, 1, MISSING, 1], [1, 3, 0]
    table, pseudocount = room_table(room), 0.25
    prior = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    joint = np.zeros(room.num_places)
    for path in np.ndindex(*[room.num_places] * 4):
        p = prior[path[0]]
        for t, place in enumerate(path):
            if obs[t] != MISSING:
                p *= ((room.symbols[place] == obs[t]) + pseudocount) / (1 + 2 * pseudocount)
            if t:
                p *= table[actions[t - 1], path[t - 1], place]
        joint[path[-1]] += p
    found = CognitiveMap.from_room(room).localise(
        SequenceBatch.from_arrays(obs, actions), belief=prior, pseudocount=pseudocount
    )
    assert_allclose(found.belief, joint / joint.sum(), **EXACT)
    assert_allclose(found.log_prob, np.log(joint.sum()), **EXACT)


def test_a_short_walk_tells_where_it_is():
    room = published_room("rectangular_room")
    walk = room.random_walk(25, seed=0, num_episodes=20)
    belief = CognitiveMap.from_room(room).localise(walk.batch()).belief
    assert (belief.argmax(1) == [places[-1] for places in walk.places]).all()
    assert (belief.max(1) > 0.99).all()


def test_follow_is_a_product_of_tables():
    room = published_room("aliased_4x4")
    table = room_table(room, 0.2)
    belief = np.random.default_rng(0).dirichlet(np.ones(16))
    found = CognitiveMap.from_room(room, slip=0.2).follow(belief, [0, 3, 1])
    assert_allclose(found, belief @ table[0] @ table[3] @ table[1], **EXACT)


# ---------------------------------------------------------------------------------- editing


@pytest.mark.parametrize("walls", ["bump", "never"])
def test_blocking_is_building_a_wall(walls):
    layout = np.arange(12).reshape(3, 4)
    wall = [((0, 1), (0, 2)), ((1, 1), (2, 1))]
    open_room, walled = Room(layout, walls=walls), Room(layout, walls=walls, blocked=wall)
    found = block(CognitiveMap.from_room(open_room), [(1, 2), (5, 9)], bump=walls == "bump")
    assert_array_equal(found.edges, CognitiveMap.from_room(walled).edges)
    doors = [(1, 1, 2), (2, 0, 1), (5, 3, 9), (9, 2, 5)]
    again = open_edges(CognitiveMap.from_room(walled), doors)
    assert_array_equal(again.edges, CognitiveMap.from_room(open_room).edges)
    assert_allclose(again.probabilities, 1.0, **EXACT)


def test_blocking_one_outcome_leaves_the_others_their_shares():
    room = Room([[0, 1, 2]])
    found = block(CognitiveMap.from_room(room, slip=0.4), [(1, 2)])
    outcomes = {
        (i, a, j): p for (i, a, j), p in zip(found.edges.tolist(), found.probabilities, strict=True)
    }
    # From 1, right led to 2 (0.6), left to 0 and up or down stayed (0.4 / 3 each).
    assert outcomes[1, 1, 0] == pytest.approx(1 / 3)
    assert outcomes[1, 1, 1] == pytest.approx(2 / 3)
    assert (1, 1, 2) not in outcomes


def test_without_and_recurrent():
    cognitive_map = CognitiveMap.from_room(SMALL)
    smaller = without(cognitive_map, symbols=[0], actions=[2])
    assert smaller.states.tolist() == [1, 3, 4]
    kept = {(i, a, j) for i, a, j in true_edges(SMALL) if a != 2 and not {i, j} & {0, 2}}
    assert as_set(smaller) == kept
    clones = CloneStructure([2, 2])
    counts = np.zeros((1, 4, 4))
    counts[0, 0, 2] = counts[0, 2, 1] = counts[0, 1, 3] = counts[0, 3, 1] = 1  # 0, 2, then 1 <-> 3
    model = PointCHMM.from_counts(clones, counts, dtype=torch.float64)
    batch = SequenceBatch.from_arrays([[0, 1, 0, 1, 0, 1, 0, 1]])
    start = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).log()
    model.initial.logits.copy_(start)
    whole = CognitiveMap.from_model(model, batch)
    assert whole.states.tolist() == [0, 1, 2, 3]
    assert recurrent(whole).states.tolist() == [1, 3]
    assert_array_equal(recurrent(CognitiveMap.from_room(SMALL)).states, np.arange(5))


# ----------------------------------------------------------------------------------- errors


def test_bad_input():
    room = published_room("aliased_4x4")
    cognitive_map = CognitiveMap.from_room(room)
    batch = room.random_walk(50, seed=0).batch()
    with pytest.raises(ValueError, match="state 99 is not on the map"):
        cognitive_map.node_of([0, 99])
    with pytest.raises(ValueError, match="symbol 7 is not on the map"):
        cognitive_map.of_symbol(7)
    with pytest.raises(ValueError, match=r"cannot explain step 1 \(symbol 9\)"):
        cognitive_map.localise(SequenceBatch.from_arrays([0, 9], [1]))
    with pytest.raises(ValueError, match="actions holds 5"):
        cognitive_map.localise(SequenceBatch.from_arrays([0, 0], [5]))
    with pytest.raises(ValueError, match=r"belief has shape \(3,\)"):
        cognitive_map.localise(batch, belief=np.ones(3))
    with pytest.raises(ValueError, match="counts = 'soft'"):
        CognitiveMap.from_model(exact_model(room)[0], batch, counts="soft")
    with pytest.raises(ValueError, match="have no edge"):
        block(cognitive_map, [(0, 15)])
    with pytest.raises(ValueError, match="action = 4"):
        open_edges(cognitive_map, [(0, 4, 1)])
    with pytest.raises(ValueError, match="drops every node"):
        without(cognitive_map, symbols=range(4))


def test_models_without_a_map():
    room = published_room("aliased_4x4")
    model, _ = exact_model(room)
    batch = room.random_walk(50, seed=0).batch()
    one_step = SequenceBatch.from_arrays([[0], [1]], [[], []], num_actions=4)
    with pytest.raises(ValueError, match="expected at least one edge"):
        CognitiveMap.from_model(model, one_step)
    impossible = SequenceBatch.from_arrays([0, 0, 0, 0, 0], [1, 1, 1, 1], num_actions=4)
    with pytest.raises(ValueError, match="impossible at step"):
        CognitiveMap.from_model(model, impossible)
    with torch.no_grad():
        model.transition.logits[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        CognitiveMap.from_model(model, batch)
    fresh = PointCHMM(CloneStructure([20] * 4), 4, seed=0)
    with pytest.raises(ValueError, match="differs from noise"):
        CognitiveMap.from_model(fresh, batch)
