"""Kernels in plain torch operations: any device, log space, and differentiable any number of times.

Jobs are padded to the longest sequence and the widest support and advance one step at a time
together.  Messages are normalised at every step, so float32 keeps its digits on long sequences.
This is the reference for the compiled kernels and the path of second derivatives.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .interface import Counts, Draws, Forward, Path, Problem
from .layout import Layout

__all__ = [
    "Sweep",
    "ffbs",
    "forward",
    "forward_backward",
    "gather",
    "scatter",
    "sweep",
    "viterbi",
    "weigh",
]


@lru_cache(maxsize=8)
def _table_index(layout: Layout, device: torch.device) -> Tensor:
    action, old, new = layout.entry_states
    states = layout.clones.num_states
    return torch.as_tensor((action * states + old) * states + new, device=device)


def gather(table: Tensor, layout: Layout) -> Tensor:
    """Blocks of dense tables; see :mod:`~chmm_pyro._kernels.interface`."""
    return table.flatten(1).index_select(1, _table_index(layout, table.device))


def scatter(blocks: Tensor, layout: Layout, num_actions: int) -> Tensor:
    """Tables with the sums of blocks; see :mod:`~chmm_pyro._kernels.interface`."""
    shape = (len(blocks), num_actions, layout.clones.num_states, layout.clones.num_states)
    index = _table_index(layout, blocks.device)
    return blocks.new_zeros(shape).flatten(1).index_add(1, index, blocks).view(shape)


class _Padded(NamedTuple):
    """Index tensors that turn flat storage into padded storage; ``R`` is the widest support.

    Attributes:
        valid: ``(J, T)`` which steps exist.
        step: ``(J, T)`` flat step, the last one repeated in the padding.
        message: ``(J, T, R)`` flat message entry; one past the end where there is none.
        state: ``(J, T, R)`` state, ``S`` where there is none.
        block: ``(J, T)`` block to the next step.
        entry: ``(G, R, R)`` flat block entry; one past the end where there is none.
        initial: ``(J,)`` row of ``log_initial``.
        blocks: ``(J,)`` row of ``log_blocks``.
    """

    valid: Tensor
    step: Tensor
    message: Tensor
    state: Tensor
    block: Tensor
    entry: Tensor
    initial: Tensor
    blocks: Tensor


class Sweep(NamedTuple):
    """Forward and backward messages of a problem, ready to be weighed into counts.

    Attributes:
        problem: what was swept.
        log_z: ``(J,)``.
        log_steps: ``(Q,)``.
        forward: ``(J, T, R)`` normalised log messages.
        backward: ``(J, T, R)`` normalised log messages of the future.
    """

    problem: Problem
    log_z: Tensor
    log_steps: Tensor
    forward: Tensor
    backward: Tensor


def _pad(problem: Problem) -> _Padded:
    layout, jobs = problem.layout, problem.jobs
    width, last = layout.max_support, layout.lengths - 1
    time = np.arange(int(layout.lengths.max()))
    valid = time <= last[:, None]
    step = layout.step_start[:-1, None] + np.minimum(time, last[:, None])
    local = np.arange(width)
    exists = (local < layout.support_size[step][..., None]) & valid[..., None]
    message = np.where(exists, layout.message_start[step][..., None] + local, -1)
    state = layout.support_start[step][..., None] + local
    rows = local[:, None] < layout.block_from[:, 1, None, None]
    columns = local < layout.block_to[:, 1, None, None]
    entry = layout.block_start[:-1, None, None] + local
    entry = entry + local[:, None] * layout.block_to[:, 1, None, None]
    arrays = (
        valid,
        step,
        np.where(message < 0, layout.message_start[-1], message),
        np.where(exists, state, layout.clones.num_states),
        layout.block_index[step],
        np.where(rows & columns, entry, layout.num_block_entries),
        jobs.initial,
        jobs.blocks,
    )
    device = problem.log_blocks.device
    return _Padded(*(torch.as_tensor(array, device=device) for array in arrays))


def _with_minus_inf(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 1), value=-torch.inf)


def _log_sum(values: Tensor, dim: int) -> Tensor:
    """``logsumexp`` with gradient zero, not NaN, where every term is ``-inf``."""
    top = values.detach().amax(dim, keepdim=True)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    total = (values - top).exp().sum(dim)
    possible = total > 0
    return torch.where(
        possible, torch.where(possible, total, 1.0).log() + top.squeeze(dim), -torch.inf
    )


class _Potentials:
    """Padded log-potentials, one step at a time: ``first``, ``evidence(t)`` and ``block(t)``."""

    def __init__(self, problem: Problem, padded: _Padded) -> None:
        initial = _with_minus_inf(problem.log_initial)
        self.first = initial[padded.initial[:, None], padded.state[:, 0]]
        self._evidence = None
        if problem.log_evidence is not None:
            self._evidence = _with_minus_inf(problem.log_evidence)[padded.message].unbind(1)
        self._padded = padded
        self._table = _with_minus_inf(problem.log_blocks)[:, padded.entry]
        self._steps = None
        if torch.is_grad_enabled() and self._table.requires_grad and len(padded.entry):
            # One gather: a gather a step would make backward fill the whole table every step.
            rows = padded.blocks[:, None].expand(-1, padded.block.shape[1] - 1)
            self._steps = self._table[rows, padded.block[:, :-1]].unbind(1)

    def block(self, t: int) -> Tensor:
        """``(J, R, R)`` from step ``t`` to ``t + 1``."""
        if self._steps is not None:
            return self._steps[t]
        return self._table[self._padded.blocks, self._padded.block[:, t]]

    def evidence(self, t: int) -> Tensor | float:
        """``(J, R)`` of step ``t``."""
        return 0.0 if self._evidence is None else self._evidence[t]


def _filter(problem: Problem, padded: _Padded) -> tuple[Tensor, Tensor]:
    """Normalised log messages ``(J, T, R)`` and log normalisers ``(J, T)``, zero in the padding."""
    potentials = _Potentials(problem, padded)
    exists = padded.state < problem.layout.clones.num_states
    message = potentials.first + potentials.evidence(0)
    messages: list[Tensor] = []
    normalisers: list[Tensor] = []
    for t in range(padded.valid.shape[1]):
        if t > 0:
            message = _log_sum(messages[-1].unsqueeze(-1) + potentials.block(t - 1), 1)
            message = message + potentials.evidence(t)
            message = torch.where(exists[:, t], message, -torch.inf)
        normaliser = _log_sum(message, 1)
        shift = torch.where(torch.isfinite(normaliser), normaliser, 0.0)
        messages.append(message - shift.unsqueeze(-1))
        normalisers.append(normaliser.double())
    stacked = torch.stack(normalisers, 1)
    return torch.stack(messages, 1), torch.where(padded.valid, stacked, 0.0)


def forward(problem: Problem, keep_messages: bool = True) -> Forward:
    """Filter every job; see :mod:`~chmm_pyro._kernels.interface`."""
    padded = _pad(problem)
    messages, normalisers = _filter(problem, padded)
    flat = messages[padded.message < problem.layout.message_start[-1]].exp()
    return Forward(normalisers.sum(1), normalisers[padded.valid], flat if keep_messages else None)


@torch.no_grad()
def sweep(problem: Problem) -> Sweep:
    """Both passes, without counts: the weights of :func:`weigh` may come later."""
    padded = _pad(problem)
    messages, normalisers = _filter(problem, padded)
    potentials = _Potentials(problem, padded)
    future = torch.zeros_like(messages)
    for t in range(messages.shape[1] - 2, -1, -1):
        after = future[:, t + 1] + potentials.evidence(t + 1)
        message = _log_sum(potentials.block(t) + after.unsqueeze(1), 2)
        top = message.amax(1, keepdim=True)
        message = message - torch.where(torch.isfinite(top), top, 0.0)
        # At and beyond a last step the future is empty.
        inside = padded.valid[:, t + 1, None]
        future[:, t] = torch.where(inside, message, 0.0)
    return Sweep(problem, normalisers.sum(1), normalisers[padded.valid], messages, future)


@torch.no_grad()
def weigh(result: Sweep, weights: Tensor, marginals: bool = False) -> Counts:
    """Expected counts of a sweep, each job times its weight."""
    problem = result.problem
    layout = problem.layout
    padded = _pad(problem)
    potentials = _Potentials(problem, padded)
    weights = torch.where(torch.isfinite(result.log_z), weights.to(problem.log_blocks), 0.0)

    def posterior(joint: Tensor, weight: Tensor) -> Tensor:
        flat = joint.flatten(1)
        normaliser = _log_sum(flat, 1)
        normaliser = torch.where(torch.isfinite(normaliser), normaliser, torch.inf)
        return ((flat - normaliser[:, None]).exp() * weight[:, None]).view_as(joint)

    table = problem.log_blocks.new_zeros(len(problem.log_blocks), *padded.entry.shape)
    for t in range(padded.valid.shape[1] - 1):
        after = result.backward[:, t + 1] + potentials.evidence(t + 1)
        joint = result.forward[:, t].unsqueeze(-1) + potentials.block(t) + after.unsqueeze(1)
        weight = torch.where(padded.valid[:, t + 1], weights, 0.0)
        at = (padded.blocks, padded.block[:, t])
        table.index_put_(at, posterior(joint, weight), accumulate=True)
    inside = padded.entry < layout.num_block_entries
    counts = table[:, inside]

    initial = problem.log_initial.new_zeros(len(problem.log_initial), layout.clones.num_states + 1)
    start = posterior(result.forward[:, 0] + result.backward[:, 0], weights)
    initial.index_put_((padded.initial[:, None], padded.state[:, 0]), start, accumulate=True)
    states = None
    if marginals:
        joint = (result.forward + result.backward).flatten(0, 1)
        each = weights[:, None].expand_as(padded.valid).flatten()
        padded_states = posterior(joint, each).view_as(result.forward)
        states = padded_states[padded.message < layout.message_start[-1]]
    return Counts(result.log_z, initial[:, :-1], counts, states)


def forward_backward(
    problem: Problem, weights: Tensor | None = None, marginals: bool = False
) -> Counts:
    """Expected counts; see :mod:`~chmm_pyro._kernels.interface`."""
    if weights is None:
        weights = problem.log_blocks.new_ones(problem.layout.num_sequences)
    return weigh(sweep(problem), weights, marginals)


@torch.no_grad()
def viterbi(problem: Problem, generator_seed: int | None = None) -> Path:
    """Most probable paths; ties go to the lowest state, or are drawn if a seed is given."""
    padded = _pad(problem)
    potentials = _Potentials(problem, padded)
    device = problem.log_blocks.device
    generator = None
    if generator_seed is not None:
        generator = torch.Generator(device).manual_seed(generator_seed)

    def best(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        top, winner = scores.max(dim)  # the first of equal entries
        if generator is not None:
            noise = torch.rand(scores.shape, generator=generator, device=device)
            winner = torch.where(scores == top.unsqueeze(dim), noise, -1.0).argmax(dim)
        return top, winner

    score = potentials.first + potentials.evidence(0)
    pointers = []
    for t in range(1, padded.valid.shape[1]):
        top, pointer = best(score.unsqueeze(-1) + potentials.block(t - 1), 1)
        top = top + potentials.evidence(t)
        inside = padded.valid[:, t, None]
        pointers.append(pointer)
        shift = torch.where(inside, top, score).amax(1, keepdim=True)
        shift = torch.where(torch.isfinite(shift), shift, 0.0)
        score = torch.where(inside, top, score) - shift
    _, state = best(score, 1)
    states = [state]
    for t in range(padded.valid.shape[1] - 1, 0, -1):
        previous = pointers[t - 1].gather(1, state[:, None]).squeeze(1)
        state = torch.where(padded.valid[:, t], previous, state)
        states.append(state)
    path = torch.stack(states[::-1], 1)

    total = potentials.first.gather(1, path[:, :1]).squeeze(1).double()
    job = torch.arange(len(path), device=device)
    for t in range(path.shape[1]):
        if problem.log_evidence is not None:
            term = potentials.evidence(t).gather(1, path[:, t, None]).squeeze(1)  # type: ignore[union-attr]
            total = total + torch.where(padded.valid[:, t], term.double(), 0.0)
        if t + 1 < path.shape[1]:
            term = potentials.block(t)[job, path[:, t], path[:, t + 1]]
            total = total + torch.where(padded.valid[:, t + 1], term.double(), 0.0)
    return Path(path[padded.valid], total)


@torch.no_grad()
def ffbs(problem: Problem, uniforms: Tensor) -> Draws:
    """Posterior paths by inverse CDF of ``uniforms (samples, Q)``."""
    padded = _pad(problem)
    potentials = _Potentials(problem, padded)
    messages, normalisers = _filter(problem, padded)
    samples = len(uniforms)
    job = torch.arange(messages.shape[0], device=messages.device)
    state = torch.zeros(samples, len(job), dtype=torch.long, device=messages.device)
    states = []
    for t in range(padded.valid.shape[1] - 1, -1, -1):
        logits = messages[:, t].double().expand(samples, -1, -1)
        if t + 1 < padded.valid.shape[1]:
            column = potentials.block(t)[job, :, state].double()
            logits = logits + torch.where(padded.valid[:, t + 1, None], column, 0.0)
        top = logits.amax(-1, keepdim=True)
        weights = (logits - torch.where(torch.isfinite(top), top, 0.0)).exp()
        running = weights.cumsum(-1)
        target = uniforms[:, padded.step[:, t]].unsqueeze(-1) * running[..., -1:]
        positive = weights > 0
        last = torch.where(positive, torch.arange(weights.shape[-1], device=job.device), 0).amax(-1)
        drawn = torch.minimum((running <= target).sum(-1), last)
        state = torch.where(padded.valid[:, t], drawn, state)
        states.append(state)
    return Draws(torch.stack(states[::-1], -1)[:, padded.valid], normalisers.sum(1))
