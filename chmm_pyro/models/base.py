"""What every clone-structured model has: parameters and the collapsed distribution they give."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..clones import CloneStructure
from ..distribution import CloneHMM
from ..logits import ACTION_MODELS
from ..parameters import (
    CountTransition,
    InitialDistribution,
    SoftmaxTransition,
    Transition,
    make_transition,
)
from ..sequences import SequenceBatch
from ..tables import BlockColumns
from .own_parameters import OwnParameters

__all__ = ["CloneModel", "check_actions_of_model", "sequence_plate"]


def sequence_plate(batch: SequenceBatch) -> AbstractContextManager[Any]:
    """The plate of a batch's sequences, scaled up to its population; none for a single one."""
    if batch.lengths is None:
        return nullcontext()
    if batch.population is None:
        return pyro.plate("sequences", len(batch))
    subsample = torch.arange(len(batch), device=batch.device)
    return pyro.plate("sequences", batch.population, subsample=subsample)


def check_actions_of_model(num_actions: int, action_model: str, learn_actions: bool) -> None:
    """Refuse numbers and modes of actions that no model has."""
    if num_actions < 1:
        raise ValueError(
            f"num_actions = {num_actions}, expected at least 1; a model without actions has "
            "one, and batches without actions drive it."
        )
    if action_model not in ACTION_MODELS:
        raise ValueError(f"action_model = {action_model!r}, expected one of {ACTION_MODELS}.")
    if learn_actions and action_model == "joint":
        raise ValueError(
            "learn_actions=True was given with action_model='joint', which has p(a | z) "
            "already; leave learn_actions out."
        )


class CloneModel(OwnParameters):
    """Free initial, transition and action parameters; subclasses add the Pyro program.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        seed: of the random initial transition parameters.
        learn_initial: learn the initial distribution instead of fixing it uniform.
        action_model: ``"conditional"`` or ``"joint"``.
        learn_actions: add ``log p(a)`` with learned action probabilities (conditional only).
        parameterization: ``"softmax"`` logits, ``"counts"`` (positive counts, normalised) or
            ``"blocks"`` (observed symbol pairs only, for thousands of states).
        allowed: ``(A, S, S)`` bool; False marks structural zeros.
        frozen: ``(A, S, S)`` probabilities kept fixed, NaN where learned (softmax only).
        columns: which pairs ``"blocks"`` stores.
        dtype: of the parameters.

    Attributes:
        initial: :class:`~chmm_pyro.parameters.InitialDistribution`.
        transition: a :class:`~chmm_pyro.parameters.Transition`.
        action_logits: ``(A,)`` or None.
    """

    enumerates = False
    """Whether the program has discrete sites for ``TraceEnum_ELBO`` to sum out."""

    def __init__(
        self,
        clones: CloneStructure,
        num_actions: int,
        *,
        seed: int = 0,
        learn_initial: bool = False,
        action_model: str = "conditional",
        learn_actions: bool = False,
        parameterization: str = "softmax",
        allowed: Tensor | None = None,
        frozen: Tensor | None = None,
        columns: BlockColumns | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_actions_of_model(num_actions, action_model, learn_actions)
        masks = {k: v for k, v in (("allowed", allowed), ("frozen", frozen)) if v is not None}
        self._assemble(
            make_transition(
                parameterization,
                clones,
                num_actions,
                seed=seed,
                action_model=action_model,
                dtype=dtype,
                columns=columns,
                **masks,
            ),
            learn_initial=learn_initial,
            learn_actions=learn_actions,
            dtype=dtype,
        )

    def _assemble(
        self,
        transition: Transition,
        *,
        learn_initial: bool,
        learn_actions: bool,
        dtype: torch.dtype,
    ) -> None:
        self.initial = InitialDistribution(transition.clones, learn=learn_initial, dtype=dtype)
        self.transition = transition
        logits = torch.zeros(transition.num_actions, dtype=dtype)
        self.action_logits = nn.Parameter(logits) if learn_actions else None

    @classmethod
    def from_counts(
        cls,
        clones: CloneStructure,
        counts: Tensor | np.ndarray,
        *,
        pseudocount: float = 0.0,
        learn_initial: bool = False,
        action_model: str = "conditional",
        learn_actions: bool = False,
        parameterization: str = "softmax",
        dtype: torch.dtype | None = None,
    ) -> Any:
        """The model whose transition probabilities are ``counts + pseudocount``, normalised.

        Args:
            clones: the clone structure.
            counts: ``(A, S, S)``, none negative; a row without any count becomes uniform.
            pseudocount: added to every entry first.
            learn_initial: see the class.
            action_model: see the class.
            learn_actions: see the class.
            parameterization: ``"softmax"`` or ``"counts"``.
            dtype: by default that of ``counts``.

        Raises:
            ValueError: counts of the wrong shape, negative or not finite.
        """
        values = torch.as_tensor(counts)
        values = values.to(dtype or (values.dtype if values.is_floating_point() else torch.float32))
        states = clones.num_states
        if values.ndim != 3 or values.shape[1:] != (states, states):
            raise ValueError(
                f"counts has shape {tuple(values.shape)}, expected (A, {states}, {states}) for "
                f"{clones}."
            )
        wrong = ~((values >= 0) & values.isfinite())
        if wrong.any():
            at = [int(i) for i in wrong.nonzero()[0]]
            raise ValueError(f"counts{at} = {float(values[tuple(at)])}, expected finite and >= 0.")
        if pseudocount < 0:
            raise ValueError(f"pseudocount = {pseudocount}, expected >= 0.")
        transition: Transition
        if parameterization == "counts":
            transition = CountTransition(clones, values + pseudocount, action_model=action_model)
        elif parameterization == "softmax":
            transition = SoftmaxTransition(
                clones, len(values), action_model=action_model, dtype=values.dtype
            )
            transition.maximise(values, pseudocount)
        else:
            raise ValueError(
                f"parameterization = {parameterization!r}, expected 'softmax' or 'counts'."
            )
        model = cls.__new__(cls)
        PyroModule.__init__(model)
        model._assemble(
            transition,
            learn_initial=learn_initial,
            learn_actions=learn_actions,
            dtype=values.dtype,
        )
        return model

    @property
    def clones(self) -> CloneStructure:
        """The clone structure."""
        return self.transition.clones

    @property
    def num_actions(self) -> int:
        """``A``."""
        return self.transition.num_actions

    @property
    def action_model(self) -> str:
        """``"conditional"`` or ``"joint"``."""
        return self.transition.action_model

    def distribution(
        self,
        batch: SequenceBatch,
        *,
        initial_logits: Tensor | None = None,
        log_evidence: Tensor | None = None,
    ) -> CloneHMM:
        """The collapsed distribution over ``batch.obs``, states summed out.

        Args:
            batch: supplies actions and lengths.
            initial_logits: ``(..., S)`` instead of the model's own, such as filter states carried
                over from earlier segments.
            log_evidence: soft evidence, see :class:`~chmm_pyro.distribution.CloneHMM`.
        """
        return CloneHMM(
            self.clones,
            self.initial.logits if initial_logits is None else initial_logits,
            self.transition.table(),
            batch.actions,
            lengths=batch.lengths,
            log_evidence=log_evidence,
            action_logits=self.action_logits,
        )
