"""Backends of four methods, as users write them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tagent_nb import StorageBackend


class Files(StorageBackend):
    """A file for each document, replaced all or nothing; without a call of ``super().__init__``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, pipeline_id: str) -> Path:
        # In hexadecimal, since not every file system tells A from a.
        return self.folder / f"{pipeline_id.encode().hex()}.json"

    async def save(self, pipeline_id: str, data: dict[str, Any]) -> None:
        path = self._path(pipeline_id)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(data))
        aside.replace(path)

    async def load(self, pipeline_id: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self._path(pipeline_id).read_text())
        return data

    async def delete(self, pipeline_id: str) -> None:
        self._path(pipeline_id).unlink()

    async def list_pipelines(self) -> list[str]:
        return [bytes.fromhex(path.stem).decode() for path in self.folder.glob("*.json")]


class Table(StorageBackend):
    """A dict of JSON texts, with attributes and methods that have the names of ours."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.saves: list[tuple[str, int]] = []
        self._key, self._runs, self.retention, self.problems = "mine", 7, "mine", "none"  # type: ignore[assignment]

    async def save(self, pipeline_id: str, data: dict[str, Any]) -> None:
        text = self._put(data)
        self.saves.append((pipeline_id, len(text)))
        self.texts[pipeline_id] = text

    async def load(self, pipeline_id: str) -> dict[str, Any]:
        return self._get(self.texts.get(pipeline_id, "{}"))

    async def delete(self, pipeline_id: str) -> None:
        self.texts.pop(pipeline_id, None)

    async def list_pipelines(self) -> list[str]:
        return list(self.texts)

    def _put(self, data: object) -> str:
        return json.dumps(data)

    def _get(self, text: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(text)
        return data
