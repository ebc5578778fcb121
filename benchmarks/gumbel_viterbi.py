"""The Gumbel-softmax guide against exact Viterbi, and training through its relaxed paths.

Each study is a CSV in ``results/`` with a row for every run; runs that are there already are
skipped, so the script can be stopped and started again.  ``python benchmarks/gumbel_viterbi.py
--help``.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import describe
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from training_curves import GOLDEN, load

from chmm_pyro.clones import MISSING, CloneStructure
from chmm_pyro.distribution import CloneHMM
from chmm_pyro.inference.amortised import AmortisedPathGuide
from chmm_pyro.inference.em import fit_em
from chmm_pyro.inference.gumbel import GumbelPathGuide, fit_gumbel
from chmm_pyro.inference.markov_path import RELAXATIONS
from chmm_pyro.inference.path_guide import STRUCTURES, PathGuide, path_elbo
from chmm_pyro.inference.viterbi import fit_viterbi
from chmm_pyro.models.relaxed import RelaxedCHMM
from chmm_pyro.sequences import SequenceBatch

__all__ = ["CASES", "GOAL", "STUDIES", "main", "problem", "random_ragged", "random_walks", "run"]

GOAL = 0.01
"""The guide's path may miss the best score by this fraction."""
NUM_RAGGED = 20
CASES = (
    *GOLDEN,
    *(f"{name} trained" for name in GOLDEN),
    *(f"ragged {seed}" for seed in range(NUM_RAGGED)),
)
_SEEDS = range(3)
_RESULTS = Path(__file__).parent / "results"

Problem = tuple[RelaxedCHMM, SequenceBatch]
Row = dict[str, Any]


# ------------------------------------------------------------------------------------- problems


@lru_cache
def problem(case: str) -> Problem:
    """The model and the sequences of one of :data:`CASES`; treat them as read-only."""
    name, _, which = case.partition(" ")
    if name == "ragged":
        return random_ragged(int(which))
    golden = load(name)
    start = RelaxedCHMM.from_model(golden.start)
    if which == "trained":
        kappa = golden.pseudocount
        start = fit_em(start, golden.train, num_iters=100, pseudocount=kappa, progress=False).model
    return start, golden.train


