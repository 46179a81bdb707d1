"""Labels from the ``LOG.meta.json`` that a profiler leaves beside its log."""

import json
from collections.abc import Sequence
from pathlib import Path

_KEYS = {
    "gpu": ("gpu", "gpu_name", "device_name", "device"),
    "llm": ("llm", "model", "model_name"),
}


def read_labels(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Read the labels of some traces from the side-cars that lie beside them.

    Parameters
    ----------
    paths : sequence of str
        The traces, as given; ``-`` has no side-car.

    Returns
    -------
    labels : dict of str to str
        ``gpu`` and ``llm`` where a side-car tells them and no two contradict each other.
    warnings : list of str
        One sentence for each side-car that cannot be read, and for each contradiction.
    """
    values: dict[str, list[str]] = {}
    warnings: list[str] = []
    for sidecar in dict.fromkeys(_sidecar(path) for path in paths):
        if sidecar is None:
            continue
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            warnings.append(f"the side-car {sidecar.name} is unreadable and left out")
            continue
        for label, keys in _KEYS.items():
            texts = [content.get(key) for key in keys] if isinstance(content, dict) else []
            values.setdefault(label, []).extend(
                [text for text in texts if isinstance(text, str) and text][:1]
            )
    for label, found in values.items():
        if len(set(found)) > 1:
            warnings.append(
                f"the side-cars disagree on the {label} ({', '.join(sorted(set(found)))}): none is used"
            )
    return {label: found[0] for label, found in values.items() if len(set(found)) == 1}, warnings


def _sidecar(path: str) -> Path | None:
    trace = Path(path)
    unpacked = trace.with_suffix("") if trace.suffix.lower() in {".gz", ".zst"} else trace
    candidates = (trace, unpacked, unpacked.with_suffix(""))
    beside = [
        candidate.with_name(candidate.name + ".meta.json") for candidate in candidates if candidate.name
    ]
    return next((file for file in beside if path != "-" and file.is_file()), None)
