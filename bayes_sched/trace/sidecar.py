"""What the ``LOG.meta.json`` that a recorder leaves beside its log tells of a server."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_KEYS = {
    "gpu": ("gpu", "gpu_name", "device_name", "device"),
    "llm": ("llm", "model", "model_name"),
}
SCHEDULER = ("max_num_batched_tokens", "max_num_seqs", "kv_cache_block_size", "num_kv_cache_blocks")
"""Settings of a server's scheduler, as vLLM names them."""


def read_labels(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Read the labels of some traces from the side-cars that lie beside them.

    Returns ``gpu`` and ``llm`` where a side-car tells them and no two contradict each other, and one sentence
    for each side-car that cannot be read and for each contradiction. Standard input (``-``) has no side-car.
    """
    contents, warnings = _contents(paths)
    labels: dict[str, str] = {}
    for label, keys in _KEYS.items():
        texts = [[content.get(key) for key in keys] for content in contents]
        told = {text for each in texts for text in [t for t in each if isinstance(t, str) and t][:1]}
        if len(told) > 1:
            warnings.append(
                f"the side-cars disagree on the {label} ({', '.join(sorted(told))}): none is used"
            )
        elif told:
            labels[label] = told.pop()
    return labels, warnings


def read_scheduler(paths: Sequence[str]) -> dict[str, int]:
    """Read the settings in :data:`SCHEDULER` that side-cars of some traces tell and no two contradict."""
    contents, _ = _contents(paths)
    found = {}
    for name in SCHEDULER:
        told = {value for content in contents if type(value := content.get(name)) is int and value > 0}
        if len(told) == 1:
            found[name] = told.pop()
    return found


def _contents(paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the side-cars' objects, and a warning for each that cannot be read."""
    contents: list[dict[str, Any]] = []
    warnings: list[str] = []
    for sidecar in dict.fromkeys(_sidecar(path) for path in paths):
        if sidecar is None:
            continue
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            warnings.append(f"the side-car {sidecar.name} is unreadable and left out")
            continue
        contents += [content] if isinstance(content, dict) else []
    return contents, warnings


def _sidecar(path: str) -> Path | None:
    trace = Path(path)
    unpacked = trace.with_suffix("") if trace.suffix.lower() in {".gz", ".zst"} else trace
    logs = [log for log in (trace, unpacked, unpacked.with_suffix("")) if log.name]
    beside = [log.with_name(f"{log.name}.meta.json") for log in logs]
    return next((file for file in beside if path != "-" and file.is_file()), None)
