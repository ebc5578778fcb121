"""The collapsed clone-structured HMM as one Pyro distribution over symbol sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from . import messages
from ._kernels.interface import Problem
from ._kernels.layout import Jobs, Layout
from .clones import MISSING, CloneStructure
from .data_layout import as_integers, bad_entry, lay_out, symbol_of_state
from .tables import DenseTable, StepTable, Table, log_normalise

__all__ = ["CloneHMM", "Posterior", "StatePath"]


@dataclass(frozen=True)
class Posterior:
    """State probabilities of every step, stored for the states that the step allows.

    Attributes:
        probs: ``(..., T, R)``; entry ``[t, i]`` belongs to the ``i``-th state that step ``t``
            allows (the clones of its symbol; every state where it is missing), zero beyond that
            and in the padding.
        first_state: ``(..., T)`` the global state of entry ``0``.
        num_states: ``S``.
        initial_counts: ``(..., S)`` posterior of the first state; None for a filter.
        transition_counts: ``(..., A, S, S)`` expected counts (the shape of the transition table);
            None for a filter.
    """

    probs: Tensor
    first_state: Tensor
    num_states: int
    initial_counts: Tensor | None = None
    transition_counts: Tensor | None = None

    def dense(self) -> Tensor:
        """``(..., T, S)`` probabilities of all states; differentiable."""
        local = torch.arange(self.probs.shape[-1], device=self.probs.device)
        # Entries beyond a support are zero, so wrapping them around adds nothing.
        state = (self.first_state.unsqueeze(-1) + local) % self.num_states
        empty = self.probs.new_zeros(*self.probs.shape[:-1], self.num_states)
        return empty.scatter_add(-1, state, self.probs)

    def at(self, t: int) -> Tensor:
        """``(..., S)`` probabilities of all states at step ``t``."""
        one = Posterior(
            self.probs[..., t : t + 1, :] if t != -1 else self.probs[..., -1:, :],
            self.first_state[..., t : t + 1] if t != -1 else self.first_state[..., -1:],
            self.num_states,
        )
        return one.dense().squeeze(-2)


class StatePath(NamedTuple):
    """A most probable path.

    Attributes:
        states: ``(..., T)`` global states; MISSING beyond the end of a shorter sequence.
        score: ``(...)`` float64 joint natural log-probability of path and data.
    """

    states: Tensor
    score: Tensor


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
        for name, value in (
            ("initial_logits", initial_logits),
            ("transition_logits", transition_logits),
            ("log_evidence", log_evidence),
            ("action_logits", action_logits),
        ):
            if value is None or isinstance(value, Table):
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"{name} is {found}, expected a float32 or float64 tensor; convert with "
                    "`torch.as_tensor(x, dtype=torch.float64)`."
                )
        if isinstance(transition_logits, Table):
            self.table = transition_logits
            if self.table.clones != clones:
                raise ValueError(
                    f"transition_logits is a table for {self.table.clones}, expected {clones}."
                )
        else:
            if transition_logits.ndim < 3:
                raise ValueError(
                    f"transition_logits has shape {tuple(transition_logits.shape)}, expected "
                    f"(..., A, {clones.num_states}, {clones.num_states})."
                )
            # The shape is checked before the softmax spends time on it.
            DenseTable(clones, transition_logits)
            log_transition = log_normalise(transition_logits, action_model)
            self.table = DenseTable(clones, log_transition, action_model)
        self.action_model = self.table.action_model
        values = self.table.values
        if initial_logits.shape[-1:] != (clones.num_states,):
            raise ValueError(
                f"initial_logits has shape {tuple(initial_logits.shape)}, expected "
                f"(..., {clones.num_states}), one entry per state of {clones}."
            )
        for name, value in (
            ("initial_logits", initial_logits),
            ("log_evidence", log_evidence),
            ("action_logits", action_logits),
        ):
            if value is None:
                continue
            if value.device != values.device:
                raise ValueError(
                    f"{name} is on {value.device}, expected {values.device} like "
                    "transition_logits; move one with `.to(device)`."
                )
            if value.dtype != values.dtype:
                raise TypeError(
                    f"{name} has dtype {value.dtype}, expected {values.dtype} like "
                    "transition_logits; convert one with `.to(dtype)`."
                )
        self.log_initial = initial_logits.log_softmax(-1)
        if torch.isnan(self.log_initial.detach().sum()):
            raise ValueError(
                "initial_logits holds NaN, +inf or only -inf, expected at least one finite logit "
                "in each row and -inf for impossible first states."
            )
        self.actions = as_integers("actions", actions, values.device)
        if self.actions.ndim == 0:
            raise ValueError(
                "actions is a scalar, expected (..., T - 1); for a model without actions pass "
                "torch.zeros(T - 1, dtype=torch.long)."
            )
        self.lengths = None if lengths is None else as_integers("lengths", lengths, values.device)
        num_steps = self.actions.shape[-1] + 1
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
            if torch.isnan(log_evidence.detach().sum()):
                raise ValueError(
                    "log_evidence holds NaN or +inf, expected finite log-likelihoods or -inf."
                )
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
            self.log_actions = action_logits.log_softmax(-1)
            if torch.isnan(self.log_actions.detach().sum()):
                raise ValueError("action_logits holds NaN, expected finite logits or -inf.")
        batch_shape = torch.broadcast_shapes(
            self.log_initial.shape[:-1],
            self.table.batch_shape,
            self.actions.shape[:-1],
            () if self.lengths is None else self.lengths.shape,
            () if log_evidence is None else log_evidence.shape[:-2],
            () if self.log_actions is None else self.log_actions.shape[:-1],
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
        return obs, self.actions, self.lengths

    def _problem(self, value: ArrayLike | Tensor) -> tuple[Problem, torch.Size]:
        """Kernel problem of all jobs and the shape that they come in."""
        data = self._data(value)
        obs, actions, lengths = data
        full = torch.broadcast_shapes(self.batch_shape, obs.shape[:-1])
        shapes = [obs.shape[:-1], actions.shape[:-1]]
        if lengths is not None:
            shapes.append(lengths.shape)
        per_step = isinstance(self.table, StepTable)
        shape = full if per_step else torch.broadcast_shapes(*shapes)
        layout = lay_out(
            self.clones,
            *data,
            shape=shape,
            num_actions=self.table.num_actions,
            per_step=per_step,
        )
        num_jobs = full.numel()

        def rows(batch: torch.Size) -> np.ndarray:
            if batch.numel() == 1:
                return np.zeros(num_jobs, np.int64)
            return np.broadcast_to(np.arange(batch.numel()).reshape(batch), full).reshape(-1)

        table = self.table
        if per_step:
            assert isinstance(table, StepTable)
            expanded = table.values.expand(*full, *table.values.shape[-3:])
            table = StepTable(self.clones, expanded)
            blocks, block_rows = table.blocks(layout)[None], np.zeros(num_jobs, np.int64)
        else:
            blocks = table.blocks(layout)
            block_rows = rows(blocks.shape[:-1])
            blocks = blocks.reshape(-1, blocks.shape[-1])
        if num_jobs != layout.num_sequences:
            layout = layout.repeat(rows(shape))
        jobs = Jobs(rows(self.log_initial.shape[:-1]), block_rows)
        initial = self.log_initial.reshape(-1, self.clones.num_states)
        evidence = None
        if self.log_evidence is not None:
            evidence = self._flat_evidence(layout, full)
        return Problem(layout, jobs, initial, blocks, evidence), full

    def _flat_evidence(self, layout: Layout, full: torch.Size) -> Tensor:
        assert self.log_evidence is not None
        steps, width = self.log_evidence.shape[-2:]
        state = layout.state_of_message
        column = state if width == self.clones.num_states else self.clones.symbol_of_state[state]
        step = layout.step_of_message
        rows = np.broadcast_to(
            np.arange(self.log_evidence.shape[:-2].numel()).reshape(self.log_evidence.shape[:-2]),
            full,
        ).reshape(-1)
        at = rows[layout.sequence_of_step[step]] * steps + layout.time_of_step[step]
        index = torch.as_tensor(at * width + column, device=self.log_evidence.device)
        return self.log_evidence.reshape(-1).index_select(0, index)

    def _padded(self, layout: Layout, full: torch.Size, values: Tensor, fill: float) -> Tensor:
        """Flat per-step values ``(*L, Q)`` as ``(*L, *full, T)``."""
        steps = self.event_shape[0]
        lead = values.shape[:-1]
        if layout.num_steps == full.numel() * steps:
            return values.reshape(*lead, *full, steps)
        at = layout.sequence_of_step * steps + layout.time_of_step
        out = values.new_full((*lead, full.numel() * steps), fill)
        out = out.index_copy(-1, torch.as_tensor(at, device=values.device), values)
        return out.view(*lead, *full, steps)

    def _posterior(self, layout: Layout, full: torch.Size, flat: Tensor) -> Posterior:
        steps, width = self.event_shape[0], layout.max_support
        step = layout.step_of_message
        row = layout.sequence_of_step[step] * steps + layout.time_of_step[step]
        local = layout.state_of_message - layout.support_start[step]
        at = torch.as_tensor(row * width + local, device=flat.device)
        out = flat.new_zeros(full.numel() * steps * width).index_copy(0, at, flat)
        start = torch.as_tensor(layout.support_start, device=flat.device)
        return Posterior(
            out.view(*full, steps, width),
            self._padded(layout, full, start, 0),
            self.clones.num_states,
        )

    def _raise_if_impossible(self, layout: Layout, full: torch.Size, log_steps: Tensor) -> None:
        impossible = torch.isneginf(log_steps.detach())
        if not impossible.any():
            return
        step = int(impossible.nonzero()[0, 0])
        job, time = int(layout.sequence_of_step[step]), int(layout.time_of_step[step])
        where = f"step {time}"
        if full:
            where += f" of sequence {[int(i) for i in np.unravel_index(job, full)]}"
        raise ValueError(
            f"obs is impossible at {where} (symbol {int(layout.flat_obs[step])}): every path that "
            "explains the steps before it has probability zero there, so its states have no "
            "posterior; use a pseudocount when fitting, or mark the step as MISSING (-1)."
        )

    # --------------------------------------------------------------------------- queries

    def _action_terms(self, obs: Tensor, full: torch.Size) -> Tensor | None:
        """``(*full, T - 1)`` of ``log p(a_t)``, zero in the padding."""
        if self.log_actions is None:
            return None
        batch = torch.broadcast_shapes(full, self.log_actions.shape[:-1])
        steps = self.event_shape[0] - 1
        actions = self.actions.expand(*batch, steps).clamp(0, self.table.num_actions - 1)
        terms = self.log_actions.expand(*batch, -1).gather(-1, actions)
        if self.lengths is None:
            return terms
        inside = torch.arange(1, steps + 1, device=obs.device) < self.lengths.unsqueeze(-1)
        return torch.where(inside, terms, 0.0)

    def log_prob(self, value: ArrayLike | Tensor) -> Tensor:
        """Natural log-probability of symbols ``(..., T)`` given the actions, a sum over steps.

        The gradient is exact and costs one forward and one backward pass; impossible data give
        ``-inf`` with gradient zero.
        """
        problem, full = self._problem(value)
        log_z = messages.log_marginal(problem).to(self.table.values.dtype).view(full)
        terms = self._action_terms(problem.log_blocks, full)
        return log_z if terms is None else log_z + terms.sum(-1)

    def log_prob_steps(self, value: ArrayLike | Tensor) -> Tensor:
        """``(..., T)`` terms ``log p(x_t | x_<t, a)``, which sum to ``log_prob``.

        Zero in the padding of shorter sequences, ``-inf`` from the first impossible step on.
        """
        problem, full = self._problem(value)
        log_steps = messages.forward(problem).log_steps.to(self.table.values.dtype)
        padded = self._padded(problem.layout, full, log_steps, 0.0)
        terms = self._action_terms(problem.log_blocks, full)
        if terms is None:
            return padded
        return padded + torch.nn.functional.pad(terms, (1, 0))

    def filter(self, value: ArrayLike | Tensor) -> Posterior:
        """``p(z_t | x_0 .. x_t)`` of every step.

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        problem, full = self._problem(value)
        result = messages.forward(problem)
        self._raise_if_impossible(problem.layout, full, result.log_steps)
        return self._posterior(problem.layout, full, result.messages)

    def smooth(self, value: ArrayLike | Tensor) -> Posterior:
        """``p(z_t | x)`` of every step, with expected initial and transition counts.

        The counts are the gradient of :meth:`log_prob` with respect to the log-probabilities.
        They come for each sequence; :meth:`expected_counts` sums over a batch in less memory.

        Raises:
            ValueError: impossible data; names the first impossible step.
        """
        problem, full = self._problem(value)
        # Give every job its own rows, so that counts are not summed over the batch.
        jobs = problem.jobs
        own = np.arange(full.numel())
        separate = problem._replace(
            jobs=Jobs(own, own),
            log_initial=problem.log_initial.detach()[torch.as_tensor(jobs.initial)],
            log_blocks=problem.log_blocks.detach()[torch.as_tensor(jobs.blocks)],
        )
        counts = messages.expected_counts(separate, marginals=True)
        if torch.isneginf(counts.log_z).any():
            log_steps = messages.forward(problem).log_steps
            self._raise_if_impossible(problem.layout, full, log_steps)
        found = self._posterior(problem.layout, full, counts.marginals)
        transition = self.table.counts(problem.layout, counts.block_counts)
        return Posterior(
            found.probs,
            found.first_state,
            found.num_states,
            counts.initial_counts.view(*full, self.clones.num_states),
            transition.view(*full, *transition.shape[1:]),
        )

    def expected_counts(self, value: ArrayLike | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The E-step: log-likelihoods and expected counts summed over the sequence batch.

        Returns:
            ``log_prob`` ``(...)`` float64 without action terms, ``initial_counts`` ``(*P, S)`` and
            ``transition_counts`` ``(*P, A, S, S)`` in the shape of the parameters.
        """
        problem, full = self._problem(value)
        counts = messages.expected_counts(problem)
        transition = self.table.counts(problem.layout, counts.block_counts)
        return (
            counts.log_z.view(full),
            counts.initial_counts.view(self.log_initial.shape),
            transition.view(*self.table.batch_shape, *transition.shape[1:])
            if not self.table.per_step
            else transition[0].view(*full, *transition.shape[2:]),
        )

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
        problem, full = self._problem(value)
        seed = None
        if generator is not None:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        path = messages.viterbi(problem, seed)
        if torch.isneginf(path.score).any():
            log_steps = messages.forward(problem).log_steps
            self._raise_if_impossible(problem.layout, full, log_steps)
        score = path.score.view(full)
        terms = self._action_terms(problem.log_blocks, full)
        if terms is not None:
            score = score + terms.detach().sum(-1)
        return StatePath(self._global(problem.layout, full, path.states), score)

    def _global(self, layout: Layout, full: torch.Size, local: Tensor) -> Tensor:
        start = torch.as_tensor(layout.support_start, device=local.device)
        return self._padded(layout, full, local + start, MISSING)

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
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples}, expected at least 1.")
        problem, full = self._problem(value)
        if torch.isneginf(messages.log_marginal(problem._replace()).detach()).any():
            log_steps = messages.forward(problem).log_steps
            self._raise_if_impossible(problem.layout, full, log_steps)
        uniforms = torch.rand(
            num_samples,
            problem.layout.num_steps,
            dtype=torch.float64,
            device=self.table.values.device,
            generator=generator,
        )
        states = messages.sample_paths(problem, uniforms)
        return self._global(problem.layout, full, states)

    @torch.no_grad()
    def sample(
        self, sample_shape: Any = (), *, first_symbol: int | ArrayLike | Tensor | None = None
    ) -> Tensor:
        """Draw symbols ``(*sample_shape, ..., T)`` along the given actions.

        Args:
            sample_shape: leading shape.
            first_symbol: start in a state of this symbol (broadcast against the result's batch)
                instead of anywhere.

        Raises:
            ValueError: a first symbol of probability zero, or a model with soft evidence (which
                says nothing about symbols yet to be drawn).
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
        actions = self.actions.expand(*batch, steps - 1)
        inside = None if self.lengths is None else self.lengths.expand(batch)
        states = []
        for t in range(steps):
            if t > 0:
                current = torch.nn.functional.one_hot(states[-1], self.clones.num_states)
                probs = self.table.propagate(current.to(probs.dtype), actions[..., t - 1])
            drawn = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1).view(batch)
            if inside is not None and t > 0:
                drawn = torch.where(t < inside, drawn, states[-1])
            states.append(drawn)
        symbols = of_state[torch.stack(states, -1)]
        if inside is None:
            return symbols
        return torch.where(torch.arange(steps, device=device) < inside.unsqueeze(-1), symbols, 0)

    def predict(self, value: ArrayLike | Tensor, future_actions: ArrayLike | Tensor) -> Tensor:
        """Distribution of the symbols that follow ``value``.

        Args:
            value: symbols seen so far, ``(..., T)``.
            future_actions: ``(..., K)``; the first one leaves the last observed step.

        Returns:
            ``(..., K, V)``: entry ``k`` is ``p(x_{T + k} | x, a)``.
        """
        future = as_integers("future_actions", future_actions, self.table.values.device)
        wrong = (future < 0) | (future >= self.table.num_actions)
        if wrong.any():
            raise bad_entry(
                "future_actions", future, wrong, f"an action in 0 .. {self.table.num_actions - 1}"
            )
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
        of_state = symbol_of_state(self.clones, probs.device)
        symbols = []
        for k in range(future.shape[-1]):
            actions = future[..., k]
            probs = self.table.propagate(probs, actions.expand(probs.shape[:-1]))
            probs = probs / probs.sum(-1, keepdim=True)
            empty = probs.new_zeros(*probs.shape[:-1], self.clones.num_symbols)
            symbols.append(empty.index_add(-1, of_state, probs))
        return torch.stack(symbols, -2)
