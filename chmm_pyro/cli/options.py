"""What can be said on the command line; each option is described once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Action",
    "ActionModel",
    "ActionModels",
    "Actions",
    "AsJson",
    "BatchSize",
    "By",
    "Chains",
    "Clones",
    "Concentration",
    "Count",
    "Criterion",
    "Data",
    "Draws",
    "Dtype",
    "Dtypes",
    "Episode",
    "First",
    "From",
    "HeldOut",
    "Iters",
    "Layout",
    "LearnInitial",
    "LearningRate",
    "MapLayout",
    "MapOut",
    "Method",
    "Methods",
    "NodeLabel",
    "NodeLabels",
    "Observation",
    "Out",
    "PlanOut",
    "Position",
    "PosteriorOut",
    "Progress",
    "Pseudocount",
    "ReportOut",
    "Run",
    "RunData",
    "RunOut",
    "Seed",
    "Start",
    "States",
    "Steps",
    "Sticks",
    "Storage",
    "Storages",
    "To",
    "Tol",
    "Unseen",
    "Unseens",
    "Warmup",
]


class Method(str, Enum):
    """How to train."""

    SVI = "svi"
    EM = "em"
    VITERBI = "viterbi"
    MAP = "map"
    VB = "vb"
    GIBBS = "gibbs"
    NUTS = "nuts"
    GUMBEL = "gumbel"


class Dtype(str, Enum):
    """Precision of the parameters."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Storage(str, Enum):
    """How transitions are parameterised."""

    AUTO = "auto"
    SOFTMAX = "softmax"
    COUNTS = "counts"
    BLOCKS = "blocks"


class ActionModel(str, Enum):
    """Whether actions are given or modelled."""

    CONDITIONAL = "conditional"
    JOINT = "joint"


class Unseen(str, Enum):
    """What to do with labels that the model has not seen."""

    ERROR = "error"
    MISSING = "missing"


class MapLayout(str, Enum):
    """Where places are drawn."""

    UNFOLD = "unfold"
    KNOWN = "known"


class NodeLabel(str, Enum):
    """What is written on places."""

    AUTO = "auto"
    SYMBOL = "symbol"
    STATE = "state"
    NONE = "none"


class Criterion(str, Enum):
    """Which plan is best."""

    STEPS = "steps"
    PROBABILITY = "probability"


def _option(*names: str, panel: str | None = None, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


_DATA, _SIZE, _TRAINING, _OUTPUT = "Columns of DATA", "Size of the model", "Training", "Output"
_POSTERIOR = "Posterior (vb, gibbs, nuts)"
_PICTURE = "Picture"

# ------------------------------------------------------------------------------- data and runs

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="Sequences: a .csv or .parquet table with a row for each step, in order, or an .npz "
        "archive. The action of a row leads to the next row of its episode. Empty cells of the "
        "observation are missing observations.",
    ),
]
RunData = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATA",
        help="Sequences to read the map from.",
        show_default="what RUN was fitted to",
    ),
]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", show_default=False, help="Folder that `chmm fit` has saved."),
]
Observation = Annotated[
    str | None,
    _option(
        metavar="COLUMN",
        panel=_DATA,
        help="Observations: labels of any kind.",
        show_default="observation",
    ),
]
Action = Annotated[
    str | None,
    _option(metavar="COLUMN", panel=_DATA, help="Actions.", show_default="action, if there is one"),
]
Episode = Annotated[
    str | None,
    _option(
        metavar="COLUMN",
        panel=_DATA,
        help="Tells episodes apart; without it the table is one sequence.",
        show_default="episode, if there is one",
    ),
]
Position = Annotated[
    list[str] | None,
    _option(
        metavar="COLUMN",
        panel=_DATA,
        help="Positions, only used to score states against places; repeat for several columns.",
        show_default="all called position_...",
    ),
]
Unseens = Annotated[
    Unseen,
    _option(
        "--unseen",
        metavar="error|missing",
        panel=_DATA,
        help="Observations that the model does not know: refuse them, or treat them as missing.",
    ),
]

# ------------------------------------------------------------------------------------- the model

