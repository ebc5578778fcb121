"""Sequence batches: what goes in comes out, ragged or padded, whole or in parts."""

import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from chmm_pyro.clones import MISSING
from chmm_pyro.sequences import SequenceBatch

OBS = [[3, 0, 1, 1], [2], [0, MISSING, 4]]
ACTIONS = [[1, 0, 2], [], [2, 1]]
POSITIONS = [[[0, 0], [0, 1], [0, 2], [0, 3]], [[5, 5]], [[1, 0], [1, 1], [1, 2]]]


def ragged(**options):
    return SequenceBatch.from_arrays(OBS, ACTIONS, positions=POSITIONS, **options)


def as_lists(batch):
    """Observations, actions and positions of each sequence."""
    return [
        (
            part.obs.tolist(),
            part.actions.tolist(),
            None if part.positions is None else part.positions.tolist(),
        )
        for part in batch
    ]


RAGGED = list(zip(OBS, ACTIONS, POSITIONS, strict=True))


def test_single_sequence():
    batch = SequenceBatch.from_arrays(OBS[0], ACTIONS[0], positions=[9, 8, 7, 6])
    assert batch.obs.tolist() == OBS[0] and batch.actions.tolist() == ACTIONS[0]
    assert batch.obs.dtype == batch.actions.dtype == torch.int64
    assert batch.lengths is None and batch.single and len(batch) == batch.num_sequences == 1
    assert batch.positions.tolist() == [[9], [8], [7], [6]]
    assert (batch.num_steps, batch.num_observed, batch.num_actions) == (4, 4, 3)


def test_ragged_batch():
    batch = ragged()
    assert batch.obs.tolist() == [[3, 0, 1, 1], [2, 0, 0, 0], [0, -1, 4, 0]]
    assert batch.actions.tolist() == [[1, 0, 2], [0, 0, 0], [2, 1, 0]]
    assert batch.positions.shape == (3, 4, 2) and batch.positions[2, :3].tolist() == POSITIONS[2]
    assert batch.lengths.tolist() == [4, 1, 3] and batch.offsets.tolist() == [0, 4, 5, 8]
    assert batch.flat_obs.tolist() == [3, 0, 1, 1, 2, 0, -1, 4]
    assert batch.flat_actions.tolist() == [1, 0, 2, 0, 0, 2, 1, 0]
    assert (batch.num_sequences, batch.num_steps, batch.num_observed) == (3, 8, 7)
    assert (batch.num_symbols_seen, batch.num_symbols, batch.num_actions) == (5, 5, 3)
    assert as_lists(batch) == RAGGED
    assert batch.obs is batch.obs and batch.actions is batch.actions


