"""The cognitive map: the places that a model has found, and where each action leads from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import networkx as nx
import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from ..beliefs import checked_belief
from ..clones import MISSING
from ..distribution import CloneHMM
from ..environments.world import World
from ..sequences import SequenceBatch
from .edges import significant_edges
from .transition_entries import (
    Entries,
    expected_entries,
    expected_positions,
    mean_positions,
    path_entries,
)

__all__ = ["CognitiveMap", "Localisation", "UncertainMapError"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_MOST_NOISE = 0.5  # measured: random models 0.65 to 1, models after ten updates of EM below 0.3


class UncertainMapError(ValueError):
    """The counts hold no map: most of them, or all, are as noise would have them."""


class _Model(Protocol):
    """A :class:`~chmm_pyro.models.base.CloneModel`."""

    def distribution(self, batch: SequenceBatch) -> CloneHMM: ...


class _Fitted(Protocol):
    """A :class:`~chmm_pyro.inference.result.FitResult`."""

    @property
    def model(self) -> Any: ...

    @property
    def data(self) -> SequenceBatch: ...


class Localisation(NamedTuple):
    """Where a walk ended, as far as the map can tell.

    Attributes:
        belief: ``(N,)`` probability of each node after the last step; ``(B, N)`` for a batch.
        log_prob: ``()`` or ``(B,)`` log-probability of the walk's symbols under the map, which
            compares maps of one vocabulary.
    """

    belief: FloatArray
    log_prob: FloatArray


@dataclass(frozen=True, eq=False, repr=False)
class CognitiveMap:
    """A graph of places: nodes show symbols, edges are labelled by actions.

    Make one with :meth:`from_result`, :meth:`from_model` or :meth:`from_room`.  Nodes are named
    by the states of the model (the places of the room); arrays are ordered by node.

    Attributes:
        states: ``(N,)`` the name of each node, ascending.
        symbols: ``(N,)`` what each node shows.
        usage: ``(N,)`` expected visits in the data.
        edges: ``(E, 3)`` node index, action, node index; each once, in order.
        counts: ``(E,)`` expected uses of each edge in the data.
        probabilities: ``(E,)``; the edges of a node and an action sum to one.
        num_actions: ``A``.
        positions: ``(N, D)`` coordinates, or None.
        noise: share of the data's steps that lie on no edge.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> room = Room([[0, 1, 0]])
        >>> cognitive_map = CognitiveMap.from_room(room)
        >>> cognitive_map
        CognitiveMap(3 nodes, 12 edges, 2 symbols, 4 actions)
        >>> cognitive_map.graph[0][1]
        AtlasView({1: {'action': 1, 'probability': 1.0, 'count': 1.0}})
        >>> walk = room.random_walk(100, seed=0)
        >>> cognitive_map.localise(walk.batch()).belief
        array([0., 1., 0.])
    """

    states: IntArray
    symbols: IntArray
    usage: FloatArray
    edges: IntArray
    counts: FloatArray
    probabilities: FloatArray
    num_actions: int
    positions: FloatArray | None = None
    noise: float = 0.0

    @classmethod
    def from_result(cls, result: _Fitted, **options: Any) -> CognitiveMap:
        """The map of a fitted model, read from the data it was fitted to.

        Args:
            result: what a fit returned.
            options: those of :meth:`from_model`.
        """
        if not hasattr(result, "model"):
            raise TypeError(
                f"result is {type(result).__name__}, expected what a fit returned; use "
                "from_model(model, batch) for a model."
            )
        return cls.from_model(result.model, result.data, **options)

    @classmethod
    def from_model(
        cls,
        model: _Model,
        batch: SequenceBatch,
        *,
        counts: Literal["expected", "path"] = "expected",
        alpha: float = 0.05,
    ) -> CognitiveMap:
        """The map that a model makes of data.

        Edges are the transitions whose counts no noise explains, see :mod:`chmm_pyro.maps.edges`;
        nodes are the states on edges.

        Args:
            model: a model, usually fitted to ``batch``.
            batch: the data, with positions if the nodes shall have some (means over what
                ``counts`` are counted on).
            counts: ``"expected"`` under the posterior of the paths, or on the most probable
                ``"path"`` alone.
            alpha: probability that the map has any edge that is noise.

        Raises:
            UncertainMapError: a ``ValueError``; no edge at all, or expected counts of which most
                are noise, as those of a model that was never fitted.
            ValueError: data that are impossible under the model or of another vocabulary, or a
                model with NaN parameters.
        """
        if counts not in ("expected", "path"):
            raise ValueError(f"counts = {counts!r}, expected 'expected' or 'path'.")
        hmm = model.distribution(batch)
        positions = None
        located = batch.flat_positions is not None
        if counts == "path":
            path = hmm.posterior_mode(batch.obs).states
            entries = path_entries(path, batch, hmm.clones.num_states)
            if located:
                positions = mean_positions(path, batch, hmm.clones.num_states)
        else:
            entries = expected_entries(hmm, batch)
            if located:
                positions = expected_positions(hmm.smooth(batch.obs), batch)
        found = cls.from_entries(
            entries,
            hmm.clones.symbol_of_state,
            num_actions=hmm.table.num_actions,
            positions=positions,
            alpha=alpha,
        )
        if counts == "expected" and found.noise > _MOST_NOISE:
            raise UncertainMapError(
                f"{found.noise:.0%} of the steps lie on no edge that differs from noise, expected "
                "a model whose posterior knows most moves; fit it first (or longer), or look at "
                "its best guess with counts='path'."
            )
        return found

    @classmethod
    def from_entries(
        cls,
        entries: Entries,
        symbol_of_state: IntArray,
        *,
        num_actions: int,
        positions: FloatArray | None = None,
        alpha: float = 0.05,
    ) -> CognitiveMap:
        """The map of counted transitions.

        Args:
            entries: the counts, see :mod:`chmm_pyro.maps.transition_entries`.
            symbol_of_state: ``(S,)``.
            num_actions: ``A``.
            positions: ``(S, D)`` coordinates of the states.
            alpha: as in :meth:`from_model`.
        """
        kept = significant_edges(
            entries.transitions,
            entries.counts,
            symbol_of_state,
            entries.usage,
            num_actions=num_actions,
            unattributed=entries.unattributed,
            alpha=alpha,
        )
        transitions, counts = entries.transitions[kept.kept], entries.counts[kept.kept]
        if not len(transitions):
            raise UncertainMapError(
                f"none of {len(entries.counts)} transitions in the counts differs from noise "
                f"(alpha = {alpha}), expected at least one edge; fit the model first, or on more "
                "data."
            )
        states, index = np.unique(transitions[:, [0, 2]], return_inverse=True)
        index = index.reshape(-1, 2)
        edges = np.stack([index[:, 0], transitions[:, 1], index[:, 1]], axis=1)
        return cls._of(
            states=states,
            symbols=np.asarray(symbol_of_state)[states],
            usage=entries.usage[states],
            edges=edges,
            counts=counts,
            weights=counts,
            num_actions=num_actions,
            positions=None if positions is None else positions[states],
            noise=kept.noise,
        )

    @classmethod
    def from_room(cls, room: World, *, slip: float = 0.0) -> CognitiveMap:
        """The true map of a room (or another world): the moves that a random walker tries there.

        Args:
            room: its places are the nodes, all of usage 1; a certain edge has count 1.
            slip: as in :meth:`~chmm_pyro.environments.World.random_walk`.
        """
        weight: dict[tuple[int, int, int], float] = {}
        for place, action in np.argwhere(room.tried).tolist():
            others = [a for a in np.flatnonzero(room.tried[place]).tolist() if a != action]
            missed = slip if others else 0.0
            outcomes = [(action, 1 - missed), *((other, missed / len(others)) for other in others)]
            for made, probability in outcomes:
                edge = (place, action, int(room.next_place[place, made]))
                weight[edge] = weight.get(edge, 0.0) + probability
        weights = np.array(list(weight.values()))
        some = weights > 0
        return cls._of(
            states=np.arange(room.num_places),
            symbols=room.symbols,
            usage=np.ones(room.num_places),
            edges=np.array(list(weight))[some],
            counts=weights[some],
            weights=weights[some],
            num_actions=room.next_place.shape[1],
            positions=room.positions.astype(np.float64),
        )

    @classmethod
    def _of(
        cls, *, edges: IntArray, counts: FloatArray, weights: FloatArray, **fields: Any
    ) -> CognitiveMap:
        """Edges in order, with probabilities in proportion to their weights."""
        order = np.lexsort(edges.T[::-1])
        edges, weights = edges[order].astype(np.int64), weights[order]
        row = edges[:, 0] * fields["num_actions"] + edges[:, 1]
        total = np.bincount(row, weights=weights)
        return cls(edges=edges, counts=counts[order], probabilities=weights / total[row], **fields)

    # ---------------------------------------------------------------------------- reading

    @property
    def num_nodes(self) -> int:
        """``N``."""
        return len(self.states)

    @cached_property
    def graph(self) -> nx.MultiDiGraph:
        """The map as a graph that cannot be changed; :meth:`to_networkx` gives one that can.

        Nodes are named by their states, with attributes ``symbol``, ``usage`` and, where known,
        ``position``; an edge has its action as key and the attributes ``action``,
        ``probability`` and ``count``.
        """
        return nx.freeze(self.to_networkx())

    def to_networkx(self) -> nx.MultiDiGraph:
        """A copy of :attr:`graph`."""
        graph = nx.MultiDiGraph()
        for node, state in enumerate(self.states.tolist()):
            attributes: dict[str, Any] = {
                "symbol": int(self.symbols[node]),
                "usage": float(self.usage[node]),
            }
            if self.positions is not None:
                attributes["position"] = tuple(self.positions[node].tolist())
            graph.add_node(state, **attributes)
        names = self.states.tolist()
        for (old, action, new), probability, count in zip(
            self.edges.tolist(), self.probabilities.tolist(), self.counts.tolist(), strict=True
        ):
            graph.add_edge(
                names[old],
                names[new],
                key=action,
                action=action,
                probability=probability,
                count=count,
            )
        return graph

    @cached_property
    def matrices(self) -> tuple[sp.csr_array, ...]:
        """For each action the ``(N, N)`` probabilities; a row is zero where it was never tried."""
        size = (self.num_nodes, self.num_nodes)
        old, action, new = self.edges.T
        return tuple(
            sp.csr_array((self.probabilities[of], (old[of], new[of])), shape=size)
            for of in (action == a for a in range(self.num_actions))
        )

    @cached_property
    def tried(self) -> NDArray[np.bool_]:
        """``(N, A)`` whether the map knows what the action does at the node."""
        tried = np.zeros((self.num_nodes, self.num_actions), dtype=bool)
        tried[self.edges[:, 0], self.edges[:, 1]] = True
        return tried

    @cached_property
    def successors(self) -> list[list[tuple[int, int, float]]]:
        """For each node its edges as ``(action, target node, -log probability)``."""
        found: list[list[tuple[int, int, float]]] = [[] for _ in self.states]
        # A certain edge costs 0.0, not -0.0.
        surprise = np.abs(np.log(self.probabilities)).tolist()
        for (old, action, new), cost in zip(self.edges.tolist(), surprise, strict=True):
            found[old].append((action, new, cost))
        return found

    @cached_property
    def likely_targets(self) -> IntArray:
        """``(N, A)`` the most probable outcome, as a node index; -1 where it was never tried."""
        targets = np.full((self.num_nodes, self.num_actions), -1)
        # The last assignment stays, so the most probable edge comes last.
        order = np.argsort(self.probabilities, kind="stable")
        old, action, new = self.edges[order].T
        targets[old, action] = new
        return targets

    @property
    def is_deterministic(self) -> bool:
        """Whether no action has two outcomes at a node."""
        return len(self.edges) == int(self.tried.sum())

    def node_of(self, states: ArrayLike) -> IntArray:
        """Node indices of states.

        Raises:
            ValueError: a state that is not on the map.
            TypeError: states that are not integers.
        """
        names = np.asarray(states)
        if names.size and names.dtype.kind not in "iu":
            raise TypeError(f"states has dtype {names.dtype}, expected integers.")
        names = names.astype(np.int64)
        index = np.minimum(np.searchsorted(self.states, names), self.num_nodes - 1)
        wrong = self.states[index] != names
        if wrong.any():
            raise ValueError(
                f"state {int(names[wrong][0])} is not on the map, expected one of its "
                f"{self.num_nodes} states ({_some(self.states)})."
            )
        return index

    def of_symbol(self, symbol: int) -> list[int]:
        """The states that show a symbol; a start or goal for planning.

        Raises:
            ValueError: a symbol that the map does not show.
        """
        found = self.states[self.symbols == symbol].tolist()
        if not found:
            raise ValueError(
                f"symbol {symbol} is not on the map, expected one of "
                f"{_some(np.unique(self.symbols))}."
            )
        return found

    # -------------------------------------------------------------------------- localising

    def localise(
        self,
        batch: SequenceBatch,
        *,
        belief: ArrayLike | None = None,
        pseudocount: float = 0.0,
        num_symbols: int | None = None,
    ) -> Localisation:
        """Where walks end, from what was seen and done: the filter on the edges of the map.

        Args:
            batch: one or many walks.
            belief: ``(N,)`` before the first observation; by default uniform.
            pseudocount: added to the emission probabilities before they are normalised, so that a
                wrong symbol does not exclude a place (see
                :func:`~chmm_pyro.maps.cells.noisy_evidence`).
            num_symbols: that the pseudocount is added to; by default the largest on the map plus
                one.

        Raises:
            ValueError: a walk that the map cannot explain, or symbols and actions it lacks.
        """
        prior = np.ones(self.num_nodes) if belief is None else belief
        prior = checked_belief(prior, self.num_nodes)
        found = [self._filter(walk, prior, pseudocount, num_symbols) for walk in batch]
        for (_, log_prob, step), walk in zip(found, batch, strict=True):
            if log_prob == -np.inf:
                raise ValueError(
                    f"the map cannot explain step {step} (symbol {int(walk.flat_obs[step])}): no "
                    "place of it fits all steps up to there; use pseudocount > 0 for noisy "
                    "observations, or the map of another world."
                )
        beliefs = np.array([belief for belief, _, _ in found])
        log_probs = np.array([log_prob for _, log_prob, _ in found])
        if batch.single:
            return Localisation(beliefs[0], log_probs[0])
        return Localisation(beliefs, log_probs)

    def log_prob(
        self, batch: SequenceBatch, *, pseudocount: float = 0.0, num_symbols: int | None = None
    ) -> FloatArray:
        """``()`` or ``(B,)`` log-probability of walks that begin anywhere on the map.

        ``-inf`` where the map cannot explain a walk; the arguments are those of :meth:`localise`.
        """
        prior = np.ones(self.num_nodes)
        found = [self._filter(walk, prior, pseudocount, num_symbols)[1] for walk in batch]
        return np.array(found[0] if batch.single else found)

    def _filter(
        self, walk: SequenceBatch, prior: FloatArray, pseudocount: float, num_symbols: int | None
    ) -> tuple[FloatArray, float, int]:
        """The belief after the last step, the log-probability, and the first impossible step."""
        obs, actions = walk.flat_obs.tolist(), walk.flat_actions.tolist()
        if max(actions) >= self.num_actions:
            raise ValueError(
                f"actions holds {max(actions)}, expected less than the map's {self.num_actions}."
            )
        if num_symbols is None:
            num_symbols = int(self.symbols.max()) + 1
        belief, log_prob = prior / prior.sum(), 0.0
        for time, symbol in enumerate(obs):
            if time > 0:
                belief = belief @ self.matrices[actions[time - 1]]
            if symbol != MISSING:
                emission = (self.symbols == symbol) + pseudocount
                belief = belief * emission / (1 + num_symbols * pseudocount)
            mass = float(belief.sum())
            if mass == 0:
                return belief, -np.inf, time
            belief = belief / mass
            log_prob += float(np.log(mass))
        return belief, log_prob, len(obs)

    def follow(self, belief: ArrayLike, actions: Iterable[int]) -> FloatArray:
        """``(N,)`` where blind actions lead; less than one in all where one was never tried.

        Args:
            belief: ``(N,)`` before the first action.
            actions: what is done.
        """
        probs = checked_belief(belief, self.num_nodes)
        for action in actions:
            if not 0 <= action < self.num_actions:
                raise ValueError(
                    f"actions holds {action}, expected 0 <= action < {self.num_actions}."
                )
            probs = probs @ self.matrices[action]
        return probs

    def with_edges(self, edges: IntArray, counts: FloatArray, weights: FloatArray) -> CognitiveMap:
        """The same nodes with other edges, equal ones added up; weights become probabilities.

        Args:
            edges: ``(E, 3)`` node index, action, node index.
            counts: ``(E,)``.
            weights: ``(E,)`` in proportion to the probabilities of each node and action.
        """
        merged, index = np.unique(edges, axis=0, return_inverse=True)
        index = index.reshape(-1)
        return self._of(
            states=self.states,
            symbols=self.symbols,
            usage=self.usage,
            edges=merged,
            counts=_sums(index, counts),
            weights=_sums(index, weights),
            num_actions=self.num_actions,
            positions=self.positions,
            noise=self.noise,
        )

    def __repr__(self) -> str:
        return (
            f"CognitiveMap({self.num_nodes} nodes, {len(self.edges)} edges, "
            f"{len(np.unique(self.symbols))} symbols, {self.num_actions} actions)"
        )


def _sums(index: IntArray, values: FloatArray) -> FloatArray:
    return np.bincount(index, weights=values).astype(np.float64)


def _some(values: IntArray, most: int = 8) -> str:
    shown = ", ".join(map(str, values[:most].tolist()))
    return shown + (", ..." if len(values) > most else "")
