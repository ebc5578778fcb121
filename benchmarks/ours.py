"""This package's own ways to do an iteration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from contest import Implementation, Run
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from sizes import PSEUDOCOUNT, Instance

from chmm_pyro.inference.gibbs import fit_gibbs
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.vb import fit_vb
from chmm_pyro.models.bayesian import BayesianCHMM
from chmm_pyro.models.point import PointCHMM

__all__ = ["OURS"]


def _model(instance: Instance, kind: Any = PointCHMM) -> Any:
    return kind.from_counts(instance.clones, torch.from_numpy(instance.table))


def _resetting(model: Any) -> Callable[[], object]:
    start = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda: model.load_state_dict(start)


def _em(instance: Instance) -> Run:
    model, batch = _model(instance), instance.batch

    @torch.no_grad()
    def step() -> float:
        log_z, _, counts = model.distribution(batch).expected_counts(batch.obs)
        model.transition.maximise(counts, PSEUDOCOUNT)
        return float(log_z.sum())

    return Run(step, _resetting(model))


def _gradient(instance: Instance) -> Run:
    model, batch = _model(instance), instance.batch

    def step() -> float:
        model.zero_grad()
        loss = -model.distribution(batch).log_prob(batch.obs).sum()
        loss.backward()
        return -float(loss.detach())

    return Run(step, gradient=lambda: model.transition.logits.grad.numpy())


def _svi(instance: Instance) -> Run:
    model, batch = _model(instance), instance.batch
    updates = 100 if instance.total_steps < 10_000 else 10

    def step() -> float:
        result = fit_svi(model, batch, num_iters=updates, progress=False)
        return float(result.log_prob_history[0])

    return Run(step, updates=updates)


def _empty_guide(batch: Any) -> None:
    """No latent variables."""


def _user_svi(instance: Instance) -> Run:
    model, batch = _model(instance), instance.batch
    restore = _resetting(model)
    svi: list[SVI] = []

    def reset() -> None:
        restore()
        pyro.clear_param_store()
        svi[:] = [SVI(model, _empty_guide, Adam({"lr": 0.2}), Trace_ELBO())]

    reset()
    return Run(lambda: -svi[0].step(batch), reset)


def _enumerated(instance: Instance) -> Run:
    from chmm_pyro.models.enumerated import EnumeratedCHMM  # compiled into Pyro sites step by step

    model, batch = _model(instance, EnumeratedCHMM), instance.batch
    elbo = TraceEnum_ELBO()

    def step() -> float:
        model.zero_grad()
        loss = elbo.differentiable_loss(model, _empty_guide, batch)
        loss.backward()
        return -float(loss.detach())

    return Run(step, gradient=lambda: model.transition.logits.grad.numpy())


def _bayesian(instance: Instance, fit: Callable[..., Any], **options: Any) -> Run:
    """A fit with the prior of the pseudocount's size; starts and ends are divided among updates."""
    start, batch = _model(instance), instance.batch
    model = BayesianCHMM(
        instance.clones, instance.num_actions, PSEUDOCOUNT, dtype=start.transition.logits.dtype
    )
    updates = 100 if instance.total_steps < 10_000 else 10
    with torch.no_grad():
        log_prob = float(start.distribution(batch).log_prob(batch.obs).sum())

    def step() -> float:
        result = fit(model, batch, num_iters=updates, start=start, progress=False, **options)
        # Variational Bayes has no likelihood to compare.
        history = result.log_prob_history
        return log_prob if history is None else float(history[0])

    return Run(step, updates=updates)


def _gibbs(instance: Instance) -> Run:
    return _bayesian(instance, fit_gibbs, num_warmup=0, num_chains=1, thin=10)


def _vb(instance: Instance) -> Run:
    return _bayesian(instance, fit_vb)


@contextmanager
def _torch_kernel() -> Iterator[None]:
    before = os.environ.get("CHMM_PYRO_KERNEL")
    os.environ["CHMM_PYRO_KERNEL"] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CHMM_PYRO_KERNEL"]
        else:
            os.environ["CHMM_PYRO_KERNEL"] = before


def _with_torch_kernel(prepare: Callable[[Instance], Run]) -> Callable[[Instance], Run]:
    def prepared(instance: Instance) -> Run:
        run = prepare(instance)

        def step() -> float:
            with _torch_kernel():
                return run.step()

        return Run(step, run.reset, gradient=run.gradient)

    return prepared


_OWN = "two sweeps at once, or threads over sequences and blocks"
_TORCH = "torch operations"

OURS = (
    Implementation("ours-em", "em", _em, _OWN),
    Implementation("ours-gradient", "gradient", _gradient, _OWN),
    Implementation("ours-fit-svi", "svi", _svi, _OWN),
    Implementation("ours-user-svi", "svi", _user_svi, _OWN),
    Implementation("ours-gibbs", "gibbs", _gibbs, "threads over sequences and chains"),
    Implementation("ours-vb", "vb", _vb, _OWN),
    Implementation(
        "ours-enumerated",
        "gradient",
        _enumerated,
        _TORCH,
        needs=("chmm_pyro.models.enumerated",),
        max_steps=1000,
    ),
    Implementation("ours-torch-em", "em", _with_torch_kernel(_em), _TORCH, max_steps=20_000),
    Implementation(
        "ours-torch-gradient", "gradient", _with_torch_kernel(_gradient), _TORCH, max_steps=20_000
    ),
)