Clones = Annotated[
    str | None,
    _option(
        metavar="N[,N...]",
        panel=_SIZE,
        help="Hidden states (clones) of each symbol: one number for all, or one for each. Spare "
        "clones help learning: take several times what you expect to need.",
    ),
]
States = Annotated[
    int | None,
    _option(
        metavar="TOTAL",
        panel=_SIZE,
        help="Instead: hidden states in all, shared between symbols by frequency.",
    ),
]
Start = Annotated[
    Path | None,
    _option(
        metavar="RUN",
        panel=_SIZE,
        help="Instead: go on from an earlier fit, with new data or another method.",
    ),
]
ActionModels = Annotated[
    ActionModel,
    _option(
        "--action-model",
        metavar="conditional|joint",
        panel=_SIZE,
        help="conditional: p(next state | state, action). joint: p(next state, action | state).",
    ),
]
LearnInitial = Annotated[
    bool,
    _option(
        "--learn-initial",
        panel=_SIZE,
        help="Learn where sequences begin; otherwise all states are equally probable.",
    ),
]
Storages = Annotated[
    Storage,
    _option(
        "--parameters",
        metavar="NAME",
        panel=_SIZE,
        help="softmax or counts of all transitions, or blocks: only of pairs of symbols seen "
        "(for thousands of states). auto: softmax unless too large.",
    ),
]
Dtypes = Annotated[
    Dtype | None,
    _option(
        "--dtype",
        metavar="float32|float64",
        panel=_SIZE,
        help="Precision.",
        show_default="float32; vb, gibbs and nuts float64",
    ),
]

# -------------------------------------------------------------------------------------- training

Methods = Annotated[
    Method,
    _option(
        "--method",
        metavar="svi|em|viterbi|map|vb|gibbs|nuts|gumbel",
        panel=_TRAINING,
        help="svi: gradient ascent on the exact likelihood (Adam). em: Baum-Welch. viterbi: hard "
        "EM, which makes another fit crisp (use it with --start). map: the smallest map that "
        "explains the data, number of states included. vb, gibbs, nuts: a posterior instead of one "
        "model, by variational Bayes or by sampling (see `chmm posterior`). gumbel: gradients "
        "through relaxed paths.",
    ),
]
Iters = Annotated[
    int | None,
    _option(
        min=1,
        metavar="N",
        panel=_TRAINING,
        help="Updates at most.",
        show_default="svi 200, em 100, viterbi 100, vb 100, gumbel 300, map 25 each round",
    ),
]
LearningRate = Annotated[
    float | None,
    _option(
        "--lr",
        metavar="RATE",
        panel=_TRAINING,
        help="Learning rate of svi and gumbel; 0.1 to 0.3 is usual.",
        show_default="0.2",
    ),
]
Pseudocount = Annotated[
    float,
    _option(
        metavar="COUNT",
        panel=_TRAINING,
        help="Added to every transition count (in svi the same prior). About 0.02 for 50,000 steps "
        "or 0.004 for 10,000 leaves few states in use.",
    ),
]
Tol = Annotated[
    float | None,
    _option(
        metavar="BITS",
        panel=_TRAINING,
        help="Stop when updates of svi, em or vb gain less than this in bits per step.",
    ),
]
BatchSize = Annotated[
    int | None,
    _option(
        min=1,
        metavar="N",
        panel=_TRAINING,
        help="Episodes in each svi or vb update.",
        show_default="all",
    ),
]
Chains = Annotated[
    int | None,
    _option(
        min=1,
        metavar="N",
        panel=_POSTERIOR,
        help="Independent chains of gibbs or nuts. They start from the prior, or all from --start: "
        "for maps start from an em or svi fit.",
        show_default="4",
    ),
]
Draws = Annotated[
    int | None,
    _option(
        min=1,
        metavar="N",
        panel=_POSTERIOR,
        help="Draws of each chain that are kept (and saved); of vb, of its posterior.",
        show_default="500; vb 200",
    ),
]
Warmup = Annotated[
    int | None,
    _option(
        min=0,
        metavar="N",
        panel=_POSTERIOR,
        help="Draws of each chain before them that are dropped.",
        show_default="500",
    ),
]
Concentration = Annotated[
    float | None,
    _option(
        metavar="ALPHA",
        panel=_POSTERIOR,
        help="Of the Dirichlet prior of each transition probability; below 1 rows are sparse.",
        show_default="1 / number of states",
    ),
]
Sticks = Annotated[
    float | None,
    _option(
        metavar="ALPHA",
        panel=_POSTERIOR,
        help="Stick-breaking prior over the clones of each symbol, so that gibbs or nuts infer how "
        "many are used; smaller means fewer.",
        show_default="clones alike",
    ),
]
HeldOut = Annotated[
    float | None,
    _option(
        metavar="AMOUNT",
        panel=_TRAINING,
        help="Episodes to keep out of training and report on: a fraction below 1 or a number. Of "
        "a single sequence, its last part.",
    ),
]
Seed = Annotated[int, _option(metavar="N", min=0, help="Of everything random.")]

