"""The part of an executor with which a user looks after the memories of a pipeline, from any thread."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.background import submit
from tagent_nb.engine.memory.load import schemas_of
from tagent_nb.engine.memory.store import changing
from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.serde import Classes, to_tree

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.pipeline import Pipeline
    from tagent_nb.storage import StorageBackend


class Remembering(ABC):
    """What :class:`PipelineExecutor` offers to those who read and edit saved memories.

    Runs see a change from their next start; one that goes on keeps what it began with.
    """

    pipeline: Pipeline
    storage: StorageBackend
    memory: PipelineMemory | None
    schemas: list[type[BaseModel]]
    namespace: Mapping[str, Any]

    def memories(self) -> dict[str, Any]:
        """The saved memories of the pipeline, the newest last.

        Raises:
            CorruptRecordError: They are damaged.
        """
        return submit(self.storage.memories(self.pipeline.id, self._classes())).result()

    def set_memory(self, key: str, value: Any) -> None:
        """Save a memory, or replace the one of this key.

        Raises:
            DefinitionError: The key is no text, or empty.
            EncodeError: The value cannot be stored; the message has the path to it.
            StorageError: It could not be stored.
        """
        if not isinstance(key, str) or not key.strip():
            raise DefinitionError(f"The key of a memory must be a text, not {key!r}.")
        to_tree(value, path=f"memory {key!r}")

        def change(stored: dict[str, Any]) -> None:
            stored.pop(key, None)
            stored[key] = value

        self._change(change)

    def forget_memory(self, key: str) -> None:
        """Delete a memory.

        Raises:
            DefinitionError: There is none of this key.
            StorageError: It could not be stored.
        """

        def change(stored: dict[str, Any]) -> None:
            if key not in stored:
                raise DefinitionError(
                    f"Pipeline {self.pipeline.name!r} has no memory {key!r}.{did_you_mean(str(key), stored)} "
                    f"Saved: {', '.join(stored) or 'none'}."
                )
            del stored[key]

        self._change(change)

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        async def work() -> None:
            async with changing(self.storage, self.pipeline.id):
                stored = await self.storage.memories(self.pipeline.id, self._classes())
                change(stored)
                await self.storage.save_memories(self.pipeline.id, stored)

        submit(work()).result()

    def _classes(self) -> Classes:
        return schemas_of(self.pipeline, self.schemas, self.namespace)
