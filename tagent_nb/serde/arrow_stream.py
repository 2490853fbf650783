"""Tables as Arrow streams: written plainly, read with suspicion."""

from __future__ import annotations

import struct
from typing import Any

from tagent_nb.serde.scalars import pack_bytes, unpack_bytes


def to_stream(table: Any) -> str:
    """A table as the bytes of an Arrow stream, as text."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return pack_bytes(sink.getvalue().to_pybytes())


def from_stream(text: str) -> Any:
    """The table of an Arrow stream, checked: bytes of strangers must not crash the process.

    Raises:
        ValueError: It is not the stream of a table that :func:`to_stream` writes.
    """
    import pyarrow as pa

    data = unpack_bytes(text)
    messages = pa.ipc.MessageReader.open_stream(data)
    for message in messages:
        if _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("a compressed stream; none is ever written")
    table = pa.ipc.open_stream(data).read_all()
    if table.num_rows > 8 * len(data):
        raise ValueError("more rows than its bytes can hold")
    table.validate(full=True)
    return table


_DICTIONARY, _BATCH = 2, 3


def _is_compressed(message: bytes) -> bool:
    """Whether a message's buffers are compressed: a few bytes could become gigabytes.

    Arrow does not say so; its flatbuffer does (format/Message.fbs: Message.header is field 2,
    DictionaryBatch.data is 1, RecordBatch.compression is 3).
    """

    def field(table: int, number: int) -> int:
        (back,) = struct.unpack_from("<i", message, table)
        (size,) = struct.unpack_from("<H", message, table - back)
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", message, table - back + slot)[0] if slot < size else 0
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return place + int(struct.unpack_from("<I", message, place)[0])

    root = follow(0)
    kind_at = field(root, 1)
    kind = message[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY, _BATCH):
        return False
    batch = follow(field(root, 2))
    if kind == _DICTIONARY:
        batch = follow(field(batch, 1))
    return field(batch, 3) != 0
