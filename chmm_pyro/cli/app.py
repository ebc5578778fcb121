"""The commands in one place, and how every one of them ends."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..checkpoint import package_version
from ..planning.plans import UnreachableError
from .demo import demo
from .fit import fit
from .maps import make_plan, show_map
from .outcome import IMPOSSIBLE, INTERRUPTED, UNREACHABLE, WRONG, ImpossibleDataError
from .posterior import posterior
from .query import decode, evaluate, sample
from .report import report

__all__ = ["app", "main"]

_HELP = (
    "Clone-structured hidden Markov models: learn maps from sequences of observations and "
    "actions.\n\n"
    "DATA is a table with a row for each step (.csv, .parquet) or an archive of arrays (.npz), "
    "RUN a folder that `chmm fit` writes. See [bold]chmm fit --help[/bold] and so on."
)
_CODES = (
    f"Exit codes: 0 done; {WRONG} bad usage or input; {IMPOSSIBLE} the data are impossible under "
    f"the model; {UNREACHABLE} no plan leads to the goal; {INTERRUPTED} interrupted with Ctrl-C "
    "(what had been fitted is saved)."
)


class _Commands(TyperGroup):
    """Turns what users can cause into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("\ninterrupted: nothing was written.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # a reader such as `head` has seen enough
        except (ValueError, TypeError, OSError, ImportError) as error:
            if os.environ.get("CHMM_PYRO_TRACEBACK"):
                raise
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(_code_of(error)) from error


def _code_of(error: Exception) -> int:
    if isinstance(error, ImpossibleDataError):
        return IMPOSSIBLE
    return UNREACHABLE if isinstance(error, UnreachableError) else WRONG


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    epilog=_CODES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("fit")(fit)
app.command("eval")(evaluate)
app.command("decode")(decode)
app.command("sample")(sample)
app.command("posterior")(posterior)
app.command("map")(show_map)
app.command("plan")(make_plan)
app.command("report")(report)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chmm-pyro {package_version()}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The command ``chmm``."""
    app(prog_name="chmm")