def test_padded_arrays_give_the_same_batch():
    batch = ragged()
    used = torch.arange(3) < batch.lengths[:, None] - 1
    garbage = torch.where(used, batch.actions, 99)
    for actions in (garbage, torch.nn.functional.pad(garbage, (0, 1), value=99)):
        again = SequenceBatch.from_arrays(
            torch.where(torch.arange(4) < batch.lengths[:, None], batch.obs, -7),
            actions,
            lengths=batch.lengths,
            positions=batch.positions,
        )
        assert as_lists(again) == RAGGED and again.num_actions == 3
    full = SequenceBatch.from_arrays(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    assert full.lengths.tolist() == [2, 2] and full.obs.tolist() == [[0, 1], [1, 0]]


def test_last_of_as_many_actions_as_observations_is_ignored():
    assert (
        as_lists(
            SequenceBatch.from_arrays(
                OBS, [[1, 0, 2, 9], np.array([9]), torch.tensor([2, 1, -5])], positions=POSITIONS
            )
        )
        == RAGGED
    )
    single = SequenceBatch.from_arrays([0, 1], [1, 7])
    assert single.actions.tolist() == [1] and single.num_actions == 2


def test_no_actions_are_the_single_action_0():
    batch = SequenceBatch.from_arrays([0, 1, 2])
    assert batch.actions.tolist() == [0, 0] and batch.num_actions == 1
    assert SequenceBatch.from_arrays([0, 1], num_actions=4).num_actions == 4


def test_a_list_of_one_episode_is_a_batch():
    batch = SequenceBatch.from_arrays([np.array([0, 1])], [[0]])
    assert not batch.single and batch.obs.shape == (1, 2) and batch.lengths.tolist() == [2]


def test_input_is_copied():
    obs, actions = np.array([0, 1]), np.array([1])
    batch = SequenceBatch.from_arrays(obs, actions)
    obs[0], actions[0] = 5, 5
    assert batch.obs.tolist() == [0, 1] and batch.actions.tolist() == [1]


def test_select_and_index():
    batch = ragged()
    assert as_lists(batch.select([2, 0, 2])) == [RAGGED[2], RAGGED[0], RAGGED[2]]
    assert as_lists(batch.select(torch.tensor([1]))) == [RAGGED[1]]
    assert batch.select([0]).lengths.tolist() == [4] and batch.select([1]).num_actions == 3
    assert as_lists(batch[-1]) == [RAGGED[2]] and batch[2].lengths is None
    named = SequenceBatch.from_episodes(["ab", "b"])
    assert named.select([1]).vocabulary is named.vocabulary


def test_split_is_by_sequence_and_seeded():
    batch = SequenceBatch.from_arrays([[k, k] for k in range(20)])
    for held_out, number in ((0.25, 5), (3, 3), (0.001, 1)):
        train, test = batch.split(held_out, seed=4)
        assert len(test) == number
        kept = train.obs[:, 0].tolist(), test.obs[:, 0].tolist()
        assert sorted(kept[0] + kept[1]) == list(range(20)) and kept[0] == sorted(kept[0])
        assert kept[1] == batch.split(held_out, seed=4)[1].obs[:, 0].tolist()
    draws = {tuple(batch.split(5, seed=s)[1].obs[:, 0].tolist()) for s in range(4)}
    assert len(draws) == 4


def test_minibatches_visit_each_sequence_once():
    batch = SequenceBatch.from_arrays([[k] * (1 + k % 3) for k in range(10)])
    parts = list(batch.minibatches(4, seed=0))
    assert [len(part.batch) for part in parts] == [4, 4, 2]
    assert [part.scale for part in parts] == [2.5, 2.5, 5.0]
    indices = torch.cat([part.indices for part in parts])
    assert indices.tolist() != list(range(10)) and sorted(indices.tolist()) == list(range(10))
    for part in parts:
        assert as_lists(part.batch) == as_lists(batch.select(part.indices))
    in_order = torch.cat([part.indices for part in batch.minibatches(4, shuffle=False)])
    assert in_order.tolist() == list(range(10))
    generator = np.random.default_rng(0)
    epochs = [[p.indices.tolist() for p in batch.minibatches(4, seed=generator)] for _ in "ab"]
    assert epochs[0] == [part.indices.tolist() for part in parts] and epochs[0] != epochs[1]


def test_minibatch_sums_are_unbiased():
    batch = SequenceBatch.from_arrays([[0] * (k + 1) for k in range(7)])
    first = [next(batch.minibatches(3, seed=s)) for s in range(4000)]
    estimates = np.array([part.scale * part.batch.num_steps for part in first])
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - batch.num_steps) < 4 * error


@pytest.mark.parametrize("length", [2, 3, 4, 10])
def test_segments_hold_each_transition_once(length):
    batch = ragged()
    batch = batch.select([0, 1, 2, 0])
    parts = batch.segments(length)
    assert len(parts.batch) == len(parts.starts) == len(parts.sequence)
    transitions = [[] for _ in range(len(batch))]
    for segment, start, b in zip(
        parts.batch, parts.starts.tolist(), parts.sequence.tolist(), strict=True
    ):
        whole, stop = batch[b], start + segment.num_steps
        assert_close(segment.obs, whole.obs[start:stop], rtol=0, atol=0)
        assert_close(segment.actions, whole.actions[start : stop - 1], rtol=0, atol=0)
        assert_close(segment.positions, whole.positions[start:stop], rtol=0, atol=0)
        assert segment.num_steps == min(length, whole.num_steps - start)
        transitions[b] += range(start, stop - 1)
    assert transitions == [[0, 1, 2], [], [0, 1], [0, 1, 2]]
    assert sorted(set(parts.sequence.tolist())) == [0, 1, 2, 3]
    assert parts.batch.flat_actions[parts.batch.offsets[1:] - 1].eq(0).all()


