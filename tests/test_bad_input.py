"""One table: every bad input is refused with the argument, its value, what was expected, a remedy.

A row is a call, the kind of error, and four patterns that its message must hold in this order.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chmm_pyro.checkpoint import load_checkpoint, save_checkpoint
from chmm_pyro.clones import CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.svi import fit_svi
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.point import PointCHMM
from chmm_pyro.sequences import SequenceBatch
from chmm_pyro.tables import BlockColumns, BlockTable, DenseTable, StepTable

INF, NAN = math.inf, math.nan
CLONES = CloneStructure([2, 1])
ACTIONS = torch.tensor([0, 1])
OBS = [0, 1, 0]


def hmm(**changes):
    arguments = {
        "initial_logits": torch.zeros(3),
        "transition_logits": torch.zeros(2, 3, 3),
        "actions": ACTIONS,
        **changes,
    }
    return CloneHMM(CLONES, **arguments)


def log_prob(obs=OBS, **changes):
    return hmm(**changes).log_prob(obs)


def with_entry(shape, at, value):
    logits = torch.zeros(shape)
    logits[at] = value
    return logits


def batch(obs=OBS, actions=(0, 1), **options):
    return SequenceBatch.from_arrays(obs, actions, **options)


def model(**options):
    return PointCHMM(CLONES, num_actions=2, **options)


def fit(method, batch=batch, **options):
    return method(model(), batch(), num_iters=1, progress=False, **options)


BIG = CloneStructure([2, 2])

SYMBOLS_AND_ACTIONS = {
    "symbol out of range": (
        lambda: log_prob([0, 2, 0]),
        (ValueError, r"obs\[1\]", "= 2", "a symbol below 2", "clone structure|renumber"),
    ),
    "negative symbol that is not MISSING": (
        lambda: log_prob([0, -2, 0]),
        (ValueError, r"obs\[1\]", "= -2", r"MISSING \(-1\)", "renumber"),
    ),
    "symbol in a batch": (
        lambda: log_prob([[0, 0, 0], [0, 0, 5]], actions=ACTIONS.expand(2, 2)),
        (ValueError, r"obs\[1, 2\]", "= 5", "a symbol below 2", "renumber"),
    ),
    "action out of range": (
        lambda: log_prob(actions=[0, 2]),
        (ValueError, r"actions\[1\]", "= 2", r"an action in 0 \.\. 1", "as many actions"),
    ),
    "negative action": (
        lambda: log_prob(actions=[-1, 0]),
        (ValueError, r"actions\[0\]", "= -1", r"an action in 0 \.\. 1", "renumber"),
    ),
    "float symbols": (
        lambda: log_prob(np.array([0.0, 1.0, 0.0])),
        (TypeError, "obs", "float64", "expected integers", r"astype\(int\)"),
    ),
    "NaN symbols": (
        lambda: log_prob(np.array([0.0, NAN, 0.0])),
        (TypeError, "obs", "float64 with NaN", "expected integers", r"MISSING \(-1\)"),
    ),
    "boolean symbols": (
        lambda: log_prob(torch.tensor([True, False, True])),
        (TypeError, "obs", "bool", "expected integers", "convert"),
    ),
    "strings": (
        lambda: log_prob(["a", "b", "a"]),
        (TypeError, "obs", "<U1|str", "expected integers", "from_episodes|vocabulary|convert"),
    ),
    "float actions": (
        lambda: hmm(actions=torch.zeros(2)),
        (TypeError, "actions", "float32", "expected integers", "convert"),
    ),
    "no action dimension": (
        lambda: hmm(actions=torch.tensor(0)),
        (ValueError, "actions", "scalar", r"expected \(\.\.\., T - 1\)", r"torch\.zeros"),
    ),
    "first symbol of probability zero": (
        lambda: hmm(initial_logits=with_entry(3, 2, -INF)).sample(first_symbol=1),
        (ValueError, "first_symbol", "= 1", "expected a symbol", "initial distribution"),
    ),
    "symbols and no clones for them": (
        lambda: CLONES.states(2),
        (ValueError, "symbol", "= 2", "expected 0 <= symbol < 2", "CloneStructure"),
    ),
}

SHAPES = {
    "too many symbols for the actions": (
        lambda: log_prob([0, 1, 0, 0]),
        (ValueError, "obs", r"\(4,\)", r"expected \(\.\.\., 3\)", "one more step than the actions"),
    ),
    "empty sequence": (
        lambda: log_prob(np.zeros(0, int)),
        (ValueError, "obs", r"\(0,\)", r"expected \(\.\.\., 3\)", "one more step"),
    ),
    "a scalar for a sequence": (
        lambda: log_prob(0),
        (ValueError, "obs", r"\(\)", r"expected \(\.\.\., 3\)", "one more step"),
    ),
    "no sequences": (
        lambda: log_prob(np.zeros((0, 3), int)),
        (ValueError, "obs", r"\(0, 3\)", "expected at least one sequence", "leave"),
    ),
    "symbols of more sequences than actions": (
        lambda: log_prob(np.zeros((3, 3), int), actions=ACTIONS.expand(2, 2)),
        (ValueError, r"obs \(3,\)", r"model \(2,\)", "expected.*broadcast", "same number"),
    ),
    "lengths of more sequences than actions": (
        lambda: hmm(actions=ACTIONS.expand(2, 2), lengths=[3, 3, 2]),
        (ValueError, r"actions \(2,\)", r"lengths \(3,\)", "expected.*broadcast", "same number"),
    ),
    "parameters of more models than sequences": (
        lambda: hmm(actions=ACTIONS.expand(2, 2), transition_logits=torch.zeros(3, 2, 3, 3)),
        (ValueError, r"transition_logits \(3,\)", r"actions \(2,\)", "broadcast", r"\(P, 1, "),
    ),
    "length zero": (
        lambda: log_prob([OBS, OBS], actions=ACTIONS.expand(2, 2), lengths=[3, 0]),
        (ValueError, r"lengths\[1\]", "= 0", "between 1 and the 3 steps", "leave lengths out"),
    ),
    "length beyond the end": (
        lambda: log_prob([OBS, OBS], actions=ACTIONS.expand(2, 2), lengths=[4, 3]),
        (ValueError, r"lengths\[0\]", "= 4", "between 1 and the 3 steps", "leave lengths out"),
    ),
    "float lengths": (
        lambda: hmm(lengths=torch.tensor([3.0])),
        (TypeError, "lengths", "float32", "expected integers", "convert"),
    ),
    "ragged lists": (
        lambda: log_prob([[0, 1, 0], [0, 1]]),
        (ValueError, "obs", "ragged|lengths", "expected.*same length", "SequenceBatch|lengths="),
    ),
    "ragged actions": (
        lambda: hmm(actions=[[0, 1], [0]]),
        (ValueError, "actions", "ragged", "expected.*same length", "SequenceBatch|lengths="),
    ),
    "lists that disagree": (
        lambda: batch([[0, 1, 0], [0, 1]], [[0, 1], [0, 1, 0]]),
        (ValueError, "actions", "3", "expected", "."),
    ),
    "lists of different numbers": (
        lambda: batch([[0, 1, 0], [0, 1]], [[0, 1]]),
        (ValueError, "actions", "1", "expected", "."),
    ),
    "an empty episode": (
        lambda: batch([[0, 1, 0], []], [[0, 1], []]),
        (ValueError, "obs", ".", "expected|at least", "."),
    ),
    "more actions than the model": (
        lambda: fit(fit_em, lambda: batch(actions=(0, 2))),
        (ValueError, r"actions\[1\]", "= 2", r"an action in 0 \.\. 1", "as many actions"),
    ),
    "initial logits of another structure": (
        lambda: hmm(initial_logits=torch.zeros(4)),
        (ValueError, "initial_logits", r"\(4,\)", r"expected \(\.\.\., 3\)", "entry per state"),
    ),
    "transition logits of another structure": (
        lambda: hmm(transition_logits=torch.zeros(2, 3, 4)),
        (ValueError, "transition_logits", r"\(2, 3, 4\)", r"\(\.\.\., A, 3, 3\)", "old state"),
    ),
    "transition logits without actions": (
        lambda: hmm(transition_logits=torch.zeros(3, 3)),
        (ValueError, "transition_logits", r"\(3, 3\)", r"\(\.\.\., A, 3, 3\)", r"\[None\]"),
    ),
    "a table of another structure": (
        lambda: hmm(transition_logits=DenseTable(BIG, torch.zeros(2, 4, 4))),
        (ValueError, "transition_logits", r"\[2, 2\]", r"expected.*\[2, 1\]", "same"),
    ),
    "blocks of another structure": (
        lambda: BlockTable(BlockColumns(CLONES, 2, np.zeros((0, 3), int)), torch.zeros(2, 3, 3)),
        (ValueError, "log_table", r"\(2, 3, 3\)", r"expected.*2, 3, 1\)", "BlockColumns"),
    ),
    "too small per-step blocks": (
        lambda: log_prob(transition_logits=StepTable(CLONES, torch.zeros(2, 1, 2))),
        (ValueError, "log_potentials", "1 x 2", "at least 2 x 2", "most states"),
    ),
    "per-step blocks for other steps": (
        lambda: log_prob(transition_logits=StepTable(CLONES, torch.zeros(1, 2, 2))),
        (ValueError, "log_potentials", "1 step", "expected 2", "T - 1"),
    ),
    "per-step blocks without steps": (
        lambda: StepTable(CLONES, torch.zeros(2, 2)),
        (ValueError, "log_potentials", r"\(2, 2\)", "expected", "old clone"),
    ),
    "evidence for other steps": (
        lambda: hmm(log_evidence=torch.zeros(2, 2)),
        (ValueError, "log_evidence", r"\(2, 2\)", r"expected \(\.\.\., 3,", "each of the 3 steps"),
    ),
    "evidence about something else": (
        lambda: hmm(log_evidence=torch.zeros(3, 4)),
        (ValueError, "log_evidence", "4 columns", "expected 2", r"or 3 \(states\)"),
    ),
    "action logits of other actions": (
        lambda: hmm(action_logits=torch.zeros(3)),
        (ValueError, "action_logits", r"\(3,\)", r"expected \(\.\.\., 2\)", "entry per action"),
    ),
}

VALUES = {
    "float16 logits": (
        lambda: hmm(
            initial_logits=torch.zeros(3).half(), transition_logits=torch.zeros(2, 3, 3).half()
        ),
        (TypeError, "logits", "float16", "expected a float32 or float64", "convert"),
    ),
    "bfloat16 table": (
        lambda: hmm(
            initial_logits=torch.zeros(3).bfloat16(),
            transition_logits=DenseTable(CLONES, torch.zeros(2, 3, 3).bfloat16()),
        ),
        (TypeError, "logits", "bfloat16", "expected a float32 or float64", "convert"),
    ),
    "integer logits": (
        lambda: hmm(transition_logits=torch.zeros(2, 3, 3, dtype=torch.long)),
        (TypeError, "transition_logits", "int64", "expected a float32 or float64", "convert"),
    ),
    "logits that are no tensor": (
        lambda: hmm(initial_logits=np.zeros(3)),
        (TypeError, "initial_logits", "ndarray", "expected a float32 or float64", "as_tensor"),
    ),
    "mixed precisions": (
        lambda: hmm(initial_logits=torch.zeros(3).double()),
        (TypeError, "initial_logits", "float64", "expected torch.float32", r"\.to\(dtype\)"),
    ),
    "evidence in another precision": (
        lambda: hmm(log_evidence=torch.zeros(3, 3).double()),
        (TypeError, "log_evidence", "float64", "expected torch.float32", r"\.to\(dtype\)"),
    ),
    "NaN transition logits": (
        lambda: hmm(transition_logits=with_entry((2, 3, 3), (1, 0, 2), NAN)),
        (ValueError, r"transition_logits\[1, 0, 2\]", "= NaN", "expected finite", "diverged"),
    ),
    "infinite transition logits": (
        lambda: hmm(transition_logits=with_entry((2, 3, 3), (1, 0, 2), INF)),
        (ValueError, r"transition_logits\[1, 0, 2\]", r"= \+inf", "expected finite", "look for"),
    ),
    "NaN in a table": (
        lambda: hmm(transition_logits=DenseTable(CLONES, with_entry((2, 3, 3), (1, 0, 2), NAN))),
        (ValueError, r"transition_logits\[1, 0, 2\]", "= NaN", "expected finite", "diverged"),
    ),
    "NaN in per-step blocks": (
        lambda: log_prob(
            transition_logits=StepTable(CLONES, with_entry((2, 2, 2), (1, 0, 1), NAN))
        ),
        (ValueError, r"transition_logits\[1, 0, 1\]", "= NaN", "expected finite", "diverged"),
    ),
    "row of only -inf": (
        lambda: hmm(transition_logits=with_entry((2, 3, 3), (1, 2), -INF)),
        (ValueError, r"transition_logits\[1, 2\]", "-inf throughout", "at least one", "row"),
    ),
    "joint row of only -inf": (
        lambda: hmm(
            transition_logits=with_entry((2, 3, 3), (slice(None), 2), -INF), action_model="joint"
        ),
        (ValueError, r"transition_logits\[0, 2\]", "-inf throughout", "at least one", "row"),
    ),
    "NaN initial logits": (
        lambda: hmm(initial_logits=with_entry(3, 1, NAN)),
        (ValueError, r"initial_logits\[1\]", "= NaN", "expected finite", "diverged"),
    ),
    "initial logits of only -inf": (
        lambda: hmm(initial_logits=torch.full((3,), -INF)),
        (ValueError, "initial_logits", "-inf throughout", "at least one", "finite logit"),
    ),
    "NaN evidence": (
        lambda: hmm(log_evidence=with_entry((3, 2), (1, 0), NAN)),
        (ValueError, r"log_evidence\[1, 0\]", "= NaN", "expected finite", "-inf"),
    ),
    "infinite evidence": (
        lambda: hmm(log_evidence=with_entry((3, 2), (1, 0), INF)),
        (ValueError, r"log_evidence\[1, 0\]", r"= \+inf", "expected finite", "-inf"),
    ),
    "NaN action logits": (
        lambda: hmm(action_logits=torch.tensor([0.0, NAN])),
        (ValueError, r"action_logits\[1\]", "= NaN", "expected finite", "diverged"),
    ),
    "symbols on another device": (
        lambda: log_prob(torch.zeros(3, dtype=torch.long, device="meta")),
        (ValueError, "obs", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
    "actions on another device": (
        lambda: hmm(actions=ACTIONS.to("meta")),
        (ValueError, "actions", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
    "lengths on another device": (
        lambda: hmm(lengths=torch.tensor(3, device="meta")),
        (ValueError, "lengths", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
    "initial logits on another device": (
        lambda: hmm(initial_logits=torch.zeros(3, device="meta")),
        (ValueError, "initial_logits", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
    "transition logits on another device": (
        lambda: hmm(transition_logits=torch.zeros(2, 3, 3, device="meta")),
        (ValueError, "initial_logits", "on cpu", "expected meta", r"\.to\(device\)"),
    ),
    "evidence on another device": (
        lambda: hmm(log_evidence=torch.zeros(3, 3, device="meta")),
        (ValueError, "log_evidence", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
    "action logits on another device": (
        lambda: hmm(action_logits=torch.zeros(2, device="meta")),
        (ValueError, "action_logits", "on meta", "expected cpu", r"\.to\(device\)"),
    ),
}

CHOICES = {
    "no clones for a symbol": (
        lambda: CloneStructure([2, 0, 1]),
        (ValueError, r"num_clones\[1\]", "= 0", "at least 1", "compress"),
    ),
    "no symbols": (
        lambda: CloneStructure([]),
        (ValueError, "num_clones", "empty", "at least one symbol", "CloneStructure"),
    ),
    "fractions of clones": (
        lambda: CloneStructure([2.0, 1.5]),
        (TypeError, "num_clones", "float64", "expected integers", "astype"),
    ),
    "clones as a table": (
        lambda: CloneStructure([[2, 1]]),
        (ValueError, "num_clones", r"\(1, 2\)", "expected one dimension", "write"),
    ),
    "budget below one clone each": (
        lambda: CloneStructure.proportional([0, 1, 2], 2),
        (ValueError, "total", "= 2", "at least one clone", "raise|drop"),
    ),
    "counts instead of a structure": (
        lambda: CloneHMM([2, 1], torch.zeros(3), torch.zeros(2, 3, 3), ACTIONS),
        (TypeError, "clones", "list", "expected CloneStructure", "write"),
    ),
    "unknown action model": (
        lambda: hmm(action_model="independent"),
        (ValueError, "action_model", "'independent'", "expected", "'joint'"),
    ),
    "action model that the table contradicts": (
        lambda: hmm(
            transition_logits=DenseTable(CLONES, torch.zeros(2, 3, 3)), action_model="joint"
        ),
        (ValueError, "action_model", "'joint'", "expected 'conditional'", "table"),
    ),
    "action prior of a joint model": (
        lambda: hmm(action_logits=torch.zeros(2), action_model="joint"),
        (ValueError, "action_logits", "joint", r"p\(a \| z\)", "leave"),
    ),
    "no samples": (
        lambda: hmm().sample_posterior(OBS, 0),
        (ValueError, "num_samples", "= 0", "at least 1", "."),
    ),
    "half a sample": (
        lambda: hmm().sample_posterior(OBS, 1.5),
        (TypeError, "num_samples", "= 1.5", "expected an integer", "."),
    ),
    "a model without actions": (
        lambda: PointCHMM(CLONES, num_actions=0),
        (ValueError, "num_actions", "= 0", "at least 1", "without actions"),
    ),
    "counts of another structure": (
        lambda: PointCHMM.from_counts(CLONES, torch.zeros(2, 3, 4)),
        (ValueError, "counts", r"\(2, 3, 4\)", r"expected \(A, 3, 3\)", "CloneStructure"),
    ),
    "negative counts": (
        lambda: PointCHMM.from_counts(CLONES, with_entry((2, 3, 3), (1, 0, 2), -1.0)),
        (ValueError, r"counts\[1, 0, 2\]", "= -1", "expected finite and >= 0", "."),
    ),
    **{
        f"{label} in {method.__name__}": (
            lambda method=method, options=options: fit(method, **options),
            (ValueError, *patterns),
        )
        for method in (fit_em, fit_svi, fit_viterbi)
        for label, options, patterns in (
            ("pseudocount", {"pseudocount": -1.0}, ("pseudocount", "= -1", ">= 0", "Bayesian")),
        )
    },
    "no updates": (
        lambda: fit_em(model(), batch(), num_iters=0, progress=False),
        (ValueError, "num_iters", "= 0", "at least 1", "."),
    ),
    "unknown schedule": (
        lambda: fit(fit_svi, schedule="linear"),
        (ValueError, "schedule", "'linear'", "expected one of", "'cosine'"),
    ),
    "negative learning rate": (
        lambda: fit(fit_svi, learning_rate=-0.1),
        (ValueError, "learning_rate", "= -0.1", "expected a positive", "0.2"),
    ),
    "weights of other tasks": (
        lambda: fit(fit_svi, weights=[1.0, 2.0]),
        (ValueError, "weights", "2 entries", "expected 1", "one a batch"),
    ),
    "arrays instead of a batch": (
        lambda: fit_svi(model(), [np.array(OBS)], num_iters=1),
        (TypeError, "batch", ".", "expected one", "from_arrays"),
    ),
    "segments of one step": (
        lambda: fit(fit_svi, segment_length=1),
        (ValueError, "segment_length", "= 1", "at least 2", "None"),
    ),
    "negative burn-in": (
        lambda: fit(fit_svi, segment_length=2, burn_in=-1),
        (ValueError, "burn_in", "= -1", "at least 0", "32 suits"),
    ),
    "impossible data": (
        lambda: fit_em(
            PointCHMM.from_counts(CLONES, torch.eye(3).expand(2, 3, 3)), batch(), progress=False
        ),
        (ValueError, "data", "impossible", "cannot start", "pseudocount"),
    ),
}


def write_table(path: Path):
    pd.DataFrame({"step": [0, 1], "seen": ["a", "b"]}).to_csv(path, index=False)
    return path


def corrupt_checkpoint(path: Path):
    save_checkpoint(path, model())
    weights = next(path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    return path


def newer_checkpoint(path: Path):
    save_checkpoint(path, model())
    settings = next(path.glob("*.json"))
    content = json.loads(settings.read_text())
    key = next(k for k in content if "version" in k)
    settings.write_text(json.dumps({**content, key: 999}))
    return path


FILES = {
    "unknown file type": (
        lambda folder: SequenceBatch.from_file(folder / "walk.xlsx"),
        (ValueError, "walk.xlsx|path", "xlsx", "expected", r"\.csv"),
    ),
    "missing column": (
        lambda folder: SequenceBatch.from_file(write_table(folder / "walk.csv")),
        (ValueError, "observation", ".", "step.*seen|expected", "."),
    ),
    "corrupt checkpoint": (
        lambda folder: load_checkpoint(corrupt_checkpoint(folder / "model")),
        (ValueError, ".", ".", ".", "."),
    ),
    "newer checkpoint": (
        lambda folder: load_checkpoint(newer_checkpoint(folder / "model")),
        (ValueError, "version|format", "999", ".", "upgrade|newer|install"),
    ),
}

ROWS = {**SYMBOLS_AND_ACTIONS, **SHAPES, **VALUES, **CHOICES}


def refused(call, kind, *patterns):
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert type(error.value) is kind
    assert re.search(".*".join(f"(?:{p})" for p in patterns), message, re.DOTALL), message


@pytest.mark.parametrize(("call", "expected"), ROWS.values(), ids=ROWS)
def test_refused(call, expected):
    refused(call, *expected)


@pytest.mark.parametrize(("call", "expected"), FILES.values(), ids=FILES)
def test_files_refused(call, expected, tmp_path):
    refused(lambda: call(tmp_path), *expected)
