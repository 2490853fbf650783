"""One way to name every storage: a URL, a folder, or a backend."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.storage.backend import StorageBackend, opens_backends
from tagent_nb.storage.policy import Settings, refuse_unknown, shown, split_url

if TYPE_CHECKING:
    from datetime import timedelta

    from tagent_nb.storage.run_storage import RunStorage

__all__ = ["StorageBackend", "open_storage", "register_storage"]

Durability = Literal["full", "fast"]
Factory = Callable[..., StorageBackend]
SCHEMES = ("memory", "file", "sqlite", "redis", "rediss", "unix")
FOUR = ("save", "load", "delete", "list_pipelines")
GROUP = "tagent_nb.storage"
"""Entry points of this group are named by the scheme of a URL and make the storage that it names."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+")
_registered: dict[str, Factory] = {}


def register_storage(scheme: str, factory: Factory) -> None:
    """Let URLs of a scheme of your own name a storage, in this process.

    A package registers one for everybody who installs it by an entry point of the group
    ``tagent_nb.storage``, whose name is the scheme.

    Args:
        scheme: What is before the colon, such as ``"s3"``: lower case, at least two characters. One that is
            registered again is replaced.
        factory: Called with the whole URL, in which settings of :func:`open_storage` such as ``keep_last``
            are left out; and with ``durability="full"`` or ``"fast"`` if that is said. Returns a
            :class:`StorageBackend`, with four methods or more.

    Raises:
        DefinitionError: The scheme is not allowed or one of ours, or the factory cannot be called.
    """
    if not isinstance(scheme, str) or not _SCHEME.fullmatch(scheme):
        raise DefinitionError(
            f"A scheme has at least two of a-z, 0-9, '+', '-' and '.', and begins with a letter, not "
            f"{scheme!r}. Write such as 's3'."
        )
    if scheme in SCHEMES:
        raise DefinitionError(f"The scheme {scheme!r} is one of tagent-nb. Choose another.")
    if not callable(factory):
        raise DefinitionError(f"The factory of scheme {scheme!r} must be callable, not {factory!r}.")
    _registered[scheme] = factory


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
            ``"unix:///path"``); a URL of a scheme of your own, see :func:`register_storage`; or a backend,
            which is returned as it is, unless it has the four methods of :class:`StorageBackend` and no more:
            then what is returned keeps runs through these, and is the same for the same backend.
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
    values = (durability, keep_last, older_than, max_bytes, backup_every, backup_keep, backup_folder)
    if isinstance(where, StorageBackend) and not any(value is not None for value in values):
        return _with_runs(where)
    settings = Settings(*values)
    if isinstance(where, StorageBackend):
        if durability is not None:
            raise DefinitionError(f"Say durability where {where!r} is made; it cannot change now.")
        return _applied(settings, _with_runs(where))
    if where is None:
        where = "memory:"
    if isinstance(where, str) and (scheme := _scheme(where)):
        where, written = split_url(where)
        settings = settings.over(written)
        if scheme not in SCHEMES:
            return _applied(settings, _with_runs(_own(where, scheme, settings.durability)))
    level = "full" if settings.durability is None else settings.durability
    return _applied(settings, _opened(where, level))


def _applied(settings: Settings, storage: RunStorage) -> RunStorage:
    """Let a storage keep to the settings; what is not set stays as it is there.

    Raises:
        DefinitionError: A value is not allowed, or the storage cannot do that.
    """
    retention, schedule = settings.retention(), settings.schedule()
    if retention is not None:
        storage.retention = retention
    if schedule is not None:
        storage._refuse_schedule(schedule)
        storage.backup_schedule = schedule
    return storage


@opens_backends
def _with_runs(backend: StorageBackend) -> RunStorage:
    """A backend, or what keeps runs in one of four methods."""
    from tagent_nb.storage.run_storage import RunStorage

    if isinstance(backend, RunStorage):
        return backend
    from tagent_nb.storage.document_backend import opened

    return opened(backend)


def _own(url: str, scheme: str, durability: Any) -> StorageBackend:
    """What the factory of a user's scheme makes of a URL."""
    from importlib.metadata import entry_points  # it takes as long as all of our storage

    factory = _registered.get(scheme)
    entries = {entry.name: entry for entry in entry_points(group=GROUP)} if factory is None else {}
    if factory is None and scheme not in entries:
        schemes = (*SCHEMES, *sorted({*_registered, *entries}))
        raise DefinitionError(
            f"Storage {shown(url)!r}: there is no kind {scheme!r}.{did_you_mean(scheme, schemes)} "
            f"Known: {', '.join(schemes)}, or the path of a folder. A scheme of your own is known in a "
            "process that has called register_storage: import the module that does."
        )
    if factory is None:
        entry = entries[scheme]
        try:
            factory = entry.load()
        except (ImportError, AttributeError) as error:
            raise DefinitionError(
                f"Storage {shown(url)!r}: the package that has the scheme {scheme!r} cannot be used, since "
                f"{entry.value} cannot be imported ({error}). Install it anew."
            ) from error
    options = {} if durability is None else {"durability": durability}
    try:
        inspect.signature(factory).bind(url, **options)
    except TypeError as error:
        raise DefinitionError(
            f"Storage {shown(url)!r}: the factory of scheme {scheme!r} cannot be called with the URL"
            f"{' and durability' if options else ''} ({error})."
            f"{' Give it a parameter durability=None, or leave durability out.' if options else ''}"
        ) from None
    storage = factory(url, **options)
    if not isinstance(storage, StorageBackend):
        raise DefinitionError(
            f"Storage {shown(url)!r}: the factory of scheme {scheme!r} gave {type(storage).__name__}, and a "
            "storage derives from tagent_nb.StorageBackend."
        )
    return storage


def _scheme(where: str) -> str:
    """``"sqlite"`` of ``"sqlite:///runs.db"``; empty for the path of a folder."""
    scheme, colon, _ = where.partition(":")
    # One letter before the colon is a drive of Windows.
    return scheme if colon and len(scheme) > 1 else ""


def _opened(where: object, durability: Any) -> RunStorage:
    if isinstance(where, Path):
        return _folder(where, durability)
    if not isinstance(where, str) or not where.strip():
        four = all(callable(getattr(where, name, None)) for name in FOUR)
        remedy = (
            "Derive its class from tagent_nb.StorageBackend."
            if four
            else "Write 'memory:' or the path of a folder."
        )
        raise DefinitionError(f"Storage must be a folder, a URL or a backend, not {where!r}. {remedy}")
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
    from tagent_nb.storage.redis.backend import RedisStorageBackend

    return RedisStorageBackend(where, durability=durability)


def _folder(path: Path, durability: Durability) -> RunStorage:
    try:
        from tagent_nb.storage.file.backend import FileStorageBackend
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        # Windows lacks the locks that the folder needs; a database within it does without.
        from tagent_nb.storage.sqlite.backend import SQLiteStorageBackend

        return SQLiteStorageBackend(path / "runs.db", durability=durability)
    return FileStorageBackend(path, durability=durability)


def _sqlite(url: str, durability: Durability) -> RunStorage:
    from tagent_nb.storage.sqlite.backend import SQLiteStorageBackend

    # As everywhere: three slashes and a relative path, or four and an absolute one.
    path = unquote(url.removeprefix("sqlite:").removeprefix("///"))
    if not path or path.startswith("//") or path == ":memory:":
        raise DefinitionError(
            f"Storage {url!r} names no file. Write 'sqlite:///runs.db', or 'memory:' for memory."
        )
    return SQLiteStorageBackend(path, durability=durability)
