"""The layers of the package: who may import whom, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "chmm_pyro"

# Bottom first. An entry is a module or a subpackage; a new one joins by a word here.
BESIDE = frozenset({"environments", "maps", "planning", "plotting"})
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"atomic", "beliefs", "clones", "logits", "simplex"}),
    frozenset({"vocabulary"}),
    frozenset({"_readers"}),
    frozenset({"flat_sequences"}),
    frozenset({"sequences"}),
    frozenset({"_kernels"}),
    frozenset({"data_layout", "messages"}),
    frozenset({"tables"}),
    frozenset({"jobs", "parameters"}),
    frozenset({"distribution"}),
    frozenset({"environments"}),
    frozenset({"maps"}),
    frozenset({"planning", "plotting"}),
    frozenset({"models"}),
    frozenset({"inference"}),
    frozenset({"checkpoint", "posterior"}),
    frozenset({"cli"}),
)
DEPTH = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}

# The packages of the extras: imported where they are used, so that the rest works without them.
OPTIONAL = frozenset({"gymnasium", "minigrid", "pyarrow"})

BACKENDS = frozenset({"_kernels.numba_cpu", "_kernels.torch_any"})
KNOWS_NUMBA = ("messages", "_kernels.numba")


class Import(NamedTuple):
    """``from target import names`` (or ``import target``, without names) on one line."""

    line: int
    target: str
    names: tuple[str, ...]
    own: bool
    inside_function: bool


def dotted(path: Path) -> str:
    """``models/point.py`` is ``models.point``; an ``__init__.py`` has the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ROOTS = {name for name, path in FILES.items() if path.name == "__init__.py"}
MODULES = sorted(FILES.keys() - ROOTS)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    package = module if module in ROOTS else module.rpartition(".")[0]
    return tuple(_imports(tree_of(module), package, inside_function=False))


def _imports(node: ast.AST, package: str, *, inside_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                own, target = _own(alias.name)
                yield Import(child.lineno, target, (), own, inside_function)
        elif isinstance(child, ast.ImportFrom):
            own, target = _target(child, package)
            names = tuple(alias.name for alias in child.names)
            if not own:
                yield Import(child.lineno, target, names, own, inside_function)
                continue
            # `from . import messages` names a module; `from .clones import MISSING` does not.
            for name in names:
                module = f"{target}.{name}".lstrip(".")
                named = (module, ()) if module in FILES else (target, (name,))
                yield Import(child.lineno, *named, own, inside_function)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, inside_function=inside_function or function)


def _target(node: ast.ImportFrom, package: str) -> tuple[bool, str]:
    if node.level == 0:
        return _own(node.module or "")
    parts = package.split(".") if package else []
    above = parts[: len(parts) - node.level + 1]
    return True, ".".join([*above, *([node.module] if node.module else [])])


def _own(name: str) -> tuple[bool, str]:
    own = name == PACKAGE.name or name.startswith(f"{PACKAGE.name}.")
    return own, name[len(PACKAGE.name) :].lstrip(".") if own else name


def unit(module: str) -> str:
    return module.partition(".")[0]


def exported(module: str) -> list[str] | None:
    """What ``__all__`` lists; None where there is none."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                return list(ast.literal_eval(node.value))
    return None


def own_imports(module: str) -> list[Import]:
    return [found for found in imports_of(module) if found.own]


def test_the_parser_sees_imports():
    """Otherwise every rule below would hold for nothing."""
    assert {found.target for found in own_imports("distribution")} >= {"clones", "messages"}
    assert any(found.target == "clones" and found.names for found in own_imports("_kernels.layout"))
    assert {found.target for found in imports_of("messages") if not found.own} >= {"torch"}
    assert len(MODULES) > 15


def test_every_module_has_a_layer():
    units = {unit(module) for module in FILES if module}
    missing = sorted(units - DEPTH.keys())
    assert not missing, f"add {missing} to LAYERS in {Path(__file__).name}, and to STYLE if new"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    for found in own_imports(module):
        above = DEPTH[unit(found.target)] > DEPTH[unit(module)]
        assert not above, f"{module}, line {found.line}: {found.target} is a higher layer"


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) in {"models", "inference"}])
def test_models_and_inference_leave_what_stands_beside_alone(module):
    beside = [found.target for found in own_imports(module) if unit(found.target) in BESIDE]
    assert not beside


def test_no_import_cycle():
    graph = {module: {found.target for found in own_imports(module)} for module in FILES}
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_names_come_from_the_module_that_defines_them(module):
    for found in own_imports(module):
        where = f"{module}, line {found.line}"
        root = found.target in ROOTS and found.target != "_kernels"
        assert not root, f"{where}: import from the defining module, not from {found.target!r}"
        public = exported(found.target) or []
        private = set(found.names) - set(public)
        assert not private, f"{where}: {sorted(private)} is not in __all__ of {found.target}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_import_inside_a_function_and_no_star(module):
    for found in imports_of(module):
        where = f"{module or 'chmm_pyro'}, line {found.line}: {found.target}"
        assert "*" not in found.names, f"{where}: import names, not *"
        late = found.inside_function and unit(found.target) not in OPTIONAL
        assert not late, f"{where}: import at the top of the file"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_lists_its_public_names(module):
    names = exported(module)
    assert names is not None, f"{module} has no __all__"
    assert len(names) == len(set(names))
    defined = {
        node.name
        for node in tree_of(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert not defined - set(names), f"{module}: list it in __all__ or start it with _"


@pytest.mark.parametrize("root", sorted(ROOTS))
def test_package_roots_only_re_export(root):
    for node in tree_of(root).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        dunder = (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in {"__all__", "__version__"}
        )
        import_of_own = isinstance(node, ast.ImportFrom) and node.level == 1
        where = f"{root or 'chmm_pyro'}/__init__.py, line {node.lineno}"
        assert docstring or dunder or import_of_own, f"{where}: only re-exports belong here"


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_the_boundary_knows_the_kernels(module):
    if not module.startswith(KNOWS_NUMBA) and module != "_kernels.interface":
        assert "numba" not in FILES[module].read_text(encoding="utf-8").lower()
    if module != "messages":
        known = BACKENDS & {found.target for found in own_imports(module)}
        assert not known, f"{module}: only messages.py picks a kernel"


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) == "_kernels"])
def test_kernels_see_arrays(module):
    for found in imports_of(module):
        where = f"{module}, line {found.line}: {found.target}"
        if found.own:
            assert unit(found.target) in {"_kernels", "clones"}, where
        else:
            assert unit(found.target) != "pyro", where
            assert not found.target.startswith("torch.nn"), where
            assert "nn" not in found.names, where
    calls = {
        node.func.id
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in calls


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) == "models"])
def test_models_do_not_fit(module):
    functions = (n for n in ast.walk(tree_of(module)) if isinstance(n, ast.FunctionDef))
    assert not [f.name for f in functions if f.name == "fit" or f.name.startswith("fit_")]
