"""The result cache: what it keeps, what it forgets, and what it survives."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagent_nb.cache import CacheStats, ResultCache, text_digest
from tagent_nb.cache import diskcache_table as database_module
from tagent_nb.cache import entry as entry_module
from tagent_nb.cache.entry import MAGIC, pack, unpack
from tagent_nb.cache.store import GATHERED
from tagent_nb.errors import CorruptRecordError, DefinitionError, EncodeError, StorageUnavailableError
from tagent_nb.events import TokenUsage
from tagent_nb.serde import StoredValue


def key_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def stored(value: object) -> StoredValue:
    return StoredValue.of(value)


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warned: list[str]) -> Iterator[ResultCache]:
    cache = ResultCache(tmp_path / "cache", warn=warned.append)
    yield cache
    cache.close()


def reopened(cache: ResultCache, warned: list[str], **options: Any) -> ResultCache:
    """The same folder as a new process would see it."""
    cache.close()
    return ResultCache(cache.directory, warn=warned.append, **options)


def in_table(cache: ResultCache, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run SQL on the file, as someone else could."""
    cache.close()
    connection = sqlite3.connect(cache.directory / "cache.db")
    try:
        with connection:
            return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


# -- keeping ----------------------------------------------------------------------------------


def test_an_answer_comes_back_with_what_it_took(cache: ResultCache, warned: list[str]) -> None:
    usage = TokenUsage(10, 20, 3, 4, 1, 2)
    assert cache.put(key_of(1), stored({"a": [1, None]}), usage=usage, cost=0.25, metadata={"model": "m"})
    entry = reopened(cache, warned).get(key_of(1))
    assert entry is not None
    assert entry.output.value == {"a": [1, None]}
    assert entry.output.digest == stored({"a": [1, None]}).digest
    assert (entry.usage, entry.cost, dict(entry.metadata)) == (usage, 0.25, {"model": "m"})
    assert warned == []


async def test_a_look_is_no_use_of_an_entry(cache: ResultCache) -> None:
    """A plan asks what would be cached: nothing is counted, and nothing is kept from making room."""
    cache.put(key_of(1), stored(1))
    cache.protect("run")
    assert await cache.aget(key_of(1), count=False) is not None
    assert await cache.aget(key_of(2), count=False) is None
    assert (cache.hits, cache.misses) == (0, 0)
    assert await cache.aget(key_of(1)) is not None
    assert cache.hits == 1
    await cache.arelease("run")


def test_an_unknown_price_stays_unknown(cache: ResultCache) -> None:
    cache.put(key_of(1), stored(1), cost=None)
    entry = cache.get(key_of(1))
    assert entry is not None
    assert entry.cost is None
    assert entry.usage == TokenUsage()


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_falsy_answers_are_answers(cache: ResultCache, value: object) -> None:
    cache.put(key_of(1), stored(value))
    entry = cache.get(key_of(1))
    assert entry is not None
    assert entry.output.value == value


