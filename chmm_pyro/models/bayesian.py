r"""Priors over every parameter; hidden states stay summed out exactly.

What a draw of the parameters says about the data costs one forward pass, and its gradient one more
pass back, so Hamiltonian and variational methods work on the parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import compress
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from ..clones import CloneStructure
from ..data_layout import symbol_of_state
from ..distribution import CloneHMM
from ..sequences import SequenceBatch
from ..simplex import LogDirichlet
from ..tables import DenseTable
from .base import check_actions_of_model, sequence_plate
from .given import step_by_step
from .noisy import NoisyCHMM, NoisyCloneHMM, noisy_steps, state_chain
from .point import PointCHMM
from .priors import SMALLEST, TransitionPrior, check_positive, from_rows, to_rows

__all__ = ["BayesianCHMM", "Parameters", "PriorPredictive"]


_PUBLIC_NAMES = {
    "concentration": "concentration",
    "log_sticks": "clone_weights",
    "log_transition": "transition",
    "log_initial": "initial",
    "log_actions": "actions",
    "log_emission": "emission",
}


class Parameters(NamedTuple):
    """Normalised log-probabilities, with leading dimensions ``*P`` of draws.

    Attributes:
        log_initial: ``(*P, S)``.
        log_transition: ``(*P, A, S, S)``.
        log_actions: ``(*P, A)``, or None where actions have no probability.
        log_emission: ``(*P, S, V)``, or None where states emit their own symbol.
    """

    log_initial: Tensor
    log_transition: Tensor
    log_actions: Tensor | None = None
    log_emission: Tensor | None = None

    def beside(self, batch: SequenceBatch) -> Parameters:
        """The draws with a dimension of their own, left of that of the sequences."""
        if batch.lengths is None or self.log_transition.ndim == 3:
            return self
        log_initial, log_transition, log_actions, log_emission = self
        return Parameters(
            log_initial.unsqueeze(-2),
            log_transition.unsqueeze(-4),
            None if log_actions is None else log_actions.unsqueeze(-2),
            None if log_emission is None else log_emission.unsqueeze(-3),
        )


class PriorPredictive(NamedTuple):
    """What a model expects before it sees data.

    Attributes:
        draws: parameters by public name, ``(num_samples, ...)``.
        obs: ``(num_samples, ...)`` symbols in the shape of ``batch.obs``.
        states: hidden states, like ``obs``.
        num_used: ``(num_samples, V)`` different clones of each symbol that were visited.
    """

    draws: dict[str, Tensor]
    obs: Tensor
    states: Tensor
    num_used: Tensor


class BayesianCHMM(PyroModule):
    """Clone-structured HMM with Dirichlet priors, a plain Pyro program.

    Sites (all but ``concentration`` in log space, see :mod:`chmm_pyro.simplex`), each only where
    the arguments ask for it: ``concentration`` ``()``, ``log_sticks`` ``(S - V, 2)``,
    ``log_transition`` ``(A, S, S)`` (``(S, A * S)`` in the joint action model: one row per state),
    ``log_initial`` ``(S,)``, ``log_actions`` ``(A,)``, ``log_emission`` ``(S, V)``, and the
    observed ``obs`` (``obs_t`` and the enumerated ``clone_t`` of every step with ``enumerated``).

    Fit it with :func:`~chmm_pyro.inference.svi.fit_svi` and a guide,
    :func:`~chmm_pyro.inference.vb.fit_vb`, :func:`~chmm_pyro.inference.gibbs.fit_gibbs` or
    :func:`~chmm_pyro.inference.nuts.fit_nuts`.

    Args:
        clones: the clone structure.
        num_actions: ``A``.
        concentration: of the transition rows: a number, or a tensor that broadcasts to
            ``(A, S, S)``; by pair of symbols with
            :func:`~chmm_pyro.models.priors.block_concentration`.  Below 1 rows are sparse.
        sticky: added to the concentration of staying in a state.
        hyperprior: ``(shape, rate)`` of a Gamma prior of a factor, the site ``concentration``,
            that multiplies the argument ``concentration``.
        stick_concentration: of a truncated stick-breaking prior over the clones of each symbol,
            so that how many are used is inferred; smaller means fewer.  None treats clones alike.
        learn_initial: a Dirichlet prior on the initial distribution, instead of a uniform one.
        initial_concentration: of that prior.
        learn_actions: a Dirichlet prior on the probabilities of actions (conditional only).
        action_concentration: of that prior.
        emission_concentration: ``(own, other)`` concentrations of Dirichlet rows with which states
            emit their own and other symbols; None lets them emit their own only.
        action_model: ``"conditional"`` or ``"joint"``.
        enumerated: write the hidden states as sites that ``TraceEnum_ELBO`` sums out.
        dtype: of all parameters.

    Attributes:
        sites: names of the latent sites, in the order they are drawn.
        public_names: what :meth:`draws_of` calls them.

    Raises:
        ValueError: concentrations that are not positive, or options that exclude each other.

    Example:
        >>> from chmm_pyro import CloneStructure, SequenceBatch
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 1, 0])
        >>> model = BayesianCHMM(CloneStructure([2, 2]), num_actions=1, concentration=0.5)
        >>> sorted(pyro.poutine.trace(model).get_trace(batch).stochastic_nodes)
        ['log_transition']
    """

    def __init__(
        self,
        clones: CloneStructure,
        num_actions: int,
        concentration: float | Tensor = 0.1,
        *,
        sticky: float = 0.0,
        hyperprior: tuple[float, float] | None = None,
        stick_concentration: float | None = None,
        learn_initial: bool = False,
        initial_concentration: float = 1.0,
        learn_actions: bool = False,
        action_concentration: float = 1.0,
        emission_concentration: tuple[float, float] | None = None,
        action_model: str = "conditional",
        enumerated: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        check_actions_of_model(num_actions, action_model, learn_actions)
        self.clones, self.num_actions, self.action_model = clones, num_actions, action_model
        self.learn_initial, self.learn_actions = learn_initial, learn_actions
        self.enumerates, self.dtype = enumerated, dtype
        self.transition_prior = TransitionPrior(
            clones,
            num_actions,
            concentration,
            sticky=sticky,
            hyperprior=hyperprior,
            stick_concentration=stick_concentration,
            dtype=dtype,
        )
        self.register_buffer("initial_concentration", torch.tensor(initial_concentration).to(dtype))
        check_positive("initial_concentration", self.initial_concentration)
        alpha = torch.full((num_actions,), action_concentration, dtype=dtype)
        self.register_buffer("action_concentration", alpha)
        check_positive("action_concentration", alpha)
        self.register_buffer("emission_concentration", None)
        if emission_concentration is not None:
            own, other = torch.tensor(emission_concentration, dtype=dtype)
            owner = symbol_of_state(clones, own.device)
            mine = owner[:, None] == torch.arange(clones.num_symbols)
            self.emission_concentration = torch.where(mine, own, other)
            check_positive("emission_concentration", self.emission_concentration)
        asked = (
            hyperprior is not None,
            self.transition_prior.num_sticks > 0,
            True,
            learn_initial,
            learn_actions,
            emission_concentration is not None,
        )
        self.sites = tuple(compress(_PUBLIC_NAMES, asked))
        self.public_names = tuple(_PUBLIC_NAMES[site] for site in self.sites)

    def prior(self, site: str, values: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The prior of one site given those before it.

        Args:
            site: one of :attr:`sites`.
            values: hyperparameters drawn so far, with leading dimensions ``*P``.
        """
        prior = self.transition_prior
        ones = prior.base.new_ones(())
        if site == "concentration":
            assert prior.hyperprior is not None
            shape, rate = prior.hyperprior
            return dist.Gamma(shape * ones, rate * ones)
        if site == "log_sticks":
            assert prior.stick_concentration is not None
            sticks = torch.stack([ones, prior.stick_concentration * ones])
            return LogDirichlet(sticks).expand([prior.num_sticks]).to_event(1)
        if site == "log_transition":
            rows = to_rows(self.concentration(values), self.action_model)
            return LogDirichlet(rows).to_event(2 if self.action_model == "conditional" else 1)
        if site == "log_initial":
            alpha = self.initial_concentration.expand(self.clones.num_states)
            log_weights = self.log_weights(values)
            if log_weights is not None:
                alpha = (alpha * prior.relative(log_weights)).clamp(min=SMALLEST)
            return LogDirichlet(alpha)
        if site == "log_actions":
            return LogDirichlet(self.action_concentration)
        return LogDirichlet(self.emission_concentration).to_event(1)

    def log_weights(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """``(*P, S)`` log share of each clone in its symbol, or None where clones are alike."""
        if "log_sticks" not in values:
            return None
        return self.transition_prior.sticks.log_weights(values["log_sticks"])

    def concentration(self, values: Mapping[str, Tensor]) -> Tensor:
        """``(*P, A, S, S)`` concentrations of the transition rows given hyperparameters."""
        return self.transition_prior.concentration(
            values.get("concentration"), self.log_weights(values)
        )

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """``(*P)`` log-density of values of all sites."""
        terms = [self.prior(site, values).log_prob(values[site]) for site in self.sites]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def parameters_of(self, values: Mapping[str, Tensor]) -> Parameters:
        """The parameters that values of the sites stand for."""
        table = from_rows(values["log_transition"], self.num_actions, self.action_model)
        log_initial = values.get("log_initial")
        if log_initial is None:
            states = self.clones.num_states
            log_initial = table.new_full((*table.shape[:-3], states), -math.log(states))
        return Parameters(log_initial, table, values.get("log_actions"), values.get("log_emission"))

    def distribution(self, batch: SequenceBatch, parameters: Parameters | None = None) -> CloneHMM:
        """The collapsed distribution over ``batch.obs``.

        Args:
            batch: supplies actions and lengths.
            parameters: their leading dimensions broadcast against the sequences
                (:meth:`Parameters.beside` puts draws next to them); by default drawn at the Pyro
                sites, so from the prior unless a guide or a condition says otherwise.
        """
        if parameters is None:
            parameters = self.parameters_of(
                _draw(self, lambda site, prior, values: pyro.sample(site, prior))
            )
        log_initial, log_transition, log_actions, log_emission = parameters
        arguments: dict[str, Any] = {"lengths": batch.lengths, "action_logits": log_actions}
        table = DenseTable(self.clones, log_transition, self.action_model)
        if log_emission is None:
            return CloneHMM(self.clones, log_initial, table, batch.actions, **arguments)
        return NoisyCloneHMM(
            *(self.clones, log_initial, table, batch.actions),
            log_emission=log_emission,
            **arguments,
        )

    def forward(self, batch: SequenceBatch) -> Any:
        """The Pyro program.

        Args:
            batch: sequences to condition on, one or many (then in a plate ``sequences``).
        """
        hmm = self.distribution(batch)
        if self.enumerates and isinstance(hmm, NoisyCloneHMM):
            return noisy_steps(hmm, batch)
        if self.enumerates:
            return step_by_step(hmm)(batch)
        with sequence_plate(batch):
            return pyro.sample("obs", hmm, obs=batch.obs)

    @torch.no_grad()
    def sample_prior(self, num_samples: int | None = None) -> dict[str, Tensor]:
        """Values of all sites, ``(num_samples, ...)`` (without that dimension by default)."""
        shape = () if num_samples is None else (num_samples,)

        def draw(site: str, prior: dist.TorchDistribution, values: dict[str, Tensor]) -> Tensor:
            return prior.sample(() if prior.batch_shape == shape else shape)

        return _draw(self, draw)

    @torch.no_grad()
    def prior_predictive(
        self, batch: SequenceBatch, num_samples: int = 100, *, seed: int = 0
    ) -> PriorPredictive:
        """Draw parameters and sequences along the actions of a batch.

        Args:
            batch: its actions and lengths are used; its symbols are not.
            num_samples: draws.
            seed: of the draws; the global random state is left alone.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            values = self.sample_prior(num_samples)
            parameters = self.parameters_of(values).beside(batch)
            hmm = self.distribution(batch, parameters)
            states = state_chain(hmm).sample()
            obs = symbol_of_state(self.clones, states.device)[states]
            if isinstance(hmm, NoisyCloneHMM):
                obs = hmm.sample_symbols(states)
        return PriorPredictive(self.draws_of(values), obs, states, self.num_used(states, batch))

    def num_used(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """``(*P, V)`` how many clones of each symbol paths visit.

        Args:
            states: ``(*P, T)`` or ``(*P, B, T)`` global states; padding is left out.
            batch: the sequences they belong to.
        """
        if batch.lengths is not None:
            steps = torch.arange(states.shape[-1], device=states.device)
            inside = steps < batch.lengths.unsqueeze(-1)
            states = torch.where(inside, states, states[..., :1, :1]).flatten(-2)
        visited = states.new_zeros(*states.shape[:-1], self.clones.num_states)
        visited.scatter_(-1, states, 1)
        return torch.stack([x.sum(-1) for x in visited.split(self.clones.num_clones, -1)], -1)

    def draws_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites under public names, as probabilities.

        Returns:
            ``transition`` ``(*P, A, S, S)`` and, where the model has them, ``initial``
            ``(*P, S)``, ``actions`` ``(*P, A)``, ``emission`` ``(*P, S, V)``, ``concentration``
            ``(*P)`` (the factor) and ``clone_weights`` ``(*P, S)`` (share of each clone in its
            symbol).
        """
        draws = {}
        for site, name in zip(self.sites, self.public_names, strict=True):
            value = values[site]
            if site == "log_transition":
                value = from_rows(value, self.num_actions, self.action_model)
            elif site == "log_sticks":
                value = self.transition_prior.sticks.log_weights(value)
            draws[name] = value if site == "concentration" else value.exp()
        return draws

    def values_of(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`draws_of`; probabilities that had underflowed are ``-inf``."""
        values = {}
        for site, name in zip(self.sites, self.public_names, strict=True):
            value = draws[name] if site == "concentration" else draws[name].log()
            if site == "log_transition":
                value = to_rows(value, self.action_model)
            elif site == "log_sticks":
                value = self.transition_prior.sticks.log_sticks(value)
            values[site] = value
        return values

    @torch.no_grad()
    def point(self, values: Mapping[str, Tensor]) -> PointCHMM:
        """The model without priors whose parameters are one draw."""
        log_initial, log_transition, log_actions, log_emission = self.parameters_of(values)
        options: dict[str, Any] = {
            "learn_initial": self.learn_initial,
            "learn_actions": self.learn_actions,
            "action_model": self.action_model,
        }
        if log_emission is None:
            model = PointCHMM(self.clones, self.num_actions, dtype=self.dtype, **options)
        else:
            model = NoisyCHMM(self.clones, self.num_actions, log_emission, **options)
        model.transition.logits.copy_(log_transition)
        model.initial.logits.copy_(log_initial)
        if log_actions is not None:
            assert model.action_logits is not None
            model.action_logits.copy_(log_actions)
        return model


def _draw(model: BayesianCHMM, draw: Any) -> dict[str, Tensor]:
    """Values of all sites in order; ``draw(site, prior, values so far)`` gives one."""
    values: dict[str, Tensor] = {}
    for site in model.sites:
        values[site] = draw(site, model.prior(site, values), values)
    return values
