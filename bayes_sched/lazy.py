"""Names of a package that are loaded when they are first used, so that importing it takes no time."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def loader(package: str, module_of: Mapping[str, str]) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a package (PEP 562).

    Parameters
    ----------
    package : str
        Its ``__name__``.
    module_of : mapping of str to str
        The module of the package that holds each name. A name must not be that of a module of the package:
        importing the module would replace it.
    """

    def load(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
