r"""Concentrations of the Dirichlet rows of a transition table.

The prior of row ``(a, i)`` is a Dirichlet whose concentration of successor ``j`` is

.. math:: \alpha_{aij} = c \, b_{aij} \, M_{v(j)} w_j + \kappa \, 1[i = j]

with a base ``b`` (a number, or given by block or entry), an optional factor ``c`` with a Gamma
prior, optional stick-breaking weights ``w`` over the ``M`` clones of each symbol ``v`` (uniform
weights leave the base as it is), and an extra weight ``kappa`` for staying (Fox et al. 2008, "An
HDP-HMM for systems with state persistence").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..clones import CloneStructure
from ..data_layout import symbol_of_state

__all__ = [
    "SMALLEST",
    "Sticks",
    "TransitionPrior",
    "block_concentration",
    "check_positive",
    "from_rows",
    "to_rows",
]

SMALLEST = 1e-30
"""Concentrations below are this: a stick-breaking weight may underflow, a concentration may not."""


def block_concentration(clones: CloneStructure, values: ArrayLike | Tensor) -> Tensor:
    """A concentration for every pair of symbols as one for every pair of states.

    Args:
        clones: the clone structure.
        values: ``(V, V)`` or ``(A, V, V)``: (action,) symbol, next symbol.

    Returns:
        ``(S, S)`` or ``(A, S, S)`` float64.

    Example:
        >>> block_concentration(CloneStructure([2, 1]), [[0.1, 1.0], [2.0, 3.0]])
        tensor([[0.1000, 0.1000, 1.0000],
                [0.1000, 0.1000, 1.0000],
                [2.0000, 2.0000, 3.0000]], dtype=torch.float64)
    """
    table = torch.as_tensor(np.asarray(values, np.float64))
    symbols = clones.num_symbols
    if table.ndim not in (2, 3) or table.shape[-2:] != (symbols, symbols):
        raise ValueError(
            f"values has shape {tuple(table.shape)}, expected ({symbols}, {symbols}) or "
            f"(A, {symbols}, {symbols}) for {clones}."
        )
    owner = symbol_of_state(clones, table.device)
    return table[..., owner[:, None], owner]


def to_rows(table: Tensor, action_model: str) -> Tensor:
    """``(..., A, S, S)`` as rows that sum to one: itself, or ``(..., S, A * S)`` if joint."""
    return table if action_model == "conditional" else table.transpose(-3, -2).flatten(-2)


def from_rows(rows: Tensor, num_actions: int, action_model: str) -> Tensor:
    """The inverse of :func:`to_rows`."""
    if action_model == "conditional":
        return rows
    return rows.unflatten(-1, (num_actions, -1)).transpose(-3, -2)


class Sticks(NamedTuple):
    """Where the sticks of each symbol are among all ``S - V`` of them.

    Attributes:
        stick: ``(V, M_max)`` of each clone; the last clone of a symbol, which takes what is
            left, and clones that do not exist have the index ``S - V``.
        states: ``(S,)`` flat position of each state in ``(V, M_max)``.
    """

    stick: Tensor
    states: Tensor

    @classmethod
    def of(cls, clones: CloneStructure) -> Sticks:
        """The sticks of a clone structure."""
        counts = np.asarray(clones.num_clones)[:, None]
        local = np.arange(clones.max_clones)
        first = clones.offsets[:-1, None] - np.arange(clones.num_symbols)[:, None]
        index = np.where(local < counts - 1, first + local, clones.num_states - clones.num_symbols)
        return cls(torch.as_tensor(index), torch.as_tensor(np.flatnonzero(local < counts)))

    def log_weights(self, log_sticks: Tensor) -> Tensor:
        """``(..., S)`` log share of each clone in its symbol, from ``(..., S - V, 2)`` sticks.

        Args:
            log_sticks: logarithms of what each stick breaks off and of what it leaves.
        """
        padded = nn.functional.pad(log_sticks, (0, 0, 0, 1))  # a last stick that changes nothing
        broken, left = padded[..., self.stick, :].unbind(-1)
        before = nn.functional.pad(left.cumsum(-1)[..., :-1], (1, 0))
        return (broken + before).flatten(-2)[..., self.states]

    def log_sticks(self, log_weights: Tensor) -> Tensor:
        """The inverse of :meth:`log_weights`."""
        shape = self.stick.shape
        padded = log_weights.new_full((*log_weights.shape[:-1], shape.numel()), -math.inf)
        padded[..., self.states] = log_weights
        rest = padded.unflatten(-1, shape).flip(-1).logcumsumexp(-1).flip(-1)
        after = nn.functional.pad(rest[..., 1:], (0, 1), value=-math.inf)
        both = torch.stack([padded.unflatten(-1, shape), after], -1) - rest.unsqueeze(-1)
        return both[..., self.stick < self.num_sticks, :]

    @property
    def num_sticks(self) -> int:
        """``S - V``."""
        return len(self.states) - len(self.stick)


class TransitionPrior(nn.Module):
    """The Dirichlet rows of a transition table; see the module docstring.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        concentration: the base ``b``: a number, or a tensor that broadcasts to ``(A, S, S)``.
        sticky: ``kappa``.
        hyperprior: ``(shape, rate)`` of the Gamma prior of the factor ``c``, or None for ``c = 1``.
        stick_concentration: of the Beta(1, .) sticks, or None for uniform weights.
        dtype: of the concentrations.

    Raises:
        ValueError: concentrations that are not positive and finite, or that differ between the
            clones of a symbol where stick-breaking weights do so already.
    """

    base: Tensor
    stay: Tensor
    log_sizes: Tensor

    def __init__(
        self,
        clones: CloneStructure,
        num_actions: int,
        concentration: float | Tensor,
        *,
        sticky: float,
        hyperprior: tuple[float, float] | None,
        stick_concentration: float | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        states = clones.num_states
        shape = (num_actions, states, states)
        base = torch.as_tensor(concentration, dtype=dtype)
        try:
            base = base.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"concentration has shape {tuple(base.shape)}, expected a number or a tensor that "
                f"broadcasts to {shape}: action, old state, new state; for one by symbols use "
                "`block_concentration`."
            ) from error
        check_positive("concentration", base)
        owner = symbol_of_state(clones, base.device)
        if not 0 <= sticky < math.inf:
            raise ValueError(f"sticky = {sticky}, expected a finite number >= 0.")
        if hyperprior is not None:
            if len(hyperprior) != 2:
                raise ValueError(f"hyperprior = {hyperprior}, expected (shape, rate).")
            check_positive("hyperprior", torch.tensor(hyperprior, dtype=dtype))
        if stick_concentration is not None:
            check_positive("stick_concentration", torch.tensor(stick_concentration, dtype=dtype))
            first = torch.tensor(clones.offsets[:-1])[owner]
            uneven = base != base[..., first]
            if uneven.any():
                at = [int(i) for i in uneven.nonzero()[0]]
                raise ValueError(
                    f"concentration{at} = {float(base[tuple(at)]):.6g} differs from that of the "
                    "first clone of its symbol, expected one value per next symbol with "
                    "stick_concentration; put the weight of staying into `sticky`."
                )
        self.clones, self.num_actions = clones, num_actions
        self.hyperprior, self.stick_concentration = hyperprior, stick_concentration
        self.sticky = sticky
        self.register_buffer("base", base.contiguous())
        self.register_buffer("stay", sticky * torch.eye(states, dtype=dtype))
        sizes = torch.tensor(clones.num_clones)[owner]
        self.register_buffer("log_sizes", sizes.to(dtype).log())
        self.sticks = Sticks.of(clones)

    @property
    def num_sticks(self) -> int:
        """``S - V``, or 0 without stick-breaking."""
        return 0 if self.stick_concentration is None else self.sticks.num_sticks

    def concentration(
        self, factor: Tensor | None = None, log_weights: Tensor | None = None
    ) -> Tensor:
        """``(..., A, S, S)`` concentrations.

        Args:
            factor: ``(...)`` the factor ``c``.
            log_weights: ``(..., S)`` logarithms of the stick-breaking weights ``w``.
        """
        alpha = self.shared(factor, log_weights)
        if self.sticky:
            alpha = alpha + self.stay
        return alpha.clamp(min=SMALLEST)

    def shared(self, factor: Tensor | None = None, log_weights: Tensor | None = None) -> Tensor:
        """The part of :meth:`concentration` that the hyperparameters multiply."""
        alpha = self.base
        if factor is not None:
            alpha = alpha * factor[..., None, None, None]
        if log_weights is not None:
            alpha = alpha * self.relative(log_weights)[..., None, None, :]
        return alpha

    def relative(self, log_weights: Tensor) -> Tensor:
        """``(..., S)`` weights relative to uniform ones."""
        return (log_weights + self.log_sizes).exp()


def check_positive(name: str, values: Tensor) -> None:
    """Refuse concentrations that no Dirichlet has."""
    wrong = ~((values > 0) & values.isfinite())
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        where = f"{name}{list(at)}" if at else name
        raise ValueError(
            f"{where} = {float(values[at]):.6g}, expected a positive, finite number; "
            "for sparse rows use a small one, such as 0.01."
        )
