"""Integer arrays, padded or in lists, as checked flat arrays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..clones import MISSING
from ..vocabulary import Vocabulary

__all__ = [
    "FlatEpisodes",
    "IntArray",
    "as_array",
    "flat_actions_of",
    "flat_positions_of",
    "flatten_arrays",
    "place_of",
    "ramp",
]

IntArray: TypeAlias = NDArray[np.int64]


class FlatEpisodes(NamedTuple):
    """Checked sequences end to end.

    Attributes:
        obs: ``(N,)`` symbols.
        actions: ``(N,)``; entry ``t`` of a sequence drives ``t -> t + 1``, its last is 0.
        lengths: ``(B,)``, each at least 1.
        single: one sequence without a batch dimension.
        num_actions: ``A``.
        positions: ``(N, D)`` or None.
        names: one per sequence, or None.
        vocabulary: labels of the symbols, or None.
        action_vocabulary: labels of the actions, or None.
    """

    obs: IntArray
    actions: IntArray
    lengths: IntArray
    single: bool
    num_actions: int
    positions: NDArray[Any] | None = None
    names: tuple[Hashable, ...] | None = None
    vocabulary: Vocabulary | None = None
    action_vocabulary: Vocabulary | None = None


def as_array(name: str, values: Any) -> NDArray[Any]:
    """``values`` in NumPy; tensors leave their device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} is ragged ({error}), expected entries of equal shape; "
            "pass a list of 1-d arrays for sequences of different length."
        ) from error


def _as_integers(name: str, values: Any) -> IntArray:
    array = as_array(name, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected integers; convert whole numbers with "
            "`.astype(int)`, missing ones to MISSING (-1), and labels with "
            "`SequenceBatch.from_episodes`."
        )
    return array.astype(np.int64)


def _is_list_of_sequences(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) > 0 and np.ndim(values[0]) > 0


def ramp(starts: IntArray, lengths: IntArray) -> IntArray:
    """``starts[i], starts[i] + 1, ...`` (``lengths[i]`` of them) for each ``i``, end to end."""
    first = np.cumsum(lengths) - lengths
    return np.repeat(starts - first, lengths) + np.arange(int(lengths.sum()))


def place_of(flat: FlatEpisodes, index: int, name: str) -> str:
    """How the user wrote entry ``index`` of the flat array ``name``."""
    sequence = int(np.searchsorted(np.cumsum(flat.lengths), index, side="right"))
    step = index - int(flat.lengths[:sequence].sum())
    return f"{name}[{step}]" if flat.single else f"{name}[{sequence}][{step}]"


def _checked(flat: FlatEpisodes) -> FlatEpisodes:
    if flat.obs.min() < MISSING:
        bad = int(np.argmin(flat.obs))
        raise ValueError(
            f"{place_of(flat, bad, 'obs')} = {flat.obs[bad]}, expected a symbol >= 0; "
            "the only legal negative is MISSING (-1), for a step that was not observed."
        )
    if flat.actions.min() < 0 or flat.actions.max() >= flat.num_actions:
        bad = int(np.argmax((flat.actions < 0) | (flat.actions >= flat.num_actions)))
        raise ValueError(
            f"{place_of(flat, bad, 'actions')} = {flat.actions[bad]}, expected 0 <= action < "
            f"{flat.num_actions}; number the actions from 0, and drop the episode (or cut it in "
            "two) where an action is unknown."
        )
    return flat


def _number_of_actions(num_actions: Any, actions: IntArray) -> int:
    if num_actions is None:
        return max(int(actions.max()) + 1, 1)
    if isinstance(num_actions, bool) or not isinstance(num_actions, (int, np.integer)):
        raise TypeError(f"num_actions = {num_actions!r}, expected an integer >= 1.")
    if num_actions < 1:
        raise ValueError(
            f"num_actions = {num_actions}, expected at least 1; "
            "data without actions have the single action 0."
        )
    return int(num_actions)


def flat_actions_of(actions: NDArray[Any], given: IntArray, lengths: IntArray) -> NDArray[Any]:
    """``(N,)`` actions from concatenated ones, ``given[i]`` (``T_i - 1`` or ``T_i``) of each."""
    bad = np.flatnonzero((given != lengths) & (given != lengths - 1))
    if bad.size:
        b = int(bad[0])
        where = "actions" if len(lengths) == 1 else f"actions[{b}]"
        raise ValueError(
            f"{where} has {given[b]} entries for {lengths[b]} observations, expected "
            f"{lengths[b] - 1} (or {lengths[b]}, the last one ignored); actions[t] leads from "
            "obs[t] to obs[t + 1]."
        )
    flat = np.zeros(int(lengths.sum()), dtype=actions.dtype)
    used = lengths - 1
    flat[ramp(np.cumsum(lengths) - lengths, used)] = actions[ramp(np.cumsum(given) - given, used)]
    return flat


def flat_positions_of(arrays: Sequence[NDArray[Any]], lengths: IntArray) -> NDArray[Any]:
    """``(N, D)`` positions from one ``(T_i,)`` or ``(T_i, D)`` array for each sequence."""
    if len(arrays) != len(lengths):
        raise ValueError(
            f"positions has {len(arrays)} sequences, obs has {len(lengths)}; expected as many."
        )
    tables = [array[:, None] if array.ndim == 1 else array for array in arrays]
    for b, (array, length) in enumerate(zip(tables, lengths.tolist(), strict=True)):
        where = "positions" if len(lengths) == 1 else f"positions[{b}]"
        if array.ndim != 2 or array.shape != (length, tables[0].shape[1]):
            raise ValueError(
                f"{where} has shape {arrays[b].shape}, expected ({length},) or "
                f"({length}, D) with one D for all: a position for each observation."
            )
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{where} has dtype {array.dtype}, expected numbers.")
    return np.concatenate(tables)


