"""Lines of traces, good ones and every kind of damage, and how a refusal is read."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from bayes_sched.errors import InputError
from bayes_sched.trace.reader import Trace, read_trace
from tests.conftest import as_bytes, documented_record

type Write = Callable[..., Path]
"""The fixture `write_lines`."""

GOOD = as_bytes(documented_record()) + b"\n"
NOISE = "INFO 11-22 04:01:00 [api_server.py:1] Started server process"

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip, members": lambda raw: gzip.compress(raw[:700]) + gzip.compress(raw[700:]) + b"\0" * 512,
    "zstd, frames": lambda raw: b"".join(map(zstandard.ZstdCompressor().compress, (raw[:9], raw[9:]))),
}

DAMAGE: dict[str, tuple[bytes, str]] = {
    "torn line in the middle": (GOOD[:100], "not valid JSON"),
    "garbage": (b"%&/()", "neither JSON nor a vLLM iteration line"),
    "NUL bytes": (b"\0" * 4096, "holds a NUL byte"),
    "not UTF-8": (GOOD.strip().replace(b"batch_id", b"batch\xff"), "not UTF-8 text"),
    "string": (as_bytes(documented_record(model_run_duration_ms="4")), "model_run_duration_ms is a string"),
    "NaN": (as_bytes(documented_record(model_run_duration_ms=float("nan"))), "model_run_duration_ms is NaN"),
    "JSON of another kind": (b'{"hello": 1}', "JSON without the fields of a scheduler step"),
    "endless line": (b"{" + b" " * (4 * 2**20 + 10_000), "longer than 4 MiB"),
}
"""Lines that cannot be used, and the reason that is given."""


def refusal(paths: Any, **options: Any) -> str:
    """Read what must be refused; return the one line that says why."""
    with pytest.raises(InputError) as caught:
        read_trace(paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def only_reason(trace: Trace) -> str:
    """Return the only reason for which lines of a trace could not be used."""
    assert len(trace.bad_lines.counts) == 1, trace.bad_lines
    return next(iter(trace.bad_lines.counts))
