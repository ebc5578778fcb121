"""Writes peers.json: what other libraries say about two small asymmetric models.

Run in an environment of its own with ``pip install hmmlearn dynamax pyro-ppl torch``:

    python test_data/make_peers.py

Nothing of chmm_pyro is imported.  The peers are general HMMs, so the clone structure enters as a
one-hot emission table and actions as transitions that vary with time.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from dynamax.hidden_markov_model import hmm_posterior_mode, hmm_smoother
from hmmlearn.hmm import CategoricalHMM
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex

NUM_CLONES = [2, 3, 1]
NUM_STEPS = 12
MISSING = -1
SYMBOL_OF_STATE = np.repeat(np.arange(len(NUM_CLONES)), NUM_CLONES)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw_model(seed: int, num_actions: int, missing: list[int]) -> dict[str, Any]:
    """Rounded logits, and data drawn from the model that they describe."""
    rng = np.random.default_rng(seed)
    states = len(SYMBOL_OF_STATE)
    initial = rng.normal(size=states).round(3)
    transition = (1.5 * rng.normal(size=(num_actions, states, states))).round(3)
    actions = rng.integers(num_actions, size=NUM_STEPS - 1)
    path = [rng.choice(states, p=softmax(initial))]
    for action in actions:
        path.append(rng.choice(states, p=softmax(transition[action, path[-1]])))
    obs = SYMBOL_OF_STATE[path]
    obs[missing] = MISSING
    return {
        "num_clones": NUM_CLONES,
        "initial_logits": initial,
        "transition_logits": transition,
        "actions": actions,
        "obs": obs,
    }


def ask_hmmlearn(model: dict[str, Any]) -> dict[str, Any]:
    """No actions and no missing steps there."""
    hmm = CategoricalHMM(len(SYMBOL_OF_STATE))
    hmm.n_features = len(NUM_CLONES)
    hmm.startprob_ = softmax(model["initial_logits"])
    hmm.transmat_ = softmax(model["transition_logits"])[0]
    hmm.emissionprob_ = np.eye(len(NUM_CLONES))[SYMBOL_OF_STATE]
    column = model["obs"][:, None]
    log_prob, smoothed = hmm.score_samples(column)
    score, states = hmm.decode(column)
    return {"log_prob": log_prob, "smooth": smoothed, "mode": states, "mode_score": score}


def ask_dynamax(model: dict[str, Any]) -> dict[str, Any]:
    emitted = np.where(
        model["obs"][:, None] == MISSING, True, model["obs"][:, None] == SYMBOL_OF_STATE
    )
    with np.errstate(divide="ignore"):
        log_likelihoods = np.log(emitted.astype(float))
    arguments = (
        softmax(model["initial_logits"]),
        softmax(model["transition_logits"])[model["actions"]],
        log_likelihoods,
    )
    found = hmm_smoother(*arguments)
    return {
        "log_prob": found.marginal_loglik,
        "filter": found.filtered_probs,
        "smooth": found.smoothed_probs,
        "initial_counts": found.initial_probs,
        "step_counts": found.trans_probs,
        "mode": hmm_posterior_mode(*arguments),
    }


def as_tensors(model: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    initial = torch.tensor(model["initial_logits"], requires_grad=True)
    transition = torch.tensor(model["transition_logits"], requires_grad=True)
    return initial, transition, torch.tensor(model["actions"])


def ask_discrete_hmm(model: dict[str, Any]) -> dict[str, Any]:
    """DiscreteHMM moves before its first emission, so the first move is the identity.

    An extra symbol, certain at missing steps, stands for them.
    """
    initial, transition, actions = as_tensors(model)
    states = len(SYMBOL_OF_STATE)
    moves = torch.cat([torch.eye(states).double().log()[None], transition[actions].log_softmax(-1)])
    obs = torch.tensor(model["obs"])
    symbol = torch.where(obs == MISSING, len(NUM_CLONES), obs)
    own = torch.eye(len(NUM_CLONES) + 1).double()[torch.tensor(SYMBOL_OF_STATE)]
    hidden = torch.eye(len(NUM_CLONES) + 1).double()[-1].expand_as(own)
    emissions = torch.where((obs == MISSING)[:, None, None], hidden, own).log()
    hmm = dist.DiscreteHMM(initial, moves, dist.Categorical(logits=emissions))
    return {"log_prob": hmm.log_prob(symbol), "last_filter": hmm.filter(symbol).probs}


def ask_trace_enum(model: dict[str, Any]) -> dict[str, Any]:
    """The model written by hand over all states; its loss is ``-log_prob``."""
    initial, transition, actions = as_tensors(model)
    emission = torch.eye(len(NUM_CLONES)).double()[torch.tensor(SYMBOL_OF_STATE)].log()

    @config_enumerate
    def program() -> None:
        z = None
        for t in pyro.markov(range(NUM_STEPS)):
            logits = initial if t == 0 else Vindex(transition)[actions[t - 1], z]
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
            symbol = int(model["obs"][t])
            if symbol != MISSING:
                likelihood = dist.Categorical(logits=Vindex(emission)[z])
                pyro.sample(f"x_{t}", likelihood, obs=torch.tensor(symbol))

    loss = TraceEnum_ELBO(max_plate_nesting=0).differentiable_loss(program, lambda: None)
    loss.backward()
    return {
        "log_prob": -loss,
        "initial_logits_gradient": -initial.grad,
        "transition_logits_gradient": -transition.grad,
    }


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    return np.asarray(value).tolist() if not isinstance(value, (str, list)) else value


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    no_actions = draw_model(seed=7, num_actions=1, missing=[])
    actions = draw_model(seed=8, num_actions=2, missing=[4, 9])
    cases = {
        "no_actions": {
            "model": no_actions,
            "hmmlearn": ask_hmmlearn(no_actions),
            "dynamax": ask_dynamax(no_actions),
            "discrete_hmm": ask_discrete_hmm(no_actions),
            "trace_enum_elbo": ask_trace_enum(no_actions),
        },
        "actions_and_missing": {
            "model": actions,
            "dynamax": ask_dynamax(actions),
            "discrete_hmm": ask_discrete_hmm(actions),
            "trace_enum_elbo": ask_trace_enum(actions),
        },
    }
    packages = ["hmmlearn", "dynamax", "jax", "pyro-ppl", "torch", "numpy"]
    document = {
        "made_by": "test_data/make_peers.py",
        "versions": {name: version(name) for name in packages},
        "conventions": "natural logarithms, float64; states numbered symbol by symbol; -1 is a "
        "missing step; step_counts[t, i, j] is p(z_t = i, z_t+1 = j | x)",
        "cases": plain(cases),
    }
    Path(__file__).with_name("peers.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
