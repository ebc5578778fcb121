"""Learn the published 6x8 room with Pyro's own SVI: python examples/svi_room.py --help."""

from __future__ import annotations

import argparse
import math
import time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

from chmm_pyro import CloneStructure
from chmm_pyro.environments import published_room
from chmm_pyro.maps import place_purity, states_used
from chmm_pyro.models import EnumeratedCHMM, PointCHMM


def no_latent_variables(batch):
    """The guide: parameters are points, hidden states are summed out exactly."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="length of the walk")
    parser.add_argument("--iters", type=int, default=120, help="gradient updates")
    parser.add_argument("--clones", type=int, default=70, help="hidden states per symbol")
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--enumerate",
        action="store_true",
        help="sum the states out by Pyro's enumeration: the same numbers, for short walks",
    )
    options = parser.parse_args()

    room = published_room("rectangular_room")
    train = room.random_walk(options.steps, seed=options.seed).batch()
    held_out = room.random_walk(options.steps, seed=options.seed + 1).batch()

    clones = CloneStructure([options.clones] * room.num_symbols)
    kind = EnumeratedCHMM if options.enumerate else PointCHMM
    model = kind(clones, num_actions=4, seed=options.seed)
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if options.enumerate else Trace_ELBO()
    optimizer = pyro.optim.Adam({"lr": options.learning_rate, "betas": (0.9, 0.99)})
    svi = SVI(model, no_latent_variables, optimizer, elbo)

    started = time.perf_counter()
    for iteration in range(options.iters):
        loss = svi.step(train)  # minus the log-likelihood, in nats
        if iteration % 20 == 0 or iteration == options.iters - 1:
            bits = loss / (math.log(2) * train.num_observed)
            seconds = time.perf_counter() - started
            print(f"update {iteration:4d}: {bits:.4f} bits/step, {seconds:5.1f} s")

    with torch.no_grad():
        log_prob = model.distribution(held_out).log_prob(held_out.obs).item()
        states = model.distribution(train).posterior_mode(train.obs).states
    print(f"another walk of this room: {-log_prob / (math.log(2) * options.steps):.4f} bits/step")
    print(
        f"{states_used(states)} states used for {room.num_places} places, "
        f"purity {place_purity(states, train.positions):.3f}"
    )


if __name__ == "__main__":
    main()
