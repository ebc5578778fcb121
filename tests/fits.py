"""Small data and models to fit, and what every fit has to leave alone."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from instances import Instance, random_instance

from chmm_pyro.clones import CloneStructure
from chmm_pyro.models.base import CloneModel
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

__all__ = [
    "CLONES",
    "MODELS",
    "batch_of",
    "instances_of",
    "interrupted_at",
    "ragged_batch",
    "same_state",
    "touches_nothing",
]

CLONES = CloneStructure([2, 3, 1])


def ragged_batch(lengths: Any = (5, 1, 4), seed: int = 0, missing: int = 0) -> SequenceBatch:
    """Sequences drawn from random models of :data:`CLONES` with two actions."""
    cases = [
        random_instance(CLONES.num_clones, size, 2, seed=seed + k, missing=min(missing, size))
        for k, size in enumerate(lengths)
    ]
    return batch_of(cases)


def batch_of(cases: list[Instance]) -> SequenceBatch:
    return SequenceBatch.from_arrays(
        [case.obs for case in cases], [case.actions for case in cases], num_actions=2
    )


def instances_of(model: CloneModel, batch: SequenceBatch) -> list[Instance]:
    """Each sequence under the (dense) parameters of the model, for enumeration."""
    table = model.transition.table()
    table = table.dense() if hasattr(table, "dense") else table
    log_transition = table.values.detach().double().numpy()
    return [
        Instance(
            model.clones.num_clones,
            model.initial.logits.detach().double().numpy(),
            log_transition,
            one.actions.numpy(),
            one.obs.numpy(),
            action_model=model.action_model,
        )
        for one in batch
    ]


def _blocks(**options: Any) -> PointCHMM:
    columns = BlockColumns.from_batch(CLONES, 2, ragged_batch())
    return PointCHMM(CLONES, 2, parameterization="blocks", columns=columns, **options)


MODELS: dict[str, Callable[..., PointCHMM]] = {
    "softmax": lambda **options: PointCHMM(CLONES, 2, **options),
    "counts": lambda **options: PointCHMM(CLONES, 2, parameterization="counts", **options),
    "blocks": _blocks,
    "joint": lambda **options: PointCHMM(CLONES, 2, action_model="joint", **options),
    "everything learned": lambda **options: PointCHMM(
        CLONES, 2, learn_initial=True, learn_actions=True, **options
    ),
}
"""Rows of the model fixture: factories that take ``seed`` and ``dtype``."""


def same_state(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all parameters and buffers are equal to the last bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@contextmanager
def touches_nothing(model: CloneModel) -> Iterator[None]:
    """The block changes neither the model, nor Pyro's store, nor any random state or setting."""
    pyro.param("of the user", torch.tensor([1.0, 2.0]))
    before = copy.deepcopy(model)
    randomness = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert list(pyro.get_param_store()) == ["of the user"]
    assert pyro.param("of the user").tolist() == [1.0, 2.0]
    assert torch.equal(torch.random.get_rng_state(), randomness[0])
    assert np.array_equal(np.random.get_state()[1], randomness[1])
    assert signal.getsignal(signal.SIGINT) is handler


def interrupted_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, with a Ctrl-C during this call of it."""
    calls = iter(range(1, 10**9))

    def wrapper(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    return wrapper
