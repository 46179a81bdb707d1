"""What `import bayes_sched` gives, and what it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bayes_sched

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bayes_sched"
NAMES = sorted(set(bayes_sched.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(bayes_sched, name) is not None


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(NAMES)


def test_what_a_first_user_needs_is_there() -> None:
    needed = {"read_trace", "clean_steps", "fit", "FittedModel", "load_model", "Priors", "SamplerSettings"}
    assert needed | {"InputError", "steps_grid"} <= set(NAMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
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
