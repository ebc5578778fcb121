"""Tiny seeded models with data, small enough to enumerate every path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference
import torch
from numpy.typing import ArrayLike, NDArray

from chmm_pyro.clones import MISSING, CloneStructure

__all__ = ["Instance", "random_instance"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Instance:
    """One model and one sequence.

    Attributes:
        num_clones: ``(V,)``.
        initial_logits: ``(S,)``.
        transition_logits: ``(A, S, S)``.
        actions: ``(T - 1,)``.
        obs: ``(T,)`` with MISSING.
        log_evidence: ``(T, V)``, ``(T, S)`` or None.
        action_model: ``"conditional"`` or ``"joint"``.
    """

    num_clones: tuple[int, ...]
    initial_logits: Array
    transition_logits: Array
    actions: NDArray[np.int64]
    obs: NDArray[np.int64]
    log_evidence: Array | None = None
    action_model: str = "conditional"

    @property
    def clones(self) -> CloneStructure:
        return CloneStructure(self.num_clones)

    @property
    def log_initial(self) -> Array:
        return reference.log_normalise(self.initial_logits)

    @property
    def log_transition(self) -> Array:
        return reference.log_normalise(self.transition_logits, self.action_model)

    @property
    def potentials(self) -> tuple[Any, ...]:
        """The positional arguments of the functions of ``reference`` that take potentials."""
        return (
            self.num_clones,
            self.log_initial,
            self.log_transition,
            self.actions,
            self.obs,
            self.log_evidence,
        )

    def exact(self) -> reference.Exact:
        """Everything about this instance, by enumeration."""
        return reference.enumerate_paths(*self.potentials)

    def predict(self, future_actions: ArrayLike) -> Array:
        """``(K, V)`` distributions of the symbols to come, by enumeration."""
        *potentials, evidence = self.potentials
        return reference.predict(*potentials, future_actions, evidence)

    def log_prob_torch(self, arguments: dict[str, Any]) -> torch.Tensor:
        """Enumerated ``log_prob`` of these (perhaps gradient-requiring) :meth:`arguments`."""
        return reference.log_prob_torch(self.num_clones, obs=self.obs, **arguments)

    def arguments(
        self, dtype: torch.dtype = torch.float64, requires_grad: bool = False
    ) -> dict[str, Any]:
        """Keyword arguments of ``CloneHMM`` besides ``clones``, as fresh tensors."""

        def leaf(values: Array) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, requires_grad=requires_grad)

        return {
            "initial_logits": leaf(self.initial_logits),
            "transition_logits": leaf(self.transition_logits),
            "actions": torch.tensor(self.actions),
            "log_evidence": None if self.log_evidence is None else leaf(self.log_evidence),
            "action_model": self.action_model,
        }


def _knock_out(rng: np.random.Generator, logits: Array, fraction: float) -> Array:
    """Set about this fraction of entries to ``-inf`` but leave each row its largest."""
    zero = rng.random(logits.shape) < fraction
    zero &= logits < logits.max(-1, keepdims=True)
    return np.where(zero, -math.inf, logits)


def random_instance(
    num_clones: Sequence[int],
    num_steps: int,
    num_actions: int = 1,
    seed: int = 0,
    *,
    missing: int | Sequence[int] = 0,
    evidence: str | None = None,
    zeros: float = 0.0,
    action_model: str = "conditional",
) -> Instance:
    """An instance with asymmetric parameters, none of them 0 or 1 unless asked for.

    Args:
        num_clones: ``(V,)``.
        num_steps: ``T``.
        num_actions: ``A``.
        seed: everything is drawn from it.
        missing: how many steps to hide (drawn), or which.
        evidence: ``"symbols"`` for ``log_evidence`` ``(T, V)``, ``"states"`` for ``(T, S)``.
        zeros: fraction of logits, and of evidence, that is ``-inf``.  The data are drawn from the
            model, so they stay possible.
        action_model: ``"conditional"`` or ``"joint"``.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(num_clones)), num_clones)
    states = len(owner)
    initial = _knock_out(rng, rng.normal(size=states), zeros)
    transition = _knock_out(rng, rng.normal(size=(num_actions, states, states)), zeros)
    actions = rng.integers(num_actions, size=num_steps - 1)

    path = [rng.choice(states, p=np.exp(reference.log_normalise(initial)))]
    for action in actions:
        row = np.exp(reference.log_normalise(transition[action, path[-1]]))
        path.append(rng.choice(states, p=row))
    obs = owner[path]
    if isinstance(missing, int):
        hidden = rng.choice(num_steps, size=missing, replace=False)
    else:
        hidden = np.array(missing, np.int64)
    log_evidence = None
    if evidence is not None:
        width = {"symbols": len(num_clones), "states": states}[evidence]
        full = rng.normal(size=(num_steps, width))
        log_evidence = _knock_out(rng, full, zeros)
        # What the path drawn above went through must stay possible.
        kept = np.arange(num_steps), (obs if width == len(num_clones) else np.array(path))
        log_evidence[kept] = full[kept]
    obs = obs.copy()
    obs[hidden] = MISSING
    return Instance(
        tuple(num_clones), initial, transition, actions, obs, log_evidence, action_model
    )
