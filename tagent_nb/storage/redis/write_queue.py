"""What the Redis backend sends, and how it reads answers: scripts, records that wait, signs of trouble."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tagent_nb.errors import CorruptRecordError, StorageError, StorageUnavailableError, did_you_mean
from tagent_nb.storage.format.envelope import Draft, Tail
from tagent_nb.storage.policy import Settings

REMEMBERED = 10.0
"""Seconds for which records are kept here, in case a server that restarts has lost the last of them."""

REMEMBERED_BYTES = 32_000_000
BATCH_BYTES = 4_000_000

APPEND = """
local list, runs, lease, pipelines, order, last_runs = unpack(KEYS)
local pipeline, run, token, expected, digest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local before, after = ARGV[6], ARGV[7]
-- Each key is looked at before the first is written: one of another type stops the script.
local held = redis.call('HMGET', lease, 'token', 'holder', 'tail')
local length, count = redis.call('LLEN', list), #ARGV - 7
local listed = redis.call('HEXISTS', runs, run) == 1
local others = redis.call('ZCARD', order)
local noted = length == 0 and redis.call('HGET', last_runs, pipeline) or ''
if token ~= '' and held[1] ~= token then
  if not held[1] and length > 0 then return {'unleased'} end
  return {'lost', held[2] or ''}
end
if length > 0 and not listed then return {'unlisted'} end
local last = redis.call('LINDEX', list, -1) or ''
if length == expected and (held[3] or '') == before then
  -- A list that another program put in its place may be as long.
  local head = string.sub(last, 1, 1024)
  local _, stop, body, sum = string.find(head, '^tagent%-nb [^\\n]* (%d+) (%x+)\\n')
  local whole = stop and #last == stop + body + 1 and string.sub(sum, 1, #digest) == digest
  if length > 0 and not whole then return {'moved', length, before, last} end
  local size = 0
  for i = 8, #ARGV do size = size + #ARGV[i] end
  redis.call('SADD', pipelines, pipeline)
  if redis.call('HINCRBY', runs, run, size) == size then
    local newest = others > 0 and redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')[2] or 0
    redis.call('ZADD', order, newest + 1, run)
    local begun = string.match(noted, '^(%d+) ')
    local number = begun and begun + 1 or redis.call('HLEN', runs)
    redis.call('HSET', last_runs, pipeline, number .. ' ' .. run)
    redis.call('HSET', lease, 'counted', 1)
  end
  for i = 8, #ARGV do redis.call('RPUSH', list, ARGV[i]) end
  redis.call('HSET', lease, 'tail', after)
  redis.call('PERSIST', lease)
  return {'done', length + count, after}
end
if length >= expected + count then
  local there = redis.call('LRANGE', list, expected, expected + count - 1)
  local same = true
  for i = 1, count do same = same and there[i] == ARGV[i + 7] end
  if same then return {'done', expected + count, held[3] or ''} end
end
return {'moved', length, held[3] or '', last}
"""
"""Add records (from the eighth argument on) behind as many as expected, if the last of them has the expected
digest and the run's state is what is expected, too; the seventh argument is its state afterwards, which stays
with the lease. Digest and length are read from the head of the last record: a byte changed in its body is
found by who reads it, as in all records before it."""

SWAP = """
local held = redis.call('HMGET', KEYS[1], 'token', 'holder')
local again = held[1] == ARGV[2] and held[2] == ARGV[3]
if not again and (held[1] or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'holder', ARGV[3])
if redis.call('HEXISTS', KEYS[1], 'tail') == 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return 1
"""

REMOVE = """
local list, runs, lease, documents, pipelines, order, last_runs = unpack(KEYS)
if ARGV[2] == '' then
  redis.call('DEL', documents)
else
  local token = redis.call('HGET', lease, 'token') or '0'
  if token ~= ARGV[3] and redis.call('EXISTS', list, lease) > 0 then return 0 end
  redis.call('DEL', list, lease)
  redis.call('ZREM', order, ARGV[2])
  local number = string.match(redis.call('HGET', last_runs, ARGV[1]) or '', '^(%d+) ')
  local deleted = redis.call('HDEL', runs, ARGV[2]) == 1
  -- Of a lost order any run is the newest, until the next look makes it again.
  local newest = redis.call('ZREVRANGE', order, 0, 0)[1] or redis.call('HKEYS', runs)[1]
  if deleted and number and newest then
    redis.call('HSET', last_runs, ARGV[1], (number - 1) .. ' ' .. newest)
  elseif not newest then
    redis.call('HDEL', last_runs, ARGV[1])
  end
