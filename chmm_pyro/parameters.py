r"""How models hold their parameters: each class turns free parameters into a transition table.

``table()`` gives the normalised table that :class:`~chmm_pyro.distribution.CloneHMM` takes;
``maximise(counts, pseudocount)`` is the M-step, the parameters whose table maximises
:math:`\sum C \log T + \kappa \sum \log T`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from .clones import CloneStructure
from .logits import log_normalise
from .tables import BlockColumns, BlockTable, DenseTable, Table

__all__ = [
    "BlockTransition",
    "CountTransition",
    "InitialDistribution",
    "SoftmaxTransition",
    "Transition",
    "finite_sum",
    "make_transition",
    "normalised_counts",
]


def normalised_counts(
    counts: Tensor,
    pseudocount: float,
    action_model: str,
    allowed: Tensor | None = None,
    multiplicity: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Rows of ``counts + pseudocount`` normalised, and how many rows had nothing to normalise.

    Args:
        counts: ``(A, S, L)`` expected counts.
        pseudocount: added for every allowed successor.
        action_model: over which axes a row extends.
        allowed: ``(A, S, L)``; False entries stay exactly zero.
        multiplicity: ``(A, S, L)`` for how many successors an entry stands; one by default.

    Returns:
        Probabilities; a row without any count gets a uniform distribution over its allowed
        successors, a row without allowed ones is zero.
    """
    axes = (-1,) if action_model == "conditional" else (0, -1)
    total = counts + pseudocount * (1 if multiplicity is None else multiplicity.to(counts))
    if allowed is not None:
        total = torch.where(allowed, total, 0.0)
    norm = total.sum(axes, keepdim=True)
    if bool((norm > 0).all()):
        return total.div_(norm), 0
    uniform = torch.ones_like(total) if allowed is None else allowed.to(total.dtype)
    if multiplicity is not None:
        uniform = uniform * multiplicity
    width = uniform.sum(axes, keepdim=True)
    empty = (norm == 0) & (width > 0)  # rows without any entry have nothing to be counted
    probs = torch.where(empty, uniform, total) / torch.where(norm > 0, norm, width.clamp(min=1))
    return probs, int(empty.sum())


def finite_sum(values: Tensor) -> Tensor:
    """Sum without the entries that are ``-inf``, whose gradient is zero."""
    total = values.sum()
    if bool(torch.isfinite(total.detach())):
        return total
    return torch.where(torch.isneginf(values), 0.0, values).sum()


