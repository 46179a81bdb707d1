"""A file is written whole or not at all, whatever happens while it is written."""

import errno
import os
from pathlib import Path

import pytest

from bayes_sched.errors import InputError
from bayes_sched.files import whole_file


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
