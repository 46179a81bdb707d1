"""The members of a pool as a person names them: traces and fits, and the server that each is of."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bayes_sched.errors import InputError
from bayes_sched.pooling import UNSEEN
from bayes_sched.results import POSTERIOR, fit_file, is_name
from bayes_sched.trace.names import result_name
from bayes_sched.trace.opening import expand_paths


@dataclass(frozen=True)
class PoolMember:
    """One of a pool: a fit's file, or the files of a trace that is yet to be fitted.

    Attributes
    ----------
    name : str
        It names a result.
    fit_file : Path or None
    traces : tuple of str
        Empty where there is a fit.
    """

    name: str
    fit_file: Path | None = None
    traces: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> PoolMember:
        """Read a trace (file, pattern, ``NAME=FILE``) or the result of a fit (folder, its file).

        Raises
        ------
        InputError
            There is no such file, or its name cannot name a member.
        """
        name, sign, rest = text.partition("=")
        if not (sign and is_name(name)) or Path(text).exists():
            name, rest = "", text
        if Path(rest).is_dir() or rest.endswith(".nc"):
            file = fit_file(Path(rest))
            found = file.absolute()
            member = cls(name or (found.parent.name if found.name == POSTERIOR else found.stem), file)
        else:
            files = expand_paths(rest)[0]
            member = cls(name or result_name(files), traces=tuple(files))
        if not is_name(member.name):
            raise InputError(f"{text}: {member.name!r} cannot name a member; name it: NAME={rest}")
        return member

    @property
    def paths(self) -> set[Path]:
        """What it is read from."""
        given = self.traces if self.fit_file is None else (self.fit_file,)
        return {Path(path).resolve() for path in given}


def pool_members(texts: Sequence[str]) -> tuple[PoolMember, ...]:
    """Read the members of a pool; nothing of them is opened.

    Raises
    ------
    InputError
        One cannot be read, there is only one, or two are the same or have one name.
    """
    members = tuple(PoolMember.of(text) for text in texts)
    if len(members) < 2:
        raise InputError(f"{members[0].name}: one trace; a pool takes two or more")
    for number, member in enumerate(members):
        if member.name == UNSEEN:
            raise InputError(f"{UNSEEN!r} is the name of the server not yet seen: name the trace, NAME=FILE")
        for other in members[:number]:
            if member.paths & other.paths:
                raise InputError(f"{member.name}: the same trace twice; a pool takes each once")
            if member.name == other.name:
                raise InputError(f"two traces have the name {member.name}: tell them apart, NAME=FILE")
    return members


def named_label(text: str) -> tuple[str, str]:
    """Read ``NAME=LABEL``, for :mod:`argparse`."""
    name, sign, label = text.partition("=")
    if not (name and sign and label.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LABEL, such as h100-night=H100")
    return name, label.strip()


def pool_servers(given: Sequence[tuple[str, str]], members: Sequence[PoolMember]) -> dict[str, str]:
    """Return the servers that names and labels, as :func:`named_label` reads them, give to members.

    Raises
    ------
    InputError
        There is no member of a name, or it is given twice.
    """
    names = [member.name for member in members]
    found: dict[str, str] = {}
    for name, label in given:
        if name not in names:
            raise InputError(f"--server {name}: no such trace; the pool has {', '.join(names)}")
        if name in found:
            raise InputError(f"--server {name}: given twice")
        found[name] = label
    return found
