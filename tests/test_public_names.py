"""What `import bayes_sched` gives, and what it costs."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import bayes_sched

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bayes_sched"
NAMES = sorted(set(bayes_sched.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    module = import_module(f"bayes_sched.{bayes_sched._MODULE_OF[name]}")
    assert getattr(bayes_sched, name) is getattr(module, name)


def test_the_names_are_listed_once_for_people_types_and_loading() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    for_types = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [
        (alias.name, node.module)
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert {name: f"bayes_sched.{module}" for name, module in bayes_sched._MODULE_OF.items()} == dict(imports)
    assert set(bayes_sched._MODULE_OF) == set(NAMES)
    assert set(bayes_sched.__all__) <= set(dir(bayes_sched))


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(NAMES)


def test_what_a_first_user_needs_is_there() -> None:
    needed = {"read_trace", "clean_steps", "fit", "FittedModel", "load_model", "Priors", "SamplerSettings"}
    assert needed | {"InputError", "steps_grid"} <= set(NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(bayes_sched, "nonsense")  # noqa: B009


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert bayes_sched.__version__ == project["version"]


def test_the_import_loads_no_other_library() -> None:
    code = "import sys, bayes_sched; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "numpy",
        "pandas",
        "xarray",
        "scipy",
        "pymc",
        "nutpie",
        "arviz",
        "matplotlib",
        "rich",
    }
