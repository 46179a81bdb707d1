"""The log: a file that only ever grows by whole lines, whatever happens to it or to those who write it."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence

MAX_ENGINES = 64


class LogFile:
    """One engine's log. Only the writer's thread uses it.

    Parameters
    ----------
    path : str
        Where the log is wanted. While another engine writes there, `path` becomes a name beside it.
    rotate_bytes : int
        A log of this size is renamed to ``PATH.1``, ``PATH.2``, ... and a fresh one begun; 0: never.

    Attributes
    ----------
    path : str
        Where the log is.
    """

    def __init__(self, path: str, *, rotate_bytes: int = 0) -> None:
        self.path = path
        self._wanted = path
        self._rotate_bytes = rotate_bytes
        self._fd = -1
        self._is_torn = False

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Append lines.

        Parameters
        ----------
        lines : sequence of bytes
            Each with its end.

        Returns
        -------
        num_written : int
            That many of them are in the file, whole.
        error : OSError or None
            Why the others are not.
        """
        num_bytes = 0
        data = b"".join(lines)
        try:
            self._make_ready()
            while num_bytes < len(data):
                num_bytes += os.write(self._fd, memoryview(data)[num_bytes:])
            self._rotate()
        except OSError as error:
            num_written = _num_whole(lines, num_bytes)
            self._cut(num_bytes - sum(map(len, lines[:num_written])))
            if error.errno != errno.ENOSPC:
                self.close()
            return num_written, error
        return len(lines), None

    def close(self) -> None:
        """Close the file; the next `write` opens it again."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1

    def _make_ready(self) -> None:
        if self._fd >= 0 and not self._is_in_place():
            self.close()  # deleted, or rotated away
        if self._fd < 0:
            self._open()
        if self._is_torn:
            os.write(self._fd, b"\n")
            self._is_torn = False

    def _is_in_place(self) -> bool:
        try:
            there, here = os.stat(self.path), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _open(self) -> None:
        folder = os.path.dirname(self._wanted)
        if folder:
            os.makedirs(folder, exist_ok=True)
        stem, extension = os.path.splitext(self._wanted)
        for number in range(1, MAX_ENGINES + 1):
            path = self._wanted if number == 1 else f"{stem}.engine{number}{extension}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
            if _lock(fd):
                self._fd, self.path, self._is_torn = fd, path, _ends_torn(path)
                return
            os.close(fd)
        raise OSError(errno.EBUSY, f"{MAX_ENGINES} engines write already", self._wanted)

    def _cut(self, num_torn: int) -> None:
        """Take back the beginning of a line whose end found no room."""
        if num_torn <= 0:
            return
        self._is_torn = True
        with contextlib.suppress(OSError):
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size == end:  # nobody else wrote after it
                os.ftruncate(self._fd, end - num_torn)
                self._is_torn = False

    def _rotate(self) -> None:
        if not self._rotate_bytes:
            return
        status = os.fstat(self._fd)
        if status.st_size < self._rotate_bytes or not stat.S_ISREG(status.st_mode):
            return
        number = 1
        while os.path.lexists(f"{self.path}.{number}"):
            number += 1
        os.rename(self.path, f"{self.path}.{number}")
        self.close()


def _lock(fd: int) -> bool:
    """Tell whether nobody else holds the file; devices, and file systems without locks, let everybody in."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _ends_torn(path: str) -> bool:
    """Tell whether a predecessor was killed amid a line."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return True  # an empty line more does no harm


def _num_whole(lines: Sequence[bytes], num_bytes: int) -> int:
    """Count the lines that `num_bytes` bytes hold to their end."""
    for index, line in enumerate(lines):
        num_bytes -= len(line)
        if num_bytes < 0:
            return index
    return len(lines)
