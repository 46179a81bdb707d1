"""Paths, patterns and standard input to lines of bytes, whatever their compression.

Damage is noted, not raised. Commands check their arguments with this module, so it loads no heavy library.
"""

import glob
import hashlib
import json
import os
import re
import stat
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol

import zstandard

from bayes_sched.errors import InputError

STDIN = "-"
MAX_LINE_BYTES = 4 * 2**20
"""A longer line is not a step of any server; reading stops collecting it there, so memory stays bounded."""

type Paths = str | PathLike[str] | Sequence[str | PathLike[str]]

EXPECTED = (
    "expected one JSON object a line with num_prefill_reqs, num_decode_reqs, total_scheduled_tokens and "
    "model_run_duration_ms (or chunk_sizes in place of the two counts), or a vLLM log written under "
    "--enable-logging-iteration-details"
)

_BLOCK_BYTES = 64 * 2**10  # so many lines that what is done once a block does not count, and the cache holds
_PACKED_BYTES = 8 * 2**10  # small: hostile zstd data may grow thirty-thousandfold
_HEAD_BYTES = 4096
_ENDINGS = re.compile(r"(\.(gz|zst|zstd|jsonl|ndjson|json|log|txt))+$", re.IGNORECASE)
_MAX_NAME = 80


def expand_paths(paths: Paths) -> tuple[list[str], list[str]]:
    """Return the files that are meant, each once, patterns expanded, and a warning for each twin."""
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not given:
        raise InputError(
            "no trace given: name at least one file, a pattern like 'DIR/*.jsonl', or - for standard input"
        )
    files: dict[str, str] = {}
    warnings = []
    for path in (found for name in given for found in _expand(fspath(name))):
        key = path if path == STDIN else str(Path(path).resolve())
        if key in files:
            warnings.append(f"{path} is named more than once and read once")
        files.setdefault(key, path)
    return list(files.values()), warnings


def _expand(name: str) -> list[str]:
    if name == STDIN:
        return [name]
    if "\0" in name:
        raise InputError(f"no such file: {name!r}")
    path = Path(name)
    if path.is_dir():
        raise InputError(
            f"{name} is a directory: name its files, for example with the pattern '{path / '*.jsonl*'}'"
        )
    if path.exists():
        return [name]
    if not glob.has_magic(name):
        raise InputError(f"no such file: {name}")
    matches = sorted(glob.glob(name, recursive=True))
    found = [match for match in matches if not match.endswith(".meta.json") and not Path(match).is_dir()]
    if not found:
        raise InputError(f"no file matches the pattern {name}")
    return found


def result_name(paths: Sequence[str]) -> str:
    """Name the result of reading some files, fit for a folder: what their names share at the beginning."""
    stems = ["stdin" if path == STDIN else _ENDINGS.sub("", Path(path).name) for path in paths]
    name = stems[0]
    if len(stems) > 1:
        name = _shared_start(stems) or f"{stems[0]}-and-{len(stems) - 1}-more"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_MAX_NAME].strip("-._") or "trace"


def _shared_start(stems: Sequence[str]) -> str:
    """Return the beginning that all names share, up to a separator; empty if it is too short to help."""
    shared = os.path.commonprefix([f"{stem}-" for stem in stems])  # noqa: RUF071 - characters are meant
    start = shared[: max(map(shared.rfind, "-_. ")) + 1].rstrip("-_. ")
    return start if len(start) > 2 else ""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


COMPRESSIONS: dict[bytes, tuple[str, Callable[[], _Decoder]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda: zstandard.ZstdDecompressor().decompressobj()),
}
"""By the first bytes of a file."""


def check_followable(path: str, *, is_needed: bool = False) -> None:
    """Check that a path is, or unless it `is_needed` may become, a log of plain text that can be followed."""
    if path == "-" or "\0" in path:
        raise InputError(f"watch follows a file by its name; {path!r} is none")
    try:
        with open(path, "rb") as file:
            head = file.read(512) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except FileNotFoundError:
        if is_needed:
            raise InputError(f"no such file: {path}") from None
        return
    except IsADirectoryError:
        raise InputError(f"{path} is a directory: name the log in it") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    kind = "compressed" if head.startswith(tuple(COMPRESSIONS)) else foreign_kind(head)
    if kind is not None:
        raise InputError(
            f"{path} is {kind}: watch follows a plain-text log that is being written; for a finished trace "
            "use analyze"
        )


