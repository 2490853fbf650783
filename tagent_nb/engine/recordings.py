"""Recordings: calls of agent steps in a file, to be replayed elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tagent_nb.errors import CorruptRecordError, DefinitionError, FormatVersionError
from tagent_nb.events import CallRecorded

FORMAT = "tagent-nb recording"
VERSION = 1

default: list[CallRecorded] | None = None
"""What executors replay that are given no recording; see :func:`tagent_nb.testing.replay`."""


def calls_on(recording: str | Path | None) -> list[CallRecorded] | None:
    """The calls of a recording; without one those that a test replays, or ``None``.

    Raises as :func:`read_recording`.
    """
    return default if recording is None else read_recording(recording)


def write_recording(path: str | Path, pipeline_name: str, calls: Iterable[CallRecorded]) -> int:
    """Write a recording, without secrets of the environment. Returns the number of calls.

    Raises:
        StorageError: It could not be written.
    """
    from tagent_nb.pipeline.event_codec import event_to_dict
    from tagent_nb.steps.requests import plain
    from tagent_nb.storage.disk import trouble

    kept = [plain(event_to_dict(call)) for call in calls]
    document = {"format": FORMAT, "version": VERSION, "pipeline": plain(pipeline_name), "calls": kept}
    file = Path(path)
    try:
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise trouble(error, "write", file) from error
    return len(kept)


def read_recording(path: str | Path) -> list[CallRecorded]:
    """The calls of a recording, in order.

    Raises:
        DefinitionError: There is no such file.
        CorruptRecordError: It is no recording, or it is damaged.
        FormatVersionError: A newer tagent-nb wrote it.
    """
    file = Path(path)
    try:
        document = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise DefinitionError(
            f"The recording {file} cannot be read: {error.strerror}. Make one with "
            "%tagent_export --recording FILE or executor.export_recording(FILE)."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise _damaged(file, f"it does not say that it is a {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version > VERSION:
        raise FormatVersionError(
            f"The recording {file} has version {version}, and this tagent-nb reads up to {VERSION}. "
            "Install a newer tagent-nb, or record again."
        )
    calls = document.get("calls")
    if not isinstance(calls, list):
        raise _damaged(file, "it has no calls")
    return [_read_call(file, index, call) for index, call in enumerate(calls)]


def _read_call(file: Path, index: int, data: Any) -> CallRecorded:
    from tagent_nb.pipeline.event_codec import event_from_dict

    try:
        event = event_from_dict(data)
    except CorruptRecordError as error:
        raise _damaged(file, f"call {index}: {error}") from None
    if not isinstance(event, CallRecorded):
        raise _damaged(file, f"call {index} is no call")
    return event


def _damaged(file: Path, why: str) -> CorruptRecordError:
    return CorruptRecordError(f"{file} is no recording that can be replayed: {why}. Record again.")
