"""Batches of requests at half the price, with the real clients against a server of ours on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tagent_nb import (
    BatchPrepared,
    BatchSubmitted,
    ExecutionMode,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    ResultCache,
    StepStatus,
    StepWaiting,
    open_storage,
)
from tagent_nb.events import Event
from tests.batch_child import flow
from tests.fake_batches import KEY, FakeBatches, fake_batches

pytestmark = pytest.mark.models

MODELS = {"openai": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-5"}
CREATE = {"openai": "POST /v1/batches", "anthropic": "POST /v1/messages/batches"}
LOOK = {"openai": "GET /v1/batches/ID", "anthropic": "GET /v1/messages/batches/ID"}
POLL = (0.001, 0.002)


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBatches]:
    with fake_batches() as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        yield server


class Mood(BaseModel):
    label: Literal["good", "bad"]


def mapped(provider: str, rows: int = 5, **options: Any) -> Pipeline:
    pipeline = Pipeline("p", model=MODELS[provider], inputs={"rows": [f"row {n}" for n in range(rows)]})
    pipeline.step("judge", "Judge {{ item }}", map_over="rows", **{"batch": True, **options})
    return pipeline


def executor(pipeline: Pipeline, **options: Any) -> PipelineExecutor:
    return PipelineExecutor(pipeline, batch_poll=POLL, retry_delay=0.0, **options)


def run(pipeline: Pipeline, **options: Any) -> PipelineResult:
    return executor(pipeline, **options).run()


def asked_once(fake: FakeBatches, rows: int) -> bool:
    return fake.submitted == {f"row {number}": 1 for number in range(rows)} and not fake.live


class TestOneBatch:
    def test_all_rows_are_sent_together_at_half_the_price(self, fake: FakeBatches, provider: str) -> None:
        fake.looks = 3
        seen: list[Event] = []
        result = run(mapped(provider), observers=[seen.append])
        assert result["judge"] == [f"answer to row {number}" for number in range(5)]
        assert asked_once(fake, 5)
        assert fake.calls[CREATE[provider]] == 1
        live = run(mapped(provider, batch=False))
        assert result.total_cost == pytest.approx(live.total_cost / 2)
        assert result.total_cost > 0
        waits = [event.reason for event in seen if isinstance(event, StepWaiting) and event.item is None]
        assert any(
            reason.startswith("batch batch_1: ") and "of 5 requests done" in reason for reason in waits
        )
        items = result.steps["judge"].items or {}
        assert items["0"].status is StepStatus.COMPLETED

    def test_the_batch_is_recorded_before_it_is_looked_at(self, fake: FakeBatches, provider: str) -> None:
        fake.looks = 2
        looks: list[int] = []

        def note(event: Event) -> None:
            if isinstance(event, BatchPrepared):
                assert not fake.batches
            if isinstance(event, BatchSubmitted):
                looks.append(fake.batches["batch_1"].looks)

        run(mapped(provider), observers=[note])
        assert looks == [0]

    def test_more_rows_than_may_be_at_work_are_one_batch(self, fake: FakeBatches) -> None:
        assert len(run(mapped("openai", 100), max_concurrency=2)["judge"]) == 100
        assert fake.calls[CREATE["openai"]] == 1

    def test_rows_with_one_question_are_asked_once(self, fake: FakeBatches, tmp_path: Path) -> None:
        pipeline = mapped("openai")
        pipeline.inputs["rows"] = ["row 1", "row 2", "row 1", "row 1"]
        result = run(pipeline, cache=ResultCache(tmp_path))
        assert result["judge"] == ["answer to row 1", "answer to row 2", "answer to row 1", "answer to row 1"]
        assert fake.submitted == {"row 1": 1, "row 2": 1}

    def test_a_batch_or_live_is_no_other_question(self, fake: FakeBatches, tmp_path: Path) -> None:
        cache = ResultCache(tmp_path)
        run(mapped("openai", batch=False), cache=cache)
        assert run(mapped("openai"), cache=cache).total_cost == 0
        assert not fake.submitted

    def test_other_steps_go_on_meanwhile(self, fake: FakeBatches) -> None:
        fake.hold = True
        pipeline = mapped("openai", execution_mode=ExecutionMode.SERIAL)

        @pipeline.task
        def free() -> str:
            fake.hold = False
            return "done"

        @pipeline.task
        def after(judge: list[str]) -> int:
            return len(judge)

        assert run(pipeline)["after"] == 5


class TestResume:
    @pytest.fixture
    def storage(self, tmp_path: Path) -> str:
        return f"sqlite:{tmp_path}/runs.db"

    def kill_when(self, fake: FakeBatches, happened: Callable[[], bool], storage: str, provider: str) -> None:
        """Let another process begin the run, and end it with SIGKILL when something has happened."""
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", "tests.batch_child", storage, MODELS[provider], "50"]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=root)
        fake.wait_for(happened)
        process.kill()
        process.wait(60)

    def resumed(self, storage: str, provider: str, **options: Any) -> PipelineResult:
        """Carry the run on in this process."""
        pipeline = flow(MODELS[provider], 50)
        return executor(pipeline, storage=open_storage(storage)).run(resume=True, **options)

    def test_a_killed_process_pays_nothing_twice(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        """SIGKILL while the provider has the batch: another process takes up the same one."""
        fake.hold = True
        self.kill_when(fake, lambda: fake.calls[LOOK[provider]] >= 2, storage, provider)
        fake.hold = False
        result = self.resumed(storage, provider)
        assert result["judge"] == [f"answer to row {number}" for number in range(50)]
        assert asked_once(fake, 50)
        live = run(flow(MODELS[provider], 50, batch=False))
        assert result.total_cost == pytest.approx(live.total_cost / 2)

    def test_a_process_killed_before_it_heard_of_its_batch_pays_nothing_twice(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        """SIGKILL between the provider's taking of the batch and its answer: it is looked for there."""
        fake.stall.add(CREATE[provider])
        self.kill_when(fake, lambda: bool(fake.batches), storage, provider)
        assert self.resumed(storage, provider).success
        assert asked_once(fake, 50)

    def test_a_run_may_end_while_the_provider_has_the_batch(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.hold = True
        first = executor(flow(MODELS[provider], 50), storage=open_storage(storage)).run(wait=False)
        again = self.resumed(storage, provider, wait=False)
        for result in (first, again):
            assert not result.success
            assert not result.error_details
            assert result.steps["judge"].status is StepStatus.WAITING
            assert result.steps["judge"].waits_for.startswith("batch batch_1")
        fake.hold = False
        assert self.resumed(storage, provider, wait=False).success
        assert asked_once(fake, 50)

    def test_a_stopped_run_leaves_its_batch(self, fake: FakeBatches, provider: str, storage: str) -> None:
        fake.hold = True
        handle = executor(flow(MODELS[provider], 50), storage=open_storage(storage)).start()
        fake.wait_for(lambda: fake.calls[LOOK[provider]] >= 2)
        handle.cancel()
        assert handle.result().cancelled
        fake.hold = False
        assert self.resumed(storage, provider).success
        assert asked_once(fake, 50)
