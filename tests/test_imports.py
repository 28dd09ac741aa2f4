"""Imports go one way: no module imports one above it, and no modules import each other in a circle.

The source is read, not imported, so imports inside functions and under `if TYPE_CHECKING` count like all others.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("mrr_model", "mrr_integrations")

BASE = {"files", "validation", "cache"}
MODEL = BASE | {"cascade", "compression", "template", "modeling"}
RERANKER = MODEL | {"calibration", "selection", "checkpoint", "inference"}
ABOVE = RERANKER | {"reranker", "ranking", "mrr_model"}
LAYERS: Mapping[str, set[str]] = {
    "validation": set(),
    "files": {"validation"},
    "cache": {"files", "validation"},
    "cascade": {"validation"},
    "compression": {"validation"},
    "template": {"validation"},
    "data": BASE,
    "modeling": BASE | {"compression", "template"},
    "calibration": MODEL,
    "selection": MODEL | {"calibration"},
    "checkpoint": MODEL | {"calibration", "selection", "inference"},
    "inference": MODEL | {"calibration", "selection"},
    "ranking": MODEL | {"calibration"},
    "loaded": RERANKER,
    "reranker": RERANKER | {"loaded", "ranking"},
    "request": {"validation", "cascade", "compression", "inference", "selection"},
    "training": ABOVE | {"data"},
    "evaluation": ABOVE | {"data"},
    "opening": RERANKER | {"reranker", "ranking"},
    "serving": ABOVE | {"request"},
    "bulk": ABOVE | {"data", "opening"},
    "batch": ABOVE | {"opening", "bulk"},
    "cli": ABOVE | {"data", "training", "evaluation", "serving", "opening", "bulk", "batch"},
    "mrr_integrations": ABOVE | {"request"},
    "mrr_model": {"cascade", "compression", "modeling", "ranking", "reranker", "selection"},
    "__main__": {"cli"},
}
"""Layer -> the layers that it may import. A layer is a module or a folder of `mrr_model`; `mrr_model` itself is what
`import mrr_model` offers.
"""


def module_name(file: Path) -> str:
    """The dotted name of a file, of its folder for `__init__.py`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files() -> dict[str, Path]:
    """Module -> file."""
    return {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that an import statement may load: `from a import b` may load `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package or None]
            base = ".".join([*(parents if node.level else []), *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
            yield base


@cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of these packages that it imports."""
    found: dict[str, set[str]] = {}
    for module, file in files().items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = set(imported_names(tree, module, file.name == "__init__.py"))
        submodules = {name.rpartition(".")[0] for name in names if name in files()}
        # `from package import module` loads the module; the package's own names are another edge.
        found[module] = {name for name in names if name in files() and (name not in submodules or _own(tree, name))}
        found[module] -= {module}
    return found


def _own(tree: ast.AST, package: str) -> bool:
    """Whether names of the package itself, not its modules, are imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            if any(f"{package}.{alias.name}" not in files() for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and any(alias.name == package for alias in node.names):
            return True
    return False


def layer(module: str) -> str:
    """The layer of a module; the package's own name for what lies in no layer."""
    first, _, rest = module.partition(".")
    return first if first == "mrr_integrations" or not rest else rest.partition(".")[0]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components with more than one module (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(edges.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            start = stack.index(module)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                found.append(sorted(component))

    for module in edges:
        if module not in order:
            visit(module)
    return found


def upward() -> list[str]:
    """Every import of a module that its importer's layer may not see."""
    wrong = []
    for module, others in graph().items():
        own = layer(module)
        allowed = {own, *LAYERS.get(own, set())}
        wrong += [f"{module} imports {other}" for other in sorted(others) if layer(other) not in allowed]
    return sorted(wrong)


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in files()} <= set(LAYERS)


def test_no_module_imports_one_above_it() -> None:
    wrong = upward()
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(graph())
    assert not found, "\n".join(map(" <-> ".join, found))


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import mrr_model.a", False, {"mrr_model.a"}),
        ("from mrr_model.a import b", False, {"mrr_model.a", "mrr_model.a.b"}),
        ("def f():\n    from mrr_model import a", False, {"mrr_model", "mrr_model.a"}),
        ("if TYPE_CHECKING:\n    from mrr_model.a import B", False, {"mrr_model.a", "mrr_model.a.B"}),
        ("from . import a", False, {"mrr_model.x", "mrr_model.x.a"}),
        ("from .a import b", False, {"mrr_model.x.a", "mrr_model.x.a.b"}),
        ("from ..a import b", False, {"mrr_model.a", "mrr_model.a.b"}),
        ("from .a import b", True, {"mrr_model.x.y.a", "mrr_model.x.y.a.b"}),
        ("from ..a import b", True, {"mrr_model.x.a", "mrr_model.x.a.b"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, package: bool, names: set[str]) -> None:
    assert set(imported_names(ast.parse(source), "mrr_model.x.y", package)) == names


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["e", "f"]]
