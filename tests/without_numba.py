"""A machine on which numba cannot be imported.

As a program: ``python tests/without_numba.py SCRIPT``.  As a pytest plugin (`make test-no-numba`):
``CHMM_PYRO_KERNEL=torch PYTHONPATH=tests python -m pytest -p without_numba``.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

__all__ = ["hide", "pytest_ignore_collect", "pytest_load_initial_conftests"]


def hide() -> None:
    """Make ``import numba`` fail from now on."""
    assert "numba" not in sys.modules, "numba is already imported: it is too late to hide it"
    sys.modules["numba"] = None  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    hide()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The compiled kernels cannot be imported, not even to look for doctests."""
    return True if collection_path.match("_kernels/numba_*.py") else None


if __name__ == "__main__":
    hide()
    runpy.run_path(sys.argv[1], run_name="__main__")
