"""Sequences in ``.npz`` (exact), ``.csv`` and ``.parquet`` (tables of labels) files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Hashable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from typing_extensions import Unpack

from ..clones import MISSING
from ..vocabulary import Vocabulary, label_from_jsonable, label_to_jsonable
from .arrays import FlatEpisodes, flatten_arrays
from .labelled import TableOptions, flatten_table

__all__ = ["read_file", "table_of", "write_file"]

_NPZ_FORMAT = 1
# Only these mean "missing" in a .csv; pandas' own list would swallow labels such as "None" or "NA".
_EMPTY_CELLS = ["", "nan", "NaN"]
_PYARROW = "{} needs pyarrow, which is not installed; run `pip install 'chmm-pyro[parquet]'`."


def _suffix(path: str | PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".npz", ".parquet"):
        raise ValueError(
            f"path = {str(path)!r} is of the unknown type {suffix!r}, expected .csv, .npz or "
            ".parquet; read other files with pandas and pass the table to from_dataframe."
        )
    return suffix


def read_file(path: str | PathLike[str], **options: Unpack[TableOptions]) -> FlatEpisodes:
    """Sequences of a file; the options are those of ``flatten_table``."""
    suffix = _suffix(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"path = {str(path)!r} is not a file; check its spelling.")
    if suffix == ".npz":
        return _read_npz(Path(path), options)
    try:
        if suffix == ".csv":
            # Whole columns at once: chunks of one column could get labels of two types.
            frame = pd.read_csv(
                path, keep_default_na=False, na_values=_EMPTY_CELLS, low_memory=False
            )
            if not isinstance(frame.index, pd.RangeIndex):
                raise ValueError("its rows have more cells than the header has names")
        else:
            frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ImportError(_PYARROW.format(f"reading {str(path)!r}")) from error
    except ValueError as error:
        raise ValueError(
            f"path = {str(path)!r} cannot be read as {suffix} ({error}); expected a table with a "
            "header and a row for each step."
        ) from error
    return flatten_table(frame, **options)


def _read_npz(path: Path, options: TableOptions) -> FlatEpisodes:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path = {str(path)!r} cannot be read as .npz ({error}); expected an archive of "
            "np.savez with plain arrays (no pickled objects)."
        ) from error
    if "chmm_format" not in arrays:
        return _from_named_arrays(arrays, options)
    version = int(arrays["chmm_format"])
    if version > _NPZ_FORMAT:
        raise ValueError(
            f"path = {str(path)!r} has format {version}, expected at most {_NPZ_FORMAT}; "
            "upgrade chmm-pyro to read it."
        )
    asked = sorted(name for name, value in options.items() if value not in (None, "error"))
    if asked:
        raise ValueError(
            f"{asked[0]} is given for {str(path)!r}, which was written by `to_file` and carries "
            "its own columns and vocabularies; drop the argument."
        )
    try:
        return _from_own_arrays(arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"path = {str(path)!r} is damaged ({error}); write it again.") from error


def _from_own_arrays(arrays: dict[str, NDArray[Any]]) -> FlatEpisodes:
    meta = json.loads(str(arrays["meta"]))
    splits = arrays["offsets"][1:-1]
    if arrays["offsets"][-1] != len(arrays["obs"]):
        raise ValueError("offsets do not end at the last step")
    split = {
        name: arrays[name] if meta["single"] else np.split(arrays[name], splits)
        for name in ("obs", "actions", "positions")
        if name in arrays
    }
    vocabularies: dict[str, Any] = {
        name: None if meta[name] is None else Vocabulary.from_jsonable(meta[name])
        for name in ("vocabulary", "action_vocabulary")
    }
    names = meta["names"] and tuple(map(label_from_jsonable, meta["names"]))
    flat = flatten_arrays(**split, num_actions=meta["num_actions"])
    return flat._replace(names=names, **vocabularies)


def _from_named_arrays(arrays: dict[str, NDArray[Any]], options: TableOptions) -> FlatEpisodes:
    """Arrays that someone else saved: a table, but integers without a vocabulary are symbols."""
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim == 2:
            columns |= {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
        elif array.ndim == 1:
            columns[name] = array
    labels: dict[str, Any] = dict(options)
    names = {kind: labels.get(kind) or kind for kind in ("observation", "action", "episode")}
    steps = len(columns.get(names["observation"], ()))
    for kind, name in names.items():
        allowed = (steps - 1, steps) if kind == "action" else (steps,)
        if steps and name in columns and len(columns[name]) not in allowed:
            raise ValueError(
                f"{kind} = {name!r} has {len(columns[name])} entries for {steps} observations, "
                f"expected {' or '.join(map(str, allowed))}; name another array."
            )
    fits = {len(c) for c in columns.values()} if not steps else {steps - 1, steps}
    table = {name: pd.Series(column) for name, column in columns.items() if len(column) in fits}
    as_they_are: dict[str, Any] = {}
    for kind, target in (("observation", "vocabulary"), ("action", "action_vocabulary")):
        column = table.get(names[kind])
        if column is not None and column.dtype.kind in "iu" and labels.get(target) is None:
            if column.min() < MISSING:
                raise ValueError(
                    f"{kind} = {names[kind]!r} holds {column.min()}, expected numbers >= 0, or "
                    "MISSING (-1) for an observation; pass a vocabulary if they are labels."
                )
            table[names[kind]] = column.astype("Int64").mask(column == MISSING)
            labels[target] = range(max(int(column.max()), 0) + 1)
            as_they_are[target] = None
    # An action fewer than observations leaves its cell of the last row empty, where none is read.
    return flatten_table(pd.DataFrame(table), **labels)._replace(**as_they_are)


def table_of(flat: FlatEpisodes) -> pd.DataFrame:
    """A row per step with labels where there is a vocabulary; see ``to_dataframe``."""
    columns: dict[str, Any] = {}
    if not flat.single:
        names: Any = flat.names or range(len(flat.lengths))
        columns["episode"] = np.repeat(np.fromiter(names, dtype=object), flat.lengths)
    columns["observation"] = _labels(flat.vocabulary, flat.obs)
    if flat.num_actions > 1 or flat.action_vocabulary is not None:
        actions = flat.actions.copy()
        actions[np.cumsum(flat.lengths) - 1] = MISSING
        columns["action"] = _labels(flat.action_vocabulary, actions)
    frame = pd.DataFrame(columns).infer_objects()
    if flat.positions is not None:
        for k, column in enumerate(flat.positions.T):
            frame[f"position_{k}"] = column
    return frame


def _labels(vocabulary: Vocabulary | None, symbols: NDArray[np.int64]) -> Any:
    if vocabulary is None:
        return pd.Series(symbols, dtype="Int64").mask(symbols == MISSING)
    return np.fromiter(vocabulary.decode(symbols), dtype=object)


def write_file(flat: FlatEpisodes, path: str | PathLike[str]) -> None:
    """Write sequences in the format that the name of the file asks for."""
    suffix = _suffix(path)
    if suffix == ".npz":
        _write_npz(flat, Path(path))
        return
    for labels in (flat.vocabulary, flat.action_vocabulary, flat.names):
        bad: list[Hashable] = [x for x in labels or () if not isinstance(x, (str, int, float))]
        if bad:
            raise TypeError(
                f"label {bad[0]!r} cannot be written to {suffix} and read back, expected str, int, "
                "float or bool; write .npz instead."
            )
    frame = table_of(flat)
    if suffix == ".csv":
        frame.to_csv(path, index=False)
        return
    try:
        frame.to_parquet(path, engine="pyarrow", index=False)
    except ImportError as error:
        raise ImportError(_PYARROW.format(f"writing {str(path)!r}")) from error


def _write_npz(flat: FlatEpisodes, path: Path) -> None:
    def jsonable(labels: Any) -> list[Any] | None:
        return labels and [label_to_jsonable(label) for label in labels]

    meta = {
        "single": flat.single,
        "num_actions": flat.num_actions,
        "vocabulary": jsonable(flat.vocabulary),
        "action_vocabulary": jsonable(flat.action_vocabulary),
        "names": jsonable(flat.names),
    }
    arrays = {
        "chmm_format": np.array(_NPZ_FORMAT),
        "meta": np.array(json.dumps(meta)),
        "obs": flat.obs,
        "actions": flat.actions,
        "offsets": np.concatenate([[0], np.cumsum(flat.lengths)]),
    }
    if flat.positions is not None:
        arrays["positions"] = flat.positions
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