def _not_empty(name: str, array: NDArray[Any]) -> None:
    if array.shape[:1] == (0,):
        raise ValueError(f"{name} is empty, expected at least one observation; drop it.")


def flatten_arrays(
    obs: Any,
    actions: Any = None,
    *,
    lengths: Any = None,
    positions: Any = None,
    num_actions: int | None = None,
) -> FlatEpisodes:
    """Integer arrays as they are; see ``SequenceBatch.from_arrays``."""
    if _is_list_of_sequences(obs):
        flat_obs, sizes = _join("obs", obs)
    else:
        array = _as_integers("obs", obs)
        _not_empty("obs", array)
        if array.ndim == 2:
            return _flatten_padded(array, actions, lengths, positions, num_actions)
        if array.ndim != 1:
            raise ValueError(
                f"obs has shape {array.shape}, expected (T,) for one sequence, (B, T) padded with "
                "`lengths`, or a list of 1-d arrays."
            )
        flat_obs, sizes = array, np.array([len(array)])
    single = not _is_list_of_sequences(obs)
    if lengths is not None:
        raise ValueError(
            "lengths is given, expected only with padded obs of shape (B, T); lists and single "
            "arrays carry their own lengths, so drop it."
        )
    flat_actions = np.zeros(len(flat_obs), dtype=np.int64)
    if actions is not None:
        if single:
            joined = _as_integers("actions", actions)
            if joined.ndim != 1:
                raise ValueError(
                    f"actions has shape {joined.shape}, expected ({sizes[0] - 1},) beside obs of "
                    f"shape ({sizes[0]},)."
                )
            given = np.array([len(joined)])
        else:
            _same_number("actions", actions, len(sizes))
            joined, given = _join("actions", actions, empty=True)
        flat_actions = flat_actions_of(joined, given, sizes)
    if positions is not None:
        if not single:
            _same_number("positions", positions, len(sizes))
        parts = [positions] if single else positions
        positions = flat_positions_of([as_array("positions", part) for part in parts], sizes)
    count = _number_of_actions(num_actions, flat_actions)
    return _checked(FlatEpisodes(flat_obs, flat_actions, sizes, single, count, positions))


def _same_number(name: str, values: Any, expected: int) -> None:
    found = len(values) if hasattr(values, "__len__") else type(values).__name__
    if found != expected:
        raise ValueError(
            f"{name} has {found} sequences for {expected} in obs, expected a list with one "
            f"array for each; drop the episodes without {name} or add them."
        )


def _join(name: str, parts: Sequence[Any], *, empty: bool = False) -> tuple[IntArray, IntArray]:
    arrays = [_as_integers(name, part) for part in parts]
    for b, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(
                f"{name}[{b}] has shape {array.shape}, expected one dimension; "
                "pass a list of 1-d arrays."
            )
        if not empty:
            _not_empty(f"{name}[{b}]", array)
    return np.concatenate(arrays), np.array([len(array) for array in arrays])


def _flatten_padded(
    obs: IntArray, actions: Any, lengths: Any, positions: Any, num_actions: int | None
) -> FlatEpisodes:
    batch, width = obs.shape
    _not_empty("obs[0]", obs[0])
    sizes = np.full(batch, width) if lengths is None else _as_integers("lengths", lengths)
    if sizes.shape != (batch,):
        raise ValueError(
            f"lengths has shape {sizes.shape}, expected ({batch},): one length for each row of obs."
        )
    if sizes.min() < 1 or sizes.max() > width:
        bad = int(np.argmax((sizes < 1) | (sizes > width)))
        raise ValueError(
            f"lengths[{bad}] = {sizes[bad]}, expected 1 <= length <= {width}, the width of obs; "
            "drop empty rows."
        )
    mask = np.arange(width) < sizes[:, None]
    flat_actions = np.zeros(int(sizes.sum()), dtype=np.int64)
    if actions is not None:
        table = _as_integers("actions", actions)
        if table.shape not in ((batch, width), (batch, width - 1)):
            raise ValueError(
                f"actions has shape {table.shape}, expected ({batch}, {width - 1}) or "
                f"({batch}, {width}) beside obs of shape ({batch}, {width})."
            )
        padded = np.zeros((batch, width), dtype=np.int64)
        padded[:, : width - 1] = table[:, : width - 1]
        flat_actions = padded[mask]
        flat_actions[np.cumsum(sizes) - 1] = 0
    if positions is not None:
        table = as_array("positions", positions)
        if table.shape[:2] != (batch, width):
            raise ValueError(
                f"positions has shape {table.shape}, expected ({batch}, {width}, D) beside obs of "
                f"shape ({batch}, {width})."
            )
        rows = [row[:size] for row, size in zip(table, sizes.tolist(), strict=True)]
        positions = flat_positions_of(rows, sizes)
    count = _number_of_actions(num_actions, flat_actions)
    return _checked(FlatEpisodes(obs[mask], flat_actions, sizes, False, count, positions))
