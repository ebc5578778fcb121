"""Libraries for ordinary HMMs, on the same data without actions and with all states dense."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from contest import Implementation, Run
from sizes import PSEUDOCOUNT, Instance

__all__ = ["NO_ACTIONS"]


def _emissions(instance: Instance) -> np.ndarray:
    """``(S, V)`` one where the state emits the symbol."""
    return np.repeat(np.eye(instance.num_symbols), instance.clones_per_symbol, axis=0)


def _hmmlearn_em(instance: Instance) -> Run:
    from hmmlearn.hmm import CategoricalHMM

    data = instance.obs.reshape(-1, 1)
    lengths = [instance.num_steps] * len(instance.obs)
    model = CategoricalHMM(
        instance.num_states,
        transmat_prior=1 + PSEUDOCOUNT,
        n_iter=1,
        params="t",
        init_params="",
        n_features=instance.num_symbols,
    )
    model.startprob_ = np.full(instance.num_states, 1 / instance.num_states)
    model.emissionprob_ = _emissions(instance)
    start = instance.table[0].astype(float)
    start = start / start.sum(-1, keepdims=True)
    model.transmat_ = start

    # It advises against so many parameters before every iteration.
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)

    def step() -> float:
        model.fit(data, lengths)
        return float(model.monitor_.history[-1])

    return Run(step, lambda: setattr(model, "transmat_", start))


def _dynamax(instance: Instance) -> tuple[Any, Any, Any]:
    """Initial probabilities, ``(B, T, S)`` log-likelihoods of the steps, first table."""
    import jax.numpy as jnp

    states = instance.num_states
    initial = jnp.full(states, 1 / states)
    with np.errstate(divide="ignore"):
        by_symbol = np.log(_emissions(instance).T)
    evidence = jnp.asarray(by_symbol[instance.obs], jnp.float32)
    return initial, evidence, jnp.asarray(instance.table[0])


def _dynamax_em(instance: Instance) -> Run:
    import jax
    from dynamax.hidden_markov_model import hmm_smoother

    initial, evidence, start = _dynamax(instance)

    def expected(table, log_likelihoods):
        posterior = hmm_smoother(initial, table, log_likelihoods)
        return posterior.marginal_loglik, posterior.trans_probs

    def em(table):
        log_z, counts = jax.vmap(expected, (None, 0))(table, evidence)
        total = counts.sum(0) + PSEUDOCOUNT
        return log_z.sum(), total / total.sum(-1, keepdims=True)

    update = jax.jit(em)
    now = [start]

    def step() -> float:
        log_z, table = update(now[0])
        now[0] = table.block_until_ready()
        return float(log_z)

    return Run(step, lambda: now.__setitem__(0, start))


def _dynamax_gradient(instance: Instance) -> Run:
    import jax
    from dynamax.hidden_markov_model import hmm_filter

    initial, evidence, start = _dynamax(instance)

    def loss(logits):
        table = jax.nn.softmax(logits, -1)
        found = jax.vmap(lambda e: hmm_filter(initial, table, e).marginal_loglik)(evidence)
        return -found.sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    logits = jax.numpy.log(start)
    found: list[Any] = []

    def step() -> float:
        value, gradient = value_and_grad(logits)
        found[:] = [gradient.block_until_ready()]
        return -float(value)

    return Run(step, gradient=lambda: np.asarray(found[0])[None])


_XLA = "XLA's pool"
_LIMITS: dict[str, Any] = {"max_steps": 20_000, "actions": False}

NO_ACTIONS = (
    Implementation("hmmlearn-em", "em", _hmmlearn_em, needs=("hmmlearn",), float64=True, **_LIMITS),
    Implementation("dynamax-em", "em", _dynamax_em, _XLA, needs=("dynamax",), **_LIMITS),
    Implementation(
        "dynamax-gradient", "gradient", _dynamax_gradient, _XLA, needs=("dynamax",), **_LIMITS
    ),
)
