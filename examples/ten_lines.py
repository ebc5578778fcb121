import pyro
from pyro.infer import SVI, TraceEnum_ELBO

from chmm_pyro import CloneStructure, SequenceBatch
from chmm_pyro.models import PointCHMM  # or EnumeratedCHMM: the same numbers, states enumerated

batch = SequenceBatch.from_arrays([0, 1, 0, 2] * 10)
model = PointCHMM(CloneStructure([2, 2, 2]), num_actions=1)
elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
svi = SVI(model, lambda batch: None, pyro.optim.Adam({"lr": 0.2}), elbo)
losses = [svi.step(batch) for _ in range(30)]
print(f"minus log-likelihood: {losses[0]:.1f} nats, then {losses[-1]:.1f}")
