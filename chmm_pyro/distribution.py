"""The collapsed clone-structured HMM as one Pyro distribution over symbol sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from . import messages
from .beliefs import Posterior, StatePath
from .clones import MISSING, CloneStructure
from .data_layout import as_integers, check_actions, common_shape, symbol_of_state
from .jobs import JobBatch, pose
from .logits import log_softmax, refuse_bad, refuse_unlike
from .tables import Table, as_table

__all__ = ["CloneHMM"]


class CloneHMM(TorchDistribution):
    r"""Clone-structured HMM over a sequence of symbols, hidden states summed out exactly.

    Conventions are in :mod:`chmm_pyro.clones`.  Parameter batches ``*P`` broadcast against the
    batch ``*B`` of sequences.

    Args:
        clones: the clone structure.
        initial_logits: ``(*P, S)`` unnormalised log-probabilities at the first observation.
        transition_logits: ``(*P, A, S, S)`` unnormalised, action, old state, new state; or a
            :class:`~chmm_pyro.tables.Table`, which is used as it is.
        actions: ``(*B, T - 1)``; ``actions[t]`` drives step ``t`` to ``t + 1``.
        lengths: ``(*B)`` steps of each sequence, at most ``T``; by default all ``T``.
        log_evidence: ``(*B, T, V)`` or ``(*B, T, S)`` soft evidence; a dimension equal to both
            is read as states.
        action_model: ``"conditional"`` or ``"joint"``; must agree with a given table.
        action_logits: ``(*P, A)``; adds ``log p(a)`` to ``log_prob`` of a conditional model.

    Raises:
        ValueError: shapes, ranges or values that do not fit, named with what was expected.
        TypeError: data that are not integers, logits that are not floating point.

    Example:
        >>> clones = CloneStructure([2, 1])
        >>> hmm = CloneHMM(clones, torch.zeros(3), torch.zeros(2, 3, 3), torch.tensor([0, 1]))
        >>> hmm.event_shape, round(hmm.log_prob(torch.tensor([0, 1, 0])).exp().item(), 4)
        (torch.Size([3]), 0.1481)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = False

    def __init__(
        self,
        clones: CloneStructure,
        initial_logits: Tensor,
        transition_logits: Tensor | Table,
        actions: ArrayLike | Tensor,
        *,
        lengths: ArrayLike | Tensor | None = None,
        log_evidence: Tensor | None = None,
        action_model: str = "conditional",
        action_logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(clones, CloneStructure):
            raise TypeError(
                f"clones is {type(clones).__name__}, expected CloneStructure; write "
                "CloneStructure([70, 70]) for two symbols of 70 clones each."
            )
        self.clones = clones
        given = transition_logits
        given = given.values if isinstance(given, Table) else given
        refuse_unlike("transition_logits", given)
        for name, logits in (
            ("initial_logits", initial_logits),
            ("log_evidence", log_evidence),
            ("action_logits", action_logits),
        ):
            if logits is not None:
                refuse_unlike(name, logits, given)
        self.table = as_table(clones, transition_logits, action_model)
        self.action_model = self.table.action_model
        values = self.table.values
        if initial_logits.shape[-1:] != (clones.num_states,):
            raise ValueError(
                f"initial_logits has shape {tuple(initial_logits.shape)}, expected "
                f"(..., {clones.num_states}), one entry per state of {clones}."
            )
        self.log_initial = log_softmax("initial_logits", initial_logits)
        self.actions = as_integers("actions", actions, values.device)
        if self.actions.ndim == 0:
            raise ValueError(
                "actions is a scalar, expected (..., T - 1); for a model without actions pass "
                "torch.zeros(T - 1, dtype=torch.long)."
            )
        self.lengths = None if lengths is None else as_integers("lengths", lengths, values.device)
        num_steps = self.actions.shape[-1] + 1
        if self.table.per_step and values.shape[-3] != num_steps - 1:
            raise ValueError(
                f"log_potentials has blocks of {values.shape[-3]} steps, expected {num_steps - 1}: "
                "one for each of the T - 1 actions."
            )
        self.log_evidence = log_evidence
        if log_evidence is not None:
            widths = (clones.num_symbols, clones.num_states)
            if log_evidence.ndim < 2 or log_evidence.shape[-2] != num_steps:
                raise ValueError(
                    f"log_evidence has shape {tuple(log_evidence.shape)}, expected "
                    f"(..., {num_steps}, V or S): a row for each of the {num_steps} steps."
                )
            if log_evidence.shape[-1] not in widths:
                raise ValueError(
                    f"log_evidence has {log_evidence.shape[-1]} columns, expected {widths[0]} "
                    f"(symbols) or {widths[1]} (states)."
                )
            refuse_bad("log_evidence", log_evidence)
        self.log_actions = None
        if action_logits is not None:
            if self.action_model == "joint":
                raise ValueError(
                    "action_logits was given with action_model='joint', which has p(a | z) "
                    "already; leave action_logits out."
                )
            if action_logits.shape[-1:] != (self.table.num_actions,):
                raise ValueError(
                    f"action_logits has shape {tuple(action_logits.shape)}, expected "
                    f"(..., {self.table.num_actions}), one entry per action."
                )
            self.log_actions = log_softmax("action_logits", action_logits)
        batch_shape = common_shape(
            initial_logits=self.log_initial.shape[:-1],
            transition_logits=self.table.batch_shape,
            actions=self.actions.shape[:-1],
            lengths=None if self.lengths is None else self.lengths.shape,
            log_evidence=None if log_evidence is None else log_evidence.shape[:-2],
            action_logits=None if self.log_actions is None else self.log_actions.shape[:-1],
        )
        super().__init__(batch_shape, torch.Size([num_steps]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Symbols ``0 .. V - 1`` or MISSING at every step."""
        return constraints.independent(
            constraints.integer_interval(MISSING, self.clones.num_symbols - 1), 1
        )

    def expand(self, batch_shape: Any, _instance: CloneHMM | None = None) -> CloneHMM:
        """A view with a larger ``batch_shape``; parameters and actions are shared."""
        new = self._get_checked_instance(CloneHMM, _instance)
        for name in (
            *("clones", "table", "action_model", "log_initial", "actions", "lengths"),
            *("log_evidence", "log_actions"),
        ):
            setattr(new, name, getattr(self, name))
        batch_shape = torch.broadcast_shapes(torch.Size(batch_shape), self.batch_shape)
        super(CloneHMM, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # ----------------------------------------------------------------- data to problems

    def _data(self, value: ArrayLike | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        obs = as_integers("obs", value, self.table.values.device)
        if obs.shape[-1:] != self.event_shape:
            raise ValueError(
                f"obs has shape {tuple(obs.shape)}, expected (..., {self.event_shape[0]}): one "
                "more step than the actions."
            )
        if obs.numel() == 0:
            raise ValueError(
                f"obs has shape {tuple(obs.shape)}, expected at least one sequence; leave empty "
                "batches out."
            )
        common_shape(obs=obs.shape[:-1], model=self.batch_shape)
        return obs, self.actions, self.lengths

    def _problem(self, value: ArrayLike | Tensor) -> JobBatch:
        """The kernel problem of all jobs."""
        return pose(
            self.table,
            self.log_initial,
            self.log_evidence,
            *self._data(value),
            batch_shape=self.batch_shape,
        )

    # --------------------------------------------------------------------------- queries

    def _action_terms(self, full: torch.Size) -> Tensor | None:
        """``(*full, T - 1)`` of ``log p(a_t)``, zero in the padding."""
        if self.log_actions is None:
            return None
        batch = torch.broadcast_shapes(full, self.log_actions.shape[:-1])
        steps = self.event_shape[0] - 1
        actions = self.actions.expand(*batch, steps).clamp(0, self.table.num_actions - 1)
        terms = self.log_actions.expand(*batch, -1).gather(-1, actions)
        if self.lengths is None:
            return terms
        inside = torch.arange(1, steps + 1, device=terms.device) < self.lengths.unsqueeze(-1)
        return torch.where(inside, terms, 0.0)

    def log_prob(self, value: ArrayLike | Tensor) -> Tensor:
        """Natural log-probability of symbols ``(..., T)`` given the actions, a sum over steps.

        The gradient is exact and costs one forward and one backward pass; impossible data give
        ``-inf`` with gradient zero.
        """
        posed = self._problem(value)
        return self._with_actions(posed, messages.log_marginal(posed.problem))

    def _with_actions(self, posed: JobBatch, log_z: Tensor) -> Tensor:
        """Flat log-likelihoods of the symbols as those of symbols and actions, ``(*full)``."""
        log_z = log_z.to(self.table.values.dtype).view(posed.shape)
        terms = self._action_terms(posed.shape)
        if terms is None:
            return log_z
        # Impossible data say nothing about the actions either.
        return torch.where(torch.isneginf(log_z), log_z, log_z + terms.sum(-1))

    def log_prob_steps(self, value: ArrayLike | Tensor) -> Tensor:
        """``(..., T)`` terms ``log p(x_t | x_<t, a)``, which sum to ``log_prob``.

        Zero in the padding of shorter sequences, ``-inf`` from the first impossible step on.
        """
        posed = self._problem(value)
        log_steps = messages.forward(posed.problem).log_steps.to(self.table.values.dtype)
        padded = posed.padded(log_steps, 0.0)
        terms = self._action_terms(posed.shape)
        if terms is None:
            return padded
        return padded + torch.nn.functional.pad(terms, (1, 0))

    def filter(self, value: ArrayLike | Tensor) -> Posterior:
        """``p(z_t | x_0 .. x_t)`` of every step.

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        posed = self._problem(value)
        result = messages.forward(posed.problem)
        posed.raise_if_impossible(result.log_steps)
        return posed.posterior(result.messages)

    def smooth(self, value: ArrayLike | Tensor) -> Posterior:
        """``p(z_t | x)`` of every step, with expected initial and transition counts.

        The counts are the gradient of :meth:`log_prob` with respect to the log-probabilities.
        They come for each sequence; :meth:`expected_counts` sums over a batch in less memory.

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        posed = self._problem(value)
        # Every job gets rows of its own, so that counts are not summed over the batch.
        own = np.arange(posed.shape.numel())
        jobs, log_blocks = posed.problem.jobs, posed.problem.log_blocks.detach()
        initial = posed.problem.log_initial.detach()[torch.as_tensor(jobs.initial)]
        if not self.table.per_step:
            log_blocks = log_blocks[torch.as_tensor(jobs.blocks)]
            jobs = replace(jobs, blocks=own)
        separate = posed.problem._replace(
            jobs=replace(jobs, initial=own), log_initial=initial, log_blocks=log_blocks
        )
        counts = messages.expected_counts(separate, marginals=True)
        if torch.isneginf(counts.log_z).any():
            log_steps = messages.forward(posed.problem).log_steps
            posed.raise_if_impossible(log_steps)
        found = posed.posterior(counts.marginals)
        return replace(
            found,
            initial_counts=counts.initial_counts.view(*posed.shape, self.clones.num_states),
            transition_counts=self._table_counts(posed, counts.block_counts, posed.shape),
        )

    def expected_counts(self, value: ArrayLike | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The E-step: log-likelihoods and expected counts summed over the sequence batch.

        Returns:
            ``log_prob`` ``(...)`` float64 without action terms, ``initial_counts`` ``(*P, S)`` and
            ``transition_counts`` ``(*P, A, S, S)`` in the shape of the parameters.
        """
        posed = self._problem(value)
        counts = messages.expected_counts(posed.problem)
        return (
            counts.log_z.view(posed.shape),
            counts.initial_counts.view(self.log_initial.shape),
            self._table_counts(posed, counts.block_counts, self.table.batch_shape),
        )

    def _table_counts(self, posed: JobBatch, block_counts: Tensor, batch: torch.Size) -> Tensor:
        """Expected counts in the shape of the table; per-step ones belong to the jobs anyway."""
        counts = self.table.counts(posed.layout, block_counts)
        if self.table.per_step:
            return counts.view(*posed.shape, *counts.shape[2:])
        return counts.view(*batch, *counts.shape[1:])

    def posterior_mode(
        self, value: ArrayLike | Tensor, *, generator: torch.Generator | None = None
    ) -> StatePath:
        """The most probable path (Viterbi) and its joint log-probability with the data.

        Args:
            value: symbols ``(..., T)``.
            generator: draws among tied states; without one the lowest state wins.

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        posed = self._problem(value)
        seed = None
        if generator is not None:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        path = messages.viterbi(posed.problem, seed)
        if torch.isneginf(path.score).any():
            log_steps = messages.forward(posed.problem).log_steps
            posed.raise_if_impossible(log_steps)
        score = path.score.view(posed.shape)
        terms = self._action_terms(posed.shape)
        if terms is not None:
            score = score + terms.detach().sum(-1)
        return StatePath(posed.global_states(path.states), score)

    def sample_posterior(
        self,
        value: ArrayLike | Tensor,
        num_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``(num_samples, ..., T)`` paths drawn from ``p(z | x, a)``.

        Args:
            value: symbols ``(..., T)``.
            num_samples: paths per sequence.
            generator: by default torch's global one (``pyro.set_rng_seed``).

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        return self.draw_paths(value, num_samples, generator=generator)[0]

    def draw_paths(
        self,
        value: ArrayLike | Tensor,
        num_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`sample_posterior` and :meth:`log_prob` return, both from one pass.

        The log-probabilities are without gradient; arguments and errors are those of
        :meth:`sample_posterior`.
        """
        if not isinstance(num_samples, int):
            raise TypeError(f"num_samples = {num_samples!r}, expected an integer of at least 1.")
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples}, expected at least 1 draw.")
        posed = self._problem(value)
        uniforms = torch.rand(
            num_samples,
            posed.problem.layout.num_steps,
            dtype=torch.float64,
            device=self.table.values.device,
            generator=generator,
        )
        drawn = messages.sample_paths(posed.problem, uniforms)
        if torch.isneginf(drawn.log_z).any():
            log_steps = messages.forward(posed.problem).log_steps
            posed.raise_if_impossible(log_steps)
        log_prob = self._with_actions(posed, drawn.log_z).detach()
        return posed.global_states(drawn.states), log_prob

    @torch.no_grad()
    def sample(
        self, sample_shape: Any = (), *, first_symbol: int | ArrayLike | Tensor | None = None
    ) -> Tensor:
        """Draw symbols ``(*sample_shape, ..., T)`` along the given actions.

        Each state is drawn from ``p(z' | z, a)``, also in a joint model: the actions are chosen
        for the model and say nothing about its states.

        Args:
            sample_shape: leading shape.
            first_symbol: start in a state of this symbol (broadcast against the result's batch)
                instead of anywhere.

        Raises:
            ValueError: a first symbol of probability zero, actions out of range or impossible in
                the state drawn (joint models), or a model with soft evidence (which says nothing
                about symbols yet to be drawn).
        """
        if self.log_evidence is not None:
            raise ValueError(
                "sample was called on a CloneHMM with log_evidence; draw states given the "
                "evidence with sample_posterior, or build the model without it."
            )
        shape = self._extended_shape(torch.Size(sample_shape))
        batch, steps = shape[:-1], shape[-1]
        device = self.table.values.device
        of_state = symbol_of_state(self.clones, device)
        probs = self.log_initial.exp().expand(*batch, -1)
        if first_symbol is not None:
            symbol = as_integers("first_symbol", torch.as_tensor(first_symbol).to(device), device)
            probs = probs * (of_state == symbol.unsqueeze(-1))
            if (probs.sum(-1) == 0).any():
                raise ValueError(
                    f"first_symbol = {symbol.tolist()} has probability zero, expected a symbol "
                    f"below {self.clones.num_symbols} that the initial distribution allows."
                )
        actions = self.actions
        inside = None
        if self.lengths is not None:
            inside = torch.arange(steps, device=device) < self.lengths.unsqueeze(-1)
            actions = torch.where(inside[..., 1:], actions, 0)
        if not self.table.per_step:
            check_actions("actions", actions, self.table.num_actions)
        actions = actions.expand(*batch, steps - 1)
        states = [_draw(probs)]
        for t in range(steps - 1):
            probs = self.table.rows(actions[..., t], states[-1]).exp()
            if (probs.sum(-1) == 0).any():
                raise ValueError(
                    f"actions[..., {t}] has probability zero in a state drawn for step {t}, "
                    "expected actions that the joint model can take there."
                )
            states.append(_draw(probs))
        symbols = of_state[torch.stack(states, -1)]
        return symbols if inside is None else torch.where(inside, symbols, 0)

    def predict(self, value: ArrayLike | Tensor, future_actions: ArrayLike | Tensor) -> Tensor:
        """Distribution of the symbols that follow ``value``.

        Args:
            value: symbols seen so far, ``(..., T)``.
            future_actions: ``(..., K)``; the first one leaves the last observed step.

        Returns:
            ``(..., K, V)``: entry ``k`` is ``p(x_{T + k} | x, a)``.
        """
        future = as_integers("future_actions", future_actions, self.table.values.device)
        check_actions("future_actions", future, self.table.num_actions)
        beliefs = self.filter(value)
        if self.lengths is None:
            probs = beliefs.at(-1)
        else:
            batch = beliefs.probs.shape[:-2]
            last = (self.lengths - 1).expand(batch)
            at = last[..., None, None]
            one = Posterior(
                beliefs.probs.gather(-2, at.expand(*batch, 1, beliefs.probs.shape[-1])),
                beliefs.first_state.gather(-1, last.unsqueeze(-1)),
                beliefs.num_states,
            )
            probs = one.dense().squeeze(-2)
        batch = torch.broadcast_shapes(probs.shape[:-1], future.shape[:-1])
        probs, future = probs.expand(*batch, -1), future.expand(*batch, -1)
        of_state = symbol_of_state(self.clones, probs.device)
        symbols = probs.new_zeros(*batch, self.clones.num_symbols, 0)
        for k in range(future.shape[-1]):
            probs = self.table.propagate(probs, future[..., k])
            total = probs.sum(-1, keepdim=True)
            if (total == 0).any():
                raise ValueError(
                    f"future_actions[..., {k}] has probability zero after the steps before it, "
                    "expected actions that the joint model can take there."
                )
            probs = probs / total
            empty = probs.new_zeros(*batch, self.clones.num_symbols)
            ahead = empty.index_add(-1, of_state, probs)
            symbols = torch.cat([symbols, ahead.unsqueeze(-1)], -1)
        return symbols.transpose(-1, -2)


def _draw(probs: Tensor) -> Tensor:
    """``(...)`` indices drawn in proportion to ``probs (..., S)``."""
    return torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1).view(probs.shape[:-1])
