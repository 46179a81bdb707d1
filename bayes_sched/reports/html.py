"""A document as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bayes_sched.reports.document import Details, Document, Figure, Item, Table, Text

# Files beside the page alone: what comes from data must not lead elsewhere.
_INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])"), r"<em>\1</em>"),
    (re.compile(r"\[([^\]]+)\]\((\w[\w./-]*)\)"), r'<a href="\2">\1</a>'),
)


def html(document: Document, figures: Mapping[str, tuple[Path, ...]]) -> str:
    """Return the page, which holds the first file of each figure, its PNG, and links to the others."""
    environment = Environment(
        loader=PackageLoader("bayes_sched", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    tests: dict[str, Any] = {
        kind.__name__.lower(): partial(_is, kind) for kind in (Text, Table, Figure, Details)
    }
    environment.tests |= tests | {"shown": lambda item: getattr(item, "on", None) != "terminal"}
    template = environment.get_template("page.html.j2")
    return template.render(
        document=document,
        images={name: _uri(paths[0]) for name, paths in figures.items()},
        links={name: [path.name for path in paths[1:]] for name, paths in figures.items()},
    )


def _is(kind: type, item: Item) -> bool:
    return isinstance(item, kind)


def _inline(text: str) -> Markup:
    """Turn Markdown within a line into HTML; all else is escaped."""
    shown = str(escape(text))
    for pattern, tag in _INLINE:
        shown = pattern.sub(tag, shown)
    return Markup(shown)


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
