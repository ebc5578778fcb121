"""Write ``checkpoint_v1/``: what the first format of checkpoints looks like, kept for ever.

Run once with the version that introduced the format; later versions must read the result:

    python test_data/make_checkpoints.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from chmm_pyro.checkpoint import save_checkpoint
from chmm_pyro.clones import CloneStructure
from chmm_pyro.inference import fit_em
from chmm_pyro.models import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns

OBS = "abcabbacabcacbab"
ACTIONS = ["left", "right", "right", "left", "right"] * 3
CLONES = CloneStructure([2, 3, 1])


def main() -> None:
    """Save one model for each kind of parameters, and its log-likelihood of the data."""
    folder = Path(__file__).parent / "checkpoint_v1"
    batch = SequenceBatch.from_episodes([(list(OBS), ACTIONS)])
    shape = (2, CLONES.num_states, CLONES.num_states)
    generator = np.random.default_rng(7)
    allowed = torch.as_tensor(generator.random(shape) < 0.9)
    frozen = torch.full(shape, torch.nan)
    frozen[0, 1, 2] = 0.25
    allowed[0, 1] = True
    counts = torch.as_tensor(generator.gamma(2.0, size=shape))
    double = {"dtype": torch.float64}
    columns = BlockColumns.from_batch(CLONES, 2, batch)
    models = {
        "softmax": PointCHMM(CLONES, 2, seed=1),
        "masked": PointCHMM(CLONES, 2, seed=2, allowed=allowed, frozen=frozen, **double),
        "counts": PointCHMM.from_counts(CLONES, counts, parameterization="counts"),
        "blocks": PointCHMM(CLONES, 2, seed=3, parameterization="blocks", columns=columns),
        "joint": PointCHMM(CLONES, 2, seed=4, action_model="joint", learn_initial=True, **double),
        "actions": PointCHMM(CLONES, 2, seed=5, learn_actions=True, **double),
    }
    expected = {}
    for name, model in models.items():
        result = fit_em(model, batch, num_iters=3, pseudocount=0.1, progress=False)
        save_checkpoint(folder / name, result, settings={"note": name})
        expected[name] = result.model.distribution(batch).log_prob(batch.obs).sum().item()
    (folder / "expected.json").write_text(json.dumps({"log_prob": expected}, indent=1))


if __name__ == "__main__":
    main()
