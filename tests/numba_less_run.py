"""One exact answer, two fits and what was said about numba, printed as JSON.

test_without_numba.py runs this in a process that has no numba and checks the numbers.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import torch
from instances import Instance, random_instance

from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.messages import kernel_name
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch

__all__ = ["fits", "instance"]


def instance() -> Instance:
    return random_instance((2, 3, 1), 5, num_actions=2, seed=3, missing=1)


def fits() -> dict[str, list[float]]:
    """Objectives of a few updates of each method, in float64."""
    generator = torch.Generator().manual_seed(4)
    obs = torch.randint(3, (2, 40), generator=generator).numpy()
    actions = torch.randint(2, (2, 39), generator=generator).numpy()
    batch = SequenceBatch.from_arrays(list(obs), list(actions))
    model = PointCHMM(CloneStructure([2, 3, 1]), num_actions=2, seed=0, dtype=torch.float64)
    quick: dict[str, Any] = {"num_iters": 4, "progress": False}
    return {
        "em": [float(x) for x in fit_em(model, batch, pseudocount=0.1, **quick).objective_history],
        "svi": [float(x) for x in fit_svi(model, batch, seed=0, **quick).objective_history],
    }


def _main() -> None:
    case = instance()
    given = case.arguments(requires_grad=True)
    answer: dict[str, Any] = {}
    for name, variables in {"silenced": {"CHMM_PYRO_KERNEL": "torch"}, "default": {}}.items():
        os.environ.pop("CHMM_PYRO_KERNEL", None)
        os.environ.update(variables)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            log_prob = CloneHMM(case.clones, **given).log_prob(torch.tensor(case.obs))
            answer |= fits()
        said = [str(warning.message) for warning in caught]
        answer[name] = [text for text in said if "numba" in text]
    log_prob.backward()
    answer["kernel"] = kernel_name(torch.device("cpu"))
    answer["log_prob"] = log_prob.item()
    answer["initial_gradient"] = given["initial_logits"].grad.tolist()
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
