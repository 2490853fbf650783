"""What the Python of a step reads outside of the notebook, as far as its text shows it.

Files that Python opens are seen while a step runs. Readers written in C, such as Arrow's, open them by
themselves: of these the text shows which file it is, or that there is one. Network, clock and chance show by
what is called.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from tagent_nb.pipeline.python_body import PythonBody

_READER = re.compile(r"\b(?:read_|scan_|dataset\(|ParquetFile)")
"""What may be a call of such a reader; to parse a text takes a hundred times as long."""

_ARROW = frozenset({"read_parquet", "read_orc", "read_table", "read_feather", "dataset", "ParquetFile"})
"""Readers of Arrow's, also by way of pandas."""

_OWN_READERS = frozenset({"polars", "duckdb", "pyarrow", "daft"})
"""Packages whose readers, ``read_...`` and ``scan_...``, open files by themselves."""

_SERVICES = {
    **dict.fromkeys(
        ("requests", "httpx", "aiohttp", "urllib", "urllib3", "http", "socket", "ftplib", "paramiko"),
        "the network",
    ),
    **dict.fromkeys(
        (
            "sqlalchemy",
            "psycopg",
            "psycopg2",
            "asyncpg",
            "pymysql",
            "pymongo",
            "redis",
            "snowflake",
            "oracledb",
        ),
        "a database",
    ),
    **dict.fromkeys(("boto3", "botocore", "s3fs", "gcsfs", "fsspec", "google"), "a service"),
}

_CLOCKS = frozenset({"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"})
_DOTTED = re.compile(r"\w+(?:\.\w+)*")
_CHANCE = frozenset({"random", "secrets"})
_SEEDED = re.compile(r"\bseed\(|random_state=|\b(?:Random|default_rng|RandomState|PCG64)\(\s*[^\s)]")


def file_arguments(body: PythonBody, *names: Mapping[str, Any]) -> Sequence[str]:
    """The files that readers get of which nothing else is seen: texts, and names with the path of a file.

    Args:
        body: Of a step.
        names: What the body reads by name: the first that has a name counts.
    """
    reads = _reads(body.source)
    if not reads:
        return ()
    files = []
    for _, argument in reads:
        match argument:
            case ast.Constant(value=str(path)):
                files.append(path)
            case ast.Name(id=name) if name not in _assigned_names(body.source):
                value = next((mapping[name] for mapping in names if name in mapping), None)
                if isinstance(value, str | os.PathLike):
                    files.append(os.fsdecode(value))
    return files


def outside_hints(body: PythonBody, names: Mapping[str, Any]) -> list[str]:
    """What a body reads that nothing sees change, a sentence each with the remedy.

    Args:
        body: Of a step whose answers are cached.
        names: What the notebook has, which says what a module is called there.
    """
    tree = _parsed(body.source)
    if tree is None:
        return []
    names = getattr(body.function, "__globals__", names)
    modules = _modules(tree, names)
    hints = [
        f"which file {reader}(...) reads is not seen, nor when it changes: write its path there as a text or "
        "a name, or let the cache answer for a while only (--fresh-for 1h), or never (--no-cache)."
        for reader, argument in _reads(body.source)
        if _opens_by_itself(reader, modules)
        and not isinstance(argument, ast.Constant)
        and not (isinstance(argument, ast.Name) and argument.id not in _assigned_names(body.source))
    ]
    roots = {module.partition(".")[0]: module for module in modules.values()}
    for root, what in _SERVICES.items():
        if root in roots:
            hints.append(
                f"what {root} gets from {what} is not seen to change: --fresh-for 1h asks again after that "
                "time, --no-cache in every run."
            )
    hints += [
        f"{name} remembers what it has returned (functools.cache): a file that it has read is not read again "
        "in this process. Leave that out: the answers of steps are cached as it is."
        for name in sorted(body.names)
        if callable(getattr(names.get(name), "cache_info", None))
    ]
    chance = _by_chance(tree, modules) if not _SEEDED.search(body.source) else ""
    if chance:
        hints.append(
            f"{chance} gives another value in every run, and the cache keeps the first: --no-cache takes a "
            "new one each time."
        )
    return list(dict.fromkeys(hints))


@lru_cache(maxsize=256)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source) if source else None
    except SyntaxError:  # a lambda that is a part of several lines
        return None


@lru_cache(maxsize=256)
def _reads(source: str) -> tuple[tuple[str, ast.expr], ...]:
    """By their names, the calls of what may be a reader that opens files by itself, with what they open."""
    tree = _parsed(source) if _READER.search(source) else None
    reads = []
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call) and node.args:
            name = _called(node)
            if name in _ARROW or name.startswith(("read_", "scan_")):
                reads.append((name, node.args[0]))
    return tuple(reads)


@lru_cache(maxsize=256)
def _assigned_names(source: str) -> frozenset[str]:
    """What a body assigns itself: no name of the notebook."""
    tree = _parsed(source)
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Name)] if tree is not None else []
    return frozenset(node.id for node in stored if isinstance(node.ctx, ast.Store))


def _opens_by_itself(reader: str, modules: Mapping[str, str]) -> bool:
    roots = {module.partition(".")[0] for module in modules.values()}
    return reader in _ARROW or bool(roots & _OWN_READERS)


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _modules(tree: ast.Module, names: Mapping[str, Any]) -> dict[str, str]:
    """By the name that the body uses, the modules that it has imported or finds in the notebook."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update({alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.update(
                {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            )
        elif isinstance(node, ast.Name) and node.id not in modules:
            value = names.get(node.id)
            if isinstance(value, ModuleType):
                modules[node.id] = value.__name__
    return modules


def _by_chance(tree: ast.Module, modules: Mapping[str, str]) -> str:
    """The first call by which a value is another one each time; empty without one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node.func)
        if not _DOTTED.fullmatch(text):
            continue
        root, _, rest = text.partition(".")
        full = f"{modules.get(root, root)}.{rest}".rstrip(".")
        package, last = full.partition(".")[0], full.rpartition(".")[2]
        if (
            (package in ("time", "datetime", "pandas") and last in _CLOCKS)
            or (package == "uuid" and last in ("uuid1", "uuid4"))
            or (package in _CHANCE and root in modules)
            or full.startswith("numpy.random.")
        ):
            return f"{text}()"
    return ""
