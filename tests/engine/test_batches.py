"""Batches of requests at half the price, with the real clients against a server of ours on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from tagent_nb import (
    Approved,
    BatchPrepared,
    BatchSubmitted,
    CorruptRecordError,
    DefinitionError,
    ExecutionMode,
    ModelError,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    PipelineValidationError,
    Price,
    ResultCache,
    ResumeConflictError,
    RunInfo,
    RunInProgressError,
    StepError,
    StepStatus,
    StepWaiting,
    open_storage,
    tool,
)
from tagent_nb.cli import main
from tagent_nb.engine import quote_text, submit
from tagent_nb.engine.concurrency import SerialLock
from tagent_nb.events import Event, RunResumed, StepRetried, TokenUsage
from tagent_nb.results import RunHistory
from tagent_nb.runners import price
from tagent_nb.runners.models.batches import BatchedCall, find_batch, progress_of
from tests.batch_child import flow
from tests.fake_batches import KEY, FakeBatches, fake_batches

pytestmark = pytest.mark.models

MODELS = {"openai": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-5"}
CREATE = {"openai": "POST /v1/batches", "anthropic": "POST /v1/messages/batches"}
LOOK = {"openai": "GET /v1/batches/ID", "anthropic": "GET /v1/messages/batches/ID"}
LIST = {"openai": "GET /v1/batches", "anthropic": "GET /v1/messages/batches"}
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


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/runs.db"


class Mood(BaseModel):
    label: Literal["good", "bad"]


def mapped(provider: str, rows: int = 5, **options: Any) -> Pipeline:
    pipeline = Pipeline("p", model=MODELS[provider], inputs={"rows": [f"row {n}" for n in range(rows)]})
    pipeline.step("judge", "Judge {{ item }}", map_over="rows", **{"batch": True, **options})
    return pipeline


def executor(pipeline: Pipeline, **options: Any) -> PipelineExecutor:
    return PipelineExecutor(pipeline, batch_poll=POLL, retry_delay=0.0, **options)


def run(pipeline: Pipeline, *, wait: bool = True, **options: Any) -> PipelineResult:
    return executor(pipeline, **options).run(wait=wait)


def open_storage_runs(where: str) -> list[RunInfo]:
    return submit(open_storage(where).runs(Pipeline("p").id)).result()


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
        events = result.events_frame().set_index("event")["detail"]
        assert events["BatchPrepared"] == "5 requests"
        assert events["BatchSubmitted"] == "batch_1"

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

    def test_each_sample_of_a_row_is_a_request_of_its_own(self, fake: FakeBatches, tmp_path: Path) -> None:
        result = run(mapped("openai", rows=2, samples=3), cache=ResultCache(tmp_path))
        assert result["judge"] == ["answer to row 0", "answer to row 1"]
        assert fake.submitted == {"row 0": 3, "row 1": 3}
        assert fake.calls[CREATE["openai"]] == 1
        assert (
            result.samples_frame("judge")["value"].tolist()
            == ["answer to row 0"] * 3 + ["answer to row 1"] * 3
        )

    def test_a_batch_or_live_is_no_other_question(self, fake: FakeBatches, tmp_path: Path) -> None:
        cache = ResultCache(tmp_path)
        run(mapped("openai", batch=False), cache=cache)
        assert run(mapped("openai"), cache=cache).total_cost == 0
        assert not fake.submitted

    def test_samples_of_a_row_are_in_one_batch(self, fake: FakeBatches) -> None:
        assert run(mapped("openai", 2, samples=3)).success
        assert fake.submitted == {"row 0": 3, "row 1": 3}
        assert len(fake.batches) == 1

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

    def test_equal_rows_wait_together(self, fake: FakeBatches, storage: str, tmp_path: Path) -> None:
        fake.hold = True
        pipeline = mapped("openai")
        pipeline.inputs["rows"] = ["row 1", "row 2", "row 1"]
        cache = ResultCache(tmp_path / "cache")
        result = run(pipeline, storage=open_storage(storage), cache=cache, wait=False)
        assert result.waiting_steps == ["judge"]
        fake.hold = False
        again = executor(pipeline, storage=open_storage(storage), cache=cache).run(resume=True)
        assert again["judge"] == ["answer to row 1", "answer to row 2", "answer to row 1"]
        assert fake.submitted == {"row 1": 1, "row 2": 1}

    def test_another_goal_is_another_batch(self, fake: FakeBatches, storage: str) -> None:
        fake.hold = True
        run(mapped("openai"), storage=open_storage(storage), wait=False)
        changed = mapped("openai")
        changed.put(changed.get_step("judge").with_(goal="Judge anew {{ item }}"))
        for hold in (True, False):
            fake.hold = hold
            again = executor(changed, storage=open_storage(storage)).run(
                resume=True, on_change="rerun", wait=False
            )
        assert again.success
        assert len(fake.batches) == 2

    def test_an_offline_run_answers_from_the_record(self, fake: FakeBatches, storage: str) -> None:
        first = run(mapped("openai"), storage=open_storage(storage))
        again = executor(mapped("openai"), storage=open_storage(storage)).run(offline=True)
        assert again["judge"] == first["judge"]
        assert again.total_cost == pytest.approx(first.total_cost)
        assert asked_once(fake, 5)

    def test_a_forced_step_is_sent_again(self, fake: FakeBatches, storage: str) -> None:
        fake.hold = True
        run(mapped("openai"), storage=open_storage(storage), wait=False)
        fake.hold = False
        again = executor(mapped("openai"), storage=open_storage(storage)).run(resume=True, force=["judge"])
        assert again.success
        assert fake.submitted["row 0"] == 2
        (warning,) = again.warnings
        assert "is forced while batch batch_1 is out, which is paid as well" in warning

    def test_a_run_that_waits_for_a_batch_is_kept_and_says_so(
        self, fake: FakeBatches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.hold = True
        file = tmp_path / "flow.json"
        step = mapped("openai").get_step("judge")
        flow_of_file = Pipeline("p", model="openai:gpt-4o").put(step)
        flow_of_file.put(PipelineStep.from_cell("rows", "['row 1', 'row 2']", python=True))
        file.write_text(flow_of_file.to_json())
        where = f"sqlite:{tmp_path}/runs.db"
        words = ["run", str(file), "--storage", where, "--no-wait"]
        assert main(words) == 1
        shown = capsys.readouterr().out
        assert "waits for batches of judge; it ended" in shown
        assert "and what batches of judge cost, which is known when they are answered" in shown
        (info,) = open_storage_runs(where)
        assert info.undecided == 1
        assert info.status == "waiting"

    def test_a_provider_that_does_not_answer_does_not_keep_a_run_from_stopping(
        self, fake: FakeBatches, provider: str, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tagent_nb.engine.batches.CLOSING", 0.05)
        fake.stall.add(CREATE[provider])
        handle = executor(flow(MODELS[provider], 50), storage=open_storage(storage)).start()
        fake.wait_for(lambda: bool(fake.batches))
        handle.cancel()
        assert handle.result().cancelled
        assert self.resumed(storage, provider).success
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


class Script:
    """What the server answers: for each question its answers in turn, the last one again and again."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = {name.replace("_", " "): list(given) for name, given in answers.items()}

    def __call__(self, question: str) -> Any:
        left = self.answers.get(question, ["fine"])
        return left.pop(0) if len(left) > 1 else left[0]


