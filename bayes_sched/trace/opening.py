"""Paths, patterns and standard input to lines of bytes: decompressed, hashed, damage noted and not raised."""

import glob
import hashlib
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from bayes_sched.errors import InputError
from bayes_sched.trace.formats import EXPECTED, foreign_kind

STDIN = "-"
MAX_LINE_BYTES = 4 * 2**20
"""A longer line is not a step of any server; reading stops collecting it there, so memory stays bounded."""

type Paths = str | PathLike[str] | Sequence[str | PathLike[str]]

_CHUNK_BYTES = 8 * 2**10  # small: a hostile zstd chunk may grow thirty-thousandfold
_HEAD_BYTES = 4096


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_COMPRESSIONS: dict[bytes, tuple[str, Callable[[], _Decoder]]] = {
    b"\x1f\x8b": ("gzip", lambda: zlib.decompressobj(wbits=31)),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda: zstandard.ZstdDecompressor().decompressobj()),
}


def expand_paths(paths: Paths) -> tuple[list[str], list[str]]:
    """List the files that are meant, patterns expanded and sorted.

    Parameters
    ----------
    paths : str, path, or sequence of them
        ``-`` is standard input. A name with ``*``, ``?`` or ``[`` that is no file is a pattern; side-cars
        (``*.meta.json``) and directories do not match it.

    Returns
    -------
    files : list of str
        Every file once.
    warnings : list of str
        One sentence for each file that was named more than once.

    Raises
    ------
    InputError
        If there is no path, a directory, a missing file, or a pattern without a match.
    """
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
    found = sorted(match for match in glob.glob(name, recursive=True) if _is_trace_name(match))
    if not found:
        raise InputError(f"no file matches the pattern {name}")
    return found


def _is_trace_name(name: str) -> bool:
    return not name.endswith(".meta.json") and not Path(name).is_dir()


class TraceStream:
    """The lines of one file or of standard input.

    Attributes
    ----------
    head : bytes
        The first decompressed bytes, for a word on what the file looks like.
    damage : str
        How the compressed data were damaged; empty while they are sound.
    """

    def __init__(self, path: str, *, label: str) -> None:
        self.path = path
        self.label = label
        self.head = b""
        self.damage = ""
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of the raw bytes, complete when `lines` is exhausted."""
        return self._digest.hexdigest()

    def lines(self) -> Iterator[tuple[bytes, bool]]:
        r"""Yield each line without its ``\n``, and whether it had one.

        A line above `MAX_LINE_BYTES` comes cut, longer than that limit still.

        Raises
        ------
        InputError
            If the file cannot be opened or read, or its first bytes tell that it is no trace.
        """
        pieces: list[bytes] = []
        num_collected = 0
        for chunk in self._checked(self._plain()):
            *ended, rest = chunk.split(b"\n")
            for line in ended:
                yield (b"".join([*pieces, line]) if pieces else line), True
                pieces, num_collected = [], 0
            if rest and num_collected <= MAX_LINE_BYTES:
                pieces.append(rest)
                num_collected += len(rest)
        if pieces:
            yield b"".join(pieces), False

    def _checked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if len(self.head) < _HEAD_BYTES:
                is_first = not self.head
                self.head = (self.head + chunk)[:_HEAD_BYTES]
                kind = foreign_kind(self.head) if is_first else None
                if kind is not None:
                    raise InputError(f"{self.label} is no trace: it is {kind}; {EXPECTED}")
            yield chunk

    def _plain(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        for magic, (name, make_decoder) in _COMPRESSIONS.items():
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
        for data in chain([first], raw):
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
            if self.path == STDIN:
                yield from self._blocks(sys.stdin.buffer)
            else:
                with open(self.path, "rb") as file:
                    yield from self._blocks(file)
        except PermissionError:
            raise InputError(f"cannot read {self.label}: permission denied") from None
        except OSError as error:
            raise InputError(f"cannot read {self.label}: {error.strerror or error}") from None

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        while block := file.read(_CHUNK_BYTES):
            self._digest.update(block)
            yield block
