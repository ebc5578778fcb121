"""Worlds of places: what each shows, where each action leads, and walks through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..sequences import SequenceBatch
from .identifiability import confusable_pairs

__all__ = ["Walk", "World", "positive_integer"]

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
    room: World

    def batch(self) -> SequenceBatch:
        """The walk as data, with positions and all actions."""
        return SequenceBatch.from_arrays(
            self.obs, self.actions, positions=self.positions, num_actions=self.room.num_actions
        )

    def __repr__(self) -> str:
        if isinstance(self.obs, list):
            return f"Walk({len(self.obs)} episodes of {len(self.obs[0]):,} steps in {self.room})"
        return f"Walk({len(self.obs):,} steps in {self.room})"


class World:
    """Places that show symbols, and where each action leads: the common part of all rooms.

    Args:
        symbols: ``(P,)`` symbol of each place.
        positions: ``(P, 2)`` row and column of each place.
        next_place: ``(P, A)`` where each action leads.
        tried: ``(P, A)`` whether a random walker tries the action.
        action_names: ``A`` names.

    Attributes:
        symbols: as given; the arrays are read-only.
        positions: as given.
        next_place: as given.
        tried: as given.
        action_names: as given.
    """

    symbols: IntArray
    positions: IntArray
    next_place: IntArray
    tried: NDArray[np.bool_]

    def __init__(
        self,
        *,
        symbols: IntArray,
        positions: IntArray,
        next_place: IntArray,
        tried: NDArray[np.bool_],
        action_names: tuple[str, ...],
    ) -> None:
        self.symbols, self.positions = symbols, positions
        self.next_place, self.tried = next_place, tried
        self.action_names = action_names
        for array in (symbols, positions, next_place, tried):
            array.flags.writeable = False

    @property
    def num_actions(self) -> int:
        """``A``."""
        return len(self.action_names)

    @property
    def num_places(self) -> int:
        """``P``."""
        return len(self.symbols)

    @property
    def num_symbols(self) -> int:
        """``V``, the largest symbol plus one."""
        return int(self.symbols.max()) + 1

    def step(self, place: int, action: int) -> int:
        """The place that ``action`` leads to; ``place`` itself if something is in the way."""
        if not 0 <= place < self.num_places:
            raise ValueError(f"place = {place}, expected 0 <= place < {self.num_places}.")
        if not 0 <= action < self.num_actions:
            raise ValueError(
                f"action = {action}, expected one of 0 to {self.num_actions - 1} for "
                f"{self.action_names}."
            )
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
            start: where each episode begins (in a room a row and column), or one for each; by
                default uniform over the places.
            slip: probability that the move made is another one, drawn uniformly from those the
                walker tries there; the recorded action is the one meant.
            observation_noise: probability that the symbol seen is another one, drawn uniformly.

        Returns:
            A :class:`Walk`.  The same seed gives the same walk.
        """
        episodes = 1 if num_episodes is None else positive_integer("num_episodes", num_episodes)
        steps = positive_integer("num_steps", num_steps)
        _probability("slip", slip)
        _probability("observation_noise", observation_noise)
        if observation_noise and self.num_symbols == 1:
            raise ValueError(
                f"observation_noise = {observation_noise}, expected 0 in a room of one symbol; "
                "there is no other to be seen."
            )
        rng = np.random.default_rng(seed)
        starts = self._starts(start, episodes, rng)
        draws = rng.integers(self._num_choices, size=(episodes, steps - 1))
        moves = draws * (self._num_slips + 1)
        if slip:
            slips = rng.integers(self._num_slips, size=moves.shape) + 1
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
            >>> from chmm_pyro.environments import Room
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

        Where every action is tried at every place this is partition refinement of the true graph
        ending with a class for each place.  Otherwise places can also be merged because they have
        no tried action in common, so that no walk can tell them apart; see
        :meth:`confusable_places`.

        Example:
            >>> from chmm_pyro.environments import Room
            >>> Room([[0, 0, 1]]).is_identifiable(), Room([[0, 0]]).is_identifiable()
            (True, False)
        """
        return next(confusable_pairs(self.symbols, self.next_place, self.tried), None) is None

    def confusable_places(self) -> list[tuple[int, int]]:
        """The pairs of places that a smaller map could merge without contradicting any walk."""
        return list(confusable_pairs(self.symbols, self.next_place, self.tried))

    def _start_places(self, start: ArrayLike) -> IntArray:
        """``()`` or ``(B,)`` places, from positions as the world describes them."""
        raise NotImplementedError

    def _starts(
        self, start: ArrayLike | None, episodes: int, rng: np.random.Generator
    ) -> list[int]:
        if start is None:
            return rng.integers(self.num_places, size=episodes).tolist()
        places = self._start_places(start)
        if places.shape not in ((), (episodes,)):
            width = np.shape(start)[-1]
            raise ValueError(
                f"start has shape {np.shape(start)}, expected ({width},) or ({episodes}, {width}): "
                "one for all episodes or one for each."
            )
        return np.broadcast_to(places, (episodes,)).tolist()

    @property
    def _num_choices(self) -> int:
        """Uniform draws from so many numbers pick uniformly among 1 to ``A`` actions."""
        return math.lcm(*range(1, self.num_actions + 1))

    @property
    def _num_slips(self) -> int:
        """The same among 1 to ``A - 1`` actions."""
        return math.lcm(*range(1, self.num_actions))

    @property
    def _choice(self) -> IntArray:
        """``(P, num_choices)`` the action that each draw stands for."""
        order = np.argsort(~self.tried, axis=1, kind="stable")
        draws = np.arange(self._num_choices) % self.tried.sum(1)[:, None]
        return np.take_along_axis(order, draws, axis=1)

    def _follow(self, starts: Sequence[int], moves: IntArray) -> IntArray:
        """``(B, T)`` places; move ``(num_slips + 1) * draw + slip`` with slip 0 for none."""
        choice, num_slips = self._choice, self._num_slips
        made = np.repeat(choice[:, :, None], num_slips + 1, axis=2)
        for place, tried in enumerate(self.tried):
            for draw, action in enumerate(choice[place].tolist()):
                others = np.flatnonzero(tried & (np.arange(self.num_actions) != action))
                if others.size:
                    made[place, draw, 1:] = others[np.arange(num_slips) % others.size]
        width = made[0].size
        successors = np.take_along_axis(self.next_place, made.reshape(self.num_places, -1), axis=1)
        # A plain list indexed by the row of a place plus the move is the fastest loop in Python.
        table: list[int] = (successors * width).ravel().tolist()
        rows = [
            list(accumulate(row.tolist(), lambda here, move: table[here + move], initial=s * width))
            for s, row in zip(starts, moves, strict=True)
        ]
        return np.array(rows, dtype=np.int64) // width


def positive_integer(name: str, value: Any) -> int:
    """``value``, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} = {value!r}, expected an integer >= 1; use int({name}).")
    if value < 1:
        raise ValueError(f"{name} = {value}, expected at least 1.")
    return int(value)


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} = {value!r}, expected a probability between 0 and 1.")
