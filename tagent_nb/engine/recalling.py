"""The part of an executor that reads recorded runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.memory.load import read_memory, schemas_of

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from tagent_nb.pipeline import Pipeline
    from tagent_nb.results import PipelineResult
    from tagent_nb.storage import RunInfo, StorageBackend


class Recalling:
    """What :class:`PipelineExecutor` offers to those who look at earlier runs."""

    pipeline: Pipeline
    storage: StorageBackend
    schemas: list[type[BaseModel]]
    namespace: Mapping[str, Any]

    async def history(self) -> list[RunInfo]:
        """The recorded runs of the pipeline, oldest first."""
        return await self.storage.runs(self.pipeline.id)

    async def load_result(self, run_id: str | None = None) -> PipelineResult:
        """The result of a recorded run, without an id of the newest.

        Raises:
            NotStoredError: There is no such run.
            CorruptRecordError: It is damaged.
        """
        schemas = schemas_of(self.pipeline, self.schemas, self.namespace)
        return (await read_memory(self.storage, self.pipeline.name, run_id, schemas)).to_result()

    async def export_recording(self, path: str | Path, run_id: str | None = None) -> int:
        """Write the calls behind a recorded run, without an id the newest, to a file that replays it.

        Secrets of the environment are left out; prompts, answers and what tools gave are in it.

        Returns:
            The number of calls.

        Raises:
            NotStoredError: There is no such run, it called nobody, or the cache answered and the calls are
                gone.
            StorageError: The file cannot be written.
        """
        from tagent_nb.engine.recordings import calls_behind, write_recording

        calls = await calls_behind(self.storage, self.pipeline, run_id)
        return await asyncio.to_thread(write_recording, path, self.pipeline.name, calls)