end
if redis.call('EXISTS', runs, documents) == 0 then redis.call('SREM', pipelines, ARGV[1]) end
-- Only the mark of a whole list may be left.
local mark = redis.call('SISMEMBER', pipelines, ':')
if redis.call('SCARD', pipelines) == mark then redis.call('DEL', pipelines) end
return 1
"""


RELIST = """
local list, runs, lease, order, last_runs = unpack(KEYS)
local pipeline, run, size = ARGV[1], ARGV[2], ARGV[3]
local newest = string.match(redis.call('HGET', last_runs, pipeline) or '', '^%d+ (.*)$')
local traced = newest == run or redis.call('EXISTS', list) == 1
  or redis.call('ZSCORE', order, run) or redis.call('HEXISTS', lease, 'tail') == 1
if not traced then return 0 end
redis.call('HSETNX', runs, run, size)
return 1
"""
"""Put a run back into the list of runs, unless nothing of it is left: it has been deleted meanwhile."""

REORDER = """
local runs, order = unpack(KEYS)
if redis.call('HLEN', runs) ~= #ARGV then return 0 end
for _, run in ipairs(ARGV) do
  if redis.call('HEXISTS', runs, run) == 0 then return 0 end
end
redis.call('DEL', order)
for place, run in ipairs(ARGV) do redis.call('ZADD', order, place, run) end
return 1
"""
"""Put runs into their order, if they are still all that are listed: none was begun or deleted meanwhile."""

NOTE = """
local runs, order, last_runs = unpack(KEYS)
local number, newest = redis.call('HLEN', runs), redis.call('ZREVRANGE', order, 0, 0)[1]
local noted = redis.call('HGET', last_runs, ARGV[1]) or ''
if redis.call('ZCARD', order) ~= number or noted ~= ARGV[2] then return 0 end
if newest then redis.call('HSET', last_runs, ARGV[1], number .. ' ' .. newest)
else redis.call('HDEL', last_runs, ARGV[1]) end
return 1
"""
"""Note how many runs of a pipeline there are and which is the newest, unless others have changed that. Leases
say of the runs that began since there are such notes that they were counted."""

SET_ASIDE = """
for name in string.gmatch(ARGV[1], '[^\\n]+') do
  if redis.call('EXISTS', name) == 1 then
    redis.call('RENAME', name, ARGV[3] .. string.sub(name, ARGV[2]))
  end
end
return 1
"""
"""Give keys, one a line, another prefix: all or none, however the process ends that asks for it. They are one
argument, since a command has only so many."""

UNTRUSTED = "certificate verify failed"
"""What the system's TLS says about a certificate that will be no better a moment later."""

UNKNOWN_HOST = re.compile("Name or service not known|nodename nor servname|No address associated")
"""What systems say about a host that does not exist. (Of a name server that is away they say otherwise.)"""

SIGNS: tuple[tuple[str, type[StorageError], str], ...] = (
    ("WRONGTYPE", CorruptRecordError, "Another program uses this key: give the store another prefix."),
    ("hash value is not an integer", CorruptRecordError,
     "Another program has written into the list of runs: give the store another prefix."),
    ("OOM", StorageUnavailableError, "The server's memory is full: raise maxmemory, or prune old runs."),
    ("command not allowed when used memory", StorageUnavailableError,
     "The server's memory is full: raise maxmemory, or prune old runs."),
    ("MISCONF", StorageUnavailableError, "The server cannot write to its disk: look at its log."),
    ("READONLY", StorageUnavailableError, "This is a replica: give the URL of the primary."),
    ("You can't write against a read only", StorageUnavailableError,
     "This is a replica: give the URL of the primary."),
    (UNTRUSTED, StorageUnavailableError,
     "Its certificate is not trusted: name its authority in the URL, ?ssl_ca_certs=/path/to/ca.pem."),
)  # fmt: skip
"""What an error of the server holds, what it becomes, and the remedy."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the server keeps of a pipeline's runs beside their list, order, leases and records: a run that has
    lost all of them at once leaves a trace here.

    Attributes:
        count: How many runs were begun and not deleted.
        newest: Id of the last of them.
    """

    count: int
    newest: str

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Note | None:
        """The stored note; ``None`` if there is none, as in a store of before, or if it cannot be read."""
        count, _, newest = (data or b"").partition(b" ")
        return cls(number(count), text(newest)) if newest else None

    @classmethod
    def of(cls, order: Sequence[str]) -> Note:
        """What it should say of runs in their order."""
        return cls(len(order), order[-1] if order else "")


