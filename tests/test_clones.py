from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from chmm_pyro.clones import MISSING, CloneStructure


@pytest.fixture
def clones():
    return CloneStructure([2, 3, 1])


def test_states_are_numbered_symbol_by_symbol(clones):
    assert (clones.num_symbols, clones.num_states, clones.max_clones) == (3, 6, 3)
    assert clones.offsets.tolist() == [0, 2, 5, 6]
    assert clones.symbol_of_state.tolist() == [0, 0, 1, 1, 1, 2]
    assert [clones.states(v) for v in range(3)] == [slice(0, 2), slice(2, 5), slice(5, 6)]


def test_local_and_global_numbers_are_inverse(clones):
    for state in range(clones.num_states):
        symbol, clone = clones.to_local(state)
        assert clones.to_global(symbol, clone) == state
        assert clones.symbol_of_state[state] == symbol
        assert 0 <= clone < clones.num_clones[symbol]
    assert clones.to_local(4) == (1, 2)


@pytest.mark.parametrize(
    "counts",
    [
        [2, 3, 1],
        (2, 3, 1),
        range(1, 4),
        np.array([2, 3, 1], np.uint8),
        torch.tensor([2, 3, 1]),
        iter([2, 3, 1]),
    ],
    ids=["list", "tuple", "range", "array", "tensor", "iterator"],
)
def test_counts_of_every_kind(counts):
    assert sorted(CloneStructure(counts).num_clones) == [1, 2, 3]


def test_equal_by_counts_and_hashable(clones):
    same, other = CloneStructure((2, 3, 1)), CloneStructure([3, 2, 1])
    assert clones == same and hash(clones) == hash(same)
    assert clones != other and clones != [2, 3, 1]
    assert {clones: "found"}[same] == "found"


def test_immutable(clones):
    with pytest.raises(AttributeError, match="immutable"):
        clones.num_states = 7
    with pytest.raises(AttributeError, match="immutable"):
        del clones.offsets
    with pytest.raises(ValueError, match="read-only"):
        clones.offsets[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        clones.symbol_of_state[0] = 1


def test_the_given_counts_are_copied():
    counts = np.array([2, 3])
    clones = CloneStructure(counts)
    counts[0] = 9
    assert clones.num_clones == (2, 3)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles(clones, duplicate):
    again = duplicate(clones)
    assert again == clones and again.offsets.tolist() == clones.offsets.tolist()


@pytest.mark.parametrize("counts", [[2, 3], [4] * 6, [1]])
def test_repr_makes_it_again(counts):
    clones = CloneStructure(counts)
    assert eval(repr(clones)) == clones


def test_budget_by_frequency():
    obs = [0] * 60 + [1] * 30 + [2] * 10
    # One clone each, and 10 more as 6 : 3 : 1.
    assert CloneStructure.proportional(obs, 13).num_clones == (7, 4, 2)
    # 11 more as 6.6 : 3.3 : 1.1, the one left over to the largest remainder.
    assert CloneStructure.proportional(obs, 14).num_clones == (8, 4, 2)
    assert CloneStructure.proportional(obs, 3).num_clones == (1, 1, 1)


@pytest.mark.parametrize("total", range(4, 60))
def test_budget_is_spent_exactly(total):
    obs = np.random.default_rng(total).choice(4, size=50, p=[0.6, 0.3, 0.08, 0.02])
    clones = CloneStructure.proportional(obs, total, num_symbols=4)
    assert clones.num_states == total and min(clones.num_clones) >= 1


def test_budget_ignores_missing_steps_and_keeps_unseen_symbols():
    obs = torch.tensor([[0, MISSING, 0], [MISSING, 2, 2]])
    assert CloneStructure.proportional(obs, 7).num_clones == (3, 1, 3)
    assert CloneStructure.proportional(obs, 8, num_symbols=4).num_clones == (3, 1, 3, 1)


def test_compress_drops_unseen_symbols(clones):
    obs = np.array([2, 0, MISSING, 2])
    smaller, kept = clones.compress(obs)
    assert smaller == CloneStructure([2, 1])
    assert kept.tolist() == [0, 2]
    renumbered = np.searchsorted(kept, obs[obs != MISSING])
    assert renumbered.tolist() == [1, 0, 1]