def test_windows_are_slices():
    batch = ragged()
    which, starts, lengths = torch.tensor([[0, 2, 0, 1], [1, 0, 0, 0], [3, 1, 4, 1]])
    found = batch.windows(which, starts, lengths)
    assert torch.equal(found.lengths, lengths)
    for part, b, start, size in zip(found, which, starts, lengths, strict=True):
        whole, stop = batch[int(b)], int(start + size)
        assert torch.equal(part.obs, whole.obs[start:stop])
        assert torch.equal(part.actions, whole.actions[start : stop - 1])
        assert torch.equal(part.positions, whole.positions[start:stop])


def test_concatenate():
    batch = ragged()
    again = SequenceBatch.concatenate([batch.select([0, 1]), batch[2], batch])
    assert as_lists(again) == [*as_lists(batch), *as_lists(batch)]
    assert again.num_actions == batch.num_actions and not again.single
    bare = SequenceBatch.from_arrays([[0, 1]])
    assert SequenceBatch.concatenate([batch, bare]).positions is None
    labelled = SequenceBatch.from_episodes(["ab", "ba"])
    assert SequenceBatch.concatenate([labelled, bare]).vocabulary == labelled.vocabulary


def test_device_and_repr():
    batch = ragged()
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert {moved.flat_obs.device.type, moved.offsets.device.type} == {"meta"}
    assert moved.flat_positions.device.type == moved.flat_actions.device.type == "meta"
    assert repr(batch) == (
        "SequenceBatch(3 sequences of 1 to 4 steps, 8 steps, 1 missing, 5 symbols seen, 3 actions)"
    )
    assert repr(batch[0]) == "SequenceBatch(single sequence of 4 steps, 3 symbols seen, 3 actions)"


def test_all_missing_is_legal():
    batch = SequenceBatch.from_arrays([MISSING, MISSING])
    assert (batch.num_observed, batch.num_symbols_seen, batch.num_symbols) == (0, 0, 0)


def test_many_steps_and_many_episodes_are_fast():
    rng = np.random.default_rng(0)
    obs, actions = rng.integers(9, size=10**6), rng.integers(4, size=10**6)
    cuts = np.sort(rng.choice(10**6 - 1, size=10**5 - 1, replace=False) + 1)
    begin = time.perf_counter()
    assert SequenceBatch.from_arrays(obs, actions).segments(100).batch.num_steps > 10**6
    batch = SequenceBatch.from_arrays(np.split(obs, cuts), np.split(actions, cuts))
    assert batch.select(np.arange(0, 10**5, 2)).num_sequences == 5 * 10**4
    assert time.perf_counter() - begin < 5.0


def arrays(*args, **options):
    return lambda: SequenceBatch.from_arrays(*args, **options)


def windows(*which):
    return lambda: ragged().windows(*map(torch.tensor, which))


