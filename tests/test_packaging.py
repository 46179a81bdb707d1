"""What the package files promise: exact pins, one version, nothing of anybody's own machine or registry."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Written in two pieces, so that this file does not hold what it looks for.
REGISTRY = re.compile(
    rb"(?i)(?:https?|file)://\S*(?:py" rb"pi|python" rb"hosted|/simple\b)|index-" rb"url|find-" rb"links"
)
MACHINE_PATH = re.compile(rb"(?<![\w.~:/-])/(?:home|Users|root|work|tmp|private/var|mnt)/[A-Za-z0-9_.-]{2,}")


def pins() -> dict[str, str]:
    """Exact version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def named_requirements() -> list[Requirement]:
    """What pyproject.toml names: to build, to run, in every extra."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *extras]
    return [Requirement(text) for group in groups for text in group]


def tracked_files() -> list[Path]:
    """Files of the repository: those in git and those about to be, without the ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def matches(pattern: re.Pattern[bytes]) -> list[str]:
    """`file: text` for each hit of a pattern in the repository's files."""
    return [
        f"{path.relative_to(ROOT)}: {hit.group().decode('utf-8', 'replace')}"
        for path in tracked_files()
        for hit in pattern.finditer(path.read_bytes())
    ]


@pytest.mark.parametrize("requirement", named_requirements(), ids=str)
def test_constraints_pin_what_pyproject_names_and_within_its_bounds(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"constraints.txt does not pin {requirement.name}: run `make constraints`"
    assert requirement.specifier.contains(version)


def test_constraints_pin_what_the_dependencies_need_in_turn() -> None:
    pinned = pins()
    waiting = {(canonicalize_name(r.name), extra) for r in named_requirements() for extra in {"", *r.extras}}
    seen: set[tuple[str, str]] = set()
    missing: set[str] = set()
    while waiting:
        name, extra = waiting.pop()
        seen.add((name, extra))
        if name not in pinned:
            missing.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in lines]
        here = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
        waiting |= {(canonicalize_name(r.name), e) for r in here for e in {"", *r.extras}} - seen
    assert not missing, f"constraints.txt does not pin {sorted(missing)}: run `make constraints`"


def test_constraints_hold_pins_only() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert "://" not in text
    assert "--" not in text


def test_no_file_names_a_package_registry() -> None:
    assert matches(REGISTRY) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert matches(MACHINE_PATH) == []


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['project']['version']}\n" in citation


def test_python_version_of_the_repository_is_supported() -> None:
    version = (ROOT / ".python-version").read_text("utf-8").strip()
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, lowest.split(".")))


def test_wheel_ships_types_models_and_license_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: install the dev extra")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"bayes_sched/__init__.py", "bayes_sched/py.typed", "bayes_sched/models/saturation.py"} <= set(
        names
    )
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"bayes_sched"}
