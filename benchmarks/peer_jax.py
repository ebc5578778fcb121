"""What a skilled JAX user writes: ``lax.scan`` over the clone block of every step, compiled.

EM is written out (forward scan, backward scan, counts added to the block of the step); the
gradient is ``jax.grad`` of the forward scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from contest import Implementation, Run
from sizes import PSEUDOCOUNT, Instance

__all__ = ["JAX"]


class _Scan:
    """Data of one instance in the form the scans take: one block key for every step."""

    def __init__(self, instance: Instance) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.jnp = jax, jnp
        self.instance = instance
        obs, actions, symbols = instance.obs, instance.actions, instance.num_symbols
        keys = ((actions * symbols + obs[:, :-1]) * symbols + obs[:, 1:]).T
        batched = instance.num_sequences is not None
        self.keys = jnp.asarray(keys if batched else keys[:, 0], jnp.int32)
        shape = (instance.obs.shape[0], instance.clones_per_symbol)
        # The initial distribution is uniform, so every first message is the same.
        self.first = jnp.full(shape if batched else shape[1:], 1 / instance.clones_per_symbol)
        self.first_log = -instance.obs.shape[0] * np.log(symbols)
        self.shape = (instance.num_actions, symbols, symbols, *[shape[1]] * 2)

    def blocks(self, table: Any) -> Any:
        actions, symbols, _, width, _ = self.shape
        cut = table.reshape(actions, symbols, width, symbols, width)
        return cut.transpose(0, 1, 3, 2, 4).reshape(-1, width, width)

    def forward(self, blocks: Any) -> tuple[Any, Any]:
        """Messages before each transition, and normalisers after it."""
        jnp = self.jnp

        def advance(message, key):
            new = jnp.einsum("...i,...ij->...j", message, blocks[key])
            scale = new.sum(-1, keepdims=True)
            return new / scale, (message, scale)

        return self.jax.lax.scan(advance, self.first, self.keys)[1]

    def log_prob(self, logits: Any) -> Any:
        blocks = self.blocks(self.jax.nn.softmax(logits, -1))
        return self.jnp.log(self.forward(blocks)[1]).sum() + self.first_log

    def em(self, table: Any) -> tuple[Any, Any]:
        jnp = self.jnp
        blocks = self.blocks(table)
        messages, scales = self.forward(blocks)

        def retreat(carry, step):
            future, counts = carry
            key, message, scale = step
            future = future / scale
            counts = counts.at[key].add(message[..., :, None] * future[..., None, :])
            return (jnp.einsum("...ij,...j->...i", blocks[key], future), counts), None

        start = jnp.ones_like(self.first), jnp.zeros_like(blocks)
        steps = self.keys, messages, scales
        (_, counts), _ = self.jax.lax.scan(retreat, start, steps, reverse=True)
        counts = (counts * blocks).reshape(self.shape).transpose(0, 1, 3, 2, 4)
        counts = counts.reshape(table.shape) + PSEUDOCOUNT
        return jnp.log(scales).sum() + self.first_log, counts / counts.sum(-1, keepdims=True)


def _em(instance: Instance) -> Run:
    scan = _Scan(instance)
    update = scan.jax.jit(scan.em)
    start = scan.jnp.asarray(instance.table)
    now = [start]

    def step() -> float:
        log_z, table = update(now[0])
        now[0] = table.block_until_ready()
        return float(log_z)

    return Run(step, lambda: now.__setitem__(0, start))


def _gradient(instance: Instance) -> Run:
    scan = _Scan(instance)
    value_and_grad = scan.jax.jit(scan.jax.value_and_grad(lambda x: -scan.log_prob(x)))
    logits = scan.jnp.log(scan.jnp.asarray(instance.table))
    found: list[Any] = []

    def step() -> float:
        loss, gradient = value_and_grad(logits)
        found[:] = [gradient.block_until_ready()]
        return -float(loss)

    return Run(step, gradient=lambda: np.asarray(found[0]))


_XLA = "XLA's pool; a scan of small products runs on one thread"

JAX = (
    Implementation("jax-em", "em", _em, _XLA, needs=("jax",)),
    Implementation("jax-gradient", "gradient", _gradient, _XLA, needs=("jax",)),
)