class TraceStream:
    """The lines of one file or of standard input."""

    def __init__(self, path: str, *, label: str) -> None:
        self.path, self.label = path, label
        self.head = b""  # the first decompressed bytes, which tell what a file without a step looks like
        self.damage = ""  # how the compressed data were damaged; empty while they are sound
        self.num_bytes = 0  # raw ones read so far
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of the raw bytes, complete when `lines` is exhausted."""
        return self._digest.hexdigest()

    def blocks(self) -> Iterator[bytes]:
        r"""Yield some lines at a time, each with its ``\n``; what follows the last one is yielded alone.

        A line above `MAX_LINE_BYTES` comes cut, longer than that limit still. :class:`InputError` if the file
        cannot be opened or read, or its first bytes tell that it is no trace.
        """
        begun: list[bytes] = []
        num_begun = 0
        for chunk in _portions(self._plain(), _BLOCK_BYTES):
            self._look_at(chunk)
            if end := chunk.rfind(b"\n") + 1:
                yield b"".join([*begun, chunk[:end]])
                begun, num_begun = [], 0
            if end < len(chunk) and num_begun <= MAX_LINE_BYTES:
                begun.append(chunk[end:])
                num_begun += len(begun[-1])
        if begun:
            yield b"".join(begun)

    def _look_at(self, chunk: bytes) -> None:
        kind = None if self.head else foreign_kind(chunk)
        if kind is not None:
            raise InputError(f"{self.label} is no trace: it is {kind}; {EXPECTED}")
        if len(self.head) < _HEAD_BYTES:
            self.head = (self.head + chunk)[:_HEAD_BYTES]

    def _plain(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        for magic, (name, make_decoder) in COMPRESSIONS.items():
            if first.startswith(magic):
                yield from self._decompressed(first, raw, name=name, make_decoder=make_decoder)
                return
        if first:
            yield first
        yield from raw

    def _decompressed(
        self, first: bytes, raw: Iterator[bytes], *, name: str, make_decoder: Callable[[], _Decoder]
    ) -> Iterator[bytes]:
        decoder, is_open = make_decoder(), False
        for data in _portions(chain([first], raw), _PACKED_BYTES):
            # A file may hold several members, with zeros as padding between and after them.
            while data := data if is_open else data.lstrip(b"\0"):
                try:
                    plain = decoder.decompress(data)
                except (zlib.error, zstandard.ZstdError):
                    self.damage = f"{name} data are corrupt"
                    deque(raw, maxlen=0)  # the digest covers the whole file
                    return
                is_open = True
                if plain:
                    yield plain
                if not decoder.eof:
                    break
                data, decoder, is_open = decoder.unused_data, make_decoder(), False
        if is_open:
            self.damage = f"{name} data are cut short"

    def _raw(self) -> Iterator[bytes]:
        try:
            with nullcontext(sys.stdin.buffer) if self.path == STDIN else open(self.path, "rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    self._digest.update(block)
                    self.num_bytes += len(block)
                    yield block
        except OSError as error:
            reason = "permission denied" if isinstance(error, PermissionError) else error.strerror or error
            raise InputError(f"cannot read {self.label}: {reason}") from None


def _portions(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut blocks of bytes into pieces of at most a size."""
    return (block[start : start + size] for block in blocks for start in range(0, len(block), size))


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel or NumPy file, which are ZIP archives): unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 or netCDF file, a saved fit perhaps"),
    (b"CDF", "a netCDF file"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"BZh", "bzip2 data: unpack it with bunzip2 first"),
    (b"\xfd7zXZ\0", "xz data: unpack it with unxz first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x04\x22\x4d\x18", "LZ4 data: unpack it first"),
    (b"\x1f\x8b", "data compressed twice: unpack it once first"),
    (b"\x28\xb5\x2f\xfd", "data compressed twice: unpack it once first"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


def foreign_kind(head: bytes) -> str | None:
    """Name what is no trace by its first bytes; None if nothing speaks against one."""
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def likely_kind(head: bytes) -> str:
    """Guess from its first bytes what a file without a single step is: ``a CSV table``."""
    num_control = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in head)
    if num_control > len(head) / 100:
        return "binary data"
    text = head.decode(errors="replace").removeprefix("\ufeff").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "an empty file"
    if text[:200].lower().startswith(("<!doctype html", "<html")):
        return "an HTML page"
    if text.startswith("["):
        return "a JSON array: write its objects one a line, for example with jq -c '.[]'"
    if text.startswith("{"):
        return _likely_json(lines)
    return _likely_table(lines)


def _likely_json(lines: list[str]) -> str:
    try:
        fields = ", ".join(json.loads(lines[0]))
    except ValueError:
        return "JSON over several lines: write one object a line, for example with jq -c ."
    return f"JSON lines of another kind, with the fields {fields[:80]}" if fields else "empty JSON objects"


def _likely_table(lines: list[str]) -> str:
    for separator, name in ((",", "a CSV table"), ("\t", "a table with tabs"), (";", "a CSV table")):
        counts = [line.count(separator) for line in lines[:3]]
        if counts[0] > 0 and len(set(counts)) == 1 and (len(counts) > 1 or counts[0] > 1):
            return name
    start = "".join(c if c.isprintable() else "?" for c in lines[0][:40])
    return f"plain text that begins with {start!r}"
