"""Rooms: grids of symbols, walks through them, and the true graph of their places."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import accumulate
from operator import itemgetter
from typing import Any, Literal

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sequences import SequenceBatch

__all__ = ["ACTIONS", "Room", "Walk", "published_room", "published_room_names", "random_room"]

ACTIONS = ("left", "right", "up", "down")
"""The names of actions 0 to 3."""

_MOVES = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])
# Uniform draws from 0..11 (0..5) pick uniformly among 1 to 4 (1 to 3) possible actions.
_CHOICES, _SLIPS = 12, 6

Walls = Literal["bump", "never"]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Walk:
    """What a walker saw, did, and where it was: arrays for one episode, lists for many.

    Attributes:
        obs: ``(T,)`` symbols.
        actions: ``(T - 1,)`` actions taken (meant, where the walker slipped).
        positions: ``(T, 2)`` row and column.
        places: ``(T,)`` numbers of the places.
        room: where it walked.
    """

    obs: IntArray | list[IntArray]
    actions: IntArray | list[IntArray]
    positions: IntArray | list[IntArray]
    places: IntArray | list[IntArray]
    room: Room

    def batch(self) -> SequenceBatch:
        """The walk as data, with positions and the four actions."""
        return SequenceBatch.from_arrays(
            self.obs, self.actions, positions=self.positions, num_actions=len(ACTIONS)
        )

    def __repr__(self) -> str:
        if isinstance(self.obs, list):
            return f"Walk({len(self.obs)} episodes of {len(self.obs[0]):,} steps in {self.room})"
        return f"Walk({len(self.obs):,} steps in {self.room})"


class Room:
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
        self.positions = np.argwhere(self.layout >= 0)
        self.symbols = self.layout[self.layout >= 0]
        self._place = np.full(self.layout.shape, -1)
        self._place[self.layout >= 0] = np.arange(len(self.symbols))
        self.next_place = self._neighbours()
        for pair in blocked:
            self._block(pair)
        self.tried = np.ones_like(self.next_place, dtype=bool)
        if walls == "never":
            self.tried = self.next_place != np.arange(self.num_places)[:, None]
            if not self.tried.any(1).all():
                stuck = self.positions[np.argmin(self.tried.any(1))].tolist()
                raise ValueError(
                    f"layout has no way out of cell {stuck}, expected one when walls='never'; "
                    "make the cell a hole (-1) or use walls='bump'."
                )
        for array in (
            self.layout,
            self.positions,
            self.symbols,
            self._place,
            self.next_place,
            self.tried,
        ):
            array.flags.writeable = False

    @property
    def num_places(self) -> int:
        """``P``, the number of cells that are no holes."""
        return len(self.symbols)

    @property
    def num_symbols(self) -> int:
        """``V``, the largest symbol plus one."""
        return int(self.symbols.max()) + 1

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

    def step(self, place: int, action: int) -> int:
        """The place that ``action`` leads to; ``place`` itself if something is in the way."""
        if not 0 <= place < self.num_places:
            raise ValueError(f"place = {place}, expected 0 <= place < {self.num_places}.")
        if not 0 <= action < len(ACTIONS):
            raise ValueError(f"action = {action}, expected one of 0 to 3 for {ACTIONS}.")
        return int(self.next_place[place, action])

    def random_walk(
        self,
        num_steps: int,
        seed: int | np.random.Generator = 0,
        num_episodes: int | None = None,
        start: ArrayLike | None = None,
        slip: float = 0.0,
        observation_noise: float = 0.0,
    ) -> Walk:
        """Walk at random, each action that the walker tries being equally probable.

        Args:
            num_steps: ``T``, observations in each episode.
            seed: an integer, or a generator to draw from.
            num_episodes: None for a single walk of arrays, else the length of the lists.
            start: row and column where each episode begins, or ``(num_episodes, 2)``; by default
                uniform over the places.
            slip: probability that the move made is another one, drawn uniformly from those the
                walker tries there; the recorded action is the one meant.
            observation_noise: probability that the symbol seen is another one, drawn uniformly.

        Returns:
            A :class:`Walk`.  The same seed gives the same walk.
        """
        episodes = 1 if num_episodes is None else _count("num_episodes", num_episodes)
        steps = _count("num_steps", num_steps)
        _probability("slip", slip)
        _probability("observation_noise", observation_noise)
        if observation_noise and self.num_symbols == 1:
            raise ValueError(
                f"observation_noise = {observation_noise}, expected 0 in a room of one symbol; "
                "there is no other to be seen."
            )
        rng = np.random.default_rng(seed)
        starts = self._starts(start, episodes, rng)
        draws = rng.integers(_CHOICES, size=(episodes, steps - 1))
        moves = draws * (_SLIPS + 1)
        if slip:
            slips = rng.integers(_SLIPS, size=moves.shape) + 1
            moves += np.where(rng.random(moves.shape) < slip, slips, 0)
        places = self._follow(starts, moves)
        actions = self._choice[places[:, :-1], draws]
        obs = self.symbols[places]
        if observation_noise:
            shift = rng.integers(1, self.num_symbols, size=obs.shape)
            wrong = rng.random(obs.shape) < observation_noise
            obs = np.where(wrong, (obs + shift) % self.num_symbols, obs)
        fields: dict[str, Any] = {
            "obs": obs,
            "actions": actions,
            "positions": self.positions[places],
            "places": places,
        }
        pack = list if num_episodes is not None else itemgetter(0)
        return Walk(**{name: pack(field) for name, field in fields.items()}, room=self)

    def place_graph(self) -> nx.MultiDiGraph:
        """The true map: what a perfect learner would find.

        Returns:
            A graph with the places as nodes (attributes ``symbol``, ``position``) and an edge,
            its key and attribute ``action`` being the action, for each move a walker tries.

        Example:
            >>> graph = Room([[5, 7]], walls="never").place_graph()
            >>> list(graph.edges(keys=True)), graph.nodes[1]
            ([(0, 1, 1), (1, 0, 0)], {'symbol': 7, 'position': (0, 1)})
        """
        graph = nx.MultiDiGraph()
        for place, symbol in enumerate(self.symbols.tolist()):
            graph.add_node(place, symbol=symbol, position=tuple(self.positions[place].tolist()))
        for place, action in np.argwhere(self.tried).tolist():
            graph.add_edge(place, int(self.next_place[place, action]), key=action, action=action)
        return graph

    def is_identifiable(self) -> bool:
        """Whether no smaller map explains every walk, given the actions.

        With ``walls="bump"`` this is partition refinement of the true graph ending with a class
        for each place.  With ``walls="never"`` places can also be merged because they have no
        tried action in common, so that no walk can tell them apart; see
        :meth:`confusable_places`.

        Example:
            >>> Room([[0, 0, 1]]).is_identifiable(), Room([[0, 0]]).is_identifiable()
            (True, False)
        """
        return next(self._confusable(), None) is None

    def confusable_places(self) -> list[tuple[int, int]]:
        """The pairs of places that a smaller map could merge without contradicting any walk."""
        return list(self._confusable())

    def __repr__(self) -> str:
        return (
            f"Room({self._size()}, {self.num_places} places, {self.num_symbols} symbols, "
            f"walls={self.walls!r})"
        )

    def _size(self) -> str:
        return "x".join(map(str, self.layout.shape))

    def _neighbours(self) -> IntArray:
        framed = np.pad(self._place, 1, constant_values=-1)
        targets = self.positions[:, None, :] + _MOVES + 1
        found = framed[targets[..., 0], targets[..., 1]]
        return np.where(found >= 0, found, np.arange(self.num_places)[:, None])

    def _block(self, pair: Any) -> None:
        cells = np.asarray(pair)
        if cells.shape != (2, 2) or np.abs(cells[0] - cells[1]).sum() != 1:
            raise ValueError(
                f"blocked holds {pair!r}, expected a pair ((row, col), (row, col)) of "
                "neighbouring cells."
            )
        one, other = self.place_of_position(cells).tolist()
        for here, there in ((one, other), (other, one)):
            self.next_place[here, self.next_place[here] == there] = here

    def _starts(
        self, start: ArrayLike | None, episodes: int, rng: np.random.Generator
    ) -> list[int]:
        if start is None:
            return rng.integers(self.num_places, size=episodes).tolist()
        places = np.asarray(self.place_of_position(start))
        if places.shape not in ((), (episodes,)):
            raise ValueError(
                f"start has shape {np.shape(start)}, expected (2,) or ({episodes}, 2): a row and "
                "column for each episode."
            )
        return np.broadcast_to(places, (episodes,)).tolist()

    @property
    def _choice(self) -> IntArray:
        """``(P, 12)`` the action that each draw stands for."""
        order = np.argsort(~self.tried, axis=1, kind="stable")
        return np.take_along_axis(order, np.arange(_CHOICES) % self.tried.sum(1)[:, None], axis=1)

    def _follow(self, starts: Sequence[int], moves: IntArray) -> IntArray:
        """``(B, T)`` places; move ``7 * draw + slip`` with slip 0 for none."""
        choice = self._choice
        made = np.repeat(choice[:, :, None], _SLIPS + 1, axis=2)
        for place, tried in enumerate(self.tried):
            for draw, action in enumerate(choice[place].tolist()):
                others = np.flatnonzero(tried & (np.arange(len(ACTIONS)) != action))
                if others.size:
                    made[place, draw, 1:] = others[np.arange(_SLIPS) % others.size]
        width = made[0].size
        successors = np.take_along_axis(self.next_place, made.reshape(self.num_places, -1), axis=1)
        # A plain list indexed by the row of a place plus the move is the fastest loop in Python.
        table: list[int] = (successors * width).ravel().tolist()
        rows = [
            list(accumulate(row.tolist(), lambda here, move: table[here + move], initial=s * width))
            for s, row in zip(starts, moves, strict=True)
        ]
        return np.array(rows, dtype=np.int64) // width

    def _confusable(self) -> Iterator[tuple[int, int]]:
        compatible = self.symbols[:, None] == self.symbols
        while True:
            refined = compatible.copy()
            for action in range(len(ACTIONS)):
                tried, successor = self.tried[:, action], self.next_place[:, action]
                both = tried[:, None] & tried
                refined &= ~both | compatible[np.ix_(successor, successor)]
            if (refined == compatible).all():
                break
            compatible = refined
        # Pairwise compatibility is not transitive where actions are never tried: fold each pair.
        for one, other in np.argwhere(np.triu(compatible, k=1)).tolist():
            if self.walls == "bump" or self._folds(one, other):
                yield one, other

    def _folds(self, one: int, other: int) -> bool:
        """Whether merging two places, and all that this forces, meets no contradiction."""
        parent = list(range(self.num_places))
        outcome = [
            {action: target for action, target in enumerate(row) if tried[action]}
            for row, tried in zip(self.next_place.tolist(), self.tried.tolist(), strict=True)
        ]

        def root(place: int) -> int:
            while parent[place] != place:
                place = parent[place]
            return place

        todo = [(one, other)]
        while todo:
            kept, merged = map(root, todo.pop())
            if kept == merged:
                continue
            if self.symbols[kept] != self.symbols[merged]:
                return False
            parent[merged] = kept
            for action, target in outcome[merged].items():
                todo.append((outcome[kept].setdefault(action, target), target))
        return True


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
    cells = _count("height", height) * _count("width", width)
    if _count("num_symbols", num_symbols) > cells:
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


@cache
def _packaged_rooms() -> dict[str, Any]:
    text = (files("chmm_pyro") / "data" / "rooms.json").read_text(encoding="utf-8")
    return json.loads(text)["rooms"]


def published_room_names() -> tuple[str, ...]:
    """The rooms that :func:`published_room` knows.

    Example:
        >>> published_room_names()[:2]
        ('rectangular_room', 'empty_room')
    """
    return tuple(_packaged_rooms())


def published_room(name: str) -> Room:
    """A room of the literature, from the file ``data/rooms.json``, which names its source.

    Example:
        >>> published_room("rectangular_room")
        Room(6x8, 48 places, 4 symbols, walls='bump')
    """
    rooms = _packaged_rooms()
    if name not in rooms:
        raise ValueError(f"name = {name!r}, expected one of {', '.join(rooms)}.")
    return Room(rooms[name]["layout"], walls=rooms[name]["walls"])


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


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} = {value!r}, expected an integer >= 1; use int({name}).")
    if value < 1:
        raise ValueError(f"{name} = {value}, expected at least 1.")
    return int(value)


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value!r}, expected a probability between 0 and 1.")
