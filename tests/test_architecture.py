"""ARCHITECTURE.md is the map of the library: it names every module, and imports point down it."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bayes_sched"


def rows() -> list[list[str]]:
    """The modules named in each row of the module table, top to bottom."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.split("| module | noun |")[1].split("\n## ")[0]
    named = [re.findall(r"`([a-z_]+)/?`", line.split("|")[1]) for line in table.splitlines() if "`" in line]
    return [row for row in named if row]


def modules() -> set[str]:
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports, wherever in it, type checking apart."""
    files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").is_file() else (PACKAGE / name).rglob("*.py")
    found = set()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        skipped = {id(inner) for node in guarded for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.module:
                if node.module.startswith("bayes_sched."):
                    found.add(node.module.split(".")[1])
                elif node.module == "bayes_sched":
                    found |= {alias.name for alias in node.names} & modules()
    return found - {name}


def test_the_map_names_every_module_once() -> None:
    named = [name for row in rows() for name in row]
    assert sorted(named) == sorted(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down_the_map(name: str) -> None:
    order = {module: number for number, row in enumerate(rows()) for module in row}
    upward = {other for other in imports(name) if order[other] < order[name]}
    assert not upward, f"{name} imports {upward}, which the map places above it"


def test_the_map_is_in_order() -> None:
    assert all(set(a).isdisjoint(b) for a, b in pairwise(rows()))
