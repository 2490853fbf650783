"""One way to name every storage: a URL, a folder, or a backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.storage.settings import Settings, refuse_unknown, shown, split_url

if TYPE_CHECKING:
    from datetime import timedelta

    from tagent_nb.storage.base import StorageBackend

Durability = Literal["full", "fast"]
SCHEMES = ("memory", "file", "sqlite", "redis", "rediss", "unix")


def open_storage(
    where: str | Path | StorageBackend | None = None,
    *,
    durability: Literal["full", "fast"] | None = None,
    keep_last: int | None = None,
    older_than: timedelta | float | str | None = None,
    max_bytes: int | str | None = None,
    backup_every: int | None = None,
    backup_keep: int | None = None,
    backup_folder: str | Path | None = None,
) -> StorageBackend:
    """The storage that ``where`` names.

    Everything but ``where`` may be in a URL as well: ``"sqlite:///runs.db?keep_last=20&backup_every=50"``.
    What is said in the call counts more.

    Args:
        where: ``None`` or ``"memory:"`` for memory; a folder (``"runs"``, ``Path("runs")``,
            ``"file:///home/me/runs"``), which on Windows holds a SQLite file; a SQLite file
            (``"sqlite:///runs.db"``, and with a fourth slash an absolute path); a Redis server
            (``"redis://host:6379/0"``, with TLS ``"rediss://user:password@host:6379/0"``, or
            ``"unix:///path"``); or a backend, which is returned as it is.
        durability: What survives a loss of power: everything recorded (``"full"``, without a say), or
            perhaps not the last seconds (``"fast"``). Either survives the death of the process.
        keep_last: At the end of a run, older runs of its pipeline than so many go. Never that run, one that
            is carried on at that moment or waits for an approval, and never the newest that completed.
        older_than: The same for runs that ended longer ago: a timedelta, seconds, or text such as ``"30d"``.
        max_bytes: The same while a pipeline's runs take more bytes together; also ``"500MB"``.
        backup_every: Make a backup at the end of a run when so many runs of its pipeline have ended since
            the last one.
        backup_keep: Verified backups to keep; 3 without a say.
        backup_folder: Where backups go; the backend's own place without it, which Redis has not.

    Raises:
        DefinitionError: ``where`` is not understood, or a value is not allowed.
        MissingExtraError: It is a Redis server, and the package for that is not installed.
    """
    from tagent_nb.storage.base import StorageBackend

    said = Settings(durability, keep_last, older_than, max_bytes, backup_every, backup_keep, backup_folder)
    if isinstance(where, StorageBackend):
        if durability is not None:
            raise DefinitionError(f"Say durability where {where!r} is made; it cannot change now.")
        return said.apply(where)
    if where is None:
        where = "memory:"
    if isinstance(where, str) and _scheme(where):
        where, written = split_url(where)
        said = said.over(written)
    level = "full" if said.durability is None else said.durability
    return said.apply(_opened(where, level))


def _scheme(where: str) -> str:
    """``"sqlite"`` of ``"sqlite:///runs.db"``; empty for the path of a folder."""
    scheme, colon, _ = where.partition(":")
    # One letter before the colon is a drive of Windows.
    return scheme if colon and len(scheme) > 1 else ""


def _opened(where: object, durability: Any) -> StorageBackend:
    if isinstance(where, Path):
        return _folder(where, durability)
    if not isinstance(where, str) or not where.strip():
        raise DefinitionError(
            f"Storage must be a folder, a URL or a backend, not {where!r}. "
            "Write 'memory:' or the path of a folder."
        )
    scheme = _scheme(where)
    if not scheme:
        _, written = split_url(where)
        if written:
            raise DefinitionError(
                f"Storage {where!r}: settings belong to a URL, and this is the path of a folder. "
                f"Write 'file:{where}', or say them in the call: {next(iter(written))}=..."
            )
        return _folder(Path(where), durability)
    if scheme == "memory":
        from tagent_nb.storage.memory import MemoryStorageBackend

        refuse_unknown(where, "store in memory")
        return MemoryStorageBackend()
    if scheme == "file":
        # file:/path, file:///path and file://localhost/path are absolute; file:path is not.
        url = urlsplit(refuse_unknown(where, "folder"))
        if url.netloc not in ("", "localhost") or not url.path or url.fragment:
            raise DefinitionError(
                f"Storage {where!r} names no folder of this machine. Write file:runs, file:///home/me/runs, "
                "or the path alone; # in a URL is %23."
            )
        return _folder(Path(unquote(url.path)), durability)
    if scheme == "sqlite":
        return _sqlite(refuse_unknown(where, "SQLite file"), durability)
    if scheme in ("redis", "rediss", "unix"):
        from tagent_nb.storage.redis import RedisStorageBackend

        return RedisStorageBackend(where, durability=durability)
    raise DefinitionError(
        f"Storage {shown(where)!r}: there is no kind {scheme!r}.{did_you_mean(scheme, SCHEMES)} "
        f"Known: {', '.join(SCHEMES)}, or the path of a folder."
    )


def _folder(path: Path, durability: Durability) -> StorageBackend:
    try:
        from tagent_nb.storage.file import FileStorageBackend
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        # Windows lacks the locks that the folder needs; a database within it does without.
        from tagent_nb.storage.sqlite import SQLiteStorageBackend

        return SQLiteStorageBackend(path / "runs.db", durability=durability)
    return FileStorageBackend(path, durability=durability)


def _sqlite(url: str, durability: Durability) -> StorageBackend:
    from tagent_nb.storage.sqlite import SQLiteStorageBackend

    # As everywhere: three slashes and a relative path, or four and an absolute one.
    path = unquote(url.removeprefix("sqlite:").removeprefix("///"))
    if not path or path.startswith("//") or path == ":memory:":
        raise DefinitionError(
            f"Storage {url!r} names no file. Write 'sqlite:///runs.db', or 'memory:' for memory."
        )
    return SQLiteStorageBackend(path, durability=durability)
