"""What the package files promise: exact pins, one version, public names, nothing of anybody's own machine."""

import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bayes_sched

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NAMES = sorted(set(bayes_sched.__all__) - {"__version__"})
# Written in two pieces, so that this file does not hold what it looks for.
REGISTRY = (
    rb"(?i)(?:https?|file)://\S*(?:py" rb"pi|python" rb"hosted|/simple\b)|index-" rb"url|find-" rb"links"
)
MACHINE_PATH = rb"(?<![\w.~:/-])/(?:home|Users|root|work|tmp|private/var|mnt)/[A-Za-z0-9_.-]{2,}"


def pins() -> dict[str, str]:
    """Exact version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert all(str(requirement.specifier).startswith("==") for requirement in pinned)
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in pinned}


def named_requirements() -> list[Requirement]:
    """What pyproject.toml names: to build, to run, in every extra."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *extras]
    return [Requirement(text) for group in groups for text in group]


def tracked_files() -> list[Path]:
    """The files in git; what else lies about in a checkout is nobody's concern."""
    try:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("requirement", named_requirements(), ids=str)
def test_constraints_pin_what_pyproject_names_and_within_its_bounds(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"constraints.txt does not pin {requirement.name}: run `make constraints`"
    assert requirement.specifier.contains(version)


def test_constraints_pin_what_the_dependencies_need_in_turn() -> None:
    pinned = pins()
    waiting = {(canonicalize_name(r.name), extra) for r in named_requirements() for extra in {"", *r.extras}}
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        seen.add((name, extra))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in lines]
        here = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
        waiting |= {(canonicalize_name(r.name), e) for r in here for e in {"", *r.extras}} - seen
    missing = sorted({name for name, _ in seen} - set(pinned))
    assert not missing, f"constraints.txt does not pin {missing}: run `make constraints`"


def test_constraints_hold_pins_only() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert "://" not in text
    assert "--" not in text


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registry", "path of one machine"])
def test_no_file_names_what_is_somebodys_own(pattern: bytes) -> None:
    found = {str(path.relative_to(ROOT)): re.findall(pattern, path.read_bytes()) for path in tracked_files()}
    assert not {path: hits for path, hits in found.items() if hits}


def test_version_and_python_are_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['project']['version']}\n" in citation
    assert bayes_sched.__version__ == PROJECT["project"]["version"]
    version = (ROOT / ".python-version").read_text("utf-8").strip()
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, lowest.split(".")))


def test_wheel_ships_types_models_and_license_and_nothing_else(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "bayes-sched = bayes_sched.cli.main:main" in archive.read(entry).decode()
    assert {"bayes_sched/__init__.pyi", "bayes_sched/py.typed", "bayes_sched/models/saturation.py"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"bayes_sched"}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(bayes_sched, name) is not None


def test_what_a_first_user_needs_is_public() -> None:
    needed = {"read_trace", "clean_steps", "fit", "FittedModel", "load_model", "Priors", "SamplerSettings"}
    assert needed | {"InputError", "steps_grid"} <= set(NAMES)


def test_no_public_name_is_that_of_a_module_and_an_unknown_one_is_an_error() -> None:
    assert not {path.stem for path in (ROOT / "bayes_sched").iterdir()} & set(NAMES)
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(bayes_sched, "nonsense")  # noqa: B009
