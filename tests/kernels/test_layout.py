"""Where every step, message and block lives, against a slow description."""

from __future__ import annotations

import numpy as np
import pytest

from chmm_pyro._kernels.layout import build_layout
from chmm_pyro.clones import MISSING, CloneStructure

LENGTHS = np.array([5, 1, 4, 2])


def random_data(num_symbols, num_actions, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    total = lengths.sum()
    obs = rng.integers(num_symbols, size=total)
    obs[rng.random(total) < 0.2] = MISSING
    return obs, rng.integers(num_actions, size=total)


# Few keys are numbered through a table, many by sorting.
SIZES = {"few keys": ([2, 3, 1], 2), "many keys": ([1, 2] * 60, 3)}
every_size = pytest.mark.parametrize(("counts", "num_actions"), SIZES.values(), ids=SIZES)


def support(clones, symbol):
    return slice(0, clones.num_states) if symbol == MISSING else clones.states(symbol)


@every_size
@pytest.mark.parametrize("per_step", [False, True])
def test_every_step_has_its_support_and_block(counts, num_actions, per_step):
    clones = CloneStructure(counts)
    obs, actions = random_data(len(counts), num_actions)
    layout = build_layout(clones, obs, actions, LENGTHS, per_step=per_step)
    assert layout.num_sequences == 4 and layout.num_steps == 12
    ends = set(np.cumsum(LENGTHS) - 1)
    used = {}
    for q in range(12):
        own = support(clones, obs[q])
        assert layout.support_start[q] == own.start
        assert layout.support_size[q] == own.stop - own.start
        assert layout.message_start[q + 1] - layout.message_start[q] == own.stop - own.start
        if q in ends:
            assert layout.block_index[q] == 0
            continue
        block, new = layout.block_index[q], support(clones, obs[q + 1])
        assert tuple(layout.block_from[block]) == (own.start, own.stop - own.start)
        assert tuple(layout.block_to[block]) == (new.start, new.stop - new.start)
        assert layout.block_action[block] == (0 if per_step else actions[q])
        used.setdefault(block, set()).add(q if per_step else (actions[q], obs[q], obs[q + 1]))
    # Blocks are exactly the distinct transitions.
    assert sorted(used) == list(range(layout.num_blocks))
    assert all(len(keys) == 1 for keys in used.values())
    assert len(set.union(*used.values())) == layout.num_blocks


@every_size
def test_entries_know_their_states(counts, num_actions):
    clones = CloneStructure(counts)
    obs, actions = random_data(len(counts), num_actions)
    layout = build_layout(clones, obs, actions, LENGTHS)
    expected = [
        (layout.block_action[g], i, j)
        for g in range(layout.num_blocks)
        for i in range(layout.block_from[g, 0], layout.block_from[g].sum())
        for j in range(layout.block_to[g, 0], layout.block_to[g].sum())
    ]
    assert list(zip(*layout.entry_states, strict=True)) == expected
    assert layout.num_block_entries == len(expected)
    states = [
        state for x in obs for state in range(support(clones, x).start, support(clones, x).stop)
    ]
    assert layout.state_of_message.tolist() == states
    assert layout.max_support == clones.num_states  # a missing step allows all states


@every_size
def test_steps_are_grouped_by_the_block_they_leave_through(counts, num_actions):
    obs, actions = random_data(len(counts), num_actions)
    layout = build_layout(CloneStructure(counts), obs, actions, LENGTHS)
    order, bounds = layout.grouped_steps
    ends = set(np.cumsum(LENGTHS) - 1)
    assert sorted(order) == [q for q in range(12) if q not in ends]
    for g in range(layout.num_blocks):
        own = order[bounds[g] : bounds[g + 1]]
        assert len(own) > 0 and (layout.block_index[own] == g).all()
        assert (np.diff(own) > 0).all()


def test_positions_of_steps():
    obs, actions = random_data(3, 2)
    layout = build_layout(CloneStructure([2, 3, 1]), obs, actions, LENGTHS)
    assert layout.sequence_of_step.tolist() == [0] * 5 + [1] + [2] * 4 + [3] * 2
    assert layout.time_of_step.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 0, 1]


@every_size
def test_repeating_sequences_shares_their_blocks(counts, num_actions):
    clones = CloneStructure(counts)
    obs, actions = random_data(len(counts), num_actions)
    layout = build_layout(clones, obs, actions, LENGTHS)
    chosen = np.array([2, 0, 2, 1])
    again = layout.repeat(chosen)
    starts = layout.step_start
    steps = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in chosen])
    assert again.lengths.tolist() == LENGTHS[chosen].tolist()
    assert np.array_equal(again.flat_obs, obs[steps])
    assert np.array_equal(again.block_index, layout.block_index[steps])
    assert np.array_equal(np.diff(again.message_start), layout.support_size[steps])
    assert again.block_start is layout.block_start


def test_sequences_of_one_step_have_no_blocks():
    layout = build_layout(CloneStructure([2]), np.zeros(3, int), np.zeros(3, int), np.ones(3, int))
    assert layout.num_blocks == layout.num_block_entries == 0
    assert layout.grouped_steps[0].size == 0
