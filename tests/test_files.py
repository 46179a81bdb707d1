"""Files and folders of results are written whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.errors import InputError
from bayes_sched.files import POSTERIOR, obstacle, result_folder, whole_file
from tests.running import full


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "out.txt"
    path.write_text("before")
    return path


def test_the_file_takes_its_place_when_all_has_gone_well(path: Path) -> None:
    with whole_file(path, what="the text") as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_whatever_is_raised_leaves_the_earlier_file_alone(path: Path, raised: type[BaseException]) -> None:
    def write() -> None:
        with whole_file(path, what="the text") as temporary:
            temporary.write_text("half")
            raise raised

    with pytest.raises(raised):
        write()
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_one_line_that_says_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.txt"
    with (
        pytest.raises(InputError, match=r"out.txt: cannot write the text \(No such file or directory\)"),
        whole_file(path, what="the text") as temporary,
    ):
        temporary.write_text("lost")


def test_a_folder_that_cannot_be_synced_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []

    def sync(descriptor: int) -> None:
        synced.append(True)
        if len(synced) == 2:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", sync)
    with whole_file(path, what="the text") as temporary:
        temporary.write_text("after")
    assert len(synced) == 2
    assert path.read_text() == "after"


def write_result(folder: Path, text: str, raised: BaseException | None = None) -> None:
    with result_folder(folder, overwrite=True) as temporary:
        (temporary / POSTERIOR).write_text(text)
        if raised is not None:
            raise raised


@pytest.fixture
def result(tmp_path: Path) -> Iterator[Path]:
    """A result that must be the same, and alone, in the end."""
    folder = tmp_path / "results" / "a"
    write_result(folder, "before")
    (folder / "note").touch()
    yield folder
    assert (folder / POSTERIOR).read_text() == "before"
    assert (folder / "note").exists()
    assert os.listdir(folder.parent) == ["a"]


def test_a_result_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("before", "after"):
        write_result(tmp_path / "a", text)
        assert (tmp_path / "a" / POSTERIOR).read_text() == text
        assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("raised", "met"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
        (OSError(28, "No space left on device"), InputError),
    ],
)
def test_whatever_is_raised_costs_no_existing_result(
    raised: BaseException, met: type[BaseException], result: Path
) -> None:
    with pytest.raises(met):
        write_result(result, "half", raised)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_result_that_cannot_take_its_place_leaves_the_one_before_there(
    failing: int, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.rename, []

    def fail_once(*paths: Any) -> None:
        calls.append(paths)
        (full if len(calls) == failing else real)(*paths)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(InputError, match=r"a: cannot write the result \(No space left on device\)"):
        write_result(result, "after")
    assert len(calls) == 2 * failing - 1


def test_a_folder_of_another_kind_is_never_replaced(result: Path) -> None:
    assert obstacle(result, overwrite=True) == ""
    assert obstacle(result, overwrite=False) == "exists"
    assert obstacle(result, overwrite=True, holds="plan.json") == (
        "exists, but is no plan (it holds no plan.json)"
    )
    assert obstacle(result / POSTERIOR, overwrite=True) == "exists and is no folder"
    with (
        pytest.raises(InputError, match="a exists, but is no plan"),
        result_folder(result, overwrite=True, holds="plan.json"),
    ):
        pass
