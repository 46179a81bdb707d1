"""A document as Markdown, for a README."""

from __future__ import annotations

from collections.abc import Sequence

from bayes_sched.reports.document import Details, Document, Figure, Item, Section, Table, Text

_BOLD = {"good", "bad"}
_QUOTED = {"warning", "error"}


def markdown(document: Document, *, figures: str = "figures/") -> str:
    """Return the document; its figures lie in a folder beside it, or right there if that is empty."""
    parts = [
        f"# {document.title}",
        document.subtitle,
        *_blocks(document.head, 2, figures),
        *_blocks(document.sections, 2, figures),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _blocks(items: Sequence[Item], level: int, figures: str) -> list[str]:
    blocks: list[str] = []
    for item in items:
        if isinstance(item, Section | Details):
            blocks += [f"{'#' * level} {item.title}", *_blocks(item.items, level + 1, figures)]
        elif isinstance(item, Figure):
            words = ". ".join(filter(None, (item.title, item.caption)))
            blocks.append(f"![{words}]({figures}{item.name}.png)")
        elif item.on == "terminal":
            continue
        elif isinstance(item, Table):
            blocks.append(_table(item))
        else:
            blocks.append(_text(item))
    return blocks


def _text(item: Text) -> str:
    points = "\n".join(f"- {point}" for point in item.points)
    if item.kind == "code":
        return f"```\n{item.text}\n```"
    text = f"**{item.text}**" if item.kind in _BOLD else item.text
    block = "\n\n".join(filter(None, [text, points]))
    return "\n".join(f"> {line}".rstrip() for line in block.split("\n")) if item.kind in _QUOTED else block


def _table(table: Table) -> str:
    texts = table.texts("page")
    rule = ["---" if is_text else "--:" for is_text in texts.is_text]
    return "\n".join(f"| {' | '.join(row)} |" for row in (texts.titles, rule, *texts.rows))
