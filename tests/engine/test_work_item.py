"""What a unit is about, and the sentences that say why it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep, ResultCache, SQLiteStorageBackend
from tagent_nb.errors import StorageUnavailableError
from tagent_nb.events import Event, StepStarted


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: ResultCache | None = None
        self.fails = False
        self.pipeline = Pipeline("lab")
        self.cell("a", "[1, 2]")
        self.cell("b", "[*a, 3]")

    def cell(self, name: str, text: str, **options: Any) -> None:
        self.pipeline.put(PipelineStep.from_cell(name, text, python=True, max_retries=0, **options))

    async def why(self, **options: Any) -> dict[str, str]:
        """Why each step ran, by name; steps that did not run are not in it."""
        reasons: dict[str, str] = {}

        def observe(event: Event) -> None:
            if isinstance(event, StepStarted) and event.item is None:
                reasons[event.step] = event.why

        storage = SQLiteStorageBackend(self.folder / "runs.db")
        executor = PipelineExecutor(
            self.pipeline, storage=storage, cache=self.cache, observers=[observe], namespace={"limit": 3}
        )
        try:
            result = await executor.execute(**options)
        finally:
            await storage.close()
        assert result.success or self.fails
        assert all(result.steps[name].reason == why for name, why in reasons.items())
        return reasons


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    lab.cache = ResultCache(tmp_path / "cache")
    yield lab
    lab.cache.close()


async def test_the_first_run_says_so(lab: Lab) -> None:
    assert await lab.why() == {"a": "first run", "b": "first run"}


async def test_only_what_changed_runs_and_says_what_changed(lab: Lab) -> None:
    await lab.why()
    lab.cell("b", "[*a, 4]")
    why = await lab.why()
    assert list(why) == ["b"]
    assert "code" in why["b"]


async def test_a_changed_value_above_is_named(lab: Lab) -> None:
    await lab.why()
    lab.cell("a", "[5]")
    why = await lab.why()
    assert "a" in why["b"]
    assert "changed" in why["b"]


async def test_a_step_that_had_no_value_says_how_it_ended(lab: Lab) -> None:
    """'It has no earlier result' would hide that it failed."""
    lab.cell("c", "1 / 0")
    lab.cell("d", "c")
    lab.cell("e", "b", when="b[0] > 1")
    lab.cell("each", "1 // (item - 2)", map_over="b")
    lab.cell("most", "1 // (item - 2)", map_over="b", min_success=0.5)
    lab.fails = True
    await lab.why()
    lab.cell("c", "1 / 1")
    why = await lab.why()
    assert why["c"] == "the last time it failed (ZeroDivisionError: division by zero)"
    assert why["d"] == "the last time it was skipped (step 'c' failed)"
    assert why["each"] == why["most"] == "the last time 1 of 3 items failed"
    lab.cell("most", "1 // (item - 1)", map_over="b", min_success=0.5)
    assert "code" in (await lab.why())["most"]


async def test_a_new_step_has_no_earlier_result(lab: Lab) -> None:
    await lab.why()
    lab.cell("c", "len(b)")
    assert await lab.why() == {"c": "it has no earlier result"}


async def test_forced_steps_say_forced(lab: Lab) -> None:
    await lab.why()
    assert await lab.why(force=["b"]) == {"b": "forced"}


async def test_a_cache_that_is_not_asked_is_not_said_to_lack_the_answer(lab: Lab) -> None:
    await lab.why()
    assert await lab.why(use_cache=False) == dict.fromkeys("ab", "the cache is not asked")
    lab.cell("b", "[*a, 3]", cache=False)
    assert await lab.why() == {"b": "the cache is not asked"}
    assert lab.cache is not None
    lab.cache.clear()
    assert (await lab.why())["a"] == "its earlier answer is not in the cache"


async def test_an_unchanged_map_leaves_it_to_its_items(lab: Lab) -> None:
    lab.cell("each", "item + limit", map_over="b")
    assert (await lab.why())["each"] == "first run"
    assert await lab.why() == {"each": ""}


async def test_a_map_over_something_longer_says_that_its_source_changed(lab: Lab) -> None:
    lab.cell("each", "item + limit", map_over="b")
    await lab.why()
    lab.cell("b", "[*a, 3, 4]")
    why = await lab.why()
    assert "b" in why["each"]


async def test_when_the_run_before_cannot_be_read_the_step_runs_and_the_user_is_warned(lab: Lab) -> None:
    await lab.why()

    class Unreadable(SQLiteStorageBackend):
        async def newest_run(self, pipeline_id: str, *, besides: str | None = None) -> Any:
            raise StorageUnavailableError("The disk is away.")

    storage = Unreadable(lab.folder / "runs.db")
    result = await PipelineExecutor(lab.pipeline, storage=storage).execute()
    await storage.close()
    assert result["b"] == [1, 2, 3]
    assert any("cannot tell why" in warning and "disk is away" in warning for warning in result.warnings)
