r"""The clone structure, and the one page of conventions that everything else links to.

Conventions
-----------
**Model.** Symbols ``v < V``, actions ``a < A``.  Symbol ``v`` owns ``num_clones[v]`` hidden
states (its *clones*); states are numbered symbol by symbol, ``S`` in all.  A state emits its own
symbol with probability one:

.. math::

    p(x, z \mid a) = \pi_{z_0} \prod_t T_{a_t}[z_t, z_{t+1}] \prod_t 1[z_t \in clones(x_t)]

**Time.** ``obs`` has ``T`` entries, ``actions`` has ``T - 1``: ``actions[t]`` drives ``t`` to
``t + 1``.  The initial distribution is at the *first observation*.  Transition tables are indexed
``[action, old state, new state]``.

**Initial distribution.** By default fixed and uniform over all ``S`` states.

**Actions.** ``action_model="conditional"`` is ``p(z' | z, a)``: rows are normalised over the new
state, and ``log_prob`` includes ``log p(a)`` only if ``action_logits`` are given.
``action_model="joint"`` is ``p(z', a | z)``: rows are normalised over action and new state
together, so ``log_prob`` includes the actions.  Likelihoods of the two are not comparable.

**Missing and soft observations.** :data:`MISSING` is the only legal negative symbol: all ``S``
states are possible there.  ``log_evidence`` of shape ``(..., T, V)`` or ``(..., T, S)`` is
``log p(y_t | symbol or state)``, unnormalised; where a step has both a symbol and evidence the two
multiply.

**Impossible data.** Where every path has probability zero ``log_prob`` is ``-inf`` with gradient
zero, never NaN; queries about states raise ``ValueError`` naming the first impossible step.

**Units.** ``log_prob`` is a natural logarithm and a sum over steps.
``bits_per_step = -log_prob / (ln 2 * number of observed steps)``: the first observation counts,
missing steps count in neither.

References:
    Dedieu et al. 2019, "Learning higher-order sequential structure with cloned HMMs",
    arXiv:1905.00507; George et al. 2021, Nature Communications 12:2392.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MISSING", "CloneStructure"]

MISSING = -1
"""The symbol of a step that was not observed."""


def _int_vector(name: str, values: Any) -> NDArray[np.int64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    elif isinstance(values, Iterable) and not isinstance(values, np.ndarray):
        values = list(values)
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}, expected one dimension with an entry per symbol; "
            "write CloneStructure([70, 70]) for two symbols of 70 clones each."
        )
    if array.size == 0:
        raise ValueError(
            f"{name} is empty, expected at least one symbol; write CloneStructure([70]) for one of "
            "70 clones."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected integers; convert with `.astype(int)`."
        )
    return array.astype(np.int64)


class CloneStructure:
    """How many hidden states each symbol owns: immutable, hashable, cheap.

    Args:
        num_clones: ``(V,)`` integers, each at least 1.

    Attributes:
        num_clones: the counts as a tuple of ``V`` ints.
        num_symbols: ``V``.
        num_states: ``S``, the sum of the counts.
        max_clones: the largest count.
        offsets: ``(V + 1,)`` read-only; the states of ``v`` are ``offsets[v]:offsets[v + 1]``.
        symbol_of_state: ``(S,)`` read-only.

    Raises:
        ValueError: a count below 1, or not one entry per symbol.
        TypeError: counts that are not integers.

    Example:
        >>> clones = CloneStructure([2, 3])
        >>> clones.num_states, clones.states(1)
        (5, slice(2, 5, None))
        >>> clones.to_global(symbol=1, clone=2), clones.to_local(4)
        (4, (1, 2))
    """

    __slots__ = (
        "_hash",
        "max_clones",
        "num_clones",
        "num_states",
        "num_symbols",
        "offsets",
        "symbol_of_state",
    )

    num_clones: tuple[int, ...]
    num_symbols: int
    num_states: int
    max_clones: int
    offsets: NDArray[np.int64]
    symbol_of_state: NDArray[np.int64]
    _hash: int

    def __init__(self, num_clones: ArrayLike) -> None:
        counts = _int_vector("num_clones", num_clones)
        if counts.min() < 1:
            bad = int(np.argmin(counts))
            raise ValueError(
                f"num_clones[{bad}] = {int(counts[bad])}, expected at least 1 clone per symbol; "
                "drop unused symbols with `clones.compress(obs)`."
            )
        offsets = np.concatenate([[0], np.cumsum(counts)])
        symbol_of_state = np.repeat(np.arange(len(counts)), counts)
        offsets.flags.writeable = False
        symbol_of_state.flags.writeable = False
        fields = {
            "num_clones": tuple(counts.tolist()),
            "num_symbols": len(counts),
            "num_states": int(offsets[-1]),
            "max_clones": int(counts.max()),
            "offsets": offsets,
            "symbol_of_state": symbol_of_state,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_hash", hash(self.num_clones))

    @classmethod
    def proportional(cls, obs: ArrayLike, total: int, *, num_symbols: int | None = None):
        """Share a budget of states between symbols by how often each is seen.

        Every symbol gets one clone, the rest is shared in proportion to frequency (largest
        remainders, ties to the lower symbol), so the counts sum to ``total`` exactly.

        Args:
            obs: symbols of any shape; :data:`MISSING` is ignored.
            total: number of states ``S``, at least ``V``.
            num_symbols: ``V``; by default the largest symbol seen plus one.

        Returns:
            A :class:`CloneStructure` with ``num_states == total``.

        Example:
            >>> CloneStructure.proportional([0, 0, 0, 1], total=6).num_clones
            (4, 2)
        """
        values = np.asarray(obs.detach().cpu() if hasattr(obs, "detach") else obs).reshape(-1)
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"obs has dtype {values.dtype}, expected integer symbols.")
        seen = values[values != MISSING]
        if seen.size == 0:
            raise ValueError("obs holds no observed symbol, expected at least one.")
        if seen.min() < 0:
            raise ValueError(f"obs holds {int(seen.min())}, expected symbols >= 0 or MISSING (-1).")
        size = int(seen.max()) + 1 if num_symbols is None else int(num_symbols)
        if seen.max() >= size:
            raise ValueError(f"obs holds symbol {int(seen.max())}, expected less than {size}.")
        if total < size:
            raise ValueError(
                f"total = {total}, expected at least one clone for each of the {size} symbols; "
                "raise it to that."
            )
        frequency = np.bincount(seen, minlength=size)
        share = (total - size) * frequency / seen.size
        counts = np.floor(share).astype(np.int64)
        rest = total - size - int(counts.sum())
        order = np.argsort(-(share - counts), kind="stable")
        counts[order[:rest]] += 1
        return cls(counts + 1)

    def states(self, symbol: int) -> slice:
        """The global states of ``symbol`` as a slice."""
        self._check("symbol", symbol, self.num_symbols)
        return slice(int(self.offsets[symbol]), int(self.offsets[symbol + 1]))

    def to_global(self, symbol: int, clone: int) -> int:
        """The global number of one clone of ``symbol``."""
        self._check("symbol", symbol, self.num_symbols)
        self._check("clone", clone, self.num_clones[symbol])
        return int(self.offsets[symbol]) + clone

    def to_local(self, state: int) -> tuple[int, int]:
        """``(symbol, clone)`` of a global state."""
        self._check("state", state, self.num_states)
        symbol = int(self.symbol_of_state[state])
        return symbol, state - int(self.offsets[symbol])

    def compress(self, obs: ArrayLike) -> tuple[CloneStructure, NDArray[np.int64]]:
        """Drop the symbols that ``obs`` never shows.

        Returns:
            The smaller structure and the kept old symbols ``(V_new,)``, in order: new symbol
            ``i`` was ``kept[i]``, and ``np.searchsorted(kept, obs)`` renumbers ``obs``.
        """
        values = np.asarray(obs.detach().cpu() if hasattr(obs, "detach") else obs).reshape(-1)
        kept = np.unique(values[values != MISSING]).astype(np.int64)
        for symbol in kept:
            self._check("obs", int(symbol), self.num_symbols)
        return CloneStructure(np.asarray(self.num_clones)[kept]), kept

    def _check(self, name: str, value: int, bound: int) -> None:
        if not 0 <= value < bound:
            raise ValueError(
                f"{name} = {value}, expected 0 <= {name} < {bound}; count from 0 in {self}."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"CloneStructure is immutable; cannot set {name!r}. Make a new one.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"CloneStructure is immutable; cannot delete {name!r}.")

    def __reduce__(self):
        return CloneStructure, (list(self.num_clones),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CloneStructure) and self.num_clones == other.num_clones

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        counts = self.num_clones
        if len(set(counts)) == 1 and len(counts) > 4:
            return f"CloneStructure([{counts[0]}] * {len(counts)})"
        return f"CloneStructure({list(counts)})"
