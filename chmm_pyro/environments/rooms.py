"""Rooms: grids of symbols, seen from above."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .world import World, positive_integer

__all__ = ["ACTIONS", "Room", "random_room"]

ACTIONS = ("left", "right", "up", "down")
"""The names of actions 0 to 3."""

_MOVES = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])

Walls = Literal["bump", "never"]
IntArray = NDArray[np.int64]


class Room(World):
    """A grid of symbols to walk in; actions are 0 left, 1 right, 2 up, 3 down.

    A move into the outer wall, a hole or a blocked edge leaves the walker in place.

    Args:
        layout: ``(H, W)`` symbols, -1 for a hole.
        walls: ``"bump"`` if random walkers try moves that lead nowhere, ``"never"`` if not.
        blocked: pairs of neighbouring cells, ``((row, col), (row, col))``, with a wall between.

    Attributes:
        layout: ``(H, W)`` read-only.
        walls: as given.
        symbols: ``(P,)`` symbol of each place; the cells that are no holes are the places,
            numbered row by row.
        positions: ``(P, 2)`` row and column of each place.
        next_place: ``(P, 4)`` where each action leads.
        tried: ``(P, 4)`` whether a random walker tries the action.

    Example:
        >>> room = Room([[0, 1], [2, -1]])
        >>> room
        Room(2x2, 3 places, 3 symbols, walls='bump')
        >>> walk = room.random_walk(num_steps=1000, seed=42)
        >>> walk.obs.shape, walk.actions.shape, walk.positions.shape
        ((1000,), (999,), (1000, 2))
        >>> room.step(place=0, action=3), room.step(place=0, action=2)
        (2, 0)
    """

    def __init__(
        self, layout: ArrayLike, *, walls: Walls = "bump", blocked: Iterable[Any] = ()
    ) -> None:
        if walls not in ("bump", "never"):
            raise ValueError(f"walls = {walls!r}, expected 'bump' or 'never'.")
        self.walls: Walls = walls
        self.layout = _checked_layout(layout)
        positions = np.argwhere(self.layout >= 0)
        self._place = np.full(self.layout.shape, -1)
        self._place[self.layout >= 0] = np.arange(len(positions))
        for array in (self.layout, self._place):
            array.flags.writeable = False
        next_place = self._neighbours(positions)
        for pair in blocked:
            self._block(next_place, pair)
        tried = np.ones_like(next_place, dtype=bool)
        if walls == "never":
            tried = next_place != np.arange(len(positions))[:, None]
            if not tried.any(1).all():
                stuck = positions[np.argmin(tried.any(1))].tolist()
                raise ValueError(
                    f"layout has no way out of cell {stuck}, expected one when walls='never'; "
                    "make the cell a hole (-1) or use walls='bump'."
                )
        super().__init__(
            symbols=self.layout[self.layout >= 0],
            positions=positions,
            next_place=next_place,
            tried=tried,
            action_names=ACTIONS,
        )

    def place_of_position(self, position: ArrayLike) -> Any:
        """The place at a row and column.

        Args:
            position: ``(..., 2)`` rows and columns.

        Returns:
            An int for one position, else ``(...)`` places.

        Example:
            >>> Room([[0, 1], [-1, 2]]).place_of_position([1, 1])
            2
        """
        cells = np.asarray(position)
        if cells.shape[-1:] != (2,) or cells.dtype.kind not in "iu":
            raise ValueError(
                f"position has shape {cells.shape} and dtype {cells.dtype}, expected integers "
                "(..., 2): row and column."
            )
        inside = np.asarray(((cells >= 0) & (cells < self.layout.shape)).all(-1))
        rows, columns = np.moveaxis(np.where(inside[..., None], cells, 0), -1, 0)
        places = np.where(inside, self._place[rows, columns], -1)
        if (places < 0).any():
            bad = cells[places < 0][0].tolist()
            raise ValueError(
                f"position = {bad} is a hole or outside the {self._size()} room, expected a cell "
                "with a symbol."
            )
        return int(places) if places.ndim == 0 else places

    def __repr__(self) -> str:
        return (
            f"Room({self._size()}, {self.num_places} places, {self.num_symbols} symbols, "
            f"walls={self.walls!r})"
        )

    def _size(self) -> str:
        return "x".join(map(str, self.layout.shape))

    def _start_places(self, start: ArrayLike) -> IntArray:
        return np.asarray(self.place_of_position(start))

    def _neighbours(self, positions: IntArray) -> IntArray:
        framed = np.pad(self._place, 1, constant_values=-1)
        targets = positions[:, None, :] + _MOVES + 1
        found = framed[targets[..., 0], targets[..., 1]]
        return np.where(found >= 0, found, np.arange(len(positions))[:, None])

    def _block(self, next_place: IntArray, pair: Any) -> None:
        cells = np.asarray(pair)
        if cells.shape != (2, 2) or np.abs(cells[0] - cells[1]).sum() != 1:
            raise ValueError(
                f"blocked holds {pair!r}, expected a pair ((row, col), (row, col)) of "
                "neighbouring cells."
            )
        one, other = self.place_of_position(cells).tolist()
        for here, there in ((one, other), (other, one)):
            next_place[here, next_place[here] == there] = here


def random_room(
    height: int,
    width: int,
    num_symbols: int,
    seed: int | np.random.Generator = 0,
    *,
    identifiable: bool = True,
    walls: Walls = "bump",
) -> Room:
    """A rectangular room of random symbols, each of which occurs.

    Args:
        height: rows.
        width: columns.
        num_symbols: ``V``, at most ``height * width``.
        seed: an integer, or a generator to draw from.
        identifiable: draw again until :meth:`Room.is_identifiable`.
        walls: as in :class:`Room`.

    Example:
        >>> room = random_room(4, 5, num_symbols=3, seed=1)
        >>> room, room.is_identifiable()
        (Room(4x5, 20 places, 3 symbols, walls='bump'), True)
    """
    cells = positive_integer("height", height) * positive_integer("width", width)
    if positive_integer("num_symbols", num_symbols) > cells:
        raise ValueError(
            f"num_symbols = {num_symbols}, expected at most {cells}, the number of cells, so that "
            "each symbol occurs; use fewer symbols or a larger room."
        )
    rng = np.random.default_rng(seed)
    attempts = 1000 if identifiable else 1
    for _ in range(attempts):
        rest = rng.integers(num_symbols, size=cells - num_symbols)
        symbols = rng.permutation(np.concatenate([np.arange(num_symbols), rest]))
        room = Room(symbols.reshape(height, width), walls=walls)
        if not identifiable or room.is_identifiable():
            return room
    raise ValueError(
        f"num_symbols = {num_symbols} gave no identifiable {height}x{width} room in {attempts} "
        "draws, expected one; use more symbols, or identifiable=False."
    )


def _checked_layout(layout: ArrayLike) -> IntArray:
    try:
        array = np.array(layout)
    except ValueError as error:
        raise ValueError(
            "layout has rows of different lengths, expected a rectangle; fill it with holes (-1)."
        ) from error
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"layout has dtype {array.dtype}, expected integers; number the symbols from 0."
        )
    if array.ndim != 2 or (array < 0).all():
        raise ValueError(
            f"layout has shape {array.shape} and {int((array >= 0).sum())} places, expected "
            "(H, W) with at least one symbol."
        )
    if array.min() < -1:
        cell = np.argwhere(array < -1)[0].tolist()
        raise ValueError(
            f"layout{cell} = {array[tuple(cell)]}, expected a symbol >= 0, or -1 for a hole."
        )
    return array.astype(np.int64)
