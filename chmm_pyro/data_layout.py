"""From tensors of symbols and actions to a checked, cached layout for the kernels."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ._kernels.layout import Layout, build_layout
from .clones import MISSING, CloneStructure

__all__ = [
    "as_integers",
    "bad_entry",
    "broadcast_shapes",
    "check_actions",
    "common_shape",
    "lay_out",
    "symbol_of_state",
]


@lru_cache(maxsize=32)
def symbol_of_state(clones: CloneStructure, device: torch.device) -> Tensor:
    """``(S,)`` the symbol that each state emits."""
    return torch.tensor(clones.symbol_of_state, device=device)


def as_integers(name: str, value: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """``value`` as an int64 tensor on ``device``; tensors are never moved silently."""
    tensor = value if isinstance(value, Tensor) else _from_array(name, value)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        detail = " with NaN" if tensor.is_floating_point() and tensor.isnan().any() else ""
        raise TypeError(
            f"{name} has dtype {tensor.dtype}{detail}, expected integers; convert symbols with "
            "`.astype(int)` and mark missing observations with MISSING (-1)."
        )
    if tensor.device != device:
        if isinstance(value, Tensor):
            raise ValueError(
                f"{name} is on {tensor.device}, expected {device} like the logits; move one "
                "with `.to(device)`."
            )
        tensor = tensor.to(device)
    return tensor.long()


def _from_array(name: str, value: ArrayLike) -> Tensor:
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{name} is a ragged list, expected sequences of the same length; pad them and pass "
            "lengths=, or let SequenceBatch.from_arrays do both."
        ) from None
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected integers; number labels with "
            "SequenceBatch.from_episodes, and convert other arrays with `.astype(int)`."
        )
    return torch.tensor(array if array.size else array.astype(np.int64))


def bad_entry(
    name: str, values: Tensor, wrong: Tensor, expected: str, remedy: str = ""
) -> ValueError:
    """An error that names the first wrong entry; a leading dimension of one is left out."""
    if values.ndim == 2 and len(values) == 1:
        values, wrong = values[0], wrong[0]
    at = [int(i) for i in wrong.nonzero()[0]]
    end = f"; {remedy}." if remedy else "."
    return ValueError(f"{name}{at} = {int(values[tuple(at)])}, expected {expected}{end}")


def broadcast_shapes(*shapes: torch.Size | tuple[int, ...]) -> torch.Size:
    """``torch.broadcast_shapes``, whose Python costs much where there is nothing to broadcast."""
    distinct = {tuple(shape) for shape in shapes} - {()}
    if len(distinct) > 1:
        return torch.broadcast_shapes(*shapes)
    return torch.Size(distinct.pop() if distinct else ())


def common_shape(**shapes: torch.Size | None) -> torch.Size:
    """The batch shape that all arguments broadcast to."""
    given = {name: shape for name, shape in shapes.items() if shape is not None}
    try:
        return broadcast_shapes(*given.values())
    except RuntimeError:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in given.items())
        raise ValueError(
            f"the batch shapes are {found}, expected shapes that broadcast; give all the same "
            "number of sequences, and parameters of P models a shape of (P, 1, ...)."
        ) from None


def check_actions(name: str, actions: Tensor, num_actions: int, used: Tensor | None = None) -> None:
    """Refuse actions out of range, except where ``used`` is False."""
    wrong = (actions < 0) | (actions >= num_actions)
    if used is not None:
        wrong &= used
    if wrong.any():
        expected = f"an action in 0 .. {num_actions - 1}"
        remedy = "give the model as many actions as the data use, or renumber them"
        raise bad_entry(name, actions, wrong, expected, remedy)


# The last few layouts, found again by comparing the data themselves: training evaluates the same
# sequences thousands of times, and comparing integers takes microseconds.
_MAX_LAYOUTS = 16
_layouts: list[tuple[Any, tuple[Tensor | None, ...], Layout]] = []
_lock = threading.Lock()


def _same(stored: Tensor | None, given: Tensor | None) -> bool:
    if stored is None or given is None:
        return stored is given
    return torch.equal(stored, given)


def lay_out(
    clones: CloneStructure,
    obs: Tensor,
    actions: Tensor,
    lengths: Tensor | None,
    *,
    shape: torch.Size,
    num_actions: int,
    per_step: bool,
) -> Layout:
    """Check a batch of sequences and lay it out.

    Args:
        clones: the clone structure.
        obs: ``(..., T)`` symbols or MISSING.
        actions: ``(..., T - 1)``.
        lengths: ``(...)`` or None for ``T`` steps everywhere.
        shape: the batch shape that the three broadcast to.
        num_actions: ``A``.
        per_step: whether actions are ignored and every transition gets its own block.

    Raises:
        ValueError: a symbol, action or length out of range, by position.
    """
    data = (obs, actions, lengths)
    key = (clones, num_actions, per_step, shape, obs.shape, obs.device)
    with _lock:
        for entry in _layouts:
            if entry[0] == key and all(map(_same, entry[1], data)):
                return entry[2]
    steps = obs.shape[-1]
    obs = obs.expand(*shape, steps).reshape(-1, steps)
    actions = actions.expand(*shape, steps - 1).reshape(len(obs), steps - 1)
    if lengths is None:
        flat_lengths = torch.full((len(obs),), steps, device=obs.device)
    else:
        flat_lengths = lengths.expand(shape).reshape(-1)
        wrong = (flat_lengths < 1) | (flat_lengths > steps)
        if wrong.any():
            expected = f"between 1 and the {steps} steps of obs"
            remedy = "leave lengths out if no sequence is shorter than the others"
            raise bad_entry("lengths", flat_lengths, wrong, expected, remedy)
    inside = torch.arange(steps, device=obs.device) < flat_lengths[:, None]
    symbols = clones.num_symbols
    wrong = ((obs < MISSING) | (obs >= symbols)) & inside
    if wrong.any():
        expected = f"a symbol below {symbols} of {clones}, or MISSING (-1)"
        remedy = "give the clone structure an entry for each symbol, or renumber them"
        raise bad_entry("obs", obs, wrong, expected, remedy)
    padded = torch.nn.functional.pad(actions, (0, 1))
    driving = torch.nn.functional.pad(inside[:, 1:], (0, 1))
    if not per_step:
        check_actions("actions", padded, num_actions, driving)
    layout = build_layout(
        clones,
        obs[inside].cpu().numpy(),
        padded[inside].cpu().numpy(),
        flat_lengths.cpu().numpy(),
        per_step=per_step,
    )
    copies = tuple(None if x is None else x.clone() for x in data)
    with _lock:
        _layouts.insert(0, (key, copies, layout))
        del _layouts[_MAX_LAYOUTS:]
    return layout
