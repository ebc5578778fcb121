"""Labels of any hashable kind, and the symbols or actions that stand for them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .clones import MISSING

__all__ = ["Unseen", "Vocabulary", "label_from_jsonable", "label_to_jsonable"]

Unseen = Literal["error", "missing"]


def _normalised(label: Any) -> Hashable:
    """NumPy and torch scalars as Python scalars, so that equal labels compare equal."""
    if type(label) is tuple:
        return tuple(_normalised(part) for part in label)
    if isinstance(label, (np.generic, np.ndarray)) or hasattr(label, "detach"):
        if label.ndim:
            raise TypeError(
                f"a label is an array of shape {tuple(label.shape)}, expected something hashable; "
                "convert it with `tuple(label.tolist())`."
            )
        return label.item()
    return label


def _is_missing(label: Any) -> bool:
    return label is None or label is pd.NA or label is pd.NaT or label == "" or label != label


def _factorised(name: str, values: Any) -> tuple[NDArray[np.int64], list[Hashable]]:
    """The index of each cell's label among the distinct labels, ``-1`` for a missing cell."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if isinstance(values, (pd.Series, pd.Index)):
        values = values.array
    elif not isinstance(values, np.ndarray):
        values = np.fromiter(values, dtype=object)
    if values.ndim != 1:
        raise TypeError(
            f"{name} has shape {values.shape}, expected one label per step; make each row one "
            "label with `list(map(tuple, array.tolist()))`."
        )
    try:
        codes, uniques = pd.factorize(values)
    except TypeError as error:
        raise TypeError(
            f"{name} holds a label that cannot be hashed ({error}), expected labels such as "
            "str, int or tuple; convert each one with `tuple(label)`."
        ) from error
    labels = [_normalised(label) for label in uniques.tolist()]
    empty = [code for code, label in enumerate(labels) if _is_missing(label)]
    if empty:
        codes = np.where(np.isin(codes, empty), MISSING, codes)
    # A table stores integers with a missing cell as floats: 3.0 was written as 3.
    floats = [x for x in labels if isinstance(x, float) and not math.isnan(x)]
    if uniques.dtype.kind == "f" and all(x.is_integer() for x in floats):
        labels = [int(x) if isinstance(x, float) and x.is_integer() else x for x in labels]
    return codes.astype(np.int64), labels


