"""Small worlds of the literature: a T-maze, a track run in laps, rooms joined by doors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..sequences import SequenceBatch
from .rooms import Room

__all__ = ["TrackWalk", "grid_of_rooms", "lap_track", "t_maze"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class TrackWalk:
    """A run along a track whose continuation depends on more than the place.

    Attributes:
        obs: ``(T,)`` symbols.
        places: ``(T,)`` where on the track.
        contexts: ``(T,)`` what the symbol does not tell: the coming turn, the lap.
        num_places: places of the track.
        num_contexts: how many contexts there are.
    """

    obs: IntArray
    places: IntArray
    contexts: IntArray
    num_places: int
    num_contexts: int

    @property
    def cells(self) -> IntArray:
        """``(T, 2)`` context and place: positions for ``place_fields``."""
        return np.stack([self.contexts, self.places], axis=1)

    @property
    def shape(self) -> tuple[int, int]:
        """Contexts and places: the grid for ``place_fields``."""
        return self.num_contexts, self.num_places

    def batch(self) -> SequenceBatch:
        """The run as data; there is one action, to go on."""
        return SequenceBatch.from_arrays(self.obs, positions=self.cells)

    def __repr__(self) -> str:
        return (
            f"TrackWalk({len(self.obs):,} steps, {self.num_places} places, "
            f"{self.num_contexts} contexts)"
        )


def t_maze(
    num_trials: int, *, stem: int = 4, arm: int = 3, alternate: bool = True, seed: int = 0
) -> TrackWalk:
    """Runs up the stem of a T, into one arm and back to its foot.

    Places look different from each other, but the stem looks the same before either turn.  With
    alternating turns, only a memory of the last one predicts the next: cells that fire in the stem
    before one turn only ("splitter cells").

    Args:
        num_trials: turns.
        stem: places of the stem.
        arm: places of each arm.
        alternate: left and right in turn, else at random.
        seed: of the random turns.

    Returns:
        A walk whose context is the coming (or just made) turn, 0 left and 1 right.

    References:
        E. R. Wood, P. A. Dudchenko, R. J. Robitsek, H. Eichenbaum 2000, Neuron 27:623.

    Example:
        >>> run = t_maze(2, stem=2, arm=1)
        >>> run.obs, run.contexts
        (array([0, 1, 2, 0, 1, 3]), array([0, 0, 0, 1, 1, 1]))
    """
    for name, value in (("num_trials", num_trials), ("stem", stem), ("arm", arm)):
        _at_least(name, value)
    turns = np.arange(num_trials) % 2
    if not alternate:
        turns = np.random.default_rng(seed).integers(2, size=num_trials)
    arms = stem + turns[:, None] * arm + np.arange(arm)
    places = np.concatenate([np.tile(np.arange(stem), (num_trials, 1)), arms], axis=1).reshape(-1)
    return TrackWalk(places, places, np.repeat(turns, stem + arm), stem + 2 * arm, 2)


def lap_track(num_rounds: int, *, length: int = 6, laps: int = 4) -> TrackWalk:
    """Laps around a track with a reward at its start every so many laps.

    Place 0 shows symbol 0, in the first lap of each round the reward (symbol ``length``); the
    other places look the same in every lap.  Predicting the reward takes counting laps: cells
    that fire at one place in one lap only ("lap cells").

    Args:
        num_rounds: rewards.
        length: places of the track.
        laps: laps for each reward.

    Returns:
        A walk whose context is the lap, 0 for the one that begins with the reward.

    References:
        C. Sun, W. Yang, J. Martin, S. Tonegawa 2020, Nature Neuroscience 23:651.

    Example:
        >>> lap_track(2, length=3, laps=2).obs
        array([3, 1, 2, 0, 1, 2, 3, 1, 2, 0, 1, 2])
    """
    for name, value in (("num_rounds", num_rounds), ("length", length), ("laps", laps)):
        _at_least(name, value)
    places = np.tile(np.arange(length), num_rounds * laps)
    contexts = np.tile(np.repeat(np.arange(laps), length), num_rounds)
    obs = np.where((places == 0) & (contexts == 0), length, places)
    return TrackWalk(obs, places, contexts, length, laps)


def grid_of_rooms(
    rows: int, columns: int, size: int, num_symbols: int, seed: int = 0
) -> tuple[Room, IntArray]:
    """Square rooms side by side, each joined to its neighbours by one door.

    Args:
        rows: of rooms.
        columns: of rooms.
        size: cells along a side of each room.
        num_symbols: symbols, drawn at random for each cell.
        seed: of symbols and doors.

    Returns:
        The whole as one room with inner walls, and ``(P,)`` which small room each place is in.

    Example:
        >>> rooms, label = grid_of_rooms(1, 2, size=2, num_symbols=3)
        >>> rooms, label.reshape(2, 4)
        (Room(2x4, 8 places, 3 symbols, walls='bump'), array([[0, 0, 1, 1],
               [0, 0, 1, 1]]))
    """
    arguments = (rows, columns, size, num_symbols)
    for name, value in zip(("rows", "columns", "size", "num_symbols"), arguments, strict=True):
        _at_least(name, value)
    rng = np.random.default_rng(seed)
    layout = rng.integers(num_symbols, size=(rows * size, columns * size))
    walls = []
    for axis, joined in ((0, (rows - 1, columns)), (1, (rows, columns - 1))):
        for room in np.ndindex(*joined):
            corner = np.array(room) * size
            corner[axis] += size - 1
            for offset in np.delete(np.arange(size), rng.integers(size)):
                cell = corner.copy()
                cell[1 - axis] += offset
                walls.append(
                    (tuple(cell.tolist()), tuple((cell + np.eye(2, dtype=int)[axis]).tolist()))
                )
    label = np.arange(rows * columns).reshape(rows, columns)
    label = label.repeat(size, axis=0).repeat(size, axis=1)
    return Room(layout, blocked=walls), label.reshape(-1)


def _at_least(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value}, expected at least 1.")