@dataclass(slots=True)
class Entry:
    """A record that waits to be sent."""

    record: Draft
    token: int | None
    done: asyncio.Future[None]


@dataclass(slots=True)
class RunQueue:
    """What one event loop knows of a run.

    Attributes:
        waiting: Records that wait; one batch is under way at a time.
        end: Where the run ends on the server, as far as known.
        state: What the server keeps to say so.
        recent: The last of them, with the time they were sent.
        size: Their bytes.
        task: What sends the waiting records.
    """

    waiting: deque[Entry] = field(default_factory=deque)
    end: Tail = field(default_factory=Tail)
    state: bytes = b""
    recent: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    task: asyncio.Task[None] | None = None

    def next_batch(self) -> list[Entry]:
        """Entries that can be sent together: of one token, and not too many bytes."""
        batch = [self.waiting.popleft()]
        size = len(batch[0].record)
        while self.waiting:
            following = self.waiting[0]
            size += len(following.record)
            if following.token != batch[0].token or size > BATCH_BYTES:
                break
            batch.append(self.waiting.popleft())
        return batch

    def last(self, count: int) -> list[bytes] | None:
        """The last ``count`` records that the server had, or ``None`` if not all are remembered."""
        if count > len(self.recent):
            return None
        return [record for _, record in self.recent][len(self.recent) - count :]

    def recorded(self, records: list[bytes], end: Tail, state: bytes) -> None:
        """The server has ``records`` as the last of a run that ends with them."""
        now = time.monotonic()
        if end.count != self.end.count + len(records):
            # Others recorded, too, or some were sent again: only these are known to be the last.
            self.recent.clear()
            self.size = 0
        self.end, self.state = end, state
        self.recent.extend((now, record) for record in records)
        self.size += sum(len(record) for record in records)
        while self.recent and (now - self.recent[0][0] > REMEMBERED or self.size > REMEMBERED_BYTES):
            self.size -= len(self.recent.popleft()[1])


def text(value: bytes) -> str:
    return value.decode(errors="replace")


def number(value: bytes | None) -> int:
    """A stranger's server may hold anything; what is no number counts as none."""
    return int(value) if value is not None and value.isdigit() and len(value) <= 20 else 0


def text_of(error: BaseException) -> str:
    """What an error says, without a full stop."""
    return str(error).rstrip(".") or type(error).__name__


def losing(settings: Mapping[str | None, str | None], *, full: bool) -> Iterator[str]:
    """What is wrong with a server's settings, if runs are to stay; ``full``: also after its crash."""
    policy, log = settings.get("maxmemory-policy"), settings.get("appendonly")
    if policy not in (None, "noeviction"):
        yield (
            "throws keys away when its memory is full: runs may vanish. "
            f"Set its maxmemory-policy ({policy}) to noeviction."
        )
    if full and log == "no":
        yield (
            "has no append-only file: a crash of the server loses runs. "
            "Set 'appendonly yes', or say durability='fast'."
        )


def wrong_url(error: Exception) -> str:
    """What is wrong with a URL, a sentence from redis-py's error about it, and without its password."""
    unknown = re.search(r"keyword argument '(\w+)'", str(error))
    if unknown is not None:
        name = unknown.group(1)
        return f"there is no setting {name!r}.{did_you_mean(name, Settings.names())}"
    if "port" in str(error).lower():
        # What it takes for the port may be a part of the password.
        return "its port is no number, or the password has letters to be written as %XX."
    return f"{text_of(error)}."