class Vocabulary:
    """Which label each symbol (or action) stands for: immutable, hashable, ordered.

    Args:
        labels: distinct hashable labels; label ``i`` is symbol ``i``.  NumPy scalars become
            Python scalars.

    Attributes:
        labels: the labels as a tuple.

    Raises:
        ValueError: no labels, a repeated label, or a missing one (``None``, NaN, ``""``).
        TypeError: a label that cannot be hashed.

    Example:
        >>> vocabulary = Vocabulary(["door", "wall"])
        >>> vocabulary.encode(["wall", None, "door"])
        array([ 1, -1,  0])
        >>> vocabulary.decode([1, -1, 0])
        ['wall', None, 'door']
    """

    __slots__ = ("_symbols", "labels")

    _symbols: dict[Hashable, int]
    labels: tuple[Hashable, ...]

    def __init__(self, labels: Iterable[Hashable]) -> None:
        if isinstance(labels, str):
            raise TypeError(f"labels = {labels!r}, expected an iterable of labels; use list(...).")
        kept = tuple(_normalised(label) for label in labels)
        if not kept:
            raise ValueError("labels is empty, expected at least one label.")
        symbols: dict[Hashable, int] = {}
        for index, label in enumerate(kept):
            try:
                first = symbols.setdefault(label, index)
            except TypeError as error:
                raise TypeError(
                    f"labels[{index}] = {label!r} is not hashable; convert it with `tuple(...)`."
                ) from error
            if _is_missing(label):
                raise ValueError(
                    f"labels[{index}] = {label!r} means a missing observation, expected a label; "
                    "leave it out."
                )
            if first != index:
                raise ValueError(
                    f"labels[{index}] = {label!r} equals labels[{first}] = {kept[first]!r}, "
                    "expected distinct labels; drop one."
                )
        object.__setattr__(self, "labels", kept)
        object.__setattr__(self, "_symbols", symbols)

    @classmethod
    def from_data(cls, values: Iterable[Any], *, name: str = "values") -> Vocabulary:
        """The labels seen in ``values``: sorted, or as first met if they do not compare.

        Example:
            >>> Vocabulary.from_data(["b", "a", None, "b"])
            Vocabulary(['a', 'b'])
        """
        codes, labels = _factorised(name, values)
        seen: list[Any] = [labels[code] for code in pd.unique(codes) if code != MISSING]
        if not seen:
            raise ValueError(f"{name} holds no label, expected at least one that is not missing.")
        if any(type(label) in (int, float) and label == MISSING for label in seen):
            raise ValueError(
                f"{name} holds -1, which may be a label or mean missing; leave missing cells empty "
                "(None, NaN), or list the labels in a vocabulary if -1 is one of them."
            )
        with suppress(TypeError):  # labels of several kinds keep the order in which they were met
            seen = sorted(seen)
        return cls(dict.fromkeys(seen))

    def encode(
        self,
        values: Iterable[Any],
        *,
        unseen: Unseen = "error",
        name: str = "values",
        by_text: bool = False,
    ) -> NDArray[np.int64]:
        """The symbols of labels.

        Args:
            values: ``(N,)`` labels; missing cells (``None``, NaN, ``""``) become :data:`MISSING`.
            unseen: what to do with a label that is not in the vocabulary.
            name: what an error message calls ``values``.
            by_text: compare texts where the vocabulary holds nothing else.  A table says whether
                ``1`` is a number or text only by what else its column holds.

        Returns:
            ``(N,)`` symbols.

        Example:
            >>> Vocabulary(["1", "exit"]).encode([1, 1], by_text=True)
            array([0, 0])
        """
        if unseen not in ("error", "missing"):
            raise ValueError(f"unseen = {unseen!r}, expected 'error' or 'missing'.")
        codes, labels = _factorised(name, values)
        if by_text and all(isinstance(label, str) for label in self.labels):
            labels = [str(label) for label in labels]
        unknown = len(self.labels)
        lookup = np.array([self._symbols.get(label, unknown) for label in labels] + [MISSING])
        symbols = lookup[codes]  # code -1 reads the last entry
        bad = symbols == unknown
        if bad.any():
            if unseen == "error":
                cells = "1 cell" if bad.sum() == 1 else f"{int(bad.sum())} cells"
                raise ValueError(
                    f"{name} holds {labels[codes[np.argmax(bad)]]!r} ({cells} with unknown "
                    f"labels), expected one of the {unknown} labels of the vocabulary; fix the "
                    "data or the vocabulary, or for observations pass unseen='missing' "
                    "(--unseen missing)."
                )
            symbols[bad] = MISSING
        return symbols

    def decode(self, symbols: ArrayLike) -> list[Any]:
        """The labels of ``(N,)`` symbols; ``None`` where a symbol is :data:`MISSING`."""
        array = np.asarray(symbols.detach().cpu() if hasattr(symbols, "detach") else symbols)
        if array.size and (array.min() < MISSING or array.max() >= len(self)):
            bad = array.min() if array.min() < MISSING else array.max()
            raise ValueError(f"symbols holds {bad}, expected -1 <= symbol < {len(self)}.")
        table = (*self.labels, None)
        return [table[symbol] for symbol in array.tolist()]

    def to_jsonable(self) -> list[Any]:
        """The labels for a JSON file; the inverse is :meth:`from_jsonable`.

        Raises:
            TypeError: a label that is not a str, int, float, bool or None, or a tuple of these.
        """
        return [label_to_jsonable(label) for label in self.labels]

    @classmethod
    def from_jsonable(cls, labels: Sequence[Any]) -> Vocabulary:
        """The vocabulary that :meth:`to_jsonable` wrote.

        Example:
            >>> vocabulary = Vocabulary([("red", 3), "exit"])
            >>> vocabulary.to_jsonable()
            [{'tuple': ['red', 3]}, 'exit']
            >>> Vocabulary.from_jsonable(vocabulary.to_jsonable()) == vocabulary
            True
        """
        return cls(label_from_jsonable(label) for label in labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.labels)

    def __contains__(self, label: Hashable) -> bool:
        return _normalised(label) in self._symbols

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Vocabulary is immutable; cannot set {name!r}. Make a new one.")

    def __reduce__(self):
        return Vocabulary, (list(self.labels),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.labels == other.labels

    def __hash__(self) -> int:
        return hash(self.labels)

    def __repr__(self) -> str:
        shown = ", ".join(repr(label) for label in self.labels[:6])
        more = f", ... {len(self)} labels" if len(self) > 6 else ""
        return f"Vocabulary([{shown}{more}])"


def label_to_jsonable(label: Hashable) -> Any:
    """One label for a JSON file; tuples become ``{"tuple": [...]}``."""
    if type(label) is tuple:
        return {"tuple": [label_to_jsonable(part) for part in label]}
    if label is None or type(label) in (str, int, bool):
        return label
    if type(label) is float and math.isfinite(label):
        return label
    raise TypeError(
        f"label {label!r} of type {type(label).__name__} cannot be written to JSON, expected str, "
        "int, finite float, bool, or tuples of these; map the labels to strings before reading."
    )


def label_from_jsonable(label: Any) -> Hashable:
    """The label that :func:`label_to_jsonable` wrote."""
    if isinstance(label, dict):
        return tuple(label_from_jsonable(part) for part in label["tuple"])
    return label
