"""Results in the form that ArviZ reads: named groups, variables, dimensions and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import arviz as az
import numpy as np
import torch
from numpy.typing import NDArray

from ..clones import MISSING
from ..inference.result import FitResult
from ..inference.scope import pyro_scope
from ..models.bayesian import PriorPredictive
from ..sequences import SequenceBatch
from ..vocabulary import Vocabulary
from .draws import DIMS, PosteriorDraws, flat_steps, posterior_draws

__all__ = ["Group", "from_groups", "to_inference_data"]

Group = Literal[
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
]
"""What :func:`to_inference_data` can make."""

Arrays = dict[str, NDArray[Any]]

_ALL: tuple[Group, ...] = get_args(Group)
_OF_PRIOR = ("prior", "prior_predictive")
_STATISTICS = {"log_joint": "lp", "diverging": "diverging"}
_STEP_DIMS = {
    "obs": ("step",),
    "sequence_obs": ("sequence",),
    "previous_action": ("step",),
    "lp": (),
}


def to_inference_data(
    result: FitResult | Sequence[FitResult] | PosteriorDraws,
    *,
    num_draws: int | None = None,
    num_prior: int = 200,
    groups: Iterable[Group] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    r"""The result of any fit as ArviZ's ``InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    Groups, with dimensions after ``chain`` and ``draw``:

    * ``posterior``: ``log_prob`` and ``num_used`` ``(symbol)``, which do not depend on how clones
      are numbered; the parameters ``transition`` ``(action, state, new_state)`` and, where the
      model has them, ``initial``, ``actions``, ``emission``, ``concentration``, ``clone_weights``.
      Relabel the clones (:mod:`chmm_pyro.posterior.relabelling`) before averaging those over draws;
    * ``posterior_predictive``: ``obs`` ``(step)`` redrawn from the start along the same actions;
    * ``prior`` and ``prior_predictive``: the same before the data;
    * ``log_likelihood``: ``sequence_obs`` ``(sequence)``, and ``obs`` ``(step)``, the terms
      :math:`\log p(x_t \mid x_{<t}, a)`, without first steps of sequences where no parameter
      says anything about them (a fixed initial distribution);
    * ``sample_stats``: ``lp``, the log joint density, and ``diverging`` of NUTS;
    * ``observed_data``: ``obs``; ``constant_data``: ``previous_action``, which led to each step,
      -1 at the first.

    Coordinates: ``symbol`` and ``action`` are labels where the data have them, ``state`` and
    ``new_state`` numbers, with ``clone`` (the number within its symbol) and ``symbol_of_state``
    beside; ``step`` counts the steps of all sequences end to end, leaving out missing
    observations, with ``sequence_of_step`` and ``time`` (within the sequence) beside.

    ``az.loo`` over ``obs`` leaves one step out given all before, so it says how well steps are
    predicted; over ``sequence_obs`` it leaves out whole sequences and needs many of them.

    Args:
        result: a fit, several fits of one posterior, or draws of one.
        num_draws: of each chain, see :func:`~chmm_pyro.posterior.draws.posterior_draws`.
        num_prior: draws of the prior groups.
        groups: by default all that the fit has.
        seed: of everything random.
        progress: show bars.

    Raises:
        ValueError: an unknown group, a group that the fit cannot have (a point fit has no prior),
            or an ArviZ of an unknown version.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> from chmm_pyro.inference import fit_gibbs
        >>> from chmm_pyro.models import BayesianCHMM
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 10)
        >>> model = BayesianCHMM(CloneStructure([2, 2, 2]), num_actions=1)
        >>> fit = fit_gibbs(
        ...     model, batch, num_iters=50, num_warmup=10, num_chains=2, progress=False
        ... )
        >>> idata = to_inference_data(fit)
        >>> idata["posterior"]["transition"].dims
        ('chain', 'draw', 'action', 'state', 'new_state')
        >>> idata["log_likelihood"]["obs"].sizes["step"]
        39
    """
    draws = result
    if not isinstance(draws, PosteriorDraws):
        draws = posterior_draws(draws, num_draws=num_draws, seed=seed)
    elif num_draws is not None:
        draws = draws.thinned(num_draws)
    possible = _ALL if draws.has_prior else tuple(g for g in _ALL if g not in _OF_PRIOR)
    wanted = possible if groups is None else tuple(groups)
    _check(wanted, possible, num_prior)
    prior: PriorPredictive | None = None
    if set(wanted) & set(_OF_PRIOR):
        prior = draws.model.prior_predictive(draws.batch, num_prior, seed=seed + 1)
    make: dict[str, Callable[[], Arrays]] = {
        "posterior": lambda: _posterior(draws),
        "posterior_predictive": lambda: _predictive(draws, seed, progress),
        "prior": lambda: _prior(prior),
        "prior_predictive": lambda: _prior_obs(prior, draws.batch),
        "log_likelihood": lambda: _log_likelihood(draws, progress),
        "sample_stats": lambda: _statistics(draws),
        "observed_data": lambda: {"obs": _observed(draws.batch.flat_obs.numpy(), draws.batch)},
        "constant_data": lambda: {"previous_action": _previous_actions(draws.batch)},
    }
    return _in_arviz({group: make[group]() for group in wanted}, draws)


def _check(wanted: tuple[Group, ...], possible: tuple[Group, ...], num_prior: int) -> None:
    for group in wanted:
        if group not in _ALL:
            raise ValueError(f"groups holds {group!r}, expected some of {list(_ALL)}.")
        if group not in possible:
            raise ValueError(
                f"groups holds {group!r}, expected some of {list(possible)}: a point fit has no "
                "prior; fit a BayesianCHMM with fit_gibbs, fit_nuts, fit_vb or fit_svi."
            )
    if num_prior < 1:
        raise ValueError(f"num_prior = {num_prior}, expected at least 1.")


# ------------------------------------------------------------------------------- the groups


def _posterior(draws: PosteriorDraws) -> Arrays:
    found: Arrays = {"log_prob": draws.log_prob, "num_used": draws.num_used}
    for name in DIMS:
        if name in draws.model.public_names:
            found[name] = draws.values[name].numpy()
    return found


def _statistics(draws: PosteriorDraws) -> Arrays:
    kept = {new: name for name, new in _STATISTICS.items() if name in draws.values}
    found = {new: draws.values[name].numpy() for new, name in kept.items()}
    return found or {"lp": draws.log_prob}


@torch.no_grad()
def _predictive(draws: PosteriorDraws, seed: int, progress: bool) -> Arrays:
    parts = []
    with pyro_scope(seed):
        for _, hmm in draws.chunks(task="posterior predictive" if progress else ""):
            parts.append(flat_steps(hmm.sample(), draws.batch).numpy())
    symbols = np.concatenate(parts).reshape(*draws.shape, -1)
    return {"obs": _observed(symbols, draws.batch)}


@torch.no_grad()
def _log_likelihood(draws: PosteriorDraws, progress: bool) -> Arrays:
    batch = draws.batch
    steps, sequences = [], []
    for _, hmm in draws.chunks(task="log-likelihood" if progress else ""):
        terms = hmm.log_prob_steps(batch.obs).double()
        steps.append(flat_steps(terms, batch).numpy())
        sequences.append(terms.sum(-1).view(len(terms), -1).numpy())
    per_step = np.concatenate(steps).reshape(*draws.shape, -1)
    per_sequence = np.concatenate(sequences).reshape(*draws.shape, -1)
    return {"obs": per_step[..., _scored(draws)], "sequence_obs": per_sequence}


def _prior(prior: PriorPredictive | None) -> Arrays:
    assert prior is not None
    found = {"num_used": prior.num_used.numpy()[None]}
    return found | {name: value.numpy()[None] for name, value in prior.draws.items()}


def _prior_obs(prior: PriorPredictive | None, batch: SequenceBatch) -> Arrays:
    assert prior is not None
    return {"obs": _observed(flat_steps(prior.obs, batch).numpy()[None], batch)}


def _observed(values: NDArray[Any], batch: SequenceBatch) -> NDArray[Any]:
    return values[..., batch.flat_obs.numpy() != MISSING]


def _first_steps(batch: SequenceBatch) -> NDArray[np.bool_]:
    """``(N,)`` where sequences begin."""
    first = np.zeros(batch.num_steps, dtype=bool)
    first[batch.offsets[:-1].numpy()] = True
    return first


def _scored(draws: PosteriorDraws) -> NDArray[np.bool_]:
    """``(N,)`` the steps whose probability depends on the draw; ArviZ refuses to smooth others."""
    fixed_start = not {"initial", "emission"} & set(draws.model.public_names)
    seen = draws.batch.flat_obs.numpy() != MISSING
    return seen & ~_first_steps(draws.batch) if fixed_start else seen


def _previous_actions(batch: SequenceBatch) -> NDArray[Any]:
    actions = np.roll(batch.flat_actions.numpy(), 1)
    return _observed(np.where(_first_steps(batch), -1, actions), batch)


# -------------------------------------------------------------------------------- coordinates


def _labels(vocabulary: Vocabulary | None, size: int) -> list[Any]:
    """Labels as coordinates can hold them, also in a file: numbers, or else text."""
    if vocabulary is None:
        return list(range(size))
    labels = list(vocabulary)
    labels += [f"unseen {n}" for n in range(len(labels), size)]
    plain = all(isinstance(label, (int, np.integer)) for label in labels)
    return labels if plain else [str(label) for label in labels]


def _coordinates(draws: PosteriorDraws) -> dict[str, tuple[str, NDArray[Any]]]:
    """Dimension and values of every coordinate."""
    clones, batch = draws.model.clones, draws.batch
    symbols = np.array(_labels(batch.vocabulary, clones.num_symbols))
    actions = np.array(_labels(batch.action_vocabulary, draws.model.num_actions))
    states = np.arange(clones.num_states)
    lengths = batch.offsets.diff().numpy()
    names = list(batch.names) if batch.names else list(range(batch.num_sequences))
    sequences = np.array(names if isinstance(names[0], int) else [str(name) for name in names])
    every = np.arange(batch.num_steps)
    times = every - np.repeat(batch.offsets[:-1].numpy(), lengths)
    found = {
        "symbol": ("symbol", symbols),
        "action": ("action", actions),
        "state": ("state", states),
        "new_state": ("new_state", states),
        "symbol_of_state": ("state", symbols[clones.symbol_of_state]),
        "clone": ("state", states - clones.offsets[clones.symbol_of_state]),
        "sequence": ("sequence", sequences),
    }
    by_step = {"step": every, "sequence_of_step": np.repeat(sequences, lengths), "time": times}
    for name, values in by_step.items():
        found[name] = ("step", values)
    return found


def _in_arviz(groups: dict[str, Arrays], draws: PosteriorDraws) -> Any:
    """The groups with their coordinates."""
    made = from_groups(groups, {**DIMS, **_STEP_DIMS})
    coordinates = _coordinates(draws)
    seen = draws.batch.flat_obs.numpy() != MISSING
    for group in groups:
        kept = _scored(draws) if group == "log_likelihood" else seen
        own = {
            name: (dim, values[kept] if dim == "step" else values)
            for name, (dim, values) in coordinates.items()
            if dim in made[group].dims
        }
        if hasattr(made[group], "to_dataset"):  # a node of a DataTree
            made[group].dataset = made[group].to_dataset().assign_coords(own)
        else:
            setattr(made, group, made[group].assign_coords(own))
    return made


def from_groups(
    groups: Mapping[str, Mapping[str, NDArray[Any]]], dims: Mapping[str, Sequence[str]]
) -> Any:
    """Arrays by group and name in the class of the installed ArviZ.

    Args:
        groups: variables ``(chain, draw, ...)``; observed data without the first two.
        dims: names of the other dimensions of each variable.

    Raises:
        ValueError: an ArviZ of an unknown version.
    """
    major = az.__version__.split(".")[0]
    if major not in ("0", "1"):
        raise ValueError(
            f"arviz.__version__ = {az.__version__}, expected 0.x or 1.x: the form that from_dict "
            "of other versions takes is unknown; install one of these or a newer chmm-pyro."
        )
    named = {name: list(own) for name, own in dims.items()}
    if major == "1":
        return az.from_dict({name: dict(group) for name, group in groups.items()}, dims=named)
    return az.from_dict(**groups, dims=named)