def _seeded_normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    # Drawn in float64, so that both precisions start from the same model.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class InitialDistribution(PyroModule):
    """``(S,)`` logits of the state at the first observation, fixed (uniform) or learned."""

    def __init__(
        self, clones: CloneStructure, *, learn: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        logits = torch.zeros(clones.num_states, dtype=dtype)
        self.learned = learn
        if learn:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    @torch.no_grad()
    def maximise(self, counts: Tensor, pseudocount: float) -> None:
        """Set the M-step solution for ``(S,)`` expected counts."""
        total = torch.where(torch.isneginf(self.logits), 0.0, counts + pseudocount)
        self.logits.copy_((total / total.sum()).log())


class Transition(PyroModule):
    """Free parameters of ``(A, S, S)`` transition probabilities; see the module docstring."""

    clones: CloneStructure
    num_actions: int
    action_model: str

    def table(self) -> Table:
        """The normalised table; differentiable in the parameters."""
        raise NotImplementedError

    def maximise(self, counts: Tensor, pseudocount: float) -> int:
        """Set the M-step solution and return how many rows were never visited."""
        raise NotImplementedError

    def sum_log(self, table: Table | None = None) -> Tensor:
        """Sum of the log-probabilities of all transitions that are possible.

        Args:
            table: what :meth:`table` returns, if it is at hand.
        """
        return finite_sum((table or self.table()).values)

    def entropy(self) -> Tensor:
        """Sum of the entropies of all rows, in nats."""
        log_table = self.table().values
        finite = torch.where(torch.isneginf(log_table), 0.0, log_table)
        return -(log_table.exp() * finite).sum()


class SoftmaxTransition(Transition):
    """Free logits, optionally with structural zeros and frozen probabilities.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        seed: of the standard-normal initial logits.
        action_model: ``"conditional"`` or ``"joint"``.
        allowed: ``(A, S, S)`` bool; False entries have probability exactly zero, always.
        frozen: ``(A, S, S)`` probabilities to keep, NaN where learned; the learned entries of a
            row share what the frozen ones leave.
        dtype: of the logits.

    Raises:
        ValueError: masks of the wrong shape, a row with no allowed successor, frozen
            probabilities outside ``[0, 1]`` or above one together.
    """

    def __init__(
        self,
        clones: CloneStructure,
        num_actions: int,
        *,
        seed: int = 0,
        action_model: str = "conditional",
        allowed: Tensor | None = None,
        frozen: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.clones, self.num_actions, self.action_model = clones, num_actions, action_model
        shape = (num_actions, clones.num_states, clones.num_states)
        self.logits = nn.Parameter(_seeded_normal(shape, seed, dtype))
        for name, mask in (("allowed", allowed), ("frozen", frozen)):
            if mask is not None and tuple(mask.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {shape}.")
        self.register_buffer("allowed", None if allowed is None else allowed.bool())
        self._freeze(None if frozen is None else frozen.to(dtype))
        self.table()  # refuses rows without successors now rather than in training

    def _freeze(self, probs: Tensor | None) -> None:
        self.register_buffer("frozen", probs)
        self.register_buffer("log_frozen", None)
        self.register_buffer("log_rest", None)
        if probs is None:
            return
        if self.action_model != "conditional":
            raise ValueError(
                f"frozen was given with action_model={self.action_model!r}, expected "
                "'conditional'; a joint row spans all actions."
            )
        kept = ~probs.isnan()
        values = torch.where(kept, probs, 0.0)
        total = values.sum(-1)
        free = ~kept
        if self.allowed is not None:
            free = free & self.allowed
            excluded = (values > 0) & ~self.allowed
            if excluded.any():
                at = [int(i) for i in excluded.nonzero()[0]]
                raise ValueError(
                    f"frozen{at} = {float(values[tuple(at)]):.6g} where allowed is False, expected "
                    "0 or NaN there; allow the entry or do not freeze it."
                )
        wrong = (values < 0).any(-1) | (total > 1 + 1e-6) | (~free.any(-1) & (total < 1 - 1e-6))
        if wrong.any():
            at = [int(i) for i in wrong.nonzero()[0]]
            raise ValueError(
                f"frozen{at} sums to {float(total[tuple(at)]):.6g}, expected probabilities in "
                "[0, 1] that leave room for the row's learned entries, or sum to 1 without any."
            )
        self.log_frozen = values.log()
        self.log_rest = (1 - total).clamp(min=0).log().unsqueeze(-1)

    @property
    def _free(self) -> Tensor | None:
        """``(A, S, S)`` which entries are learned; None means all."""
        if self.frozen is None:
            return self.allowed
        free = self.frozen.isnan()
        return free if self.allowed is None else free & self.allowed

    def table(self) -> DenseTable:
        logits: Tensor = self.logits
        free = self._free
        if free is not None:
            logits = torch.where(free, logits, -torch.inf)
        if self.frozen is None:
            log_table = log_normalise(logits, self.action_model)
        else:
            assert free is not None  # there are frozen entries
            any_free = free.any(-1, keepdim=True)
            learned = log_normalise(torch.where(any_free, logits, 0.0)) + self.log_rest
            log_table = torch.where(free, learned, self.log_frozen)
        return DenseTable(self.clones, log_table, self.action_model)

    @torch.no_grad()
    def maximise(self, counts: Tensor, pseudocount: float) -> int:
        probs, unvisited = normalised_counts(counts, pseudocount, self.action_model, self._free)
        self.logits.copy_(probs.log_())
        return unvisited


class CountTransition(Transition):
    """Positive counts, normalised: the published ``C`` as the parameter.

    The free parameter is the inverse softplus of the counts, so a gradient step moves large
    counts additively and small ones multiplicatively.

    Args:
        clones: the clone structure.
        counts: ``(A, S, S)`` counts, none negative; zeros are structural zeros.
        action_model: ``"conditional"`` or ``"joint"``.
    """

    def __init__(
        self, clones: CloneStructure, counts: Tensor, *, action_model: str = "conditional"
    ) -> None:
        super().__init__()
        self.clones, self.num_actions, self.action_model = clones, len(counts), action_model
        wrong = ~((counts >= 0) & counts.isfinite())
        if wrong.any():
            at = [int(i) for i in wrong.nonzero()[0]]
            raise ValueError(
                f"counts{at} = {float(counts[tuple(at)])}, expected a finite count >= 0; mark "
                "impossible transitions with 0."
            )
        positive = counts > 0
        self.register_buffer("allowed", None if bool(positive.all()) else positive)
        free = _inverse_softplus(torch.where(positive, counts, 1.0))
        self.free_counts = nn.Parameter(free)

    @property
    def log_counts(self) -> Tensor:
        """``(A, S, S)`` logarithms of the counts, ``-inf`` for structural zeros."""
        free = self.free_counts
        # There softplus(x) = exp(x) to rounding, without underflow.
        small = free < math.log(torch.finfo(free.dtype).eps)
        safe = torch.where(small, 0.0, free)
        log_counts = torch.where(small, free, nn.functional.softplus(safe).log())
        if self.allowed is None:
            return log_counts
        return torch.where(self.allowed, log_counts, -torch.inf)

    @property
    def counts(self) -> Tensor:
        """``(A, S, S)`` the positive counts themselves."""
        return self.log_counts.exp()

    def table(self) -> DenseTable:
        log_table = log_normalise(self.log_counts, self.action_model)
        return DenseTable(self.clones, log_table, self.action_model)

    @torch.no_grad()
    def maximise(self, counts: Tensor, pseudocount: float) -> int:
        total = counts + pseudocount
        probs, unvisited = normalised_counts(counts, pseudocount, self.action_model, self.allowed)
        # Keep the counts themselves where there are any: only their ratios are determined.
        axes = (-1,) if self.action_model == "conditional" else (0, -1)
        norm = torch.where(probs > 0, total, 0.0).sum(axes, keepdim=True)
        target = probs * torch.where(norm > 0, norm, 1.0)
        self.free_counts.copy_(_inverse_softplus(target))
        return unvisited


def _inverse_softplus(values: Tensor) -> Tensor:
    """Stable ``log(exp(x) - 1)``; ``-inf`` at zero."""
    return values + torch.log(-torch.expm1(-values))


class BlockTransition(Transition):
    """Logits for observed symbol pairs only, one lumped logit for all other successors of a row.

    Memory grows with the symbol pairs seen in data, not with ``S ** 2``: thousands of states train
    in little memory.

    Args:
        columns: which successors are stored.
        seed: of the standard-normal initial logits.
        action_model: ``"conditional"`` or ``"joint"``.
        dtype: of the logits.
    """

    def __init__(
        self,
        columns: BlockColumns,
        *,
        seed: int = 0,
        action_model: str = "conditional",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.columns = columns
        self.clones, self.num_actions = columns.clones, columns.num_actions
        self.action_model = action_model
        shape = (columns.num_actions, columns.clones.num_states, columns.width)
        self.logits = nn.Parameter(_seeded_normal(shape, seed, dtype))
        self.register_buffer("allowed", columns.exists(), persistent=False)
        multiplicity = torch.ones(shape, dtype=torch.int32)
        lumped = columns.num_lumped[:, columns.clones.symbol_of_state]
        multiplicity[..., -1] = torch.as_tensor(lumped)
        self.register_buffer("multiplicity", multiplicity, persistent=False)

    def table(self) -> BlockTable:
        logits = torch.where(self.allowed, self.logits, -torch.inf)
        return BlockTable(self.columns, log_normalise(logits, self.action_model), self.action_model)

    @torch.no_grad()
    def maximise(self, counts: Tensor, pseudocount: float) -> int:
        probs, unvisited = normalised_counts(
            counts, pseudocount, self.action_model, self.allowed, self.multiplicity
        )
        self.logits.copy_(probs.log_())
        return unvisited

    def sum_log(self, table: Table | None = None) -> Tensor:
        values = (table or self.table()).values
        lumped = self.multiplicity[..., -1].clamp(min=1).to(values)
        values = torch.cat([values[..., :-1], values[..., -1:] - lumped.log().unsqueeze(-1)], -1)
        possible = self.allowed & ~torch.isneginf(values)
        return (torch.where(possible, values, 0.0) * self.multiplicity).sum()

    def entropy(self) -> Tensor:
        # Successors that share the lump are equally probable.
        share = self.multiplicity[..., -1].clamp(min=1).to(self.logits.dtype).log()
        return super().entropy() + (self.table().values[..., -1].exp() * share).sum()


def make_transition(
    parameterization: str,
    clones: CloneStructure,
    num_actions: int,
    *,
    seed: int,
    action_model: str,
    dtype: torch.dtype,
    columns: BlockColumns | None = None,
    **masks: Any,
) -> Transition:
    """A randomly initialised :class:`Transition` by name: softmax, counts or blocks."""
    known = {"softmax": {"allowed", "frozen"}, "counts": {"allowed"}, "blocks": set()}
    for name in masks.keys() - known.get(parameterization, masks.keys()):
        raise ValueError(
            f"{name} was given with parameterization={parameterization!r}, expected 'softmax', "
            "which has it; or leave it out."
        )
    if parameterization == "softmax":
        return SoftmaxTransition(
            clones, num_actions, seed=seed, action_model=action_model, dtype=dtype, **masks
        )
    if parameterization == "counts":
        shape = (num_actions, clones.num_states, clones.num_states)
        counts = _seeded_normal(shape, seed, dtype).exp()
        allowed = masks.get("allowed")
        if allowed is not None:
            counts = torch.where(allowed.bool(), counts, 0.0)
        return CountTransition(clones, counts, action_model=action_model)
    if parameterization == "blocks":
        if columns is None:
            raise ValueError(
                "columns is None, expected BlockColumns with parameterization='blocks'; make "
                "them with `BlockColumns.from_batch(clones, num_actions, batch)`."
            )
        return BlockTransition(columns, seed=seed, action_model=action_model, dtype=dtype)
    raise ValueError(
        f"parameterization = {parameterization!r}, expected 'softmax', 'counts' or 'blocks'."
    )
