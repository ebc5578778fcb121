r"""The joint model of data and hidden path, defined for relaxed paths too.

A path is held by its *edges*, clone-local: ``path[t, i, j] = 1`` says that step ``t - 1`` is in the
``i``-th state that it allows and step ``t`` in the ``j``-th; the first step is entered through row
``0``.  A *relaxed* path has weights between 0 and 1 there, with as much leaving a state as
arrives in it: a point of the polytope whose corners are the one-hot paths.  The joint
log-probability is linear on it,

.. math::  \log p(x, path \mid a) = \sum_{t, i, j} path_{tij} \log T_{a_{t-1}}[i, j],

and for a product of relaxed states, :math:`path_t = y_{t-1} y_t^\top`, a sum of bilinear forms in
the clone blocks.  Edges of probability zero are no part of the polytope: no relaxed path has weight
there, so nothing is ever multiplied by ``-inf``.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from .._kernels.layout import Layout
from ..data_layout import as_integers, bad_entry
from ..distribution import CloneHMM
from ..jobs import JobBatch, pose
from ..sequences import SequenceBatch
from .base import CloneModel, sequence_plate

__all__ = ["RelaxedCHMM", "RelaxedPath", "RelaxedPaths", "linear_score"]


class RelaxedPaths(constraints.Constraint):
    """Edge weights of relaxed paths: at least zero, conserved at every state, on allowed edges.

    Args:
        allowed: ``(..., T, R, R)`` bool; steps beyond the end of a sequence allow none.
    """

    event_dim = 3

    def __init__(self, allowed: Tensor) -> None:
        self._allowed = allowed

    def check(self, value: Tensor) -> Tensor:
        """``(...)`` whether each value is a relaxed path."""
        tolerance = torch.finfo(value.dtype).eps ** 0.5
        weights = ((value >= 0) & (self._allowed | (value == 0))).flatten(-3).all(-1)
        arriving, leaving = value.sum(-2), value.sum(-1)
        more = self._allowed[..., 1:, :, :].flatten(-2).any(-1).unsqueeze(-1)
        balance = torch.where(more, arriving[..., :-1, :] - leaving[..., 1:, :], 0.0)
        conserved = (balance.abs() < tolerance).flatten(-2).all(-1)
        entered = (arriving[..., 0, :].sum(-1) - 1).abs() < tolerance
        return weights & conserved & entered

    def __repr__(self) -> str:
        return "relaxed paths: one unit of weight, conserved at every state, on allowed edges only"


@lru_cache(maxsize=4)
def _edge_index(layout: Layout, num_steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the potential of every edge is stored, and whether it is in a block.

    Returns:
        ``(N, T, R, R)`` index into ``[initial (S), blocks (F)]``, -1 where there is no edge, and
        ``(N, T, 1, 1)`` False at first steps.
    """
    states, width = layout.clones.num_states, layout.max_support
    time, row = layout.time_of_step, layout.sequence_of_step
    index = np.full((layout.num_sequences, num_steps, width, width), -1, np.int64)
    local = np.arange(width)
    first = layout.step_start[:-1]
    exists = local < layout.support_size[first, None]
    index[:, 0, 0] = np.where(exists, layout.support_start[first, None] + local, -1)
    later = np.flatnonzero(time > 0)
    block = layout.block_index[later - 1][:, None, None]
    rows, columns = layout.block_from[block, 1], layout.block_to[block, 1]
    old, new = local[:, None], local
    entry = states + layout.block_start[block] + old * columns + new
    index[row[later], time[later]] = np.where((old < rows) & (new < columns), entry, -1)
    in_block = np.arange(num_steps)[None, :, None, None] > 0
    return torch.as_tensor(index, device=device), torch.as_tensor(in_block, device=device)


