"""What a file that is no trace looks like, in words a person recognises."""

import json

EXPECTED = (
    "expected one JSON object a line with num_prefill_reqs, num_decode_reqs, total_scheduled_tokens and "
    "model_run_duration_ms (or chunk_sizes in place of the two counts), or a vLLM log written under "
    "--enable-logging-iteration-details"
)

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel or NumPy file, which are ZIP archives): unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 or netCDF file, a saved fit perhaps"),
    (b"CDF\x01", "a netCDF file"),
    (b"CDF\x02", "a netCDF file"),
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
    """Name the kind of a file that cannot be a trace, by its magic bytes.

    Parameters
    ----------
    head : bytes
        The first bytes of the file, decompressed; 512 are enough.

    Returns
    -------
    str or None
        None if nothing speaks against a trace.
    """
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def likely_kind(head: bytes) -> str:
    """Guess what a file without a single step is.

    Parameters
    ----------
    head : bytes
        The first bytes of the file, decompressed; some thousand are good.

    Returns
    -------
    str
        For example ``a CSV table``.
    """
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
