"""Records: what is written comes back, and whatever else is there is a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagent_nb.errors import CorruptRecordError, FormatVersionError, StorageError
from tagent_nb.storage.format import envelope as codec
from tagent_nb.storage.format.envelope import (
    Draft,
    Tail,
    last_record,
    pack,
    read_tail,
    split,
    tail_line,
    unpack,
)

OWNERS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
KEY = b"k" * 32


def three(key: bytes | None = None) -> list[bytes]:
    """Three records of one run."""
    return [pack("events", "r", body, step="s", attempt=1, key=key) for body in (b"one", b"", b"\ntwo\n")]


@given(
    owner=OWNERS,
    body=st.binary(max_size=300),
    step=st.text(max_size=70),
    attempt=st.integers(0, 999),
    key=st.none() | st.binary(min_size=1, max_size=64),
)
def test_what_is_packed_is_unpacked(
    owner: str, body: bytes, step: str, attempt: int, key: bytes | None
) -> None:
    """Any body and any step come back with their owner, attempt and whether they are signed."""
    record = pack("events", owner, body, step=step, attempt=attempt, key=key)
    envelope = unpack(record, "here", kind="events", owner=owner, key=key)
    assert (envelope.kind, envelope.owner, envelope.body, envelope.attempt) == (
        "events",
        owner,
        body,
        attempt,
    )
    assert envelope.step == (step if step.isidentifier() else "-")
    assert envelope.signed is (key is not None)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.none() | st.just(KEY))
def test_records_in_a_row_are_split(bodies: list[bytes], key: bytes | None) -> None:
    """Records that follow each other come back in order, whatever their bodies look like."""
    data = b"".join(pack("events", "r", body, key=key) for body in bodies)
    journal = split(data, "here", owner="r", key=key)
    assert [record.body for record in journal.records] == bodies
    assert (journal.good, journal.torn) == (len(data), None)


def chain(*bodies: bytes, key: bytes | None = None, after: Tail | None = None) -> list[bytes]:
    """Records of run ``r`` that follow each other, behind ``after``."""
    records, tail = [], after or Tail()
    for body in bodies:
        record, tail = Draft("p", "r", body, key=key).seal(tail)
        records.append(record)
    return records


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=2), st.none() | st.just(KEY))
def test_only_the_order_of_recording_is_accepted(
    order: list[int], doubled: list[int], key: bytes | None
) -> None:
    """Any other order, any repetition and any gap is an error that names a record of the run."""
    records = chain(b"a", b"b", b"c", b"d", b"e", key=key)
    wanted = [n for place in order for n in [place] * (1 + doubled.count(place))]
    for chosen in (wanted, sorted(wanted), wanted[1:]):
        data = b"".join(records[n] for n in chosen)
        if chosen == list(range(len(chosen))):
            bodies = [record.body for record in split(data, "here", owner="r", key=key).records]
            assert b"".join(bodies) == b"abcde"[: len(chosen)]
            continue
        with pytest.raises(CorruptRecordError, match=r"here, byte [\d,]+: record \d of run r "):
            split(data, "here", owner="r", key=key)


@pytest.mark.parametrize(
    ("order", "what"),
    [
        ("0132", "record 3 of run r is missing: record 4 is in its place"),
        ("03", "record 2 of run r to 3 is missing: record 4 is in its place"),
        ("123", "record 1 of run r is missing: record 2 is in its place"),
        ("01123", "record 2 of run r is in the place of record 3"),
        ("0x23", "record 3 of run r does not follow the record before it"),
        ("x123", "record 2 of run r does not follow the record before it"),
    ],
)
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "signed"])
def test_the_error_names_what_is_missing_doubled_or_replaced(
    order: str, what: str, key: bytes | None
) -> None:
    """``x`` is a record of another copy of the run, sealed with the same key."""
    records = chain(b"a", b"b", b"c", b"d", key=key)
    end = Tail() if order.startswith("x") else Tail(1, split(records[0], "", key=key).tail.digest)
    other = chain(b"other", key=key, after=end)[0]
    data = b"".join(other if letter == "x" else records[int(letter)] for letter in order)
    with pytest.raises(CorruptRecordError, match=what):
        split(data, "here", owner="r", key=key)


def test_a_run_of_an_older_version_gets_a_chain_as_it_goes_on() -> None:
    """The first record with a place names the last one without; none without follows it."""
    old = three()
    end = split(b"".join(old), "here").tail
    assert not split(b"".join(old), "here").chained
    more = chain(b"four", b"five", after=end)
    journal = split(b"".join([*old, *more]), "here", owner="r")
    assert (journal.chained, len(journal.records)) == (True, 5)
    for wrong in ([*old[:2], *more], [*old, more[1]], [old[0], old[2], old[1], *more], [*old, *more, old[0]]):
        with pytest.raises(CorruptRecordError, match="of run r"):
            split(b"".join(wrong), "here", owner="r")


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "signed"])
def test_where_a_run_ends_is_read_as_it_was_written_and_no_other_way(key: bytes | None) -> None:
    """A changed byte, another run, another pipeline and another key are errors."""
    line = tail_line("p", "r", Tail(7, "ab"), key)
    assert read_tail(line, "p", "r", key) == Tail(7, "ab")
    wrong = [(line, "q", "r", key), (line, "p", "s", key), (line, "p", "r", b"other"), (b"", "p", "r", key)]
    for place in range(len(line)):
        for bit in range(8):
            changed = bytearray(line)
            changed[place] ^= 1 << bit
            wrong.append((bytes(changed), "p", "r", key))
    for arguments in wrong:
        with pytest.raises(CorruptRecordError, match="ends is damaged"):
            read_tail(*arguments)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "signed"])
def test_a_changed_byte_is_noticed_wherever_it_is(key: bytes | None) -> None:
    """Flipping any single bit of a record is a typed error."""
    for record in (pack("events", "r", b'{"a":1}', key=key), *chain(b"a", key=key)):
        for place in range(len(record)):
            for bit in range(8):
                damaged = bytearray(record)
                damaged[place] ^= 1 << bit
                with pytest.raises((CorruptRecordError, FormatVersionError)):
                    unpack(bytes(damaged), "here", kind="events", owner="r", key=key)


def test_a_cut_end_is_dropped_and_described() -> None:
    """Cut anywhere, whole records stay, and what is left of the last one is named with its place."""
    records = three()
    data = b"".join(records)
    ends = [len(records[0]), len(records[0]) + len(records[1]), len(data)]
    for size in range(len(records[0]), len(data)):
        journal = split(data[:size], "here")
        whole = sum(end <= size for end in ends)
        assert len(journal.records) == whole
        assert journal.good == ends[whole - 1]
        if size in ends:
            assert journal.torn is None
        else:
            assert f"byte {journal.good:,}" in str(journal.torn)


def test_nothing_whole_is_an_error_and_not_an_empty_run() -> None:
    """Cut within the first record, or empty, there is no run to speak of."""
    data = b"".join(three())
    for size in range(len(three()[0])):
        with pytest.raises(CorruptRecordError, match="here"):
            split(data[:size], "here")


def test_damage_before_the_end_is_an_error() -> None:
    """A torn record with an intact one behind it was no crash: nothing is dropped."""
    first, two, three_ = three()
    for damaged in (first[:-5] + two + three_, first + b"x" * len(two) + three_, first + two[:-3] + three_):
        with pytest.raises(CorruptRecordError, match="byte"):
            split(damaged, "here")


def test_a_torn_value_may_speak_of_records() -> None:
    """Text that looks like a record, within a torn one, is not taken for an intact record."""
    record = pack("events", "r", b"one")
    torn = pack("events", "r", b"a tagent-nb 1 json events r s 1 3 0000 tagent-nb x" * 20)[:-30]
    assert split(record + torn, "here").torn is not None


@pytest.mark.parametrize("rest", [b"\0" * 500, b"garbage", b"tagent-nb", b"tagent-nb x y"])
def test_what_a_loss_of_power_leaves_is_a_torn_end(rest: bytes) -> None:
    """Zeros, garbage or half a head behind the last record are dropped."""
    data = b"".join(three())
    journal = split(data + rest, "here")
    assert (len(journal.records), journal.good) == (3, len(data))
    assert journal.torn is not None


@pytest.mark.parametrize("version", [3, 999, 999_999_999])
def test_a_newer_version_is_refused_and_never_taken_for_damage(version: int) -> None:
    """Also as the last record, where damage would be dropped."""
    data = b"".join(three())
    newer = f"tagent-nb {version} whatever it is by then\n".encode()
    for text in (newer, data + newer):
        with pytest.raises(FormatVersionError, match="newer tagent-nb"):
            split(text, "here")
    with pytest.raises(CorruptRecordError):
        split(data[:-9] + b"\n" + newer, "here")
    assert split(data[:-3] + b" says " + newer, "here").torn is not None


def test_a_right_checksum_for_another_run_is_refused() -> None:
    """Owner and kind are part of what is checked; such a record is not a torn end."""
    data = b"".join(three())
    with pytest.raises(CorruptRecordError, match="belongs to 'x', not to 'r'"):
        split(data + pack("events", "x", b""), "here", owner="r")
    with pytest.raises(CorruptRecordError, match="holds 'snapshot' where 'events' belong"):
        split(data + pack("snapshot", "r", b""), "here", owner="r", kind="events")


def test_a_store_with_a_key_takes_signed_records_only() -> None:
    """Unsigned and wrongly signed ones are refused, and signed ones without the key."""
    plain, signed = pack("events", "r", b"x"), pack("events", "r", b"x", key=KEY)
    with pytest.raises(CorruptRecordError, match="not signed"):
        unpack(plain, "here", key=KEY)
    with pytest.raises(CorruptRecordError, match="with its key"):
        unpack(signed, "here")
    with pytest.raises(CorruptRecordError, match="checksum"):
        unpack(signed, "here", key=b"other")
    with pytest.raises(CorruptRecordError):
        split(plain[:-2] + signed, "here")


def test_one_record_means_one() -> None:
    """A second document behind the first is refused."""
    with pytest.raises(CorruptRecordError, match="follow the record"):
        unpack(b"".join(three()), "here")


@pytest.mark.parametrize(
    "head",
    [
        b"tagent-nb 1 json events r s 1 3",
        b"tagent-nb 1 pickle events r s 1 3 " + b"0" * 64,
        b"tagent-nb 1 json events r s 1 -3 " + b"0" * 64,
        b"tagent-nb 1 json events r s 1 99999999999 " + b"0" * 64,
        b"tagent-nb 1 json events r s 1 9999999999 " + b"0" * 64,
        b"tagent-nb 1 json events r s one 3 " + b"0" * 64,
        b"tagent-nb 1 json events r \xff 1 3 " + b"0" * 64,
        b"tagent-nb 1 json \xff r s 1 3 " + b"0" * 64,
        b"tagent-nb 1 json events r " + b"s" * 2000 + b" 1 3 " + b"0" * 64,
    ],
)
def test_an_impossible_head_is_damage(head: bytes) -> None:
    """Too few words, unknown codecs, wild numbers and bytes that are no text are refused, unread."""
    with pytest.raises(CorruptRecordError):
        unpack(head + b"\nabc\n", "here")


def test_too_long_a_body_is_refused_when_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how long it is and what to do instead."""
    monkeypatch.setattr(codec, "MAX_BODY", 10)
    assert unpack(pack("events", "r", b"x" * 10), "here").body == b"x" * 10
    with pytest.raises(StorageError, match=r"11 bytes.*return its path"):
        pack("events", "r", b"x" * 11)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_typed_error(data: bytes) -> None:
    """Whatever is in a file, reading it raises nothing but a storage error."""
    for text in (data, b"tagent-nb 1 " + data, three()[0] + data):
        try:
            split(text, "here")
        except (CorruptRecordError, FormatVersionError):
            continue


def test_the_last_record_is_found_from_behind() -> None:
    """In the tail of a journal, which may begin in the middle of a record."""
    records = three()
    data = b"".join(records)
    start = last_record(data[5:])
    assert start is not None
    assert data[5:][start:] == records[2]
    assert last_record(records[0]) == 0
    assert last_record(records[0][3:]) is None


def test_a_signed_record_behind_damage_counts_as_whole() -> None:
    """Without the key it cannot be verified, but no torn write ends in a whole record."""
    plain, signed = pack("events", "r", b"one"), pack("events", "r", b"two", key=KEY)
    with pytest.raises(CorruptRecordError, match="cut off|checksum"):
        split(plain + plain[:-3] + signed, "here")
