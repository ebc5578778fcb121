"""Rooms are drawn as rooms although the layout sees their edges only."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from chmm_pyro.environments import Room, published_room
from chmm_pyro.plotting.graph_layout import unfold

# Largest share of the positions' variance that the layout may leave unexplained. The two rooms
# shear a little: ways around their corners are longer than the straight line.
ROOMS = {
    "rectangular_room": (published_room("rectangular_room"), 0.005),
    "two_rooms_13x9": (published_room("two_rooms_13x9"), 0.03),
    "aliased_4x4": (published_room("aliased_4x4"), 0.005),
    "4x9": (Room(np.zeros((4, 9), int)), 0.005),
}


@pytest.mark.parametrize("name", ROOMS)
def test_rooms_unfold_as_rooms(name: str) -> None:
    room, misfit = ROOMS[name]
    steps = [(p, q) for p, row in enumerate(room.next_place.tolist()) for q in row if p < q]
    pairs = np.unique(steps, axis=0)
    shuffled = np.random.default_rng(1).permutation(room.num_places)
    drawn = unfold(room.num_places, np.sort(shuffled[pairs], axis=1))[shuffled]
    true = room.positions.astype(float)
    assert _misfit(drawn, true) < misfit
    assert np.corrcoef(pdist(drawn), pdist(true))[0, 1] > 0.97
    # Every cell of the grid has its own spot.
    assert pdist(drawn).min() > 0.6
    # A grid line stays a line: neighbours in two steps of one direction are opposite each other.
    for action, back in ((0, 1), (2, 3)):
        ahead, behind = room.next_place[:, action], room.next_place[:, back]
        inner = (ahead != behind) & (ahead != np.arange(room.num_places))
        inner &= behind != np.arange(room.num_places)
        across = np.linalg.norm(drawn[ahead[inner]] - drawn[behind[inner]], axis=1)
        assert across.min() > 1.7 and across.max() < 2.4


def _misfit(drawn: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Share of the variance that no rotation, reflection, shift and scale explains."""
    drawn, true = drawn - drawn.mean(0), true - true.mean(0)
    singular = np.linalg.svd(drawn.T @ true, compute_uv=False)
    return 1 - singular.sum() ** 2 / ((drawn**2).sum() * (true**2).sum())


def test_layout_keeps_twins_and_components_apart() -> None:
    twins = np.array([[0, 1], [0, 2], [1, 3], [2, 3]])  # 1 and 2 have the same neighbours
    other = np.array([[4, 5]])
    xy = unfold(7, np.concatenate([twins, other]))
    apart = np.linalg.norm(xy[:, None] - xy, axis=-1) + 9 * np.eye(7)
    assert apart.min() > 0.5
    assert xy[:4, 0].max() < xy[4:6, 0].min() < xy[6, 0]
    row, middle = [[0, 1], [1, 2]], [[3, 4], [4, 5]]
    grid = [*row, *middle, *np.add(row, 6), *([k, k + 3] for k in range(6))]
    # A second centre, which two dimensions cannot tell from the first by distances.
    again = unfold(10, np.array([*grid, *([k, 9] for k in (1, 3, 5, 7))]))
    assert np.linalg.norm(again[4] - again[9]) > 0.1
    big = np.stack([np.arange(400), np.arange(1, 401)], axis=1)
    assert np.isfinite(unfold(401, big)).all()
