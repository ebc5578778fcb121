"""How good a map is: scores against the true map, and against the walk that it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..clones import MISSING
from ..sequences import SequenceBatch
from .cognitive_map import CognitiveMap
from .comparison import MapDifference, compare_maps, isomorphism
from .usage import place_purity

__all__ = ["EdgeScores", "MapScores", "edge_scores", "places_of_states", "score_map"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class EdgeScores:
    """How the edges of a map agree with the true ones.

    Attributes:
        precision: share of the map's edges that lie over true ones.
        recall: share of the true edges under edges of the map.
        num_edges: edges of the map that were scored.
    """

    precision: float
    recall: float
    num_edges: int

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True)
class MapScores:
    """Scores of one map; each is best at 1 except the counts and bits.

    Attributes:
        num_nodes: used states.
        num_places: places of the truth.
        purity: share of the steps that are at the main place of their state.
        place_recall: share of the places that are some node's main place.
        edges: all edges of the map.
        busy_edges: edges above the traffic cut-off; None without one.
        outcome_accuracy: for the places and actions of the truth, how much of the probability
            that the map gives to outcomes is right, on average; 0 where the map knows nothing.
        isomorphic: whether the map is exactly the truth under other names.
        difference: where it is not.
        held_out_bits_per_step: of the model on sequences it has not seen, or None.
    """

    num_nodes: int
    num_places: int
    purity: float
    place_recall: float
    edges: EdgeScores
    busy_edges: EdgeScores | None
    outcome_accuracy: float
    isomorphic: bool
    difference: MapDifference
    held_out_bits_per_step: float | None = None

    def as_row(self) -> dict[str, float | int | bool | None]:
        """One flat row for a table."""
        busy = self.busy_edges
        return {
            "num_nodes": self.num_nodes,
            "num_places": self.num_places,
            "purity": self.purity,
            "place_recall": self.place_recall,
            "edge_precision": self.edges.precision,
            "edge_recall": self.edges.recall,
            "edge_f1": self.edges.f1,
            "busy_edge_precision": None if busy is None else busy.precision,
            "busy_edge_recall": None if busy is None else busy.recall,
            "busy_edge_f1": None if busy is None else busy.f1,
            "outcome_accuracy": self.outcome_accuracy,
            "isomorphic": self.isomorphic,
            "held_out_bits_per_step": self.held_out_bits_per_step,
        }


def places_of_states(states: ArrayLike, places: ArrayLike) -> dict[int, int]:
    """The place where each decoded state occurs most often, ties to the lower.

    Args:
        states: ``(..., T)`` from ``posterior_mode``; MISSING (padding) is skipped.
        places: ``(..., T)`` the true places.

    Example:
        >>> places_of_states([4, 4, 4, 7], [0, 1, 1, 0])
        {4: 1, 7: 0}
    """
    path, where = np.asarray(states), np.asarray(places)
    if path.shape != where.shape:
        raise ValueError(
            f"places has shape {where.shape}, expected {path.shape}: one for each decoded step."
        )
    inside = path != MISSING
    steps = np.stack([path[inside], where[inside]], axis=1)
    pairs, visits = np.unique(steps, axis=0, return_counts=True)
    found: dict[int, int] = {}
    # The most visited place of each state comes first, the lower of two equal ones.
    for state, place in pairs[np.lexsort((pairs[:, 1], -visits, pairs[:, 0]))].tolist():
        found.setdefault(state, place)
    return found


def edge_scores(
    cognitive_map: CognitiveMap,
    truth: CognitiveMap,
    place_of: dict[int, int],
    *,
    min_count: float = 0.0,
) -> EdgeScores:
    """Precision and recall of a map's edges, laid over the truth.

    Args:
        cognitive_map: the map.
        truth: the true map.
        place_of: true state of each state, see :func:`places_of_states`; the edges of a state
            without one are wrong.
        min_count: leave out edges with less traffic than this many (expected) uses.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> truth = CognitiveMap.from_room(Room([[0, 1, 2]], walls="never"))
        >>> edge_scores(truth, truth, {0: 0, 1: 1, 2: 2}).f1
        1.0
    """
    edges = cognitive_map.edges[cognitive_map.counts >= min_count]
    names = truth.states.tolist()
    true_edges = {(names[old], action, names[new]) for old, action, new in truth.edges.tolist()}
    place = [place_of.get(state) for state in cognitive_map.states.tolist()]
    images = [(place[old], action, place[new]) for old, action, new in edges.tolist()]
    right = [image in true_edges for image in images]
    return EdgeScores(
        precision=float(np.mean(right)) if right else 0.0,
        recall=len(true_edges & set(images)) / len(true_edges) if true_edges else 0.0,
        num_edges=len(edges),
    )


def _outcome_accuracy(
    cognitive_map: CognitiveMap, truth: CognitiveMap, place_of: dict[int, int]
) -> float:
    """Mean overlap of the outcome distributions over the true nodes and actions.

    A place under several nodes counts by their usage; the overlap of two distributions is one
    minus their total variation distance.
    """
    nowhere = truth.num_nodes
    names = cognitive_map.states.tolist()
    place = np.array([truth.node_of(place_of[s]) if s in place_of else nowhere for s in names])
    visits = np.bincount(place, weights=cognitive_map.usage, minlength=nowhere + 1)
    share = cognitive_map.usage / np.maximum(visits[place], np.finfo(float).tiny)
    predicted = np.zeros((truth.num_actions, nowhere + 1, nowhere + 1))
    old, action, new = cognitive_map.edges.T
    known = action < truth.num_actions
    np.add.at(
        predicted,
        (action[known], place[old[known]], place[new[known]]),
        (share[old] * cognitive_map.probabilities)[known],
    )
    actual = np.stack([matrix.toarray() for matrix in truth.matrices])
    overlap = np.minimum(predicted[:, :nowhere, :nowhere], actual).sum(-1)
    return float(overlap[truth.tried.T].mean())


def score_map(
    cognitive_map: CognitiveMap,
    truth: CognitiveMap,
    states: ArrayLike,
    places: ArrayLike,
    *,
    min_count: float | None = None,
    tolerance: float = 0.05,
    negligible: float = 0.0,
    model: Any = None,
    held_out: SequenceBatch | None = None,
) -> MapScores:
    """All scores of a map against the true one.

    Args:
        cognitive_map: the map.
        truth: usually ``CognitiveMap.from_room(room)``.
        states: ``(..., T)`` decoded states of a walk, from ``posterior_mode``.
        places: ``(..., T)`` true states of ``truth`` at the same steps.
        min_count: of :func:`edge_scores`, for ``busy_edges``.
        tolerance: of :func:`~chmm_pyro.maps.comparison.isomorphism`, like ``negligible``.
        negligible: above zero for worlds where moves fail.
        model: whose likelihood on ``held_out`` is reported.
        held_out: sequences that the model was not fitted to.

    Example:
        >>> from chmm_pyro.environments import Room
        >>> room = Room([[0, 1, 0]])
        >>> walk, truth = room.random_walk(100, seed=0), CognitiveMap.from_room(room)
        >>> score_map(truth, truth, walk.places, walk.places).as_row()["edge_f1"]
        1.0
    """
    on_map = set(cognitive_map.states.tolist())
    decoded = places_of_states(states, places)
    place_of = {state: place for state, place in decoded.items() if state in on_map}
    exact = isomorphism(cognitive_map, truth, tolerance=tolerance, negligible=negligible)
    bits = None
    if held_out is not None:
        if model is None:
            raise ValueError("held_out was given without model, expected both or neither.")
        log_prob = model.distribution(held_out).log_prob(held_out.obs).detach().double().sum()
        bits = -float(log_prob) / (math.log(2) * held_out.num_observed)
    return MapScores(
        num_nodes=cognitive_map.num_nodes,
        num_places=truth.num_nodes,
        purity=place_purity(states, places),
        place_recall=len(set(place_of.values())) / truth.num_nodes,
        edges=edge_scores(cognitive_map, truth, place_of),
        busy_edges=None
        if min_count is None
        else edge_scores(cognitive_map, truth, place_of, min_count=min_count),
        outcome_accuracy=_outcome_accuracy(cognitive_map, truth, place_of),
        isomorphic=exact is not None,
        difference=compare_maps(
            cognitive_map, truth, mapping=exact or place_of, tolerance=tolerance
        ),
        held_out_bits_per_step=bits,
    )
