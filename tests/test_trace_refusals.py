"""What is no trace is refused in a line that says what it looks like and what to do."""

import bz2
import gzip
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.errors import BayesSchedError, InputError
from bayes_sched.trace.reader import read_trace
from tests.conftest import documented_record
from tests.trace_lines import DAMAGE, GOOD, Write, refusal


def _archive(name: str) -> bytes:
    return b"x" * 257 + b"ustar" + name.encode()


EXPECTED = "; expected one JSON object a line with num_prefill_reqs,"

NO_TRACE: dict[str, tuple[bytes, str]] = {
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "t is no trace: it is a PNG image" + EXPECTED),
    "gzipped png": (gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(99)), "t is no trace: it is a PNG image"),
    "zip": (b"PK\x03\x04" + bytes(99), "t is no trace: it is a ZIP archive"),
    "netcdf": (b"\x89HDF\r\n\x1a\n", "t is no trace: it is an HDF5 or netCDF file, a saved fit perhaps"),
    "bzip2": (bz2.compress(GOOD), "t is no trace: it is bzip2 data: unpack it with bunzip2 first"),
    "tar": (_archive("t"), "t is no trace: it is a tar archive: unpack it first"),
    "twice": (gzip.compress(gzip.compress(GOOD)), "t is no trace: it is data compressed twice"),
    "utf-16": (GOOD.decode().encode("utf-16"), "t is no trace: it is UTF-16 text: save it as UTF-8"),
    "csv": (b"batch,tokens,ms\n1,2,3\n1,2,4\n", "t is no trace: it looks like a CSV table" + EXPECTED),
    "tsv": (b"batch\ttokens\n1\t2\n", "t is no trace: it looks like a table with tabs"),
    "html": (b"<!DOCTYPE html><html>\n<p>404", "t is no trace: it looks like an HTML page"),
    "array": (b"[\n" + GOOD.strip() + b",\n", "t is no trace: it looks like a JSON array"),
    "pretty": (b'{\n  "batch_id": 1\n}\n', "t is no trace: it looks like JSON over several lines"),
    "other json": (
        b'{"a": 1, "b": 2}\n',
        "t is no trace: it looks like JSON lines of another kind, with the fields a, b",
    ),
    "text": (
        b"Dear diary,\nno steps today\n",
        "t is no trace: it looks like plain text that begins with 'Dear diary,'",
    ),
    "binary": (bytes(range(256)) * 40, "t is no trace: it looks like binary data"),
    "binary, one line": (b"\x01\x02\0" * 40, "t is no trace: it looks like binary data"),
    "empty": (b"", "t is empty: there is nothing to read"),
    "blank": (b"\n \r\n", "t is empty: there is nothing to read"),
    "empty gzip": (gzip.compress(b""), "t is empty: there is nothing to read"),
    "stub of gzip": (gzip.compress(GOOD)[:15], "t holds no complete step: its gzip data are cut short"),
    "gzip cut in the first line": (
        gzip.compress(GOOD, compresslevel=0)[:99],
        "t holds no complete step: its gzip data are cut short",
    ),
    "torn only": (GOOD[:50], "t holds no complete step: t:1: torn last line (not valid JSON)"),
    "only bad": (
        DAMAGE["string"][0] + b"\n",
        "t holds no usable step, 1 of 1 lines are bad: 1 x model_run_duration_ms is a string; first t:1: "
        'model_run_duration_ms is a string ("4"); expected one JSON object a line',
    ),
}


@pytest.mark.parametrize(("content", "message"), NO_TRACE.values(), ids=NO_TRACE.keys())
def test_a_file_that_is_no_trace_is_refused_with_what_it_looks_like(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)
    assert refusal(tmp_path / "t", max_bad_share=1).startswith(message)


def test_a_foreign_file_among_traces_is_refused(write_lines: Write, tmp_path: Path) -> None:
    write_lines([documented_record()])
    (tmp_path / "README.md").write_text("# Traces\n\nfrom a server\n")
    assert refusal(tmp_path / "*").startswith("README.md is no trace: it looks like plain text")


@pytest.mark.parametrize("content", [b"", b"\n", GOOD[:40]], ids=["empty", "blank", "torn"])
def test_an_empty_file_among_traces_is_left_out_with_a_warning(
    content: bytes, write_lines: Write, tmp_path: Path
) -> None:
    path = write_lines([documented_record()])
    (tmp_path / "rank1.jsonl").write_bytes(content)
    trace = read_trace([path, tmp_path / "rank1.jsonl"])
    assert len(trace.steps) == 1
    assert trace.warnings == ("rank1.jsonl holds no step and is left out",)
    assert trace.sources[1].format == "empty"


def test_a_directory_is_refused_with_the_pattern_to_use(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path} is a directory: name its files, for example with the pattern '{tmp_path}/*.jsonl*'"
    )


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no trace given: name at least one file"),
        ("nowhere/t.jsonl", "no such file: nowhere/t.jsonl"),
        ("nowhere/*.jsonl", "no file matches the pattern nowhere/*.jsonl"),
        ("t\0.jsonl", "no such file: 't\\x00.jsonl'"),
    ],
)
def test_paths_without_a_file_are_refused(paths: Any, message: str) -> None:
    assert refusal(paths).startswith(message)


def test_an_unreadable_file_is_refused(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines([documented_record()])

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    assert refusal(path) == "cannot read trace.jsonl: permission denied"


def test_a_failing_disk_is_told(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines([documented_record()])

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    assert refusal(path) == "cannot read trace.jsonl: Input/output error"


def test_input_errors_are_value_errors_of_this_library() -> None:
    assert issubclass(InputError, BayesSchedError)
    assert issubclass(InputError, ValueError)
