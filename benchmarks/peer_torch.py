"""A hand-written torch loop over gathered clone blocks, differentiated by autograd."""

from __future__ import annotations

import math

import torch
from contest import Implementation, Run
from sizes import Instance

__all__ = ["TORCH"]


def _gradient(instance: Instance) -> Run:
    logits = torch.from_numpy(instance.table).log().requires_grad_()
    symbols, width = instance.num_symbols, instance.clones_per_symbol
    obs, actions = torch.from_numpy(instance.obs), torch.from_numpy(instance.actions)
    keys = ((actions * symbols + obs[:, :-1]) * symbols + obs[:, 1:]).T
    single = instance.num_sequences is None
    order = keys[:, 0].tolist()
    batch = len(obs)

    def step() -> float:
        logits.grad = None
        table = logits.softmax(-1).view(-1, symbols, width, symbols, width)
        blocks = table.transpose(2, 3).reshape(-1, width, width)
        # Gathering the blocks of a long sequence at once would take a gigabyte, and a gather at
        # every step would make backward fill the whole table every time.
        distinct = blocks.unbind(0) if single else ()
        steps = [distinct[key] for key in order] if single else blocks[keys].unbind(0)
        message = torch.full((batch, 1, width), 1 / width)
        scales = []
        for block in steps:
            new = message @ block
            scale = new.sum(-1, keepdim=True)
            message = new / scale
            scales.append(scale)
        loss = batch * math.log(symbols) - torch.stack(scales).log().sum()
        loss.backward()
        return -float(loss.detach())

    return Run(step, gradient=lambda: logits.grad.numpy())


TORCH = (Implementation("torch-loop-gradient", "gradient", _gradient, "torch operations"),)
