"""The package on a machine where numba cannot be imported: same numbers, one notice."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numba_less_run
import numpy as np
import pytest
import torch
import without_numba
from conftest import TOL
from numpy.testing import assert_allclose

EXACT = TOL["exact"][torch.float64]


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    command = [sys.executable, without_numba.__file__, numba_less_run.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_exact_without_numba(answer):
    exact = numba_less_run.instance().exact()
    assert answer["kernel"] == "torch"
    assert_allclose(answer["log_prob"], exact.log_prob, **EXACT)
    initial = np.exp(numba_less_run.instance().log_initial)
    assert_allclose(answer["initial_gradient"], exact.initial_counts - initial, **EXACT)


@pytest.mark.parametrize("method", ["em", "svi"])
def test_fits_without_numba(answer, method):
    """The curves of the compiled kernels, where this process has them."""
    assert_allclose(answer[method], numba_less_run.fits()[method], **EXACT)
    assert len(answer[method]) >= 4


def test_one_notice_says_so(answer):
    assert answer["silenced"] == []
    (notice,) = answer["default"]
    assert "numba" in notice
    assert "CHMM_PYRO_KERNEL=torch" in notice
