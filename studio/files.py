"""Files that are never seen half-written, JSON lines that survive a crash, and a full disk explained."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from studio.errors import MissingError, RunError


class Cursor(NamedTuple):
    """Where a reader stopped in a file; the inode tells that a resume has replaced the file."""

    inode: int = 0
    offset: int = 0


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """A full disk, whoever noticed it, becomes a RunError; one that refuses to be written a MissingError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise MissingError(
                f"{path}: expected a directory that can be written, got: {error.strerror}. Make it writable, then continue with "
                "--resume, or use another --runs DIR."
            ) from error
        if not _full(error):
            raise
        raise RunError(
            f"{path}: expected free space on this disk, got: {error}. Free some, then continue with --resume; "
            "what was saved earlier is intact."
        ) from error


def _full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # torch and safetensors report it in errors of their own
    return any(sign in str(error) for sign in ("No space left on device", "PytorchStreamWriter failed writing"))


def replace(path: Path, text: str) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with disk(path):
            with open(partial, "w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # a disk that refuses to be written must not hide the error that says so
            partial.unlink()
        raise


def append(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines, after ending a line that a crash or a full disk has cut off."""
    text = "".join(as_json(record) + "\n" for record in records)
    with disk(path), open(path, "a+b", buffering=0) as handle:
        size = handle.seek(0, os.SEEK_END)
        if size and os.pread(handle.fileno(), 1, size - 1) != b"\n":
            text = "\n" + text
        data = text.encode()
        while data:
            data = data[os.write(handle.fileno(), data) :]


def read_records(path: Path, since: Cursor | None = None) -> tuple[list[dict[str, Any]], Cursor, bool]:
    """Complete lines after a cursor as records; lines that are not records are passed over."""
    since = since or Cursor()
    try:
        handle = open(path, "rb")  # noqa: SIM115  closed below; a missing file is not an error
    except FileNotFoundError:
        return [], Cursor(), since.offset > 0
    with handle:
        stat = os.fstat(handle.fileno())
        restarted = since.offset > 0 and (since.inode != stat.st_ino or since.offset > stat.st_size)
        start = 0 if restarted else since.offset
        handle.seek(start)
        data = handle.read()
    end = data.rfind(b"\n") + 1
    records = []
    for line in data[:end].split(b"\n"):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records, Cursor(stat.st_ino, start + end), restarted


def as_json(data: Any, indent: int | None = None) -> str:
    return json.dumps(_clean(data), ensure_ascii=False, indent=indent, allow_nan=False)


def _clean(value: Any) -> Any:
    """Plain values for JSON: numbers that are not finite become null, paths text, scalar tensors numbers."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # tensors and arrays, without importing either library
        return _clean(value.tolist())
    raise TypeError(f"run folder: {value!r} of type {type(value).__name__} has no form in JSON.")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected a JSON file, got: {error}. Restore it or remove the run folder.") from error


def sync(*paths: Path) -> None:
    """Wait until files or folder entries are on the disk."""
    for path in paths:
        if path.exists():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