def _padded_potentials(posed: JobBatch) -> Tensor:
    """``(*shape, T, R, R)`` log-potentials of all edges."""
    log_initial, log_blocks = posed.problem.log_initial, posed.problem.log_blocks
    index, in_block = _edge_index(posed.layout, posed.num_steps, log_blocks.device)
    edge = index >= 0
    if len(log_initial) > 1 or len(log_blocks) > 1:
        jobs = posed.problem.jobs
        states, entries = log_initial.shape[-1], log_blocks.shape[-1]
        row = [torch.as_tensor(x, device=index.device) for x in (jobs.initial, jobs.blocks)]
        to_initial, to_block = (r.view(-1, 1, 1, 1) for r in row)
        to_block = (len(log_initial) - 1) * states + to_block * entries
        index = torch.where(edge, index + torch.where(in_block, to_block, to_initial * states), -1)
    excluded = log_blocks.new_full((1,), -torch.inf)
    flat = torch.cat([log_initial.reshape(-1), log_blocks.reshape(-1), excluded])
    index = torch.where(edge, index, len(flat) - 1)
    values = flat.index_select(0, index.view(-1)).view(*posed.shape, *index.shape[1:])
    if posed.problem.log_evidence is None:
        return values
    return values + posed.posterior(posed.problem.log_evidence).probs.unsqueeze(-2)