# ------------------------------------------------------------------------------------- sampling

Steps = Annotated[
    int | None,
    _option(
        min=1,
        metavar="N",
        help="Observations of each sequence.",
        show_default="one more than --actions",
    ),
]
Actions = Annotated[
    str | None,
    _option(
        metavar="LABEL[,LABEL...]",
        help="Actions to take, over again until there are enough.",
        show_default="drawn: uniformly, or as --learn-actions has found them",
    ),
]
First = Annotated[
    str | None,
    _option(metavar="LABEL", help="Observation to begin with.", show_default="drawn"),
]
Count = Annotated[int, _option("--num", min=1, metavar="N", help="How many sequences.")]

# ----------------------------------------------------------------------------------------- maps

Layout = Annotated[
    MapLayout,
    _option(
        "--layout",
        metavar="unfold|known",
        panel=_PICTURE,
        help="unfold: places so that distances resemble numbers of steps, found from the moves "
        "alone. known: at the mean position where each place was met in the data.",
    ),
]
NodeLabels = Annotated[
    NodeLabel,
    _option(
        "--labels",
        metavar="auto|symbol|state|none",
        panel=_PICTURE,
        help="What is written on places; auto: the symbol, where there are more than eight.",
    ),
]
MapOut = Annotated[
    list[Path] | None,
    _option(
        "--out",
        metavar="FILE",
        panel=_OUTPUT,
        help="Write the map too: .png, .svg or .pdf for a picture, .csv for a table of its moves, "
        ".graphml for other programs. Repeat for several.",
    ),
]
PlanOut = Annotated[
    Path | None,
    _option(
        "--out",
        metavar="FILE",
        panel=_OUTPUT,
        help="Draw the plan on the map: .png, .svg or .pdf.",
    ),
]
ReportOut = Annotated[
    Path | None,
    _option(
        "--out", metavar="FILE", panel=_OUTPUT, help="The page.", show_default="report.html in RUN"
    ),
]
_PLACES = (
    "a symbol, meaning any place that shows it; a place as state:NUMBER, as `chmm map` lists it; "
    "or several of these with commas."
)
From = Annotated[
    str,
    _option("--from", metavar="PLACES", show_default=False, help=f"Where to start: {_PLACES}"),
]
To = Annotated[
    str,
    _option("--to", metavar="PLACES", show_default=False, help=f"Where to go: {_PLACES}"),
]
By = Annotated[
    Criterion,
    _option(
        "--by",
        metavar="steps|probability",
        help="steps: the fewest moves. probability: the most certain to come out as planned.",
    ),
]

# --------------------------------------------------------------------------------------- output

RunOut = Annotated[
    Path | None,
    _option(
        "--out",
        metavar="RUN",
        panel=_OUTPUT,
        help="Folder to save to; an earlier fit there is replaced.",
        show_default="DATA with the ending .run",
    ),
]
PosteriorOut = Annotated[
    Path | None,
    _option(
        "--out",
        metavar="FOLDER",
        panel=_OUTPUT,
        help="Where the tables and pictures go.",
        show_default="posterior in RUN",
    ),
]
Out = Annotated[
    Path | None,
    _option(metavar="FILE", panel=_OUTPUT, help="A .csv to write.", show_default="stdout"),
]
AsJson = Annotated[
    bool, _option("--json", panel=_OUTPUT, help="Write JSON to stdout, nothing else.")
]
Progress = Annotated[
    bool | None,
    _option(
        "--progress/--no-progress",
        panel=_OUTPUT,
        help="Progress bars on stderr.",
        show_default="on a terminal",
    ),
]
