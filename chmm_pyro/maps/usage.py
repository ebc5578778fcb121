"""How decoded states relate to the places where they occur."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..beliefs import Posterior
from ..clones import MISSING

__all__ = ["mass_of_states", "place_fields", "place_purity", "state_usage", "states_used"]


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def states_used(states: ArrayLike) -> int:
    """How many different states decoded paths visit; MISSING (padding) is none.

    Args:
        states: ``(..., T)`` from ``posterior_mode``.

    Example:
        >>> states_used([3, 1, 3, -1])
        2
    """
    return int(np.setdiff1d(_array(states), MISSING).size)


def state_usage(posterior: Posterior) -> NDArray[np.float64]:
    """``(S,)`` expected steps in each state, all sequences together.

    Args:
        posterior: of one or many sequences, a filter or a smoother.

    Example:
        >>> import torch
        >>> state_usage(Posterior(torch.ones(3, 1), torch.tensor([0, 2, 0]), num_states=3))
        array([2., 0., 1.])
    """
    probs, state = mass_of_states(posterior)
    usage = np.bincount(state.ravel(), weights=probs.ravel(), minlength=posterior.num_states)
    return usage.astype(np.float64)


def mass_of_states(posterior: Posterior) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """``(steps, M)`` probabilities and the states that they are of, all sequences together."""
    probs = _array(posterior.probs).astype(np.float64)
    probs = probs.reshape(-1, probs.shape[-1])
    if np.isnan(probs).any():
        step = int(np.argmax(np.isnan(probs).any(1)))
        raise ValueError(
            f"posterior.probs is NaN at step {step}, expected probabilities; look for NaN in the "
            "evidence or the parameters."
        )
    # Entries beyond a step's support are zero, so wrapping them around adds nothing.
    first = _array(posterior.first_state).reshape(-1, 1)
    return probs, (first + np.arange(probs.shape[1])) % posterior.num_states


def place_purity(states: ArrayLike, positions: ArrayLike) -> float:
    """The share of steps that are at the place where their state occurs most often.

    One if no state stands for two places; splitting a place between several states costs nothing.

    Args:
        states: ``(..., T)`` from ``posterior_mode``.
        positions: ``(..., T)`` places, or ``(..., T, D)`` coordinates, of the same steps; steps
            whose position is NaN are left out.

    Example:
        >>> place_purity([0, 0, 0, 1], [5, 5, 6, 7])
        0.75
    """
    path, places = _array(states), _array(positions)
    if places.shape[: path.ndim] != path.shape or places.ndim > path.ndim + 1:
        raise ValueError(
            f"positions has shape {places.shape}, expected {path.shape} or {path.shape} and "
            "coordinates: one position for each decoded step."
        )
    inside = path != MISSING
    if not inside.any():
        raise ValueError("states holds no decoded step, expected at least one.")
    places, path = places[inside].reshape(int(inside.sum()), -1), path[inside]
    known = np.isfinite(places).all(1)
    if not known.any():
        raise ValueError("positions holds no finite position of a decoded step, expected some.")
    _, place = np.unique(places[known], axis=0, return_inverse=True)
    _, state = np.unique(path[known], return_inverse=True)
    visits = np.zeros((state.max() + 1, place.max() + 1), dtype=np.int64)
    np.add.at(visits, (state, place.reshape(-1)), 1)
    return float(visits.max(1).sum() / visits.sum())


def place_fields(
    posterior: Posterior, positions: ArrayLike, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """The mean probability of each state at each cell of a grid.

    Args:
        posterior: of one or many sequences, usually a filter: what an observer knows there.
        positions: ``(..., T, 2)`` row and column of each step.
        shape: rows and columns of the grid.

    Returns:
        ``(S, H, W)``; NaN in cells that no step is at.

    Example:
        >>> import torch
        >>> certain = Posterior(torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]), num_states=2)
        >>> place_fields(certain, [[0, 0], [0, 1]], shape=(1, 3))
        array([[[ 1.,  0., nan]],
               [[ 0.,  1., nan]]])
    """
    cells = _array(positions)
    steps = tuple(posterior.first_state.shape)
    if cells.shape != (*steps, 2) or not np.issubdtype(cells.dtype, np.integer):
        raise ValueError(
            f"positions has shape {cells.shape} and dtype {cells.dtype}, expected integers "
            f"{(*steps, 2)}: row and column of each step."
        )
    height, width = shape
    if ((cells < 0) | (cells >= shape)).any():
        raise ValueError(
            f"positions reach row {cells[..., 0].max()} and column {cells[..., 1].max()}, expected "
            f"cells of a {height} x {width} grid."
        )
    cell = (cells[..., 0] * width + cells[..., 1]).reshape(-1, 1)
    probs, state = mass_of_states(posterior)
    size = height * width
    mass = np.bincount(
        (state * size + cell).reshape(-1),
        weights=probs.reshape(-1),
        minlength=posterior.num_states * size,
    )
    visits = np.bincount(cell[:, 0], weights=probs.sum(1), minlength=size)
    with np.errstate(invalid="ignore"):
        fields = mass.reshape(posterior.num_states, size) / visits
    return fields.reshape(posterior.num_states, height, width)
