r"""A Gumbel-softmax guide that approximates Viterbi, and training through its relaxed paths.

The guide :math:`q` is a Markov chain (or independent states) over clone paths with free logits.
Ascending

.. math::  E_q[\log p(x, path)] + \lambda H(q)

leads to :math:`q \propto p^{1/\lambda}`: the posterior at :math:`\lambda = 1`, the Viterbi path as
:math:`\lambda \to 0`.  The temperature :math:`\tau` of the relaxation is another matter: it is how
draws are smoothed for their gradient, and the optimum of a Markov guide does not depend on it
(:meth:`MarkovPath.score_parts <chmm_pyro.inference.markov_path.MarkovPath.score_parts>`).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..clones import MISSING
from ..models.base import CloneModel
from ..models.relaxed import RelaxedCHMM, RelaxedPath
from ..sequences import SequenceBatch
from .em import check_options
from .path_guide import PathGuide, PathSupport
from .result import FitResult, bits_per_step, log_likelihood
from .scope import Stopwatch, pyro_scope, until_interrupted
from .svi import decay_factor

__all__ = ["GumbelPathGuide", "fit_gumbel"]

_OF_BATCH = ("obs", "actions", "offsets")  # what tells one batch from another


class GumbelPathGuide(PathGuide):
    """Free logits for the paths of one batch.

    They take ``T * R ** 2`` numbers, with ``R`` the largest number of states that a step allows;
    a missing observation allows all ``S``.

    Args:
        model: says which transitions are possible; nothing else of it is used.
        batch: the sequences; the guide knows no others.
        scale: standard deviation of the random initial logits.
        seed: of the initial logits.
        options: of :class:`PathGuide`.

    Raises:
        ValueError: impossible data; or independent states where a pair of possible ones has
            probability zero.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> batch = SequenceBatch.from_arrays([0, 1, 0])
        >>> model = RelaxedCHMM(CloneStructure([2, 1]), num_actions=1)
        >>> guide = GumbelPathGuide(model, batch)
        >>> guide.mode(model, batch).states
        tensor([0, 2, 1])
    """

    def __init__(
        self,
        model: CloneModel,
        batch: SequenceBatch,
        *,
        scale: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        with torch.no_grad():
            joint = RelaxedPath(model.distribution(batch), batch.obs)
        support = PathSupport.of(joint, self.structure)
        for name, values in zip(support._fields, support, strict=True):
            self.register_buffer(f"_{name}", values, persistent=False)
        for name in _OF_BATCH:
            self.register_buffer(f"_{name}", getattr(batch, name), persistent=False)
        shape = list(support.usable.shape)
        if self.structure == "mean_field":
            shape[-2] = 1
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        self.logits = nn.Parameter(noise.to(joint.log_potentials))

    def support(self, batch: SequenceBatch) -> PathSupport:
        if not all(torch.equal(getattr(batch, n), getattr(self, f"_{n}")) for n in _OF_BATCH):
            raise ValueError(
                f"batch is {batch}, expected the sequences that the guide was made for; for "
                "others make a new GumbelPathGuide or train an AmortisedPathGuide."
            )
        return PathSupport(self._usable, self._first_state, self._inside)

    def edge_logits(self, batch: SequenceBatch, support: PathSupport) -> Tensor:
        return self.logits


def _annealed(ends: tuple[float, float], done: float, *, geometric: bool = False) -> float:
    first, last = ends
    done = min(1.0, done)
    return first * (last / first) ** done if geometric else first + (last - first) * done


def fit_gumbel(
    model: RelaxedCHMM,
    batch: SequenceBatch,
    *,
    num_iters: int = 300,
    learning_rate: float = 0.2,
    guide_learning_rate: float = 0.6,
    train_model: bool = True,
    guide: PathGuide | None = None,
    structure: str = "markov",
    relaxation: str = "gumbel",
    temperature: tuple[float, float] = (4.0, 0.5),
    entropy_weight: tuple[float, float] = (1.0, 0.0),
    anneal: float = 0.7,
    num_particles: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    r"""Ascend ``E_q[log p(x, path)] + lambda * H(q)`` through relaxed paths of a guide.

    With a fixed model this decodes: the guide approaches the posterior (an entropy weight of 1
    throughout) or the most probable path (falling to 0).  With a model that learns, it is the
    differentiable counterpart of Viterbi training, or of variational EM if the weight stays 1.

    Args:
        model: start; unchanged.  Others become one by ``RelaxedCHMM.from_model``.
        batch: one or many sequences.
        num_iters: gradient updates.
        learning_rate: of Adam for the model, at the start; falls to 1 % along a cosine.
        guide_learning_rate: the same for the guide; networks want less, about 0.03.
        train_model: False only moves the guide.
        guide: start of the guide, unchanged; by default a random :class:`GumbelPathGuide`.
        structure: of the default guide.
        relaxation: of the default guide.
        temperature: :math:`\tau` at the start and the end, in between geometric.  What is hot has
            little variance and a biased mean; what is cold, below 0.1, is mostly noise.
        entropy_weight: :math:`\lambda` at the start and the end, in between linear.  More than 1
            at the start flattens the posterior while the model is still wrong.
        anneal: fraction of the updates after which :math:`\lambda` has reached its end.
        num_particles: draws in each update.
        seed: of everything random in the fit.
        progress: show a bar.

    Returns:
        A :class:`~chmm_pyro.inference.result.FitResult`.  ``objective_history`` estimates the
        objective of its time, whose weight changes; ``settings`` report ``path_bits_per_step`` and
        ``num_states_used`` of the guide's final path.

    Raises:
        TypeError: a model without a ``path`` site.
        ValueError: options out of range, impossible data, or a guide made for a model with fewer
            structural zeros.

    Example:
        >>> from chmm_pyro import CloneStructure
        >>> batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 3)
        >>> model = RelaxedCHMM(CloneStructure([2, 1, 1]), num_actions=1)
        >>> result = fit_gumbel(model, batch, num_iters=50, learning_rate=0.5, progress=False)
        >>> result.bits_per_step < 0.4
        True
    """
    check_options(num_iters, 0.0, None)
    _check(model, learning_rate, guide_learning_rate, temperature, entropy_weight, anneal)
    watch = Stopwatch()
    fitted = copy.deepcopy(model)
    if guide is None:
        fitted_guide: PathGuide = GumbelPathGuide(
            fitted, batch, seed=seed, structure=structure, relaxation=relaxation
        )
    else:
        fitted_guide = copy.deepcopy(guide)
    elbo = Trace_ELBO(num_particles=num_particles)
    groups = [{"params": list(fitted_guide.parameters()), "lr": guide_learning_rate}]
    if train_model:
        free = [p for p in fitted.parameters() if p.requires_grad]
        groups.append({"params": free, "lr": learning_rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, decay_factor("cosine", num_iters, final_factor=0.01)
    )
    objectives: list[float] = []
    log_probs: list[float] = []
    seconds: list[float] = []
    with (
        pyro_scope(seed),
        until_interrupted() as stop,
        tqdm(total=num_iters, desc="Gumbel", disable=not progress) as bar,
    ):
        for iteration in range(num_iters):
            done = iteration / num_iters
            fitted_guide.temperature = _annealed(temperature, done, geometric=True)
            fitted_guide.entropy_weight = _annealed(entropy_weight, done / anneal)
            optimizer.zero_grad()
            loss = elbo.differentiable_loss(fitted, fitted_guide, batch)
            if train_model:
                log_probs.append(log_likelihood(fitted, batch))
            objectives.append(-float(loss.detach()))
            if not math.isfinite(objectives[-1]):
                raise ValueError(
                    f"the objective is {objectives[-1]} at update {iteration}: the guide allows a "
                    "path that the model does not; make the guide from this model."
                )
            seconds.append(watch())
            bar.set_postfix_str(f"objective {objectives[-1]:.4g}", refresh=False)
            if stop.is_set():
                break
            loss.backward()
            optimizer.step()
            decay.step()
            bar.update()
        fitted_guide.temperature, fitted_guide.entropy_weight = temperature[1], entropy_weight[1]
        optimizer.zero_grad()
        fitted.zero_grad()
        path = fitted_guide.mode(fitted, batch)
    to_bits = 1 / (math.log(2) * batch.num_observed)
    return FitResult(
        model=fitted,
        guide=fitted_guide,
        data=batch,
        objective_history=np.array(objectives),
        log_prob_history=np.array(log_probs) if train_model else None,
        bits_per_step=bits_per_step(fitted, batch),
        converged=False,
        interrupted=stop.is_set(),
        num_iters=len(objectives) - int(stop.is_set()),
        wall_time=watch(),
        seconds_history=np.array(seconds),
        settings={
            "method": "gumbel",
            "num_iters": num_iters,
            "learning_rate": learning_rate,
            "guide_learning_rate": guide_learning_rate,
            "train_model": train_model,
            "structure": fitted_guide.structure,
            "relaxation": fitted_guide.relaxation,
            "temperature": list(temperature),
            "entropy_weight": list(entropy_weight),
            "anneal": anneal,
            "num_particles": num_particles,
            "seed": seed,
            "action_model": fitted.action_model,
            "path_bits_per_step": -float(path.score.sum()) * to_bits,
            "num_states_used": len(path.states[path.states != MISSING].unique()),
        },
    )


def _check(
    model: RelaxedCHMM,
    learning_rate: float,
    guide_learning_rate: float,
    temperature: tuple[float, float],
    entropy_weight: tuple[float, float],
    anneal: float,
) -> None:
    if not isinstance(model, RelaxedCHMM):
        raise TypeError(
            f"model is {type(model).__name__}, expected RelaxedCHMM, which has a path site; "
            "convert with `RelaxedCHMM.from_model(model)`."
        )
    for name, value, positive in (
        ("learning_rate", (learning_rate,), True),
        ("guide_learning_rate", (guide_learning_rate,), True),
        ("temperature", temperature, True),
        ("entropy_weight", entropy_weight, False),
        ("anneal", (anneal,), True),
    ):
        if not all(0 <= x < math.inf and (x > 0 or not positive) for x in value):
            what = "positive" if positive else "non-negative"
            given = value if len(value) > 1 else value[0]
            raise ValueError(f"{name} = {given}, expected {what} and finite.")
