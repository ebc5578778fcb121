"""Wheel and sdist hold one package, each module once; importing it changes nothing."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
from typing import Any

import import_probe
import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("models", "inference")
IGNORED = ("__pycache__", "*.egg-info", "build", "dist", ".*")
SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "chmm_pyro").rglob("*")
    if path.suffix == ".py"
    or path.name == "py.typed"
    or path.match("data/*.json")
    or path.match("data/*.html")
)


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, built from a copy; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_symlink() or (path.is_file() and not path.name.startswith(".")):
            shutil.copy2(path, source, follow_symlinks=False)
    for name in ("chmm_pyro", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*IGNORED))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (found,) = archives.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Path:
    """The unpacked ``.dist-info``."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(wheel.parent / "unpacked")
    (found,) = (wheel.parent / "unpacked").glob("*.dist-info")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--no-compile", "--target", target, wheel, cwd=wheel.parent)
    return target


@pytest.fixture(scope="module")
def probe(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What importing every installed module from an empty directory did."""
    empty = tmp_path_factory.mktemp("empty")
    return json.loads(run(sys.executable, "-I", import_probe.__file__, installed, cwd=empty))


@pytest.mark.parametrize("name", LINKS)
def test_links_lead_into_the_package(name):
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"chmm_pyro/{name}"
    assert link.is_dir()
    assert (link / "__init__.py").samefile(ROOT / "chmm_pyro" / name / "__init__.py")


@pytest.mark.parametrize(
    "folder", ["chmm_pyro", "tests", "test_data", "examples", "benchmarks", "notebooks"]
)
def test_nothing_imports_through_the_links(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            through = [name for name in names if name.partition(".")[0] in LINKS]
            assert not through, f"{path}: import chmm_pyro.{through[0]} instead"


def test_wheel_holds_every_module_once(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert sorted(name for name in names if ".dist-info/" not in name) == SHIPPED
    assert "chmm_pyro/py.typed" in SHIPPED


def test_sdist_holds_every_module_once(archives):
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        assert not [member.name for member in file if member.issym() or member.islnk()]
        names = [member.name.partition("/")[2] for member in file if member.isfile()]
    inside = [name for name in names if "/" in name and ".egg-info/" not in name]
    assert sorted(inside) == SHIPPED
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= set(names)


def test_one_package_one_command(metadata, installed):
    assert [path.name for path in installed.glob("*") if (path / "__init__.py").exists()] == [
        "chmm_pyro"
    ]
    assert not list(installed.glob("*.py"))
    scripts = ConfigParser()
    scripts.read(metadata / "entry_points.txt")
    assert {name: dict(scripts[name]) for name in scripts.sections()} == {
        "console_scripts": {"chmm": "chmm_pyro.cli:main"}
    }
    assert sorted(path.stem for path in (installed / "bin").iterdir()) == ["chmm"]


def test_the_command_starts(installed, tmp_path):
    start = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv[0] = 'chmm'\n"
        "from chmm_pyro.cli import main; main()"
    )
    assert "Usage" in run(sys.executable, "-I", "-c", start, installed, "--help", cwd=tmp_path)


def test_metadata(metadata, probe):
    fields = Parser().parsestr((metadata / "METADATA").read_text(encoding="utf-8"))
    assert fields["Name"] == "chmm-pyro"
    assert fields["Version"] == probe["version"]
    assert fields["License-Expression"] == "MIT"
    assert {"dev", "gym", "notebooks", "bench", "parquet"} <= set(fields.get_all("Provides-Extra"))
    assert (metadata / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_every_module_imports_from_an_empty_directory(probe, installed):
    files = sorted(str(Path(file).relative_to(installed)) for file in probe["files"].values())
    assert files == [name for name in SHIPPED if name.endswith(".py")]


def test_importing_changes_nothing(probe):
    assert probe["changed"] == []


def test_constraints_pin_exactly_and_name_no_place():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")]
    assert pins
    loose = [pin for pin in pins if pin.count("==") != 1 or not set(pin).isdisjoint("/@+ *<>")]
    assert not loose, f"pin as name==version: {loose}"
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))
    assert {"torch", "pyro-ppl", "numpy", "numba", "pytest", "ruff", "mypy"} <= set(names)
