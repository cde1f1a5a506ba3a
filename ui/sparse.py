"""A few records out of a long metrics file, without reading the rest: tables of many runs open at once."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

TAIL = 65_536  # bytes at the end in which the newest values are looked for
LINE = 16_384  # bytes that are read at a place: enough for one record


def spread_records(path: Path, count: int) -> list[dict[str, Any]]:
    """About `count` records at even distances over the file, in order; lines that are not records are passed over."""
    try:
        handle = open(path, "rb", buffering=0)  # noqa: SIM115  closed below; a missing file is not an error
    except FileNotFoundError:
        return []
    with handle:
        size = os.fstat(handle.fileno()).st_size
        found, seen = [], set()
        for k in range(count):
            start = size * k // count
            text = os.pread(handle.fileno(), LINE, start)
            first = text.find(b"\n") + 1 if start else 0  # the line that `start` cuts belongs to the place before
            last = text.find(b"\n", first)
            if last < 0 or start + first in seen or (start and not first):
                continue
            seen.add(start + first)
            found += _records(text[first:last])
    return found


def last_records(path: Path) -> list[dict[str, Any]]:
    """The complete records in the last part of the file, in order."""
    try:
        with open(path, "rb", buffering=0) as handle:
            size = os.fstat(handle.fileno()).st_size
            text = os.pread(handle.fileno(), TAIL, max(0, size - TAIL))
    except FileNotFoundError:
        return []
    lines = text[: text.rfind(b"\n") + 1].split(b"\n")[1 if size > TAIL else 0 :]
    return [record for line in lines for record in _records(line)]


def _records(line: bytes) -> list[dict[str, Any]]:
    with suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return [record]
    return []
