"""Labelled episodes and tables as checked flat arrays."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias, TypedDict

import numpy as np
import pandas as pd

from ..vocabulary import Unseen, Vocabulary
from .arrays import FlatEpisodes, as_array, flat_actions_of, flat_positions_of, place_of

__all__ = ["Labels", "TableOptions", "flatten_episodes", "flatten_table"]

Labels: TypeAlias = Vocabulary | Iterable[Hashable] | None
_NONE = np.empty(0, dtype=np.int64)


class TableOptions(TypedDict, total=False):
    """The keywords of :func:`flatten_table`."""

    episode: Hashable | None
    observation: Hashable | None
    action: Hashable | None
    position: Sequence[Hashable] | Hashable | None
    vocabulary: Labels
    action_vocabulary: Labels
    unseen: Unseen


def _labels_of(name: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (str, list, tuple)):
        raise TypeError(
            f"{name} is a {type(values).__name__}, expected a list or array of labels (or a str, "
            "one label per character); wrap it with list(...)."
        )
    return list(values)


def _parts_of(name: str, episode: Any) -> tuple[Any, Any, Any]:
    """Observations, actions and positions of one episode."""
    if isinstance(episode, Mapping):
        unknown = set(episode) - {"obs", "actions", "positions"}
        if unknown or "obs" not in episode:
            raise ValueError(
                f"{name} has keys {sorted(map(str, episode))}, expected 'obs' and optionally "
                "'actions' and 'positions'; rename or drop the others."
            )
        return episode["obs"], episode.get("actions"), episode.get("positions")
    if not isinstance(episode, tuple):
        return episode, None, None
    if len(episode) not in (2, 3) or any(np.ndim(part) == 0 for part in episode):
        raise ValueError(
            f"{name} is a tuple of {len(episode)} that does not read as (obs, actions) or (obs, "
            "actions, positions); for observations alone write a list."
        )
    return episode[0], episode[1], episode[2] if len(episode) == 3 else None


def flatten_episodes(
    episodes: Iterable[Any],
    *,
    vocabulary: Labels = None,
    action_vocabulary: Labels = None,
    unseen: Unseen = "error",
) -> FlatEpisodes:
    """Labelled episodes; see ``SequenceBatch.from_episodes``."""
    if isinstance(episodes, (str, Mapping)):
        raise TypeError(
            f"episodes is a {type(episodes).__name__}, expected a list of episodes; "
            "write [episode] for one."
        )
    parts = [_parts_of(f"episodes[{b}]", episode) for b, episode in enumerate(episodes)]
    if not parts:
        raise ValueError("episodes is empty, expected at least one episode.")
    obs = [_labels_of(f"episodes[{b}] obs", part[0]) for b, part in enumerate(parts)]
    for b, labels in enumerate(obs):
        if not labels:
            raise ValueError(f"episodes[{b}] obs is empty, expected at least one; drop it.")
    sizes = np.array([len(labels) for labels in obs])
    for index, name in ((1, "actions"), (2, "positions")):
        without = [b for b, part in enumerate(parts) if part[index] is None]
        if 0 < len(without) < len(parts):
            raise ValueError(
                f"episodes[{without[0]}] has no {name} but others have, expected them in all or in "
                "none; add them, or drop that episode."
            )
    action_labels = None
    if parts[0][1] is not None:
        lists = [_labels_of(f"episodes[{b}] actions", part[1]) for b, part in enumerate(parts)]
        joined = np.fromiter(chain.from_iterable(lists), dtype=object)
        action_labels = flat_actions_of(joined, np.array([len(x) for x in lists]), sizes)
    positions = None
    if parts[0][2] is not None:
        positions = flat_positions_of([as_array("positions", part[2]) for part in parts], sizes)
    return _encoded(
        np.fromiter(chain.from_iterable(obs), dtype=object),
        action_labels,
        FlatEpisodes(_NONE, _NONE, sizes, False, 1, positions),
        vocabulary,
        action_vocabulary,
        unseen,
    )


def _vocabulary(labels: Labels) -> Vocabulary | None:
    return labels if labels is None or isinstance(labels, Vocabulary) else Vocabulary(labels)


def _encoded(
    obs: Any,
    actions: Any,
    flat: FlatEpisodes,
    vocabulary: Labels,
    action_vocabulary: Labels,
    unseen: Unseen,
    *,
    by_text: bool = False,
) -> FlatEpisodes:
    """``flat`` with symbols for the ``(N,)`` labels ``obs`` and ``actions``."""
    obs_labels = _vocabulary(vocabulary) or Vocabulary.from_data(obs, name="obs")
    symbols = obs_labels.encode(obs, unseen=unseen, name="obs", by_text=by_text)
    codes = np.zeros(len(symbols), dtype=np.int64)
    driving = np.ones(len(symbols), dtype=bool)
    driving[np.cumsum(flat.lengths) - 1] = False
    action_labels = _vocabulary(action_vocabulary)
    if actions is None and action_labels is not None:
        raise ValueError(
            "action_vocabulary is given but the data have no actions; name their actions, or drop "
            "action_vocabulary."
        )
    if actions is not None and driving.any():
        used = actions[driving]
        action_labels = action_labels or Vocabulary.from_data(used, name="actions")
        codes[driving] = action_labels.encode(used, name="actions", by_text=by_text)
        if codes.min() < 0:
            where = place_of(flat, int(np.argmin(codes)), "actions")
            raise ValueError(
                f"{where} is missing, expected an action at each step but the last of an episode; "
                "fill it in, or cut the episode there in two."
            )
    return flat._replace(
        obs=symbols,
        actions=codes,
        num_actions=1 if action_labels is None else len(action_labels),
        vocabulary=obs_labels,
        action_vocabulary=action_labels,
    )


def _column(frame: pd.DataFrame, argument: str, column: Any, default: str) -> Any:
    """The name of a column: the one asked for, else the default where the table has it."""
    name = default if column is None else column
    if name in frame.columns:
        return name
    if column is None and argument != "observation":
        return None
    raise ValueError(
        f"{argument} = {name!r} is not a column of the table, which has "
        f"{list(map(str, frame.columns))}; pass {argument}=<one of these>."
    )


def flatten_table(
    frame: pd.DataFrame,
    *,
    episode: Hashable | None = None,
    observation: Hashable | None = None,
    action: Hashable | None = None,
    position: Sequence[Hashable] | Hashable | None = None,
    vocabulary: Labels = None,
    action_vocabulary: Labels = None,
    unseen: Unseen = "error",
) -> FlatEpisodes:
    """A table with a row per step; see ``SequenceBatch.from_dataframe``."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"df is a {type(frame).__name__}, expected a pandas DataFrame; use from_arrays for "
            "arrays and from_episodes for lists."
        )
    observation = _column(frame, "observation", observation, "observation")
    action = _column(frame, "action", action, "action")
    episode = _column(frame, "episode", episode, "episode")
    if position is None:
        columns = [c for c in frame.columns if isinstance(c, str) and c.startswith("position_")]
    else:
        asked = position if isinstance(position, (list, tuple)) else [position]
        columns = [_column(frame, "position", c, "position") for c in asked]
    if frame.empty:
        raise ValueError("df has no rows, expected at least one step.")
    names, lengths = None, np.array([len(frame)])
    if episode is not None:
        codes, uniques = pd.factorize(frame[episode])
        if codes.min() < 0:
            raise ValueError(
                f"column {episode!r} is missing in row {int(np.argmin(codes))}, expected the "
                "episode of each row; fill it in or drop the row."
            )
        names, lengths = tuple(uniques.tolist()), np.bincount(codes)
        if len(lengths) > 1 and np.any(np.diff(codes) < 0):
            frame = frame.iloc[np.argsort(codes, kind="stable")]
    positions = None
    if columns:
        positions = flat_positions_of([frame[columns].to_numpy()], np.array([len(frame)]))
    flat = FlatEpisodes(_NONE, _NONE, lengths, episode is None, 1, positions, names)
    return _encoded(
        frame[observation],
        None if action is None else frame[action],
        flat,
        vocabulary,
        action_vocabulary,
        unseen,
        by_text=True,
    )
