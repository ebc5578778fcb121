"""Logits and other log-potentials: normalised, and refused by name where they are wrong."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["ACTION_MODELS", "log_normalise", "log_softmax", "refuse_bad", "refuse_unlike"]

ACTION_MODELS = ("conditional", "joint")


def log_normalise(logits: Tensor, action_model: str = "conditional") -> Tensor:
    """Log-softmax of ``(*P, A, S, L)`` over the last axis, or over actions and the last axis.

    Raises:
        ValueError: NaN or ``+inf`` logits, or a row without any finite logit.
    """
    if action_model == "conditional":
        table = logits.log_softmax(-1)
    elif action_model == "joint":
        actions, states, width = logits.shape[-3:]
        rows = logits.transpose(-3, -2).reshape(*logits.shape[:-3], states, actions * width)
        table = rows.log_softmax(-1).view(*logits.shape[:-3], states, actions, width)
        table = table.transpose(-3, -2)
    else:
        raise ValueError(f"action_model = {action_model!r}, expected one of {ACTION_MODELS}.")
    # One reduction finds NaN anywhere; a row of only -inf becomes NaN in the softmax.
    if torch.isnan(table.detach().sum()):
        refuse_bad("transition_logits", logits)
        at = _first(torch.isnan(table).any(-1))
        raise ValueError(
            f"transition_logits{at} is -inf throughout, expected at least one possible successor "
            "(row = action, old state); give the row one finite logit."
        )
    return table


def log_softmax(name: str, logits: Tensor) -> Tensor:
    """Log-softmax over the last axis.

    Raises:
        ValueError: NaN or ``+inf`` logits, or only ``-inf``.
    """
    found = logits.log_softmax(-1)
    if torch.isnan(found.detach().sum()):
        refuse_bad(name, logits)
        raise ValueError(
            f"{name} is -inf throughout, expected at least one possible entry; give it one finite "
            "logit."
        )
    return found


def refuse_bad(name: str, values: Tensor) -> None:
    """Refuse NaN and ``+inf``, by position."""
    if bool(values.detach().sum() < math.inf):
        return
    for label, wrong in (("NaN", torch.isnan(values)), ("+inf", torch.isposinf(values))):
        if wrong.any():
            raise ValueError(
                f"{name}{_first(wrong)} = {label}, expected finite numbers, or -inf for what is "
                "impossible; look for a diverged optimiser or a log of a negative number."
            )


def _first(wrong: Tensor) -> list[int]:
    return [int(i) for i in wrong.nonzero()[0]]


def refuse_unlike(name: str, value: Any, like: Tensor | None = None) -> None:
    """Refuse what is no float32 or float64 tensor, or differs from ``transition_logits``."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} is {found}, expected a float32 or float64 tensor; convert with "
            "`torch.as_tensor(x, dtype=torch.float64)`."
        )
    if like is None:
        return
    if value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device}, expected {like.device} like transition_logits; move "
            "one with `.to(device)`."
        )
    if value.dtype != like.dtype:
        raise TypeError(
            f"{name} has dtype {value.dtype}, expected {like.dtype} like transition_logits; "
            "convert one with `.to(dtype)`."
        )
