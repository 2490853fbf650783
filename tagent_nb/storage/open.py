"""One way to name every storage: a URL, a folder, or a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from tagent_nb.errors import DefinitionError, did_you_mean

if TYPE_CHECKING:
    from tagent_nb.storage.base import StorageBackend

SCHEMES = ("memory", "file", "sqlite", "redis", "rediss", "unix")


def open_storage(
    where: str | Path | StorageBackend | None = None, *, durability: Literal["full", "fast"] = "full"
) -> StorageBackend:
    """The storage that ``where`` names.

    Args:
        where: ``None`` or ``"memory:"`` for memory; a folder (``"runs"``, ``Path("runs")``,
            ``"file:///home/me/runs"``), which on Windows holds a SQLite file; a SQLite file
            (``"sqlite:///runs.db"``, and with a fourth slash an absolute path); a Redis server
            (``"redis://host:6379/0"``, with TLS ``"rediss://user:password@host:6379/0"``, or
            ``"unix:///path"``); or a backend, which is returned as it is.
        durability: What survives a loss of power: everything recorded (``"full"``), or perhaps not the last
            seconds (``"fast"``). Either survives the death of the process.

    Raises:
        DefinitionError: ``where`` is not understood.
        MissingExtraError: It is a Redis server, and the package for that is not installed.
    """
    from tagent_nb.storage.base import StorageBackend

    if isinstance(where, StorageBackend):
        return where
    if where is None:
        where = "memory:"
    if isinstance(where, Path):
        return _folder(where, durability)
    if not isinstance(where, str) or not where.strip():
        raise DefinitionError(
            f"Storage must be a folder, a URL or a backend, not {where!r}. "
            "Write 'memory:' or the path of a folder."
        )
    scheme, colon, _ = where.partition(":")
    # One letter before the colon is a drive of Windows.
    if not colon or len(scheme) == 1:
        return _folder(Path(where), durability)
    if scheme == "memory":
        from tagent_nb.storage.memory import MemoryStorageBackend

        return MemoryStorageBackend()
    if scheme == "file":
        # file:/path, file:///path and file://localhost/path are absolute; file:path is not.
        return _folder(Path(unquote(urlsplit(where).path)), durability)
    if scheme == "sqlite":
        return _sqlite(where, durability)
    if scheme in ("redis", "rediss", "unix"):
        from tagent_nb.storage.redis import RedisStorageBackend

        return RedisStorageBackend(where, durability=durability)
    raise DefinitionError(
        f"Storage {where!r}: there is no kind {scheme!r}.{did_you_mean(scheme, SCHEMES)} "
        f"Known: {', '.join(SCHEMES)}, or the path of a folder."
    )


def _folder(path: Path, durability: Literal["full", "fast"]) -> StorageBackend:
    try:
        from tagent_nb.storage.file import FileStorageBackend
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        # Windows lacks the locks that the folder needs; a database within it does without.
        from tagent_nb.storage.sqlite import SQLiteStorageBackend

        return SQLiteStorageBackend(path / "runs.db", durability=durability)
    return FileStorageBackend(path, durability=durability)


def _sqlite(url: str, durability: Literal["full", "fast"]) -> StorageBackend:
    from tagent_nb.storage.sqlite import SQLiteStorageBackend

    # As everywhere: three slashes and a relative path, or four and an absolute one.
    path = unquote(url.removeprefix("sqlite:").removeprefix("///"))
    if not path or path.startswith("//") or path == ":memory:":
        raise DefinitionError(
            f"Storage {url!r} names no file. Write 'sqlite:///runs.db', or 'memory:' for memory."
        )
    return SQLiteStorageBackend(path, durability=durability)