async def test_what_functions_do_is_known_by_their_text_in_the_next_process(
    cache: ResultCache, warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the version of Python is the same, and of the newest only; it is no entry of a step."""
    monkeypatch.setattr(database_module, "MAX_SOURCES", 3)
    digests = await cache.source_digests()
    assert digests is await cache.source_digests()
    texts = [f"def f():\n    return {number}\n" for number in range(4)]
    for text in texts:
        assert digests.get(text) is None
        digests.note(text, text_digest(text))
    cache.flush()
    assert digests.take_new() == {}
    cache.close()
    again = await ResultCache(cache.directory).source_digests()
    assert [again.get(text) for text in texts] == [None, *map(text_digest, texts[1:])]
    assert cache.stats().entries == 0
    monkeypatch.setattr(entry_module, "_PARSER", b"2.7\n")
    assert again.get(texts[3]) is None
    monkeypatch.undo()
    with closing(sqlite3.connect(cache.directory / "cache.db")) as connection, connection:
        connection.execute("UPDATE Sources SET code = 'text' WHERE rowid = 2")
        connection.execute("UPDATE Sources SET code = x'00' WHERE rowid = 3")
    damaged = await ResultCache(cache.directory).source_digests()
    assert [damaged.get(text) for text in texts] == [None, None, None, text_digest(texts[3])]
    cache.clear()
    cleared = await ResultCache(cache.directory).source_digests()
    assert cleared.get(texts[3]) is None
    assert warned == []


async def test_digests_of_functions_are_none_where_the_cache_cannot_be_read(tmp_path: Path) -> None:
    """It is reported, and they are worked out anew."""
    warned: list[str] = []
    (tmp_path / "file").write_text("no folder")
    digests = await ResultCache(tmp_path / "file", warn=warned.append).source_digests()
    assert digests.get("def f(): ...") is None
    cache = ResultCache(tmp_path / "cache", warn=warned.append)
    await cache.source_digests()
    with closing(sqlite3.connect(cache.directory / "cache.db")) as connection, connection:
        connection.execute("CREATE TABLE Sources (other)")
    again = await ResultCache(cache.directory, warn=warned.append).source_digests()
    assert again.get("def f(): ...") is None
    assert ["cannot be used" in warned[0], "no such column" in warned[1], len(warned)] == [True, True, 2]


async def test_tasks_that_ask_at_once_share_the_digests_of_functions(cache: ResultCache) -> None:
    first, second = await asyncio.gather(cache.source_digests(), cache.source_digests())
    assert first is second


def test_a_miss_is_none_and_counted(cache: ResultCache) -> None:
    assert cache.get(key_of("nothing")) is None
    cache.put(key_of(1), stored(1))
    cache.get(key_of(1))
    assert (cache.hits, cache.misses) == (1, 1)
    assert "1 hits, 1 misses" in repr(cache)


def test_a_second_put_replaces_the_first(cache: ResultCache) -> None:
    cache.put(key_of(1), stored("old"))
    cache.put(key_of(1), stored("new"))
    entry = cache.get(key_of(1))
    assert entry is not None
    assert entry.output.value == "new"
    assert cache.stats().entries == 1


async def test_an_answer_is_readable_before_it_is_written(cache: ResultCache, warned: list[str]) -> None:
    for number in range(50):
        assert await cache.aput(key_of(number), stored(number), step="s")
        entry = await cache.aget(key_of(number))
        assert entry is not None
        assert entry.output.value == number
    cache.flush()
    again = reopened(cache, warned)
    for number in range(50):
        entry = await again.aget(key_of(number))
        assert entry is not None
        assert entry.output.value == number
    again.close()


async def test_a_change_after_the_put_does_not_reach_the_cache(cache: ResultCache) -> None:
    value = [1]
    await cache.aput(key_of(1), stored(value))
    value.append(2)
    cache.flush()
    entry = cache.get(key_of(1))
    assert entry is not None
    assert entry.output.value == [1]


def test_an_answer_replaced_while_the_first_is_written_is_written_as_well(
    cache: ResultCache, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = database_module.Database.write

    def write_and_replace(*args: Any) -> None:
        monkeypatch.setattr(database_module.Database, "write", write)
        write(*args)
        asyncio.run(cache.aput(key_of(1), stored("new")))

    monkeypatch.setattr(database_module.Database, "write", write_and_replace)
    cache.put(key_of(1), stored("old"))
    for reader in (cache, reopened(cache, warned)):
        entry = reader.get(key_of(1))
        assert entry is not None
        assert entry.output.value == "new"
        reader.close()


async def test_large_answers_are_written_before_aput_returns(cache: ResultCache, warned: list[str]) -> None:
    await cache.aput(key_of(1), stored("x" * 100_000))
    assert in_table(cache, "SELECT COUNT(*) FROM Cache") == [(1,)]
    entry = await cache.aget(key_of(1))
    assert entry is not None
    assert entry.output.value == "x" * 100_000
    assert warned == []


class Transactions:
    """How many entries each transaction of the cache wrote, and lets a test wait for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.ended = asyncio.Event()
        loop, write = asyncio.get_running_loop(), database_module.Database.write

        def noted(database: Any, entries: Any, used: Any) -> None:
            entries = list(entries)
            write(database, entries, used)
            self.sizes.append(len(entries))
            loop.call_soon_threadsafe(self.ended.set)

        monkeypatch.setattr(database_module.Database, "write", noted)


async def test_answers_that_are_gathered_are_written_together(
    cache: ResultCache, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = Transactions(monkeypatch)
    for number in range(100):
        assert await cache.aput(key_of(number), stored(number), gather=True)
    assert transactions.sizes == []
    entry = await cache.aget(key_of(7))
    assert entry is not None
    assert entry.output.value == 7
    await transactions.ended.wait()  # by the clock
    assert transactions.sizes == [100]
    for number in range(GATHERED):
        await cache.aput(key_of(("more", number)), stored(number), gather=True)
    cache.flush()
    assert sum(transactions.sizes) == 100 + GATHERED
    assert len(transactions.sizes) <= 4
    assert cache.stats().entries == 100 + GATHERED
    assert warned == []


async def test_an_answer_that_does_not_gather_takes_those_along_that_do(
    cache: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions = Transactions(monkeypatch)
    await cache.aput(key_of(1), stored(1), gather=True)
    await cache.aput(key_of(2), stored(2))
    await transactions.ended.wait()
    assert transactions.sizes == [2]


def test_what_gathers_on_a_loop_that_ends_is_not_lost(cache: ResultCache, warned: list[str]) -> None:
    asyncio.run(cache.aput(key_of(1), stored(1), gather=True))
    asyncio.run(cache.aput(key_of(2), stored(2), gather=True))
    again = reopened(cache, warned)
    assert again.stats().entries == 2
    again.close()


def test_an_answer_that_is_written_again_counts_once(cache: ResultCache, warned: list[str]) -> None:
    """Its counters are those that diskcache itself would have."""
    cache.put(key_of(1), stored("short"), step="first")
    cache.put(key_of(1), stored("longer than before"), step="second")
    stats = cache.stats()
    assert [(step.step, step.entries) for step in stats.steps] == [("second", 1)]
    ((count, size, length),) = in_table(
        cache,
        "SELECT (SELECT value FROM Settings WHERE key = 'count'), "
        "(SELECT value FROM Settings WHERE key = 'size'), length(value) FROM Cache",
    )
    assert (count, size) == (1, length)
    again = reopened(cache, warned)
    entry = again.get(key_of(1))
    assert entry is not None
    assert entry.output.value == "longer than before"
    again.close()


# -- reading ahead ------------------------------------------------------------------------------


async def test_many_answers_are_read_together_and_counted_one_by_one(
    filled: ResultCache, warned: list[str]
) -> None:
    cache = reopened(filled, warned)
    keys = [key_of(number) for number in range(5)]
    ahead = await cache.read_ahead(keys)
    assert (cache.hits, cache.misses) == (0, 0)
    found = [await cache.aget(key, ahead=ahead) for key in keys]
    assert [None if entry is None else entry.output.value for entry in found] == [
        "value 0",
        "value 1",
        "value 2",
        None,
        None,
    ]
    assert (cache.hits, cache.misses) == (3, 2)
    assert ahead == {}
    assert await cache.aget(keys[0], ahead=ahead) is not None
    assert warned == []
    cache.close()


async def test_an_answer_that_was_read_ahead_is_taken_without_a_question(
    filled: ResultCache, warned: list[str]
) -> None:
    """One that is damaged is left to the question, which says so and counts a miss."""
    in_table(filled, "UPDATE Cache SET value = ? WHERE key = ?", b"nonsense", key_of(1))
    ahead = await filled.read_ahead([key_of(number) for number in range(4)])
    entry = filled.take(key_of(0), ahead)
    assert entry is not None
    assert entry.output.value == "value 0"
    assert [filled.take(key_of(number), ahead) for number in (0, 1, 3)] == [None, None, None]
    assert (filled.hits, filled.misses, warned) == (1, 0, [])
    assert await filled.aget(key_of(1), ahead=ahead) is None
    assert (filled.hits, filled.misses, len(warned)) == (1, 1, 1)


async def test_what_was_stored_since_it_was_looked_for_is_found(cache: ResultCache) -> None:
    cache.protect("run")
    ahead = await cache.read_ahead([key_of(1), key_of(2)])
    await cache.aput(key_of(1), stored("since"))
    cache.flush()
    entry = await cache.aget(key_of(1), ahead=ahead)
    assert entry is not None
    assert entry.output.value == "since"
    assert await cache.aget(key_of(2), ahead=ahead) is None
    await cache.arelease("run")


async def test_what_is_large_or_of_another_program_is_not_read_ahead(
    filled: ResultCache, warned: list[str], tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    filled.put(key_of("large"), stored("x" * 100_000))
    in_table(
        filled, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", pickle.dumps(Bomb(mark)), key_of(0)
    )
    ahead = await filled.read_ahead([key_of(0), key_of(1), key_of("large")])
    assert list(ahead) == [key_of(1)]
    assert await filled.aget(key_of(0), ahead=ahead) is None
    entry = await filled.aget(key_of("large"), ahead=ahead)
    assert entry is not None
    assert not mark.exists()
    assert len(warned) == 1


async def test_a_file_that_cannot_be_read_ahead_is_reported_by_the_first_question(
    tmp_path: Path, warned: list[str], filled: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise sqlite3.DatabaseError("malformed")

    monkeypatch.setattr(database_module.Database, "read", broken)
    assert await filled.read_ahead([key_of(0)]) == {}
    assert await filled.aget(key_of(0), ahead={}) is not None
    (tmp_path / "no folder").write_text("")
    unusable = ResultCache(tmp_path / "no folder", warn=warned.append)
    ahead = await unusable.read_ahead([key_of(0)])
    assert ahead == {}
    assert await unusable.aget(key_of(0), ahead=ahead) is None
    assert len(warned) == 1
    unusable.close()


def test_another_kind_of_output_is_encoded_here(cache: ResultCache) -> None:
    class Plain:
        value = ("a", 1)
        digest = "not used"

    cache.put(key_of(1), Plain())
    entry = cache.get(key_of(1))
    assert entry is not None
    assert entry.output.digest == stored(("a", 1)).digest


def test_what_cannot_be_stored_is_reported_and_not_kept(cache: ResultCache, warned: list[str]) -> None:
    assert cache.put(key_of(1), stored(lambda: None), step="load") is False
    assert cache.get(key_of(1)) is None
    assert len(warned) == 1
    assert "'load' is not cached" in warned[0]


async def test_metadata_that_cannot_be_stored_is_reported_with_the_path(
    cache: ResultCache, warned: list[str]
) -> None:
    assert await cache.aput(key_of(1), stored(1), step="load", metadata={"fn": print}) is False
    assert "metadata" in warned[0]


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None])
def test_a_size_limit_is_a_positive_number_of_bytes(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(DefinitionError, match="size_limit"):
        ResultCache(tmp_path, size_limit=limit)


@pytest.mark.parametrize("key", ["../x", "", "A" * 64, "0" * 65, 7, b"0" * 64, None])
def test_a_key_must_be_a_sha256(cache: ResultCache, key: Any) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        cache.get(key)
    with pytest.raises(ValueError, match="SHA-256"):
        cache.put(key, stored(1))


def test_folder_and_files_are_for_the_owner_only(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "deep" / "cache")
    cache.put(key_of(1), stored(1))
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700
    files = list(cache.directory.iterdir())
    assert {file.name for file in files} == {"cache.db", "cache.db-wal", "cache.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    cache.close()


def test_a_cache_that_is_never_used_makes_no_folder(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "cache")
    assert cache.stats().entries == 0
    assert cache.clear() == 0
    assert not cache.directory.exists()
    cache.close()


def test_a_closed_cache_opens_again(cache: ResultCache) -> None:
    cache.put(key_of(1), stored(1))
    cache.close()
    assert cache.get(key_of(1)) is not None


# -- records ----------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
counts = st.integers(0, 10**9)


@given(
    value=plain,
    usage=st.builds(TokenUsage, counts, counts, counts, counts, counts, counts),
    cost=st.none() | st.floats(0, 1e6),
    metadata=st.dictionaries(st.text(max_size=5), plain, max_size=3),
)
def test_a_record_is_read_as_it_was_written(
    value: object, usage: TokenUsage, cost: float | None, metadata: dict[str, Any]
) -> None:
    key = key_of("any")
    entry = unpack(key, pack(key, stored(value), usage, cost, metadata), None)
    assert entry.output.value == value
    assert entry.output.digest == stored(value).digest
    assert (entry.usage, entry.cost, dict(entry.metadata)) == (usage, cost, metadata)


@given(data=st.data())
def test_a_flipped_byte_anywhere_makes_a_record_unreadable(data: st.DataObject) -> None:
    key = key_of("any")
    record = bytearray(pack(key, stored({"a": "text"}), TokenUsage(1), 0.5, {"m": 1}))
    place = data.draw(st.integers(0, len(record) - 1))
    record[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptRecordError):
        unpack(key, bytes(record), None)


@given(cut=st.integers(0, 10_000))
def test_a_torn_record_is_unreadable(cut: int) -> None:
    key = key_of("any")
    record = pack(key, stored(["text"]), TokenUsage(1), 0.5, {"m": 1})
    with pytest.raises(CorruptRecordError):
        unpack(key, record[: cut % len(record)], None)


def test_a_record_under_another_key_is_unreadable() -> None:
    record = pack(key_of("a"), stored(1), TokenUsage(), 0.0, {})
    with pytest.raises(CorruptRecordError, match="checksum"):
        unpack(key_of("b"), record, None)


@pytest.mark.parametrize(
    "header",
    [
        b"[1, null, 0]",
        b'["d", [1], 0]',
        b'["d", [-1, 0, 0, 0, 0, 0], 0]',
        b'["d", [true, 0, 0, 0, 0, 0], 0]',
        b'["d", 7, 0]',
        b'["d", null, NaN]',
        b'["d", null, "cheap"]',
        b'["d", null]',
        b"{}",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_right_checksum_over_nonsense_is_unreadable(header: bytes) -> None:
    key = key_of("any")
    body = len(header).to_bytes(4, "big") + bytes(4) + header + b"1"
    record = MAGIC + hashlib.sha256(key.encode() + body).digest() + body
    with pytest.raises(CorruptRecordError):
        unpack(key, record, None)


def test_metadata_must_be_a_dict() -> None:
    key = key_of("any")
    header = b'["d",null,0]'
    body = len(header).to_bytes(4, "big") + (2).to_bytes(4, "big") + header + b"[]" + b"1"
    record = MAGIC + hashlib.sha256(key.encode() + body).digest() + body
    with pytest.raises(CorruptRecordError, match="metadata"):
        unpack(key, record, None)


def test_a_value_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(EncodeError):
        pack(key_of("any"), stored(print), TokenUsage(), 0.0, {})


# -- a stranger's file ------------------------------------------------------------------------


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def filled(cache: ResultCache) -> ResultCache:
    for number in range(3):
        cache.put(key_of(number), stored(f"value {number}"), step="s", pipeline="p")
    return cache


def test_a_pickled_value_is_never_executed(filled: ResultCache, warned: list[str], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    in_table(
        filled, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", pickle.dumps(Bomb(mark)), key_of(0)
    )
    assert filled.get(key_of(0)) is None
    assert filled.get(key_of(0)) is None
    assert filled.get(key_of(1)) is not None
    filled.put(key_of(0), stored("again"))
    assert filled.get(key_of(0)) is not None
    assert not mark.exists()
    assert len(warned) == 1
    assert "not written by tagent-nb" in warned[0]


def test_a_pickled_key_is_never_executed(filled: ResultCache, warned: list[str], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    in_table(filled, "UPDATE Cache SET raw = 0, key = ? WHERE key = ?", pickle.dumps(Bomb(mark)), key_of(0))
    assert filled.get(key_of(0)) is None
    assert filled.get(key_of(1)) is not None
    filled.stats()
    filled.size_limit = 1
    filled.put(key_of("new"), stored(1))
    filled.clear()
    assert not mark.exists()


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_a_file_name_in_the_table_is_never_followed(
    filled: ResultCache, warned: list[str], tmp_path: Path, mode: int
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    in_table(filled, "UPDATE Cache SET mode = ?, value = NULL, filename = ?", mode, "../victim")
    for number in range(3):
        assert filled.get(key_of(number)) is None
    filled.put(key_of(0), stored("again"))
    entry = filled.get(key_of(0))
    assert entry is not None
    filled.clear()
    assert victim.exists()
    assert not (tmp_path / "executed").exists()
    assert len(warned) == 1


@pytest.mark.parametrize("value", [b"", b"nonsense", "text", 7, 1.5, None, b"\x80\x04."])
def test_anything_else_as_a_value_is_a_miss(filled: ResultCache, warned: list[str], value: object) -> None:
    in_table(filled, "UPDATE Cache SET value = ?", value)
    assert [filled.get(key_of(number)) for number in range(3)] == [None] * 3
    assert len(warned) == 1


def test_settings_in_the_file_are_not_followed(
    filled: ResultCache, warned: list[str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, value in {
        "_directory": str(elsewhere),
        "disk__directory": str(elsewhere),
        "disk_fetch": "nothing",
        "sqlite_journal_mode": "delete",
        "sqlite_writable_schema": 1,
        "eviction_policy": "least-recently-used",
        "cull_limit": 1000,
        "size_limit": 1,
    }.items():
        in_table(filled, "INSERT OR REPLACE INTO Settings VALUES (?, ?)", name, value)
    filled.put(key_of("new"), stored(1))
    assert all(filled.get(key_of(one)) is not None for one in (0, 1, 2, "new"))
    assert list(elsewhere.iterdir()) == []
    assert (filled.directory / "cache.db-wal").exists()
    assert warned == []


def test_settings_of_the_wrong_type_are_reported(filled: ResultCache, warned: list[str]) -> None:
    in_table(filled, "INSERT INTO Settings VALUES (?, 1)", b"bytes")
    assert filled.get(key_of(0)) is None
    assert len(warned) == 1


FOREIGN = {
    "a view for the table": (
        "ALTER TABLE Cache RENAME TO Other",
        "CREATE VIEW Cache AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT * FROM n",
    ),
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON Settings BEGIN DELETE FROM Cache WHERE rowid IN (SELECT 1); END",
    ),
    "a virtual table": ("CREATE VIRTUAL TABLE t USING fts5(a)",),
}


@pytest.mark.parametrize("statements", FOREIGN.values(), ids=FOREIGN)
def test_sql_that_a_stranger_left_is_not_run(
    filled: ResultCache, warned: list[str], statements: tuple[str, ...]
) -> None:
    for statement in statements:
        in_table(filled, statement)
    assert filled.get(key_of(0)) is None
    assert filled.put(key_of("new"), stored(1))
    assert len(warned) == 1
    assert "did not make" in warned[0]


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path, warned: list[str]) -> None:
    victim = tmp_path / "victim.db"
    victim.write_bytes(b"precious")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "cache.db").symlink_to(victim)
    cache = ResultCache(folder, warn=warned.append)
    cache.put(key_of(1), stored(1))
    assert cache.get(key_of(1)) is None
    assert victim.read_bytes() == b"precious"
    assert len(warned) == 1
    assert "not a plain file" in warned[0]
    cache.close()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_something_else_in_place_of_the_file_is_reported(
    tmp_path: Path, warned: list[str], make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    make(folder / "cache.db")
    cache = ResultCache(folder, warn=warned.append)
    assert cache.get(key_of(1)) is None
    assert len(warned) == 1
    cache.close()


@pytest.mark.parametrize("content", [b"not a database, but long enough" * 100, b"\x00" * 5000])
def test_a_file_of_something_else_is_reported_once_and_mended_by_clear(
    tmp_path: Path, warned: list[str], content: bytes
) -> None:
    (tmp_path / "cache.db").write_bytes(content)
    cache = ResultCache(tmp_path, warn=warned.append)
    for number in range(3):
        assert cache.put(key_of(number), stored(number))
        assert cache.get(key_of(number)) is None
    assert len(warned) == 1
    with pytest.raises(StorageUnavailableError, match="Clear all"):
        cache.clear(step="s")
    assert cache.clear() == 0
    cache.put(key_of(1), stored(1))
    assert cache.get(key_of(1)) is not None
    cache.close()


@pytest.mark.faults
def test_bytes_flipped_anywhere_in_the_file_never_give_a_wrong_answer(
    tmp_path: Path, repetitions: Callable[[int, int], int]
) -> None:
    whole = tmp_path / "whole"
    cache = ResultCache(whole)
    values = {key_of(number): f"value {number} " * 30 for number in range(20)}
    for key, value in values.items():
        cache.put(key, stored(value))
    cache.close()
    content = (whole / "cache.db").read_bytes()
    for number in range(repetitions(60, 1000)):
        mark = hashlib.sha256(str(number).encode()).digest()
        damaged = bytearray(content)
        for turn in range(30):
            place = int.from_bytes(hashlib.sha256(mark + bytes([turn])).digest()[:4], "big") % len(damaged)
            damaged[place] ^= 1 + mark[turn] % 255
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cache.db").write_bytes(damaged)
        warned: list[str] = []
        damaged_cache = ResultCache(folder, warn=warned.append)
        found = {key: damaged_cache.get(key) for key in values}
        for key, entry in found.items():
            assert entry is None or entry.output.value == values[key]
        damaged_cache.close()
        shutil.rmtree(folder)
    print(f"\nflipped bytes in a cache: injected {number + 1}, lost 0")


def test_a_file_cut_off_anywhere_never_gives_a_wrong_answer(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "whole")
    values = {key_of(number): f"value {number} " * 30 for number in range(20)}
    for key, value in values.items():
        cache.put(key, stored(value))
    cache.close()
    content = (tmp_path / "whole" / "cache.db").read_bytes()
    for number, length in enumerate(range(0, len(content), 1024)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cache.db").write_bytes(content[:length])
        cut = ResultCache(folder, warn=lambda message: None)
        for key, value in values.items():
            entry = cut.get(key)
            assert entry is None or entry.output.value == value
        cut.put(key_of("new"), stored(1))
        cut.close()


# -- no place to write ------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_reported_once(tmp_path: Path, warned: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "cache", warn=warned.append)
    for number in range(3):
        assert cache.put(key_of(number), stored(number))
        assert cache.get(key_of(number)) is None
    assert len(warned) == 1
    assert "cannot be used" in warned[0]
    cache.close()


READ_ONLY = """
    import os, sys
    from pathlib import Path
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.serde.value import StoredValue
    if os.geteuid() == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    reported = []
    cache = ResultCache(sys.argv[1], warn=reported.append)
    for number in range(3):
        cache.put(f"{number:064x}", StoredValue.of(number))
        assert cache.get(f"{number:064x}") is None
    cache.close()
    print(len(reported), reported[0])
"""


def test_a_read_only_folder_is_reported_once_and_the_run_goes_on(tmp_path: Path) -> None:
    # As another user, since permissions mean nothing to root; the folder's parents must let it in.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        cache = ResultCache(folder)
        cache.put(key_of(1), stored(1))
        cache.close()
        (folder / "cache.db").chmod(0o444)
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(READ_ONLY), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("1 The cache in")
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


FULL_DISK = """
    import resource, sys
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.serde.value import StoredValue
    reported = []
    cache = ResultCache(sys.argv[1], warn=reported.append)
    def key(number): return f"{number:064x}"
    def put(number): return cache.put(key(number), StoredValue.of("x" * 50_000))
    put(0)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
    assert all(put(number) for number in range(1, 60))
    assert cache.get(key(0)) is not None
    assert cache.get(key(59)) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    put(60)
    cache.close()
    assert cache.get(key(0)) is not None
    assert cache.get(key(60)) is not None
    print(len(reported), reported[0])
"""


def test_a_full_disk_is_reported_once_and_harms_no_older_answer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 The cache in")
    assert "could not be written" in done.stdout


def test_a_dollar_in_the_path_is_refused(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "elsewhere")
    cache = ResultCache(tmp_path / "$ELSEWHERE", warn=warned.append)
    cache.put(key_of(1), stored(1))
    assert len(warned) == 1
    assert "'$'" in warned[0]
    assert not (tmp_path / "elsewhere").exists()
    cache.close()


def test_without_a_callback_a_warning_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "cache")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.get(key_of(1))
        cache.get(key_of(2))
        cache.put(key_of(3), stored(1))
    assert [warning.category for warning in caught] == [RuntimeWarning]
    cache.close()


def test_each_run_is_reported_once(tmp_path: Path, warned: list[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "cache", warn=warned.append)
    mine: list[str] = []
    for run in ("a", "b"):
        cache.protect(run, mine.append)
        cache.get(key_of(1))
        cache.get(key_of(2))
        cache.release(run)
    assert len(mine) == 2
    assert warned == []
    cache.close()


# -- other processes and threads --------------------------------------------------------------


@pytest.fixture
def locked(filled: ResultCache) -> Iterator[sqlite3.Connection]:
    """Another process that writes all the time."""
    other = sqlite3.connect(filled.directory / "cache.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


async def test_while_another_process_writes_reads_go_on_and_the_loop_is_free(
    filled: ResultCache, locked: sqlite3.Connection
) -> None:
    entry = await filled.aget(key_of(0))
    assert entry is not None
    await filled.aput(key_of("new"), stored("new"))
    entry = await filled.aget(key_of("new"))
    assert entry is not None
    assert entry.output.value == "new"
    locked.execute("ROLLBACK")
    filled.flush()
    assert in_table(filled, "SELECT COUNT(*) FROM Cache") == [(4,)]


async def test_when_the_lock_is_not_given_up_the_write_is_dropped_and_reported(
    filled: ResultCache, locked: sqlite3.Connection, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.close()
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.0)
    assert filled.get(key_of(0)) is None  # it cannot even be opened
    assert "cannot be used" in warned[0]
    locked.execute("ROLLBACK")
    filled.protect("run")
    assert filled.get(key_of(0)) is not None
    locked.execute("BEGIN IMMEDIATE")
    assert filled.put(key_of("new"), stored("new"))
    assert "could not be written: another process is writing" in warned[1]
    assert filled.get(key_of("new")) is None
    with pytest.raises(StorageUnavailableError, match="another process"):
        filled.clear()
    locked.execute("ROLLBACK")


def test_opening_waits_for_another_process_to_finish(
    filled: ResultCache, locked: sqlite3.Connection, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.close()
    waits: list[float] = []

    def other_finishes(seconds: float) -> None:
        waits.append(seconds)
        locked.rollback()

    monkeypatch.setattr(database_module.time, "sleep", other_finishes)
    assert filled.get(key_of(0)) is not None
    monkeypatch.undo()
    assert waits
    assert warned == []


async def test_a_file_locked_against_readers_is_waited_for_outside_the_loop(
    filled: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.close()
    other = sqlite3.connect(filled.directory / "cache.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("INSERT INTO Settings VALUES ('x', 1)")
    reading = asyncio.create_task(filled.aget(key_of(0)))
    turns = 0
    while turns < 20:
        await asyncio.sleep(0.005)
        turns += 1
    assert not reading.done()
    other.execute("COMMIT")
    other.close()
    entry = await reading
    assert entry is not None


async def test_a_reader_that_finds_the_file_locked_hands_over_to_the_cache_thread(
    filled: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []
    fetch = ResultCache._fetch

    def busy_at_first(database: Any, key: str) -> bytes | None:
        readers.append(threading.current_thread().name)
        if len(readers) % 2:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return fetch(database, key)

    monkeypatch.setattr(ResultCache, "_fetch", staticmethod(busy_at_first))
    assert await filled.aget(key_of(0)) is not None
    assert filled.get(key_of(1)) is not None
    assert [name.startswith("tagent-nb cache") for name in readers] == [False, True, False, True]


def test_threads_share_a_cache(cache: ResultCache, warned: list[str]) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(30):
            key = key_of((number, turn))
            cache.put(key, stored([number, turn]), step=f"s{number}")
            entry = cache.get(key)
            if entry is None or entry.output.value != [number, turn]:
                wrong.append((number, turn, entry))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert warned == []
    assert cache.stats().entries == 120


def test_loops_share_a_cache(cache: ResultCache) -> None:
    async def use(number: int) -> bool:
        await cache.aput(key_of(number), stored(number))
        return await cache.aget(key_of(number)) is not None

    assert asyncio.run(use(1))
    assert asyncio.run(use(2))


WRITE_MANY = """
    import sys
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.serde.value import StoredValue
    cache = ResultCache(sys.argv[1], warn=print)
    number = int(sys.argv[2])
    for turn in range(50):
        cache.put(f"{number * 50 + turn:064x}", StoredValue.of([number, turn]))
    cache.close()
"""


def test_processes_share_a_cache(tmp_path: Path, warned: list[str]) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITE_MANY), str(tmp_path)]
    workers = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(3)
    ]
    assert [worker.communicate()[0] for worker in workers] == ["", "", ""]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    cache = ResultCache(tmp_path, warn=warned.append)
    assert cache.stats().entries == 150
    assert warned == []
    cache.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_uses_the_cache_without_harm_to_its_parent(filled: ResultCache) -> None:
    child = os.fork()
    if child == 0:  # coverage cannot see what happens here; the parent judges by the exit code
        try:
            fine = filled.get(key_of(0)) is not None and filled.put(key_of("child"), stored("child"))
            filled.close()
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert filled.get(key_of("child")) is not None
    filled.put(key_of("parent"), stored("parent"))
    assert in_table(filled, "PRAGMA integrity_check") == [("ok",)]


def test_a_cache_made_before_a_fork_starts_anew_in_the_child(
    filled: ResultCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert filled.get(key_of(0)) is not None
    monkeypatch.undo()


@pytest.mark.faults
def test_sigkill_never_leaves_an_unreadable_cache(
    tmp_path: Path, warned: list[str], repetitions: Callable[[int, int], int]
) -> None:
    program = textwrap.dedent("""
        import sys
        from tagent_nb.cache.store import ResultCache
        from tagent_nb.serde.value import StoredValue
        cache = ResultCache(sys.argv[1])
        number = 0
        while True:
            cache.put(f"{number:064x}", StoredValue.of("x" * 3000))
            print(number, flush=True)
            number += 1
    """)
    for turn in range(repetitions(3, 40)):
        folder = tmp_path / str(turn)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = 0
        while seen < 5 + turn * 7:
            seen = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        cache = ResultCache(folder, warn=warned.append)
        assert all(cache.get(f"{number:064x}") is not None for number in range(seen + 1))
        cache.close()
    assert warned == []
    print(f"\nSIGKILL while a cache is written: injected {turn + 1}, lost 0")


# -- the limit --------------------------------------------------------------------------------

SIZE = 40_000


def fill(cache: ResultCache, names: list[str]) -> None:
    for name in names:
        assert cache.put(key_of(name), stored(name * SIZE), step=name)


def kept(cache: ResultCache, names: list[str]) -> list[str]:
    rows = {row[0] for row in in_table(cache, "SELECT key FROM Cache")}
    return [name for name in names if key_of(name) in rows]


def test_entries_used_longest_ago_make_room(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REMEMBER_USE", 0.0)
    cache = ResultCache(tmp_path, size_limit=8 * SIZE, warn=warned.append)
    fill(cache, list("abcde"))
    assert cache.get(key_of("a")) is not None
    fill(cache, list("fghij"))
    names = kept(cache, list("abcdefghij"))
    assert "a" in names
    assert "b" not in names
    assert names[-1] == "j"
    assert cache.stats().size <= 8 * SIZE
    assert warned == []
    cache.close()


def test_what_an_active_run_stands_on_is_not_removed(tmp_path: Path, warned: list[str]) -> None:
    cache = ResultCache(tmp_path, size_limit=6 * SIZE)
    fill(cache, list("xyz"))
    cache.protect("run", warned.append)
    assert cache.get(key_of("y")) is not None
    fill(cache, list("abcdefgh"))
    there = [name for name in "xyzabcdefgh" if cache.get(key_of(name)) is not None]
    assert there == list("yabcdefgh")
    assert len(warned) == 1
    assert "size_limit" in warned[0]
    cache.release("run")
    assert cache.stats().size <= 6 * SIZE
    assert kept(cache, list("xyzabcdefgh"))[-1] == "h"
    cache.close()


async def test_release_on_the_loop_makes_room_as_well(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, size_limit=4 * SIZE, warn=lambda message: None)
    cache.protect("run")
    fill(cache, list("abcdefgh"))
    await cache.arelease("run")
    assert cache.stats().size <= 4 * SIZE
    cache.close()


def test_an_entry_larger_than_the_limit_does_not_stay(tmp_path: Path, warned: list[str]) -> None:
    cache = ResultCache(tmp_path, size_limit=2 * SIZE, warn=warned.append)
    cache.put(key_of("big"), stored("x" * 10 * SIZE))
    cache.put(key_of("small"), stored("x"))
    assert cache.stats().size <= 2 * SIZE
    cache.close()


def test_releasing_a_run_that_is_not_there_is_nothing(cache: ResultCache) -> None:
    cache.release("never")


def test_uses_are_remembered_for_the_next_process(
    filled: ResultCache, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "REMEMBER_USE", 0.0)
    before = dict(in_table(filled, "SELECT key, access_time FROM Cache"))
    filled.get(key_of(1))
    filled.flush()
    after = dict(in_table(filled, "SELECT key, access_time FROM Cache"))
    assert {key for key in after if after[key] > before[key]} == {key_of(1)}


# -- looking after it -------------------------------------------------------------------------


def test_stats_name_size_entries_and_steps(cache: ResultCache) -> None:
    before = time.time()
    cache.put(key_of(1), stored("x" * 5000), step="load", pipeline="p-1")
    cache.put(key_of(2), stored("y"), step="load", pipeline="p-2")
    cache.put(key_of(3), stored("z"), step="load", pipeline="p-1")
    cache.get(key_of(1))
    cache.get(key_of("no"))
    stats = cache.stats()
    assert isinstance(stats, CacheStats)
    assert (stats.entries, stats.hits, stats.misses) == (3, 1, 1)
    assert stats.directory == cache.directory
    assert 5000 < stats.size < stats.size_limit
    assert [(statistics.pipeline, statistics.step, statistics.entries) for statistics in stats.steps] == [
        ("p-1", "load", 2),
        ("p-2", "load", 1),
    ]
    assert stats.steps[0].size > 5000
    assert before - 1 < stats.steps[0].first_stored <= stats.steps[0].last_used <= time.time() + 1


def test_stats_of_a_cache_that_cannot_be_read_are_empty(tmp_path: Path, warned: list[str]) -> None:
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    cache = ResultCache(tmp_path, warn=warned.append)
    assert cache.stats().entries == 0
    assert len(warned) == 1
    cache.close()


def test_stats_of_a_poisoned_table_are_empty(filled: ResultCache, warned: list[str]) -> None:
    in_table(filled, "UPDATE Cache SET size = 'large'")
    in_table(filled, "UPDATE Cache SET store_time = 'then', size = x'00'")
    assert filled.stats().entries == 0
    assert len(warned) == 1


def test_clear_by_step_spares_the_others(cache: ResultCache) -> None:
    for step in ("load", "load_more", "report"):
        cache.put(key_of(step), stored(step), step=step, pipeline="p")
    assert cache.clear(step="load") == 1
    assert cache.get(key_of("load")) is None
    assert cache.get(key_of("load_more")) is not None


def test_clear_by_age_spares_the_young(filled: ResultCache) -> None:
    in_table(filled, "UPDATE Cache SET store_time = store_time - 1000 WHERE key = ?", key_of(0))
    assert filled.clear(older_than=2000) == 0
    assert filled.clear(step="other", older_than=500) == 0
    assert filled.clear(older_than=500) == 1
    assert filled.get(key_of(0)) is None
    assert filled.get(key_of(1)) is not None


def test_clear_of_all_gives_the_room_back(cache: ResultCache) -> None:
    fill(cache, list("abcdef"))
    before = cache.stats().size
    assert cache.clear() == 6
    assert cache.stats().entries == 0
    assert cache.stats().size < before / 2
    assert cache.get(key_of("a")) is None


def test_clear_mends_a_cache_that_breaks_while_it_is_open(filled: ResultCache, warned: list[str]) -> None:
    other = sqlite3.connect(filled.directory / "cache.db")
    other.execute("DROP TABLE Cache")
    other.close()
    assert filled.get(key_of(0)) is None
    with pytest.raises(StorageUnavailableError, match="no such table"):
        filled.clear(older_than=0)
    assert filled.clear() == 0
    filled.put(key_of(0), stored("again"))
    assert filled.get(key_of(0)) is not None
    assert len(warned) == 1


def test_clear_of_a_file_in_the_place_of_the_cache_says_so(tmp_path: Path) -> None:
    """It is someone's file: it stays."""
    file = tmp_path / "cache"
    file.write_text("mine")
    with pytest.raises(StorageUnavailableError, match=r"cannot be cleared: it is no folder\. Move it away"):
        ResultCache(file).clear()
    assert file.read_text() == "mine"


def test_clear_of_a_damaged_cache_that_cannot_be_removed_says_so(
    tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache.db").write_bytes(b"no database" * 1000)
    cache = ResultCache(tmp_path, warn=warned.append)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageUnavailableError, match="Permission denied"):
        cache.clear()
    monkeypatch.undo()
    cache.close()


def test_a_folder_deleted_between_runs_is_noticed(filled: ResultCache, warned: list[str]) -> None:
    filled.protect("one")
    assert filled.get(key_of(0)) is not None
    filled.release("one")
    shutil.rmtree(filled.directory)
    filled.protect("two")
    assert filled.get(key_of(0)) is None
    filled.put(key_of(0), stored("again"))
    assert in_table(filled, "SELECT COUNT(*) FROM Cache") == [(1,)]
    assert warned == []


# -- against a model --------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "clear", "reopen", "aput"]), st.integers(0, 4), st.text(max_size=5)
        ),
        max_size=25,
    )
)
def test_it_behaves_like_a_dict(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, str]]
) -> None:
    cache = ResultCache(tmp_path_factory.mktemp("cache"))
    model: dict[str, tuple[str, str]] = {}
    for action, number, text in actions:
        key, step = key_of(number), f"s{number % 2}"
        if action == "put":
            cache.put(key, stored(text), step=step)
            model[key] = (text, step)
        elif action == "aput":
            asyncio.run(cache.aput(key, stored(text), step=step))
            model[key] = (text, step)
        elif action == "get":
            entry = cache.get(key)
            assert (None if entry is None else entry.output.value) == model.get(key, (None,))[0]
        elif action == "clear":
            assert cache.clear(step=step) == sum(kept == step for _, kept in model.values())
            model = {key: pair for key, pair in model.items() if pair[1] != step}
        else:
            cache.close()
    assert cache.stats().entries == len(model)
    cache.close()


async def test_a_large_answer_that_is_damaged_is_a_miss(cache: ResultCache, warned: list[str]) -> None:
    key = "a" * 64
    cache.put(key, StoredValue.of("x" * 2_000_000))
    assert (await cache.aget(key)).output.value == "x" * 2_000_000  # type: ignore[union-attr]
    assert cache.hits == 1
    other = "b" * 64
    record = cache._read_now(key)
    assert isinstance(record, bytes)
    cache._waiting[other] = (other, record, "step\n")
    assert await cache.aget(other) is None
    assert "checksum does not match" in warned[0]
    assert cache.misses == 1
    del cache._waiting[other]
