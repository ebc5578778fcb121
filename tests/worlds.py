"""Models that are exactly a room, with one clone or several for each place."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from chmm_pyro.clones import CloneStructure
from chmm_pyro.environments import Room
from chmm_pyro.models.point import PointCHMM

__all__ = ["exact_model", "room_table"]


def room_table(room: Room, slip: float = 0.0) -> NDArray[np.float64]:
    """``(4, P, P)`` what each tried action does, from the rules of the walk, without our maps."""
    table = np.zeros((4, room.num_places, room.num_places))
    for place in range(room.num_places):
        tried = np.flatnonzero(room.tried[place])
        for action in tried:
            for made in tried:
                others = len(tried) - 1
                missed = slip / others if others else 0.0
                chance = 1 - others * missed if made == action else missed
                table[action, place, room.next_place[place, made]] += chance
    return table


def exact_model(
    room: Room, *, slip: float = 0.0, split: int = 1, pseudocount: float = 0.0, seed: int = 0
) -> tuple[PointCHMM, NDArray[np.int64]]:
    """A model of a room whose places are ``split`` clones each, and the place of each state.

    Clones of a place are entered with random probabilities.  Rows of moves that are never tried
    are uniform.
    """
    per_symbol = np.bincount(room.symbols, minlength=room.num_symbols)
    clones = CloneStructure(np.maximum(per_symbol * split, 1))
    order = np.argsort(room.symbols, kind="stable")
    place_of = np.full(clones.num_states, -1)
    place_of[per_symbol[clones.symbol_of_state] > 0] = np.repeat(order, split)
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(place_of >= 0)
    places = place_of[known]
    counts = np.zeros((4, clones.num_states, clones.num_states))
    weights = rng.uniform(0.2, 1, size=(4, len(known), len(known)))
    counts[:, known[:, None], known] = room_table(room, slip)[:, places[:, None], places] * weights
    if split == 1:
        counts[:, known[:, None], known] = room_table(room, slip)[:, places[:, None], places]
    model = PointCHMM.from_counts(clones, counts, pseudocount=pseudocount, dtype=torch.float64)
    return model, place_of