class RelaxedPath(TorchDistribution):
    """The joint log-probability of data and path, as a function of the (relaxed) path.

    Summed over all one-hot paths ``exp(log_prob)`` is the likelihood of the data: this is the
    unnormalised posterior of the path.

    Args:
        hmm: initial, transition and action probabilities, actions and lengths.
        obs: ``(..., T)`` the data.

    Attributes:
        log_potentials: ``(..., T, R, R)``, ``-inf`` where there is no edge; ``R`` is the largest
            number of states that a step allows.
        first_state: ``(..., T)`` the global state of entry 0 of each step.
        inside: ``(..., T)`` whether the sequence has this step.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> hmm = CloneHMM(CloneStructure([2, 1]), torch.zeros(3), torch.zeros(1, 3, 3), [0])
        >>> joint = RelaxedPath(hmm, [1, 0])
        >>> path = joint.one_hot(torch.tensor([2, 1]))
        >>> path[1].tolist(), round(joint.log_prob(path).exp().item(), 4)
        ([[0.0, 1.0], [0.0, 0.0]], 0.1111)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, hmm: CloneHMM, obs: ArrayLike | Tensor, *, validate_args: bool | None = None
    ) -> None:
        obs = as_integers("obs", obs, hmm.table.values.device)
        evidence, actions, lengths = hmm.log_evidence, hmm.actions, hmm.lengths
        batch = hmm.batch_shape
        posed = pose(hmm.table, hmm.log_initial, evidence, obs, actions, lengths, batch_shape=batch)
        values = _padded_potentials(posed)
        if hmm.log_actions is not None:
            inside = actions.clamp(0, hmm.table.num_actions - 1)  # the padding is not checked
            table = hmm.log_actions.expand(*posed.shape, -1)
            terms = table.gather(-1, inside.expand(*posed.shape, -1))
            values = values + torch.nn.functional.pad(terms, (1, 0))[..., None, None]
        self.log_potentials = values
        self.first_state = posed.padded(
            torch.as_tensor(posed.layout.support_start, device=obs.device), 0
        )
        steps = torch.arange(posed.num_steps, device=obs.device)
        length = torch.as_tensor(posed.layout.lengths, device=obs.device)
        self.inside = (steps < length.unsqueeze(-1)).view(*posed.shape, -1)
        super().__init__(posed.shape, values.shape[-3:], validate_args=validate_args)

    @property
    def allowed(self) -> Tensor:
        """``(..., T, R, R)`` the edges of positive probability."""
        return ~torch.isneginf(self.log_potentials.detach())

    @property
    def support(self) -> constraints.Constraint:
        """Relaxed paths along :attr:`allowed` edges."""
        return RelaxedPaths(self.allowed)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(...)`` natural log-probability, linear in the weights ``(..., T, R, R)`` of the edges.

        A weight on an edge of probability zero gives ``-inf``.
        """
        if self._validate_args:
            self._validate_sample(value)
        return linear_score(value, self.log_potentials)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Raises: relaxed paths come from a guide, exact ones from ``CloneHMM``."""
        raise NotImplementedError(
            "RelaxedPath cannot be sampled, expected a value from a guide (GumbelPathGuide) or "
            "from one_hot; draw posterior paths with `model.distribution(batch).sample_posterior`."
        )

    def one_hot(self, states: Tensor) -> Tensor:
        """``(..., T, R, R)`` the path through these global states ``(..., T)``.

        What the states hold beyond the end of a sequence is ignored.

        Raises:
            ValueError: a state that its step does not allow.
        """
        local = torch.where(self.inside, states - self.first_state, 0)
        width = self.log_potentials.shape[-1]
        arriving = self.allowed.any(-2)
        wrong = (local < 0) | (local >= width)
        wrong = wrong | ~arriving.gather(-1, local.clamp(0, width - 1).unsqueeze(-1)).squeeze(-1)
        if (wrong & self.inside).any():
            raise bad_entry(
                "states", states, wrong & self.inside, "a possible clone of the step's symbol"
            )
        previous = torch.nn.functional.pad(local[..., :-1], (1, 0))
        new = torch.nn.functional.one_hot(local, width)
        edges = torch.nn.functional.one_hot(previous, width).unsqueeze(-1) * new.unsqueeze(-2)
        return (edges * self.inside[..., None, None]).to(self.log_potentials.dtype)


def linear_score(weights: Tensor, log_potentials: Tensor) -> Tensor:
    """``(...)`` sum of ``weights * log_potentials`` over edges; ``-inf`` if weight is on one."""
    excluded = torch.isneginf(log_potentials)
    total = (weights * log_potentials.masked_fill(excluded, 0.0)).sum((-3, -2, -1))
    outside = (weights.detach() * excluded).sum((-3, -2, -1))
    return torch.where(outside == 0, total, -torch.inf)


class RelaxedCHMM(CloneModel):
    """Clone-structured HMM whose hidden path is one site, ``path``, one-hot or relaxed.

    The data are part of the site: a path goes through clones of the observed symbols only.  See
    :class:`~chmm_pyro.models.base.CloneModel` for the arguments; state dictionaries are
    interchangeable with those of :class:`~chmm_pyro.models.point.PointCHMM`.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> batch = SequenceBatch.from_arrays([0, 1, 0])
        >>> model = RelaxedCHMM(CloneStructure([2, 1]), num_actions=1)
        >>> path = model.joint(batch).one_hot(torch.tensor([0, 2, 1]))
        >>> trace = pyro.poutine.trace(pyro.condition(model, {"path": path})).get_trace(batch)
        >>> trace.log_prob_sum().item() < model.distribution(batch).log_prob(batch.obs).item()
        True
    """

    @classmethod
    def from_model(cls, model: CloneModel) -> RelaxedCHMM:
        """A copy of another model, with its parameters."""
        relaxed = cls.__new__(cls)
        PyroModule.__init__(relaxed)
        for name in ("initial", "transition", "action_logits"):
            setattr(relaxed, name, copy.deepcopy(getattr(model, name)))
        return relaxed

    def joint(self, batch: SequenceBatch, initial_logits: Tensor | None = None) -> RelaxedPath:
        """The joint log-probability of ``batch.obs`` and a path, as a function of the path."""
        return RelaxedPath(self.distribution(batch, initial_logits=initial_logits), batch.obs)

    def forward(self, batch: SequenceBatch, initial_logits: Tensor | None = None) -> Any:
        """The Pyro program; returns the path.

        Args:
            batch: one or many sequences (then in a plate ``sequences``).
            initial_logits: see :meth:`~chmm_pyro.models.base.CloneModel.distribution`.
        """
        joint = self.joint(batch, initial_logits)
        with sequence_plate(batch):
            return pyro.sample("path", joint)