BAD = [
    (arrays([]), ValueError, "obs is empty, expected at least one"),
    (arrays([[0, 1], []]), ValueError, r"obs\[1\] is empty.*drop it"),
    (arrays(np.zeros((2, 0), int)), ValueError, r"obs\[0\] is empty"),
    (arrays([0.0, 1.0]), TypeError, "obs has dtype float64, expected integers.*astype"),
    (arrays([0, float("nan")]), TypeError, "obs has dtype float64.*MISSING"),
    (arrays(torch.tensor([True])), TypeError, "obs has dtype bool"),
    (arrays(["a", "b"]), TypeError, "obs has dtype .*from_episodes"),
    (arrays([[0, 1], [0.5]]), TypeError, r"obs has dtype float64"),
    (arrays(np.zeros((2, 2, 2), int)), ValueError, r"obs has shape \(2, 2, 2\), expected \(T,\)"),
    (arrays([[[0]], [[1]]]), ValueError, r"obs\[0\] has shape \(1, 1\)"),
    (arrays(3), ValueError, r"obs has shape \(\)"),
    (arrays([0, -2]), ValueError, r"obs\[1\] = -2.*only legal negative is MISSING"),
    (arrays([[0, 1], [1, 1, -3]]), ValueError, r"obs\[1\]\[2\] = -3"),
    (arrays([0, 1, 0], [0, -1]), ValueError, r"actions\[1\] = -1, expected 0 <= action < 1"),
    (arrays([[0], [0, 1]], [[], [4]], num_actions=4), ValueError, r"actions\[1\]\[0\] = 4.* < 4"),
    (arrays([0, 1], [0.0]), TypeError, "actions has dtype float64"),
    (arrays([0, 1, 2], [0]), ValueError, r"actions has 1 entries for 3 .* expected 2 \(or 3"),
    (arrays([0, 1], [[0]]), ValueError, r"actions has shape \(1, 1\), expected \(1,\)"),
    (arrays([[0, 1], [0]], [[0], [0, 0]]), ValueError, r"actions\[1\] has 2 entries for 1"),
    (arrays([[0, 1], [0]], [[0]]), ValueError, "actions has 1 sequences for 2 in obs"),
    (arrays([[0, 1]], 0), ValueError, "actions has int sequences for 1"),
    (arrays(np.zeros((2, 3), int), np.zeros((2, 1), int)), ValueError, r"actions has shape \(2, 1"),
    (arrays([0, 1], lengths=[2]), ValueError, "lengths is given, expected only with padded"),
    (arrays(np.zeros((2, 3), int), lengths=[3]), ValueError, r"lengths has shape \(1,\)"),
    (arrays(np.zeros((2, 3), int), lengths=[3, 4]), ValueError, r"lengths\[1\] = 4.*<= 3"),
    (arrays(np.zeros((2, 3), int), lengths=[0, 3]), ValueError, r"lengths\[0\] = 0"),
    (arrays(np.zeros((2, 3), int), lengths=[1.0, 3]), TypeError, "lengths has dtype float64"),
    (arrays([0, 1], positions=[0]), ValueError, r"positions has shape \(1,\), expected \(2,\)"),
    (arrays([0], positions=["a"]), TypeError, "positions has dtype <U1, expected numbers"),
    (arrays([[0], [1]], positions=[[0]]), ValueError, "positions has 1 sequences for 2"),
    (arrays([[0], [1]], positions=[[[0, 1]], [0]]), ValueError, r"positions\[1\] has shape \(1,\)"),
    (arrays(np.zeros((2, 3), int), positions=np.zeros((2, 2))), ValueError, "positions has shape"),
    (arrays([0], num_actions=0), ValueError, "num_actions = 0, expected at least 1"),
    (arrays([0], num_actions=2.0), TypeError, "num_actions = 2.0, expected an integer"),
    (lambda: ragged().select([]), ValueError, r"indices has shape \(0,\)"),
    (lambda: ragged().select([3]), ValueError, "indices holds 3, expected 0 <= index < 3"),
    (lambda: ragged().select([-1]), ValueError, "indices holds -1"),
    (lambda: ragged().select([0.0]), ValueError, "indices has .* float64"),
    (lambda: ragged().select([True, False, True]), TypeError, "indices is a mask.*nonzero"),
    (lambda: ragged()[3], IndexError, "index = 3"),
    (lambda: ragged()["a"], TypeError, "index = 'a'"),
    (lambda: ragged().split(0.0), ValueError, "held_out = 0.0 of 3 sequences"),
    (lambda: ragged().split(3), ValueError, "held_out = 3 of 3 .* from 1 to 2"),
    (lambda: ragged()[0].split(0.5), ValueError, "held_out = 0.5 of 1 .*`segments`"),
    (lambda: ragged().minibatches(0), ValueError, "batch_size = 0, expected at least 1"),
    (lambda: ragged().minibatches(2.0), TypeError, "batch_size = 2.0"),
    (lambda: ragged().segments(1), ValueError, "length = 1, expected at least 2"),
    (lambda: SequenceBatch.concatenate([]), ValueError, "batches is empty"),
    (
        lambda: SequenceBatch.concatenate([SequenceBatch.from_episodes([x]) for x in ("ab", "bc")]),
        ValueError,
        "2 different vocabulary .* expected one; read all files with",
    ),
    (windows([0], [2], [3]), ValueError, r"starts\[0\] = 2 and lengths\[0\] = 3 .* its 4 steps"),
    (windows([2, 1], [0, 0], [1, 0]), ValueError, r"lengths\[1\] = 0 leave sequence 1"),
    (windows([-1], [0], [1]), ValueError, "leave sequence -1"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=f"(?s){message}"):
        call()