def random_ragged(seed: int) -> Problem:
    """A random model with ragged clones, and two to four sequences of unequal lengths from it.

    Every third one has structural zeros and every fourth a missing step.
    """
    rng = np.random.default_rng([2024, seed])
    clones = CloneStructure(rng.integers(1, 7, size=rng.integers(2, 6)))
    num_actions, states = int(rng.integers(1, 4)), clones.num_states
    allowed = None
    if _has_zeros(seed):
        allowed = torch.tensor(rng.random((num_actions, states, states)) < 0.6)
        allowed |= torch.eye(states, dtype=torch.bool)
    model = RelaxedCHMM(clones, num_actions, seed=seed, allowed=allowed)
    with torch.no_grad():
        model.transition.logits.mul_(float(rng.uniform(0.5, 3.0)))
    lengths = rng.integers(1, 40, size=rng.integers(2, 5))
    actions = [rng.integers(num_actions, size=length - 1) for length in lengths]
    obs = [_draw(model, steps, [seed, number]).numpy() for number, steps in enumerate(actions)]
    if seed % 4 == 0:
        obs[0][len(obs[0]) // 2] = MISSING
    return model, SequenceBatch.from_arrays(obs, actions, num_actions=num_actions)


def _has_zeros(seed: int) -> bool:
    return seed % 3 == 0


def random_walks(
    num_seen: int = 128, num_unseen: int = 128, *, num_steps: int = 20
) -> tuple[RelaxedCHMM, SequenceBatch, SequenceBatch]:
    """A peaked random model, sequences from it to train a network on, and others."""
    model = RelaxedCHMM(CloneStructure([3, 2, 4]), 2, seed=3)
    with torch.no_grad():
        model.transition.logits.mul_(2)
    batches = []
    for number, size in enumerate((num_seen, num_unseen)):
        actions = np.random.default_rng([3, number]).integers(2, size=(size, num_steps - 1))
        obs = _draw(model, actions, [3, number])
        batches.append(SequenceBatch.from_arrays(obs.numpy(), actions, num_actions=2))
    return model, batches[0], batches[1]


def _draw(model: RelaxedCHMM, actions: np.ndarray, seed: list[int]) -> Tensor:
    hmm = CloneHMM(model.clones, model.initial.logits, model.transition.table(), actions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        return hmm.sample()


# -------------------------------------------------------------------------------------- studies


def best_scores(model: RelaxedCHMM, batch: SequenceBatch) -> Tensor:
    """``(...)`` joint log-probability of each sequence and its most probable path."""
    return model.distribution(batch).posterior_mode(batch.obs).score.double()


@torch.no_grad()
def shortfalls(model: RelaxedCHMM, batch: SequenceBatch, guide: PathGuide) -> tuple[Tensor, Tensor]:
    """How far each sequence's joint log-probability is below Viterbi's, as a fraction of it.

    Returns:
        ``(...)`` for the guide's most probable path, and ``(...)`` for its average path.
    """
    best = best_scores(model, batch)
    mode = guide.mode(model, batch).score
    average = path_elbo(model, guide, batch, entropy_weight=0.0).double()
    for found in (mode, average):
        assert (found <= best + 1e-4 * best.abs()).all(), "a path above the best one"
    return (best - mode) / best.abs(), (best - average) / best.abs()


def decoding(case: str, structure: str, relaxation: str, seed: int, **options: Any) -> Row:
    """A random guide before and after it has moved; the model is fixed."""
    model, batch = problem(case)
    guide = GumbelPathGuide(model, batch, structure=structure, relaxation=relaxation, seed=seed)
    fit = fit_gumbel(
        model, batch, guide=guide, train_model=False, seed=seed, progress=False, **options
    )
    before, _ = shortfalls(model, batch, guide)
    mode, average = shortfalls(model, batch, fit.guide)
    return {
        "num_sequences": batch.num_sequences,
        "num_steps": batch.num_steps,
        "viterbi": best_scores(model, batch).sum().item(),
        "missed_before": before.max().item(),
        "missed": mode.max().item(),
        "missed_on_average": average.max().item(),
        "seconds": fit.wall_time,
    }


def annealing(case: str, weight: float, temperature: float, seed: int, **options: Any) -> Row:
    """Where the entropy weight and the temperature end; each starts as by default."""
    model, batch = problem(case)
    fit = fit_gumbel(
        model,
        batch,
        train_model=False,
        entropy_weight=(1.0, weight),
        temperature=(4.0, temperature),
        seed=seed,
        progress=False,
        **options,
    )
    hmm = model.distribution(batch)
    with torch.no_grad():
        counts = hmm.smooth(batch.obs)
        exact = (counts.transition_counts * hmm.table.values).sum()
        exact += (counts.initial_counts * hmm.log_initial).sum()
        average = path_elbo(model, fit.guide, batch, entropy_weight=0.0)
        return {
            "viterbi": best_scores(model, batch).item(),
            "posterior_average": exact.item(),
            "average": average.item(),
            "log_prob": hmm.log_prob(batch.obs).item(),
            "elbo": path_elbo(model, fit.guide, batch).item(),
        }


def training(case: str, relaxation: str, seed: int, **options: Any) -> Row:
    """All transitions learned from the start of ``fit_viterbi``."""
    model, batch = problem(case)
    fit = fit_gumbel(model, batch, relaxation=relaxation, seed=seed, progress=False, **options)
    hard = fit_viterbi(model, batch, progress=False)
    after_em = fit_viterbi(problem(f"{case} trained")[0], batch, progress=False)
    return {
        "bits_per_step": fit.bits_per_step,
        "viterbi_training": hard.bits_per_step,
        "em_then_viterbi": after_em.bits_per_step,
        "path_bits_per_step": fit.settings["path_bits_per_step"],
        "viterbi_training_path": hard.settings["viterbi_bits_per_step"],
        "em_then_viterbi_path": after_em.settings["viterbi_bits_per_step"],
        "seconds": fit.wall_time,
    }


def network(structure: str, relaxation: str, weight: float, seed: int, **options: Any) -> Row:
    """One recurrent guide for 128 sequences, also on 128 that it has not seen; a fixed model."""
    model, seen, unseen = random_walks()
    guide = AmortisedPathGuide(
        model, hidden_size=32, structure=structure, relaxation=relaxation, seed=seed
    )
    fit = fit_gumbel(
        model,
        seen,
        guide=guide,
        train_model=False,
        guide_learning_rate=0.03,
        entropy_weight=(1.0, weight),
        seed=seed,
        progress=False,
        **options,
    )
    row: Row = {}
    with torch.no_grad():
        for name, batch in (("seen", seen), ("unseen", unseen)):
            steps = batch.num_steps
            log_prob = model.distribution(batch).log_prob(batch.obs)
            elbo = path_elbo(model, fit.guide, batch)
            assert (elbo <= log_prob + 1e-4 * log_prob.abs()).all(), "an ELBO above the evidence"
            mode, _ = shortfalls(model, batch, fit.guide)
            row |= {
                f"log_prob_{name}": log_prob.sum().item() / steps,
                f"elbo_{name}": elbo.sum().item() / steps,
                f"missed_{name}": mode.mean().item(),
                f"worst_{name}": mode.max().item(),
            }
    return {**row, "seconds": fit.wall_time}


STUDIES: dict[str, Callable[..., Row]] = {
    study.__name__: study for study in (decoding, annealing, training, network)
}


def jobs(study: str) -> Iterator[tuple[Any, ...]]:
    """The arguments of every run of a study."""
    if study == "decoding":
        # Straight-through draws move a guide exactly like relaxed ones, so they are left out.
        draws = [("gumbel", seed) for seed in _SEEDS] + [("mean", 0)]
        for case, structure, (relaxation, seed) in product(CASES, STRUCTURES, draws):
            name, _, which = case.partition(" ")
            if name == "ragged":
                # With structural zeros independent states have an objective of -inf.
                refused = structure == "mean_field" and _has_zeros(int(which))
                if refused or seed > 0:
                    continue
            yield case, structure, relaxation, seed
    elif study == "annealing":
        yield from product(GOLDEN, (1.0, 0.0), (0.5, 0.05), (0,))
    elif study == "training":
        yield from product(GOLDEN, RELAXATIONS, _SEEDS)
    else:
        yield from product(STRUCTURES, ("mean",), (1.0,), (0,))
        yield from product(("markov",), RELAXATIONS, (0.0,), (0,))


def run(study: str, todo: list[tuple[Any, ...]], out: Path, **options: Any) -> pd.DataFrame:
    """Do the runs that the CSV lacks; returns all of its rows."""
    function = STUDIES[study]
    arguments = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    path = out / f"gumbel_{study}.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {tuple(row[name] for name in arguments) for row in rows}
    for job in tqdm([job for job in todo if job not in done], desc=study):
        rows.append({**dict(zip(arguments, job, strict=True)), **function(*job, **options)})
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.8g")
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------- results


def _draw_decoding(ax: Axes, rows: pd.DataFrame) -> None:
    """Worst sequence of each case before and after, over all seeds."""
    rows = rows[rows["relaxation"] == "gumbel"]
    cases = [case for case in CASES if case in set(rows["case"])]
    looks = {"markov": ("o", "C0"), "mean_field": ("x", "C1")}
    floor = 1e-6
    for structure, (marker, color) in looks.items():
        part = rows[rows["structure"] == structure]
        at = [cases.index(case) for case in part["case"]]
        label = structure.replace("_", " ")
        ax.scatter(at, part["missed"].clip(lower=floor), marker=marker, color=color, label=label)
        if structure == "markov":
            before = part["missed_before"].clip(lower=floor)
            ax.scatter(at, before, marker=".", color="0.7", label="random guide")
    ax.axhline(GOAL, color="k", lw=1, ls="--")
    ax.set(yscale="log", ylabel="missed, relative to Viterbi's score")
    ax.set_xticks(range(len(cases)), cases, rotation=90, fontsize=7)
    ax.set_title("decoding: relaxed draws, worst sequence")
    ax.legend(fontsize=7)


def _draw_annealing(ax: Axes, rows: pd.DataFrame) -> None:
    """E[log p] between that of the exact posterior (0) and the best path (1)."""
    gap = rows["viterbi"] - rows["posterior_average"]
    closed = (rows["average"] - rows["posterior_average"]) / gap
    settings = list(dict.fromkeys(zip(rows["weight"], rows["temperature"], strict=True)))
    for number, case in enumerate(dict.fromkeys(rows["case"])):
        chosen = rows["case"] == case
        pairs = zip(rows["weight"][chosen], rows["temperature"][chosen], strict=True)
        at = np.array([settings.index(pair) for pair in pairs]) + 0.15 * (number - 1)
        ax.plot(at, closed[chosen], "o", ms=4, label=case)
    labels = [rf"$\lambda$ {w:g}, $\tau$ {t:g}" for w, t in settings]
    ax.set_xticks(range(len(settings)), labels, fontsize=8)
    ax.axhline(0, color="k", lw=1, ls=":")
    ax.axhline(1, color="k", lw=1, ls="--")
    ax.set_title("annealing: posterior (0) or best path (1)?")
    ax.set_ylabel("share of the gap in E[log p] closed")
    ax.legend(fontsize=7)


def _draw_training(ax: Axes, rows: pd.DataFrame) -> None:
    cases = list(dict.fromkeys(rows["case"]))
    for number, (relaxation, part) in enumerate(rows.groupby("relaxation", sort=False)):
        at = np.array([cases.index(case) for case in part["case"]]) + 0.15 * (number - 1)
        ax.plot(at, part["bits_per_step"], "o", ms=4, label=relaxation.replace("_", " "))
    firsts = rows.drop_duplicates("case")
    for column, style, label in (
        ("viterbi_training", "--", "Viterbi training"),
        ("em_then_viterbi", ":", "EM, then Viterbi training"),
    ):
        at = np.arange(len(firsts))
        ax.hlines(firsts[column], at - 0.35, at + 0.35, "k", style, lw=1, label=label)
    ax.set_xticks(range(len(cases)), cases)
    ax.set(ylabel="bits/step", title="training from the same start", ylim=(0, None))
    ax.legend(fontsize=7, loc="upper left")


def _draw_network(ax: Axes, rows: pd.DataFrame) -> None:
    labels, gaps = [], []
    for _, row in rows[rows["weight"] == 1].iterrows():
        for name in ("seen", "unseen"):
            labels.append(f"{row['structure'].replace('_', ' ')}\n{name}")
            gaps.append(row[f"log_prob_{name}"] - row[f"elbo_{name}"])
    ax.plot(labels, gaps, "o")
    ax.set(
        yscale="log", ylabel="exact log p - ELBO, nats a step", title="network: gap of the bound"
    )


_PICTURES = {
    "decoding": _draw_decoding,
    "annealing": _draw_annealing,
    "training": _draw_training,
    "network": _draw_network,
}


def draw(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """One panel for each study."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    for number, (study, rows) in enumerate(tables.items(), start=1):
        _PICTURES[study](figure.add_subplot(2, 2, number), rows)
    figure.savefig(path, dpi=120)


def summary(tables: dict[str, pd.DataFrame]) -> str:
    """Worst and typical numbers of each study."""
    parts = []
    if "decoding" in tables:
        rows = tables["decoding"]
        rows = rows.assign(kind=rows["case"].str.replace(r"ragged \d+", "ragged", regex=True))
        groups = rows.groupby(["kind", "structure", "relaxation"], sort=False)
        parts.append(
            groups.agg(
                runs=("seed", "size"),
                within=("missed", lambda missed: (missed <= GOAL).sum()),
                worst_before=("missed_before", "max"),
                median=("missed", "median"),
                worst=("missed", "max"),
                worst_on_average=("missed_on_average", "max"),
            )
        )
    if "annealing" in tables:
        groups = tables["annealing"].groupby(["case", "weight", "temperature"], sort=False)
        parts.append(groups.mean().drop(columns="seed"))
    if "training" in tables:
        groups = tables["training"].groupby(["case", "relaxation"], sort=False)
        found = groups["bits_per_step"].agg(["min", "max"])
        parts.append(found.join(groups.mean().drop(columns=["seed", "bits_per_step"])))
    if "network" in tables:
        groups = tables["network"].groupby(["structure", "relaxation", "weight"], sort=False)
        parts.append(groups.mean().drop(columns="seed"))
    shown = [part.to_string(float_format=lambda x: f"{x:.5g}") for part in parts]
    return "\n\n".join(shown) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the studies that were asked for, and draw and summarise them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(_SEEDS))
    parser.add_argument("--num-iters", type=int, help="instead of the default")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    options = {} if given.num_iters is None else {"num_iters": given.num_iters}
    tables = {}
    for study in given.studies:
        todo = [job for job in jobs(study) if job[-1] in given.seeds]
        if study != "network":
            todo = [job for job in todo if job[0] in given.cases]
        tables[study] = run(study, todo, given.out, **options)
    draw(tables, given.out / "gumbel_viterbi.png")
    text = summary(tables) + "\n" + describe()
    (given.out / "gumbel_viterbi.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small
    main()
