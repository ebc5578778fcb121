"""Scores of decoded states against places, by hand and by invariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chmm_pyro.beliefs import Posterior
from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.maps.usage import place_fields, place_purity, states_used
from chmm_pyro.models import PointCHMM


def test_states_used_ignores_padding() -> None:
    assert states_used(torch.tensor([[4, 2, 4], [2, -1, -1]])) == 2


def test_purity_by_hand() -> None:
    # State 0: places a a a b -> 3 of 4; state 1: c d -> 1 of 2; padding is left out.
    states = [[0, 0, 0, 0], [1, 1, -1, -1]]
    places = [[7, 7, 7, 8], [9, 5, 0, 0]]
    assert place_purity(states, places) == pytest.approx(4 / 6)
    coordinates = np.stack([np.array(places), np.ones((2, 4), dtype=int)], axis=-1)
    assert place_purity(states, coordinates) == pytest.approx(4 / 6)


def test_purity_is_about_states_not_about_splits() -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(6, size=500)
    split = 2 * places + rng.integers(2, size=500)
    assert place_purity(places, places) == 1
    assert place_purity(split, places) == 1
    assert place_purity(places // 2, places) < 0.7
    relabelled = rng.permutation(6)[places // 2]
    assert place_purity(relabelled, places) == place_purity(places // 2, places)


@pytest.mark.parametrize("positions", [[1, 2], [[1, 2, 3]], [[[1]], [[2]], [[3]]]])
def test_positions_that_do_not_fit(positions: list[object]) -> None:
    with pytest.raises(ValueError, match=r"positions has shape .*, expected \(3,\) or"):
        place_purity([0, 0, 1], positions)


def test_nothing_decoded() -> None:
    with pytest.raises(ValueError, match="no decoded step"):
        place_purity([-1], [0])


def test_place_fields_are_the_mean_of_the_dense_posterior() -> None:
    room = Room([[0, 1, 0], [1, -1, 2]])
    walk = room.random_walk(num_steps=60, seed=3, num_episodes=2)
    batch = walk.batch().select([0, 1, 0])
    batch = type(batch).from_arrays(
        [batch[0].obs, batch[1].obs[:7]],
        [batch[0].actions, batch[1].actions[:6]],
        positions=[batch[0].positions, batch[1].positions[:7]],
        num_actions=4,
    )
    model = PointCHMM(CloneStructure([3, 2, 1]), 4, dtype=torch.float64)
    posterior = model.distribution(batch).filter(batch.obs)
    fields = place_fields(posterior, batch.positions, room.layout.shape)
    dense = posterior.dense().detach().numpy()
    expected = np.full((6, 2, 3), np.nan)
    for row, column in room.positions:
        at = [
            dense[b, t]
            for b in range(2)
            for t in range(int(batch.lengths[b]))
            if tuple(batch.positions[b, t].tolist()) == (row, column)
        ]
        expected[:, row, column] = np.mean(at, axis=0)
    np.testing.assert_allclose(fields, expected, rtol=1e-12)
    np.testing.assert_allclose(np.nansum(fields, axis=0)[room.layout >= 0], 1)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0, 0]], r"shape \(1, 2\)"),
        ([[0.0, 0.0], [0.0, 1.0]], "dtype float64"),
        ([[0, 0], [0, 3]], "column 3, expected cells of a 1 x 3 grid"),
        ([[0, 0], [0, -1]], "expected cells"),
    ],
)
def test_bad_positions(positions: list[list[float]], message: str) -> None:
    posterior = Posterior(torch.ones(2, 1), torch.tensor([0, 1]), num_states=2)
    with pytest.raises(ValueError, match=message):
        place_fields(posterior, positions, shape=(1, 3))


def test_steps_without_a_position_say_nothing_about_purity() -> None:
    positions = [[np.nan, 0], [np.nan, 0], [1, 0], [1, 0]]
    assert place_purity([0, 0, 0, 0], positions) == 1.0
    with pytest.raises(ValueError, match="no finite position of a decoded step"):
        place_purity([0, 0], [np.nan, np.nan])