class TestWhatFails:
    def test_rows_that_expired_or_failed_are_sent_again(self, fake: FakeBatches, provider: str) -> None:
        fake.answer = Script(row_0=["<expired>", "late"], row_1=["<overloaded>", "<missing>", "later"])
        result = run(mapped(provider))
        assert result["judge"] == ["late", "later", "fine", "fine", "fine"]
        assert fake.submitted == {"row 0": 2, "row 1": 3, "row 2": 1, "row 3": 1, "row 4": 1}
        assert [len(batch.requests) for batch in fake.batches.values()] == [5, 2, 1]
        frame = RunHistory([result], []).items_frame("judge")
        assert list(frame["batch"]) == ["batch_2", "batch_3", "batch_1", "batch_1", "batch_1"]
        assert list(frame["attempts"]) == [2, 3, 1, 1, 1]

    def test_what_the_provider_rejects_fails_at_once(self, fake: FakeBatches, provider: str) -> None:
        fake.answer = Script(row_3=["<errored>"])
        result = run(mapped(provider, min_success=0.5))
        assert result["judge"] == ["fine", "fine", "fine", None, "fine"]
        assert "rejected the request" in (result.steps["judge"].items or {})["3"].error
        assert fake.submitted["row 3"] == 1

    def test_retries_are_limited(self, fake: FakeBatches, provider: str) -> None:
        fake.answer = Script(row_3=["<expired>"])
        result = run(mapped(provider, max_retries=1))
        assert "expired before the provider came to this request" in result.error_details["judge"]
        assert fake.submitted["row 3"] == 2

    def test_then_live_asks_the_rest_at_once(self, fake: FakeBatches, provider: str) -> None:
        fake.answer = Script(row_0=["<expired>", "live"])
        assert run(mapped(provider, batch="then-live"))["judge"] == ["live", *["fine"] * 4]
        assert fake.live == {"row 0": 1}
        assert sum(fake.submitted.values()) == 5

    @pytest.mark.parametrize("batch", [True, "then-live"])
    def test_invalid_answers_go_back_with_the_reasons(
        self, fake: FakeBatches, provider: str, batch: bool | str
    ) -> None:
        good, bad = {"label": "good"}, {"label": "middling"}
        fake.answer = Script(row_0=[bad, good], row_1=[good], row_2=[good])
        result = run(mapped(provider, 3, output_schema=Mood, batch=batch))
        assert [mood.label for mood in result["judge"]] == ["good"] * 3
        more = fake.submitted if batch is True else fake.live
        assert more["row 0"] == (2 if batch is True else 1)
        assert len(fake.batches) == (2 if batch is True else 1)

    def test_a_run_that_ended_before_live_calls_makes_them_live(
        self, fake: FakeBatches, storage: str
    ) -> None:
        fake.answer = Script(row_0=["<errored>", "live"])
        pipeline = flow(MODELS["openai"], 3, batch="then-live")
        assert not run(pipeline, storage=open_storage(storage)).success
        result = executor(pipeline, storage=open_storage(storage)).run(resume=True)
        assert result["judge"] == ["live", "fine", "fine"]
        assert fake.live == {"row 0": 1}

    def test_a_busy_provider_is_asked_again(self, fake: FakeBatches, provider: str) -> None:
        now = {"retry-after-ms": "1"}
        fake.refuse = {
            CREATE[provider]: [(429, now), (429, now)],
            LOOK[provider]: [(429, now), (503, now), (429, now)],
        }
        assert run(mapped(provider)).success
        assert asked_once(fake, 5)

    @pytest.mark.parametrize("drops", [1, 2])
    def test_an_answer_that_is_lost_is_no_second_batch(
        self, fake: FakeBatches, provider: str, drops: int
    ) -> None:
        """The connection ends when the provider has taken the batch: it is looked for, not sent again."""
        fake.drop[CREATE[provider]] = drops
        fake.drop[LIST[provider]] = drops - 1
        assert run(mapped(provider)).success
        assert asked_once(fake, 5)

    def test_a_batch_that_is_refused_fails_its_rows(self, fake: FakeBatches, provider: str) -> None:
        fake.refuse = {CREATE[provider]: [(400, {})]}
        result = run(mapped(provider))
        assert "rejected the request" in result.error_details["judge"]
        assert not fake.batches

    def test_a_provider_that_says_nothing_leaves_the_run_waiting(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        """To give the batch up would be to pay for it twice."""
        fake.refuse = {LOOK[provider]: [(503, {"retry-after-ms": "1"})] * 40}
        result = run(mapped(provider), storage=open_storage(storage))
        assert result.waiting_steps == ["judge"]
        assert "cannot be asked about now" in result.steps["judge"].waits_for
        fake.refuse.clear()
        assert executor(mapped(provider), storage=open_storage(storage)).run(resume=True).success
        assert asked_once(fake, 5)

    def test_a_key_of_another_project_leaves_it_waiting(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.hold = True
        run(mapped(provider), storage=open_storage(storage), wait=False)
        kept = dict(fake.batches)
        fake.batches.clear()
        again = executor(mapped(provider), storage=open_storage(storage)).run(resume=True)
        assert again.waiting_steps == ["judge"]
        fake.batches.update(kept)
        fake.hold = False
        assert executor(mapped(provider), storage=open_storage(storage)).run(resume=True).success
        assert asked_once(fake, 5)

    def test_the_timeout_of_a_row_stands_still_until_it_may_go_on(self, fake: FakeBatches) -> None:
        """One row at a time is checked, and all are answered at once: none is asked for again."""

        async def check(value: str) -> None:
            await asyncio.sleep(0.1)

        assert run(mapped("openai", 12, timeout=1.0, checks=[check]), max_concurrency=1).success
        assert asked_once(fake, 12)

    def test_rows_that_go_live_do_not_wait_for_those_that_wait_for_them(self, fake: FakeBatches) -> None:
        """A live request waits for what the batch has reserved, and has the only slot meanwhile."""
        fake.answer = lambda question: {"label": "neither"}
        pipeline = mapped(
            "openai", 20, output_schema=Mood, batch="then-live", settings={"max_tokens": 100}, max_retries=0
        )
        result = run(pipeline, budget="2900 tokens", max_concurrency=1)
        assert "budget" in result.error_details["judge"]

    @pytest.mark.parametrize("taken", [True, False])
    def test_a_batch_of_others_is_not_taken_for_ours(
        self, fake: FakeBatches, provider: str, taken: bool
    ) -> None:
        """One of the same size is under way when it is not known whether ours is."""
        fake.looks = 3
        requests = [(f"other-{number}", OTHER) for number in range(5)]
        fake.files["file_9"] = json.dumps({"custom_id": "other-0"})
        fake.create(requests, "file_9").created_at -= 10_000
        fake.create(requests, "file_9").created_at -= 300
        fake.create(requests[:3], "file_9")
        if taken:
            fake.drop[CREATE[provider]] = 1
        else:
            fake.refuse = {CREATE[provider]: [(503, {"retry-after-ms": "1"})]}
        del fake.submitted["other"]
        assert run(mapped(provider)).success
        assert asked_once(fake, 5)

    def test_results_that_are_not_kept_any_longer_are_asked_for_again(
        self, fake: FakeBatches, provider: str, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.hold = True
        run(mapped(provider), storage=open_storage(storage), wait=False)
        fake.batches.clear()
        fake.hold = False
        monkeypatch.setattr("tagent_nb.runners.models.batches.KEPT", -1000.0)
        result = executor(mapped(provider), storage=open_storage(storage)).run(resume=True)
        assert result.success
        assert fake.submitted == {f"row {number}": 2 for number in range(5)}

    def test_a_batch_that_its_process_has_lost_is_sent_again(self, storage: str) -> None:
        """Those of test models end with them, and rows that come later need not wait to learn it."""
        assert executor(own_model_flow(Slow()), storage=open_storage(storage)).run(wait=False).waiting_steps
        again = executor(own_model_flow(TestModel()), storage=open_storage(storage), max_concurrency=1)
        assert again.run(resume=True).success

    @pytest.mark.parametrize("budget", [None, "40 requests"])
    def test_rows_that_come_late_get_what_their_batch_has(self, storage: str, budget: str | None) -> None:
        model = Slow()
        for resume in (False, True):
            flow = own_model_flow(model)
            later = executor(flow, storage=open_storage(storage), max_concurrency=1, budget=budget)
            result = later.run(resume=resume, wait=False)
            assert result.waiting_steps == ["judge"]
        model.ended = True
        again = executor(own_model_flow(model), storage=open_storage(storage), max_concurrency=1)
        assert again.run(resume=True).success

    def test_a_batch_that_was_never_taken_is_sent_when_the_run_goes_on(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        later = {"retry-after-ms": "1"}
        fake.refuse = {CREATE[provider]: [(429, later)] * 40}
        result = run(mapped(provider), storage=open_storage(storage), wait=False)
        assert result.waiting_steps == ["judge"]
        fake.refuse.clear()
        assert executor(mapped(provider), storage=open_storage(storage)).run(resume=True).success
        assert asked_once(fake, 5)

    def test_a_provider_that_cannot_be_searched_leaves_the_run_waiting(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.refuse = {CREATE[provider]: [(429, {"retry-after-ms": "1"})] * 40}
        run(mapped(provider), storage=open_storage(storage), wait=False)
        fake.refuse = {LIST[provider]: [(403, {})]}
        again = executor(mapped(provider), storage=open_storage(storage)).run(resume=True)
        assert again.waiting_steps == ["judge"]
        fake.refuse = {LIST[provider]: [(503, {"retry-after-ms": "1"})] * 40}
        again = executor(mapped(provider), storage=open_storage(storage)).run(resume=True, wait=False)
        assert again.waiting_steps == ["judge"]
        assert not fake.submitted

    def test_files_that_are_gone_are_passed_over(self, fake: FakeBatches) -> None:
        """Another process has deleted the file of its batch; and the provider is busy when it is asked."""
        fake.create([(f"other-{number}", OTHER) for number in range(5)], "file_9")
        del fake.submitted["other"]
        later = {"retry-after-ms": "1"}
        fake.refuse = {
            CREATE["openai"]: [(503, later)],
            "GET /v1/files/ID/content": [(503, later)],
        }
        assert run(mapped("openai")).success
        assert asked_once(fake, 5)

    @pytest.mark.parametrize("ours", [True, False])
    def test_a_batch_that_has_ended_already_is_known_by_its_ids(
        self, fake: FakeBatches, provider: str, ours: bool
    ) -> None:
        fake.looks = 0
        if ours:
            fake.drop[CREATE[provider]] = 1
        else:
            fake.files["file_9"] = json.dumps({"custom_id": "other-0"})
            fake.create([(f"other-{number}", OTHER) for number in range(5)], "file_9")
            del fake.submitted["other"]
            fake.refuse = {CREATE[provider]: [(503, {"retry-after-ms": "1"})]}
        assert run(mapped(provider)).success
        assert asked_once(fake, 5)

    def test_what_the_model_cannot_measure_fails(
        self, fake: FakeBatches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(BatchedCall, "size", property(lambda call: 1 // 0))
        assert "division" in run(mapped("openai")).error_details["judge"]
        assert not fake.batches

    def test_a_run_ends_when_what_sends_its_batches_fails(
        self, fake: FakeBatches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(batches: Any) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr("tagent_nb.engine.batches.Batches.may_send", fail)
        assert "a fault of ours" in run(mapped("openai")).error_details["judge"]
        assert not fake.batches

    def test_rows_wait_on_when_an_answer_of_their_batch_cannot_be_given(
        self, fake: FakeBatches, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> str:
            raise RuntimeError("a fault of ours")

        with monkeypatch.context() as patch:
            patch.setattr("tagent_nb.engine.batches.StepBatches._answer", fail)
            handle = executor(mapped("openai", 1), storage=open_storage(storage)).start()
            assert handle.result().waiting_steps == ["judge"]
        assert executor(mapped("openai", 1), storage=open_storage(storage)).run(resume=True).success
        assert asked_once(fake, 1)

    @pytest.mark.parametrize("budget", [None, "20 requests"])
    def test_a_batch_that_cannot_be_read_back_leaves_the_run_waiting(
        self, fake: FakeBatches, storage: str, monkeypatch: pytest.MonkeyPatch, budget: str | None
    ) -> None:
        """Its record is of another version of pydantic-ai."""

        def refuse(handle: Any) -> Any:
            raise ValueError("no such field")

        fake.hold = True
        run(mapped("openai"), storage=open_storage(storage), wait=False)
        fake.hold = False
        with monkeypatch.context() as patch:
            patch.setattr("tagent_nb.runners.batch_of", refuse)
            again = executor(mapped("openai"), storage=open_storage(storage), budget=budget).run(resume=True)
        assert (
            "batch batch_1, which this version of pydantic-ai cannot read" in again.steps["judge"].waits_for
        )
        assert executor(mapped("openai"), storage=open_storage(storage)).run(resume=True).success
        assert asked_once(fake, 5)

    async def test_the_client_of_another_provider_is_not_asked_as_that_of_openai(self) -> None:
        """Google's has batches, too."""
        client = SimpleNamespace(batches=None, files=None)
        model: Any = SimpleNamespace(client=client, base_url="https://127.0.0.1", system="google")
        assert await progress_of(model, None) is None  # type: ignore[arg-type]
        call: Any = SimpleNamespace(call=SimpleNamespace(model=model))
        with pytest.raises(StepError, match="'google' has taken a batch cannot be looked up"):
            await find_batch([call], "marker", 1, 0.0, ())

    def test_a_run_waits_on_where_it_cannot_learn_how_many_are_done(
        self, fake: FakeBatches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: Any) -> None:
            raise AttributeError("completed")

        monkeypatch.setattr("tagent_nb.runners.progress_of", fail)
        fake.looks = 3
        assert run(mapped("openai")).success
        assert asked_once(fake, 5)

    def test_equal_rows_that_fail_leave_no_more_rows_at_work(
        self, fake: FakeBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each waits for the one before, and then for its own batch: another row takes its place once."""
        at_work: list[int] = []
        join = SerialLock.join

        def count(lock: SerialLock, step: str) -> None:
            join(lock, step)
            at_work.append(lock.workers(step))

        monkeypatch.setattr(SerialLock, "join", count)
        fake.answer = Script(row_1=["<errored>"])
        pipeline = mapped("openai", min_success=0.0)
        pipeline.inputs["rows"] = ["row 1"] * 8
        run(pipeline, cache=ResultCache(tmp_path), max_concurrency=2)
        assert fake.submitted == {"row 1": 8}
        assert max(at_work) <= 3

    def test_a_request_that_no_batch_can_have_fails(self, fake: FakeBatches) -> None:
        result = run(mapped("openai", settings={"openai_background": True}))
        assert "openai_background" in result.error_details["judge"]

    def test_a_model_of_ones_own_may_stumble(self) -> None:
        assert executor(own_model_flow(Stumbling())).run().success


OTHER: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "other"}]}
"""A request that is not ours."""


class Stumbling(TestModel):
    """Does not say of its first batch whether it has taken it."""

    failed = False

    async def batch_create(self, requests: Any) -> Any:
        if not self.failed:
            self.failed = True
            raise ConnectionError("lost")
        return await super().batch_create(requests)


class Slow(TestModel):
    """Its batches end when it says so."""

    ended = False

    async def batch_create(self, requests: Any) -> Any:
        return replace(await super().batch_create(requests), status="in_progress")

    async def batch_status(self, batch: Any) -> Any:
        now = await super().batch_status(batch)
        return now if self.ended else replace(now, status="in_progress")


def own_model_flow(model: TestModel) -> Pipeline:
    pipeline = Pipeline("p", model=model, inputs={"rows": [f"row {number}" for number in range(20)]})
    return pipeline.step("judge", "Judge {{ item }}", map_over="rows", batch=True)


class TestCancel:
    def test_stop_may_cancel_the_batch(self, fake: FakeBatches, provider: str, storage: str) -> None:
        """What is answered by then is kept, and only the rest is sent again."""
        fake.hold = True
        handle = executor(mapped(provider), storage=open_storage(storage)).start()
        fake.wait_for(lambda: fake.calls[LOOK[provider]] >= 2)
        handle.cancel(batches=True)
        assert handle.result().cancelled
        assert fake.batches["batch_1"].cancelled
        fake.hold = False
        result = executor(mapped(provider), storage=open_storage(storage)).run(resume=True)
        assert result["judge"] == [f"answer to row {number}" for number in range(5)]
        assert fake.submitted == {"row 0": 1, "row 1": 2, "row 2": 1, "row 3": 2, "row 4": 1}

    def test_only_what_has_not_ended_is_cancelled(self, fake: FakeBatches) -> None:
        fake.answer = Script(row_0=["<expired>", "late"])

        def hold(event: Event) -> None:
            fake.hold = fake.hold or isinstance(event, StepRetried)

        handle = executor(mapped("openai"), observers=[hold]).start()
        fake.wait_for(lambda: len(fake.batches) == 2 and fake.batches["batch_2"].looks > 1)
        handle.cancel(batches=True)
        assert handle.result().cancelled
        assert [batch.cancelled for batch in fake.batches.values()] == [False, True]

    def test_a_batch_of_a_run_that_has_ended_can_be_cancelled(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.hold = True
        run(mapped(provider), storage=open_storage(storage), wait=False)
        later = executor(mapped(provider), storage=open_storage(storage))
        assert later.cancel_batches() == 1
        assert later.cancel_batches() == 0
        assert fake.batches["batch_1"].cancelled
        fake.hold = False
        assert later.run(resume=True).success
        assert fake.submitted["row 0"] == 1
        assert fake.submitted["row 1"] == 2

    def test_one_that_others_have_cancelled_fails(self, fake: FakeBatches, provider: str) -> None:
        fake.hold = True
        handle = executor(mapped(provider, min_success=0.0)).start()
        fake.wait_for(lambda: fake.calls[LOOK[provider]] >= 1)
        fake.batches["batch_1"].cancelled = True
        items = handle.result().steps["judge"].items or {}
        assert items["0"].status is StepStatus.COMPLETED
        assert "was cancelled before" in items["1"].error

    def test_one_that_cannot_be_cancelled_is_left(self, fake: FakeBatches, provider: str) -> None:
        fake.hold = True
        fake.refuse = {f"POST {LOOK[provider][4:]}/cancel": [(400, {})]}
        handle = executor(mapped(provider)).start()
        fake.wait_for(lambda: fake.calls[LOOK[provider]] >= 2)
        handle.cancel(batches=True)
        assert any("could not be cancelled" in warning for warning in handle.result().warnings)

    @pytest.mark.parametrize("readable", [True, False])
    def test_one_that_the_session_has_not_asked_about_is_cancelled_with_the_run(
        self, fake: FakeBatches, storage: str, monkeypatch: pytest.MonkeyPatch, readable: bool
    ) -> None:
        def refuse(handle: Any) -> Any:
            raise ValueError("no such field")

        fake.hold = True
        run(mapped("openai"), storage=open_storage(storage), wait=False)
        if not readable:
            monkeypatch.setattr("tagent_nb.runners.batch_of", refuse)
        later = executor(mapped("openai"), storage=open_storage(storage))

        def stop(event: Event) -> None:
            if isinstance(event, RunResumed):
                later.cancel(batches=True)

        later.subscribe(stop)
        result = later.run(resume=True)
        assert fake.batches["batch_1"].cancelled is readable
        assert any("batch_1 could not be cancelled" in each for each in result.warnings) is not readable

    def test_what_may_be_the_batch_of_another_program_is_left(self, fake: FakeBatches, storage: str) -> None:
        """Anthropic does not say whose a batch is until it has ended."""
        fake.hold = True
        fake.create([(f"other-{number}", OTHER) for number in range(5)])
        fake.refuse = {CREATE["anthropic"]: [(503, {"retry-after-ms": "1"})]}
        common: dict[str, Any] = {"storage": open_storage(storage)}
        assert run(mapped("anthropic"), wait=False, **common).waiting_steps == ["judge"]
        with pytest.warns(UserWarning, match="batch_1 is not cancelled, since it may be another program's"):
            assert executor(mapped("anthropic"), **common).cancel_batches() == 0
        handle = executor(mapped("anthropic"), **common).start(resume=True)
        looks = fake.batches["batch_1"].looks
        fake.wait_for(lambda: fake.batches["batch_1"].looks > looks)
        handle.cancel(batches=True)
        assert any("batch_1 is not cancelled" in warning for warning in handle.result().warnings)
        assert not fake.batches["batch_1"].cancelled

    def test_a_run_that_goes_on_is_to_be_stopped(self, fake: FakeBatches) -> None:
        fake.hold = True
        running = executor(mapped("openai"))
        handle = running.start()
        fake.wait_for(lambda: bool(fake.batches))
        with pytest.raises(RunInProgressError, match="cancel\\(batches=True\\)"):
            running.cancel_batches()
        handle.cancel()
        handle.result()
        assert executor(mapped("openai")).cancel_batches() == 0


class TestBudgets:
    def test_a_batch_is_reserved_as_a_whole(self, fake: FakeBatches) -> None:
        """What does not fit with the most that the batch may take waits for the next one."""
        result = run(mapped("openai", 10, settings={"max_tokens": 100}), budget="0.003 USD")
        assert result.success
        sizes = [len(batch.requests) for batch in fake.batches.values()]
        assert sum(sizes) == 10
        assert len(sizes) > 1
        assert result.total_cost < 0.003

    def test_what_a_cancelled_batch_did_not_answer_is_sent_again_within_the_budget(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.hold = True
        common: dict[str, Any] = {"storage": open_storage(storage), "budget": "5 requests"}
        run(mapped(provider), wait=False, **common)
        assert executor(mapped(provider), storage=open_storage(storage)).cancel_batches() == 1
        fake.hold = False
        again = executor(mapped(provider), **common).run(resume=True)
        assert again["judge"] == [f"answer to row {number}" for number in range(5)]
        assert fake.submitted == {"row 0": 1, "row 1": 2, "row 2": 1, "row 3": 2, "row 4": 1}

    def test_what_does_not_fit_any_more_is_not_sent(self, fake: FakeBatches) -> None:
        result = run(mapped("openai", 10, settings={"max_tokens": 100}), budget="0.0006 USD")
        assert "is used up" in result.error_details["judge"]
        assert sum(fake.submitted.values()) < 10

    def test_without_a_limit_an_answer_is_as_long_as_its_schema_says(self, fake: FakeBatches) -> None:
        fake.answer = lambda question: {"label": "good"}
        result = run(mapped("openai", 10, output_schema=Mood), budget="10000 tokens")
        assert result.success
        assert len(fake.batches) == 1

    def test_a_batch_that_was_sent_counts_when_it_is_taken_up(self, fake: FakeBatches, storage: str) -> None:
        fake.hold = True
        run(mapped("openai"), storage=open_storage(storage), wait=False, budget="1 USD")
        fake.hold = False
        result = executor(mapped("openai"), storage=open_storage(storage)).run(resume=True, budget="1 USD")
        assert result.success
        assert asked_once(fake, 5)

    @pytest.mark.parametrize("hold", [True, False])
    def test_what_a_batch_takes_stays_reserved_when_the_run_does_not_wait(
        self, fake: FakeBatches, provider: str, storage: str, hold: bool
    ) -> None:
        fake.hold, fake.looks = hold, 3
        common: dict[str, Any] = {"storage": open_storage(storage), "budget": "5 requests"}
        first = run(mapped(provider, 20), wait=False, **common)
        assert first.waiting_steps == ["judge"]
        assert sum(fake.submitted.values()) == 5
        fake.hold = False
        again = executor(mapped(provider, 20), **common).run(resume=True)
        assert "5 requests of 5 requests spent" in again.error_details["judge"]
        more = executor(mapped(provider, 20), storage=open_storage(storage)).run(
            resume=True, budget="20 requests"
        )
        assert more.success
        assert asked_once(fake, 20)

    def test_other_steps_have_what_waiting_batches_leave(self, fake: FakeBatches) -> None:
        """Live calls fail that do not fit, and other batches wait as well."""
        fake.hold = True
        pipeline = mapped("openai", 4, budget="100 requests")
        pipeline.step("more", "Rate {{ item }}", map_over="rows", batch=True)
        pipeline.step("live", "Sum up {{ item }}", map_over="rows", execution_mode=ExecutionMode.SERIAL)
        result = run(pipeline, wait=False, budget="6 requests")
        assert sum(fake.submitted.values()) + sum(fake.live.values()) == 6
        assert result.waiting_steps

    def test_a_live_step_that_has_nothing_left_beside_a_batch_says_so(self, fake: FakeBatches) -> None:
        fake.hold = True
        pipeline = mapped("openai", 4)
        pipeline.put(PipelineStep.from_cell("later", "waiting.wait(20)", python=True))
        pipeline.step("live", "Sum up {{ later }}")
        waiting = threading.Event()

        def note(event: Event) -> None:
            if isinstance(event, StepWaiting) and event.item is None and event.step == "judge":
                waiting.set()

        result = run(
            pipeline, wait=False, budget="4 requests", observers=[note], namespace={"waiting": waiting}
        )
        assert "4 requests reserved for them. Resume the run" in result.error_details["live"]
        assert result.waiting_steps == ["judge"]
        assert not fake.live


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"map_over": None}, "for steps that run for each row"),
            ({"batch": "later"}, "must be True, False or 'then-live'"),
            ({"agent": "plan"}, "cannot be used with agent='plan'"),
            ({"tools": [len]}, "cannot be used with tools"),
            ({"remember": True}, "cannot be used with tools"),
            ({"rows_per_call": 5}, "exclude each other"),
        ],
    )
    def test_a_step_that_cannot(self, options: dict[str, Any], problem: str) -> None:
        with pytest.raises(DefinitionError, match=problem):
            PipelineStep(
                **{"name": "s", "goal": "Say {{ item }}", "map_over": "rows", "batch": True, **options}
            )

    def test_a_python_step(self) -> None:
        with pytest.raises(DefinitionError, match="for agent steps"):
            PipelineStep.from_cell("s", "item", python=True, map_over="rows", batch=True)

    @pytest.mark.parametrize(
        ("model", "problem"),
        [
            ("openai-chat:gpt-4o", "speak the Responses API, as 'openai:gpt-4o' does"),
            (FallbackModel(TestModel()), "has no interface for batches"),
            ("local", "local model"),
        ],
    )
    def test_a_model_without_batches(self, fake: FakeBatches, model: Any, problem: str) -> None:
        pipeline = mapped("openai")
        pipeline.model = model
        with pytest.raises(
            (PipelineValidationError, ModelError), match=problem if model != "local" else "local"
        ):
            run(pipeline)

    def test_a_setting_and_registered_tools(self, fake: FakeBatches, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(PipelineValidationError, match="the setting timeout"):
            run(mapped("openai", settings={"timeout": 5.0}))
        monkeypatch.setattr("tagent_nb.runners.tools.registry._registered", {})

        @tool
        def look_up(name: str) -> str:
            """Look something up."""
            return name

        with pytest.raises(PipelineValidationError, match="with tools \\(look_up\\)"):
            run(mapped("openai"))
        assert run(mapped("openai", tools_filter=[])).success

    def test_options_that_mean_nothing(self) -> None:
        for poll in (5, (0, 1), (2, 1), ("a", 1)):
            with pytest.raises(DefinitionError, match="batch_poll"):
                PipelineExecutor(mapped("openai"), batch_poll=poll)  # type: ignore[arg-type]
        with pytest.raises(DefinitionError, match="wait must be"):
            PipelineExecutor(mapped("openai")).run(wait="no")


class TestPrices:
    def test_those_of_the_user_are_halved(self, fake: FakeBatches) -> None:
        prices = {"openai:gpt-4o": Price(2.0, 4.0)}
        together = run(mapped("openai"), prices=prices).total_cost
        assert together == pytest.approx(run(mapped("openai", batch=False), prices=prices).total_cost / 2)

    def test_a_model_without_a_price_has_none_in_batches(self, fake: FakeBatches) -> None:
        pipeline = mapped("openai")
        pipeline.model = "openai:of-our-own"
        assert run(pipeline).unpriced_steps == ["judge"]

    def test_what_is_known_of_batches(self) -> None:
        used = TokenUsage(1000, 100)
        for model in ("openai:gpt-4o", "anthropic:claude-sonnet-5", "anthropic:claude-3-5-haiku-latest"):
            alone = price(model, used)
            assert alone is not None
            assert price(model, used, batch=True) == pytest.approx(alone / 2)
        assert price("mistral:mistral-large-latest", used) is not None
        assert price("mistral:mistral-large-latest", used, batch=True) is None
        free = {"mistral:mistral-large-latest": Price(0.0, 0.0)}
        assert price("mistral:mistral-large-latest", used, free, batch=True) == 0.0
        assert price("test", used, batch=True) == 0.0


class TestQuote:
    async def test_a_plan_says_both_prices(self, fake: FakeBatches) -> None:
        for batch in (True, False):
            quote = (await executor(mapped("openai", batch=batch)).plan())["judge"].quote
            assert quote is not None
            assert quote.live_cost is not None
            assert quote.batch_cost == pytest.approx(tuple(cost / 2 for cost in quote.live_cost))
            assert quote.cost == (quote.batch_cost if batch else quote.live_cost)
            assert (" live)" if batch else " in batches)") in quote_text(quote)
        frame = (await executor(mapped("openai")).plan()).to_frame()
        assert frame.loc["judge", "batch_cost_high"] == frame.loc["judge", "cost_high"]
        assert frame.loc["judge", "live_cost_high"] == pytest.approx(2 * frame.loc["judge", "cost_high"])

    async def test_a_step_that_cannot_be_batched_has_one(self, fake: FakeBatches) -> None:
        pipeline = Pipeline("p", model="openai:gpt-4o")
        pipeline.step("s", "Say something")
        quote = (await executor(pipeline).plan())["s"].quote
        assert quote is not None
        assert quote.batch_cost is None
        assert "(" not in quote_text(quote)
        assert quote_text(replace(quote, cost=None)) == "$?"


def waiting(fake: FakeBatches, storage: str, pipeline: Pipeline, **options: Any) -> PipelineResult:
    """A run of another process that ends while its batch is out; from then on batches end."""
    fake.hold = True
    result = run(pipeline, storage=open_storage(storage), wait=False, **options)
    assert result.waiting_steps == ["judge"]
    fake.hold = False
    return result


def over(rows: list[str], **options: Any) -> Pipeline:
    pipeline = mapped("openai", **options)
    pipeline.inputs["rows"] = rows
    return pipeline


class TestNothingIsPaidTwice:
    def test_a_new_run_takes_the_answers_of_a_batch_that_is_out(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        first = waiting(fake, storage, mapped(provider))
        result = run(mapped(provider), storage=open_storage(storage))
        assert result["judge"] == [f"answer to row {number}" for number in range(5)]
        assert asked_once(fake, 5)
        assert result.total_cost > 0
        (warning,) = result.warnings
        assert f"batch_1 of run {first.run_id}" in warning

    def test_a_new_run_that_asks_more_sends_only_that(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, over(["row 1", "row 2"]))
        result = run(over(["row 0", "row 2", "row 1"]), storage=open_storage(storage))
        assert result["judge"] == ["answer to row 0", "answer to row 2", "answer to row 1"]
        assert fake.submitted == {"row 0": 1, "row 1": 1, "row 2": 1}

    def test_what_a_new_run_has_taken_over_it_may_leave_and_take_up_again(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        waiting(fake, storage, mapped(provider))
        waiting(fake, storage, mapped(provider))
        later = executor(mapped(provider), storage=open_storage(storage))
        assert later.run(resume=True).success
        assert asked_once(fake, 5)

    def test_a_run_in_between_does_not_lose_the_batch(self, fake: FakeBatches, storage: str) -> None:
        """What is carried on is the newest run, and that has sent nothing."""
        pipeline = mapped("openai").put(PipelineStep.from_cell("other", "1", python=True))
        waiting(fake, storage, pipeline)
        later = executor(pipeline, storage=open_storage(storage))
        assert later.run(until="other").success
        assert later.run(resume=True).success
        assert asked_once(fake, 5)

    def test_forced_steps_ask_anew(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, mapped("openai"))
        assert executor(mapped("openai"), storage=open_storage(storage)).run(force=["judge"]).success
        assert fake.submitted["row 0"] == 2

    def test_a_run_that_cannot_be_read_is_passed_over(
        self, fake: FakeBatches, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waiting(fake, storage, mapped("openai"))

        async def damaged(*_: Any) -> Any:
            raise CorruptRecordError("damaged")

        monkeypatch.setattr("tagent_nb.engine.memory.load.read_memory", damaged)
        assert run(mapped("openai"), storage=open_storage(storage)).success
        assert fake.submitted["row 0"] == 2

    def test_a_batch_that_was_cancelled_is_not_waited_for(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, mapped("openai"))
        assert executor(mapped("openai"), storage=open_storage(storage)).cancel_batches() == 1
        assert run(mapped("openai"), storage=open_storage(storage)).success
        assert fake.submitted["row 0"] == 2

    def test_a_batch_that_may_have_been_sent_is_looked_for(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        fake.refuse = {CREATE[provider]: [(429, {"retry-after-ms": "1"})] * 40}
        run(mapped(provider), storage=open_storage(storage), wait=False)
        fake.refuse.clear()
        result = run(mapped(provider), storage=open_storage(storage))
        assert result.success
        assert "a batch of run" in result.warnings[0]
        assert asked_once(fake, 5)

    def test_rows_that_have_moved_are_known_by_their_questions(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, over(["row 1", "row 2", "row 2"]))
        moved = over(["row 0", "row 1", "row 2", "row 2", "row 2"])
        for hold in (True, False):
            fake.hold = hold
            later = executor(moved, storage=open_storage(storage))
            result = later.run(resume=True, on_change="rerun", wait=False)
        assert result["judge"] == [f"answer to row {number}" for number in (0, 1, 2, 2, 2)]
        assert fake.submitted == {"row 0": 1, "row 1": 1, "row 2": 3}
        assert executor(moved, storage=open_storage(storage)).run(resume=True).success
        assert sum(fake.submitted.values()) == 5

    def test_a_run_keeps_its_own_batch_beside_that_of_another_run(
        self, fake: FakeBatches, storage: str
    ) -> None:
        first = waiting(fake, storage, over(["row 1"]))
        fake.hold = True
        both = over(["row 1", "row 2"])
        executor(both, storage=open_storage(storage)).run(force=["judge"], wait=False)
        fake.hold = False
        later = executor(both, storage=open_storage(storage))
        assert later.run(resume=first.run_id, on_change="rerun").success
        assert fake.submitted == {"row 1": 2, "row 2": 1}

    def test_a_step_with_a_value_does_not_wait_for_what_is_left_of_its_batch(
        self, fake: FakeBatches, storage: str
    ) -> None:
        waiting(fake, storage, mapped("openai"))
        fake.hold = True
        pipeline = mapped("openai", batch=False)
        pipeline.put(pipeline.get_step("judge").with_(goal="Judge anew {{ item }}"))
        pipeline.step("more", "Rate {{ item }}", map_over="rows", batch=True)
        later = executor(pipeline, storage=open_storage(storage))
        result = later.run(resume=True, on_change="rerun", wait=False)
        assert result.waiting_steps == ["more"]
        assert result.steps["judge"].status is StepStatus.COMPLETED
        assert (result.steps["judge"].items or {})["0"].status is StepStatus.COMPLETED
        assert later.cancel_batches() == 2

    def test_more_samples_keep_the_first(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, mapped("openai", 3))
        later = executor(mapped("openai", 3, samples=2), storage=open_storage(storage))
        assert later.run(resume=True, on_change="rerun").success
        assert sum(fake.submitted.values()) == 6

    @pytest.mark.parametrize("more", [{}, {"rows_per_call": 2}])
    def test_a_step_that_is_live_now_takes_what_was_sent(
        self, fake: FakeBatches, provider: str, storage: str, more: dict[str, Any]
    ) -> None:
        waiting(fake, storage, mapped(provider))
        live = mapped(provider, batch=False, **more)
        result = executor(live, storage=open_storage(storage)).run(resume=True, on_change="rerun")
        assert result.success
        assert not fake.live if not more else fake.live
        assert sum(fake.submitted.values()) == 5

    def test_a_live_step_asks_the_rest_at_once(self, fake: FakeBatches, storage: str) -> None:
        fake.answer = Script(row_1=["<expired>", "late"])
        waiting(fake, storage, over(["row 1", "row 2"]))
        live = executor(over(["row 1", "row 2", "row 3"], batch=False), storage=open_storage(storage))
        result = live.run(resume=True, on_change="rerun", budget="10 requests")
        assert result["judge"] == ["late", "fine", "fine"]
        assert fake.live == {"row 1": 1, "row 3": 1}
        assert fake.submitted == {"row 1": 1, "row 2": 1}

    def test_a_changed_step_whose_batch_is_out_is_refused(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, mapped("openai"))
        changed = mapped("openai")
        changed.put(changed.get_step("judge").with_(goal="Judge anew {{ item }}"))
        later = executor(changed, storage=open_storage(storage))
        with pytest.raises(ResumeConflictError, match="its definition changed while batch batch_1 is out"):
            later.run(resume=True)
        assert len(fake.batches) == 1
        result = later.run(resume=True, on_change="rerun")
        (warning,) = result.warnings
        assert "while batch batch_1 is out" in warning
        assert "cancel_batches()" in warning
        assert result.unpriced_steps == ["judge"]  # the old batch is paid as well
        assert later.cancel_batches() == 1

    def test_a_changed_step_of_a_run_that_is_recorded_nowhere_is_refused(self, fake: FakeBatches) -> None:
        fake.hold = True
        pipeline = mapped("openai")
        held = executor(pipeline)
        held.run(wait=False)
        pipeline.put(pipeline.get_step("judge").with_(goal="Judge anew {{ item }}"))
        with pytest.raises(ResumeConflictError, match="while batch batch_1 is out"):
            held.run(resume=True)
        pipeline.put(pipeline.get_step("judge").with_(goal="Judge {{ item }}", max_retries=7))
        fake.hold = False
        assert held.run(resume=True).success
        assert asked_once(fake, 5)

    def test_another_model_is_another_question(self, fake: FakeBatches, provider: str, storage: str) -> None:
        waiting(fake, storage, mapped(provider))
        later = executor(mapped(provider), storage=open_storage(storage), model="openai:gpt-4o-mini")
        with pytest.raises(ResumeConflictError, match=r"its model was \S+ in batch batch_1"):
            later.run(resume=True)
        assert len(fake.batches) == 1

    def test_offline_it_goes_on_waiting(self, fake: FakeBatches, provider: str, storage: str) -> None:
        waiting(fake, storage, mapped(provider))
        later = executor(mapped(provider), storage=open_storage(storage))
        offline = later.run(resume=True, offline=True)
        assert offline.waiting_steps == ["judge"]
        assert "which an offline run does not ask about" in offline.steps["judge"].waits_for
        assert later.run(resume=True, offline=False).success
        assert asked_once(fake, 5)

    def test_a_new_offline_run_of_rows_that_are_out_fails_and_loses_nothing(
        self, fake: FakeBatches, storage: str
    ) -> None:
        waiting(fake, storage, mapped("openai"))
        later = executor(mapped("openai"), storage=open_storage(storage))
        assert not later.run(offline=True).success
        assert later.run(resume=True, offline=False).success
        assert asked_once(fake, 5)


class TestWhatIsSaid:
    async def test_a_plan_says_what_waits(self, fake: FakeBatches, storage: str) -> None:
        first = await executor(mapped("openai"), storage=open_storage(storage)).plan()
        assert "batch" not in first["judge"].why
        fake.hold = True
        result = await executor(mapped("openai"), storage=open_storage(storage)).execute(wait=False)
        later = executor(mapped("openai", rows=5), storage=open_storage(storage))
        plan = (await later.plan(resume=True))["judge"]
        assert plan.why == "5 items wait for batch batch_1"
        assert plan.quote is None
        new = (await later.plan())["judge"]
        assert f"batch batch_1 of run {result.run_id} has asked already" in new.why
        assert "batch_1" not in (await later.plan(force=["judge"]))["judge"].why

    def test_what_is_not_paid_yet_has_no_known_cost(self, fake: FakeBatches, storage: str) -> None:
        first = waiting(fake, storage, mapped("openai"))
        assert first.unpriced_steps == ["judge"]
        assert first.cost_per_step["judge"] is None
        again = executor(mapped("openai"), storage=open_storage(storage)).run(resume=True)
        assert not again.unpriced_steps

    def test_a_new_run_says_that_values_of_the_last_one_wait_for_decisions(
        self, fake: FakeBatches, storage: str
    ) -> None:
        pipeline = mapped("openai", approve=True)
        first = run(pipeline, storage=open_storage(storage))
        assert not first.warnings
        second = run(pipeline, storage=open_storage(storage))
        (warning,) = second.warnings
        assert f"Run {first.run_id} waits for decisions on values of judge" in warning
        later = executor(pipeline, storage=open_storage(storage), approver=lambda request: Approved())
        assert later.run(resume=True).success
        assert not later.run().warnings
        waiting(fake, storage, over(["row 7"], approve=True))
        assert "waits for decisions" not in str(later.run().warnings)

    def test_a_batch_that_is_gone_can_be_given_up(
        self, fake: FakeBatches, provider: str, storage: str
    ) -> None:
        waiting(fake, storage, mapped(provider))
        fake.batches.clear()
        later = executor(mapped(provider), storage=open_storage(storage))
        result = later.run(resume=True)
        assert "cancel_batches()" in result.steps["judge"].waits_for
        assert later.cancel_batches() == 1
        assert later.run(resume=True).success
        assert fake.submitted["row 0"] == 2

    def test_results_that_cannot_be_read_can_be_given_up(
        self, fake: FakeBatches, storage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.answer = lambda question: "two\u2028lines"
        waiting(fake, storage, mapped("openai"))
        later = executor(mapped("openai"), storage=open_storage(storage))
        with monkeypatch.context() as raw:
            raw.setattr("tests.fake_batches._lines", lambda lines: '{"custom_id":\u2028\n')
            result = later.run(resume=True)
            assert result.waiting_steps == ["judge"]
            assert "cancel_batches()" in result.steps["judge"].waits_for
            assert later.cancel_batches() == 1
            fake.answer = lambda question: "good"
            again = later.run(resume=True, wait=False)
            assert again.waiting_steps == ["judge"]
        assert later.run(resume=True).success

    def test_a_key_that_is_refused_gives_nothing_up(self, fake: FakeBatches, storage: str) -> None:
        waiting(fake, storage, mapped("openai"))
        later = executor(mapped("openai"), storage=open_storage(storage))
        fake.refuse = {"POST /v1/batches/ID/cancel": [(401, {})]}
        with pytest.raises(ModelHTTPError):
            later.cancel_batches()
        assert later.run(resume=True).success
        assert asked_once(fake, 5)
