"""PipelineExecutor: what a run promises to the caller who starts it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tagent_nb import (
    DefinitionError,
    DependencyType,
    ExecutionMode,
    Pipeline,
    PipelineExecutor,
    PipelineStep,
    StepContext,
    StepStatus,
    errors,
    events,
)
from tagent_nb.pipeline import Dependency


def statuses(result: Any) -> dict[str, str]:
    return {name: step.status.value for name, step in result.steps.items()}


def numbers() -> Pipeline:
    """one -> double -> total, as plain functions."""
    pipeline = Pipeline("numbers")

    @pipeline.task
    def one() -> int:
        return 1

    @pipeline.task
    async def double(one: int) -> int:
        return one * 2

    @pipeline.task
    def total(one: int, double: int) -> int:
        return one + double

    return pipeline


class TestRunning:
    async def test_values_flow_along_parameters(self) -> None:
        result = await PipelineExecutor(numbers()).execute()
        assert result.success
        assert dict(result.step_outputs) == {"one": 1, "double": 2, "total": 3}
        assert statuses(result) == {"one": "completed", "double": "completed", "total": "completed"}

    def test_run_works_in_a_script(self) -> None:
        assert PipelineExecutor(numbers()).run()["total"] == 3

    async def test_run_works_inside_a_running_loop(self) -> None:
        assert PipelineExecutor(numbers()).run()["total"] == 3

    async def test_falsy_values_are_kept(self) -> None:
        pipeline = Pipeline("falsy")
        for name, value in {"nil": None, "zero": 0, "empty": "", "nothing": []}.items():
            pipeline.put(PipelineStep(name, goal=name, body=_cell(name, repr(value))))
        result = await PipelineExecutor(pipeline).execute()
        assert dict(result.step_outputs) == {"nil": None, "zero": 0, "empty": "", "nothing": []}

    async def test_last_step_is_the_last_in_time(self) -> None:
        pipeline = Pipeline("last")
        pipeline.put(PipelineStep("zebra", "z", body=_cell("zebra", "'first'")))
        pipeline.put(PipelineStep("ant", "a", body=_cell("ant", "zebra + ', then ant'")))
        result = await PipelineExecutor(pipeline).execute()
        assert result.get_final_output_or_last_step() == "first, then ant"

    async def test_a_second_execute_while_running_is_refused(self) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        pipeline = Pipeline("busy")

        @pipeline.task
        async def wait() -> None:
            entered.set()
            await leave.wait()

        executor = PipelineExecutor(pipeline)
        task = asyncio.ensure_future(executor.execute())
        await entered.wait()
        assert executor.running
        with pytest.raises(errors.RunInProgressError, match="running already"):
            await executor.execute()
        leave.set()
        assert (await task).success
        assert not executor.running

    async def test_changes_of_the_pipeline_do_not_reach_a_run(self) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        pipeline = Pipeline("changed while it runs")

        @pipeline.task
        async def first() -> int:
            entered.set()
            await leave.wait()
            return 1

        @pipeline.task
        def second(first: int) -> int:
            return first + 1

        task = asyncio.ensure_future(PipelineExecutor(pipeline).execute())
        await entered.wait()
        pipeline.remove("second")
        leave.set()
        assert (await task)["second"] == 2

    async def test_steps_see_shared_values_and_constraints(self) -> None:
        pipeline = Pipeline("shared").share(currency="EUR").constraint("be brief")

        @pipeline.task(constraints=["be kind"])
        def seen(context: StepContext) -> Any:
            return [context.shared["currency"], context.constraints, context.pipeline, context.step]

        result = await PipelineExecutor(pipeline).execute()
        assert result["seen"] == ["EUR", ["be brief", "be kind"], "shared", "seen"]

    async def test_facts_reach_later_steps_and_the_result(self) -> None:
        pipeline = Pipeline("facts")

        @pipeline.task
        def learn(context: StepContext) -> None:
            context.learn("city", "Hamburg")

        @pipeline.task
        def use(learn: None, context: StepContext) -> str:
            return context.facts["city"]

        result = await PipelineExecutor(pipeline).execute()
        assert result["use"] == "Hamburg"
        assert result.learned_facts == {"city": "Hamburg"}

    async def test_memories_survive_the_run(self) -> None:
        pipeline = Pipeline("memories")

        @pipeline.task
        def count(context: StepContext) -> int:
            seen = context.memories.get("count", 0) + 1
            context.save_memory("count", seen)
            return seen

        executor = PipelineExecutor(pipeline)
        assert (await executor.execute())["count"] == 1
        result = await executor.execute()
        assert result["count"] == 2
        assert result.saved_memories == {"count": 2}

    async def test_until_runs_only_what_a_step_needs(self) -> None:
        result = await PipelineExecutor(numbers()).execute(until="double")
        assert set(result.step_outputs) == {"one", "double"}

    async def test_unknown_names_in_until_and_force_are_refused(self) -> None:
        executor = PipelineExecutor(numbers())
        with pytest.raises(errors.UnknownStepError, match="Did you mean 'double'"):
            await executor.execute(until="duoble")
        with pytest.raises(errors.UnknownStepError, match="Did you mean 'total'"):
            await executor.execute(force=["totl"])
        assert executor.result is None

    def test_bad_options_are_refused_with_their_remedy(self) -> None:
        with pytest.raises(errors.DefinitionError, match="max_concurrency"):
            PipelineExecutor(numbers(), max_concurrency=0)
        with pytest.raises(errors.DefinitionError, match="'refuse' or 'rerun'"):
            PipelineExecutor(numbers()).run(on_change="maybe")


class TestRefusing:
    async def test_all_problems_are_named_before_anything_runs(self) -> None:
        ran: list[str] = []
        pipeline = Pipeline("wrong")

        @pipeline.task
        def fine() -> None:
            ran.append("fine")

        pipeline.step("a", "use {{ nowhere }}").step("b", "x", depends_on=["fin"])
        with pytest.raises(errors.PipelineValidationError) as caught:
            await PipelineExecutor(pipeline, model="test").execute()
        assert len(caught.value.errors) == 2
        assert "nowhere" in str(caught.value)
        assert "Did you mean 'fine'" in str(caught.value)
        assert ran == []

    async def test_a_cycle_is_named(self) -> None:
        pipeline = Pipeline("cycle").step("a", "{{ b }}").step("b", "{{ a }}")
        with pytest.raises(errors.PipelineValidationError, match="a -> b -> a"):
            await PipelineExecutor(pipeline, model="test").execute()

    async def test_an_agent_step_without_a_model_is_refused(self) -> None:
        with pytest.raises(errors.ModelError, match="'ask' has no model"):
            await PipelineExecutor(Pipeline("p").step("ask", "Say hello")).execute()

    async def test_a_missing_key_is_refused_before_any_step_runs(self, monkeypatch: Any) -> None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        ran: list[str] = []
        pipeline = numbers().step("ask", "Say hello", model="openai:gpt-4o")
        with pytest.raises(errors.MissingKeyError, match="OPENAI_API_KEY"):
            await PipelineExecutor(pipeline).execute()
        assert ran == []


class TestFailing:
    async def test_a_failing_step_hides_nothing_and_skips_its_dependents(self) -> None:
        pipeline = numbers()

        @pipeline.task(max_retries=0)
        def broken(one: int) -> int:
            raise ValueError("no such luck")

        @pipeline.task
        def after(broken: int) -> int:
            return broken

        result = await PipelineExecutor(pipeline).execute()
        assert not result.success
        assert result["total"] == 3
        assert result.failed_steps == ["broken"]
        assert "ValueError: no such luck" in result.error_details["broken"]
        assert "raise ValueError" in result.error_details["broken"]
        assert statuses(result)["after"] == "skipped"
        assert result.steps["after"].reason == "step 'broken' failed"

    async def test_a_skip_goes_on_down_the_graph(self) -> None:
        pipeline = Pipeline("deep")
        pipeline.put(PipelineStep("a", "a", body=_cell("a", "1 / 0"), max_retries=0))
        for above, name in [("a", "b"), ("b", "c"), ("c", "d")]:
            pipeline.put(PipelineStep(name, name, body=_cell(name, above)))
        result = await PipelineExecutor(pipeline).execute()
        assert statuses(result) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "skipped"}

    async def test_weak_and_optional_dependencies_get_none(self) -> None:
        pipeline = Pipeline("weak")
        pipeline.put(PipelineStep("bad", "bad", body=_cell("bad", "1 / 0"), max_retries=0))
        pipeline.put(
            PipelineStep(
                "weak", "w", body=_cell("weak", "bad"), depends_on=[Dependency("bad", DependencyType.WEAK)]
            )
        )
        pipeline.put(PipelineStep("gone", "g", body=_cell("gone", "42"), depends_on=["absent:optional"]))
        result = await PipelineExecutor(pipeline).execute()
        assert result.step_outputs["weak"] is None
        assert result["gone"] == 42

    async def test_a_failed_attempt_is_tried_again_and_counted(self) -> None:
        tries: list[int] = []
        pipeline = Pipeline("retry")

        @pipeline.task(max_retries=3)
        def flaky(context: StepContext) -> str:
            tries.append(context.attempt)
            if context.attempt < 3:
                raise OSError("not yet")
            return "done"

        result = await PipelineExecutor(pipeline, retry_delay=0.0).execute()
        assert result["flaky"] == "done"
        assert tries == [1, 2, 3]
        assert result.steps["flaky"].attempts == 3

    async def test_attempts_spent_before_this_run_count(self) -> None:
        tries: list[int] = []
        pipeline = Pipeline("spent")

        @pipeline.task(max_retries=3, retry_count=2)
        def flaky(context: StepContext) -> str:
            tries.append(context.attempt)
            raise OSError("never")

        result = await PipelineExecutor(pipeline, retry_delay=0.0).execute()
        assert result.failed_steps == ["flaky"]
        assert tries == [3, 4]
        assert pipeline.get_step("flaky").retry_count == 2

    async def test_mistakes_in_code_are_not_tried_again(self) -> None:
        pipeline = Pipeline("mistake")
        pipeline.put(PipelineStep("typo", "t", body=_cell("typo", "undefined_name + 1")))
        result = await PipelineExecutor(pipeline).execute()
        assert result.steps["typo"].attempts == 1
        assert "undefined_name" in result.error_details["typo"]

    async def test_a_timeout_stops_the_work_and_names_the_step(self) -> None:
        stopped = asyncio.Event()
        pipeline = Pipeline("slow")

        @pipeline.task(timeout=0.01, max_retries=0)
        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

        result = await PipelineExecutor(pipeline).execute()
        assert stopped.is_set()
        assert "'slow' took longer than its timeout of 0.01 s" in result.error_details["slow"]
        assert result.steps["slow"].error_type == "StepTimeoutError"

    async def test_a_timeout_of_the_users_own_is_not_the_steps(self) -> None:
        pipeline = Pipeline("own timeout")

        @pipeline.task(timeout=60, max_retries=0)
        async def own() -> None:
            raise TimeoutError("the server did not answer")

        result = await PipelineExecutor(pipeline).execute()
        assert result.steps["own"].error_type == "TimeoutError"

    async def test_retry_after_is_waited_for(self) -> None:
        pipeline = Pipeline("later")

        @pipeline.task(max_retries=1)
        def limited(context: StepContext) -> int:
            if context.attempt == 1:
                raise errors.RetryableError("too many requests", retry_after=0.001)
            return 1

        result = await PipelineExecutor(pipeline).execute()
        retried = [event for event in result.events if isinstance(event, events.StepRetried)]
        assert [event.delay for event in retried] == [0.001]
        assert result["limited"] == 1

    async def test_output_that_does_not_match_its_schema_fails_the_step(self) -> None:
        class Answer(BaseModel):
            score: int

        pipeline = Pipeline("schema")
        good = PipelineStep("good", "g", body=_cell("good", "{'score': 3}"), output_schema=Answer)
        pipeline.put(good)
        pipeline.put(PipelineStep("bad", "b", body=_cell("bad", "{'score': 'three'}"), output_schema=Answer))
        result = await PipelineExecutor(pipeline).execute()
        assert result.get_step_output("good", Answer) == Answer(score=3)
        assert "output does not match schema Answer: score" in result.error_details["bad"]
        assert result.steps["bad"].attempts == 1


class TestConditions:
    async def test_a_false_condition_skips_with_its_own_reason(self) -> None:
        pipeline = Pipeline("when")
        pipeline.put(PipelineStep("load", "l", body=_cell("load", "{'count': 0}")))
        pipeline.put(PipelineStep("few", "f", body=_cell("few", "1"), when="load.count > 0"))
        pipeline.put(PipelineStep("after", "a", body=_cell("after", "few")))
        pipeline.put(PipelineStep("zero", "n", body=_cell("zero", "2"), when="load.count == 0"))
        result = await PipelineExecutor(pipeline).execute()
        assert statuses(result) == {
            "load": "completed",
            "few": "skipped",
            "after": "skipped",
            "zero": "completed",
        }
        assert result.steps["few"].reason == "condition not met: load.count > 0"
        assert result.success

    async def test_a_condition_that_cannot_be_read_fails_its_step(self) -> None:
        pipeline = Pipeline("when wrong")
        pipeline.put(PipelineStep("load", "l", body=_cell("load", "{'count': 0}")))
        pipeline.put(PipelineStep("few", "f", body=_cell("few", "1"), when="load.cuont > 0"))
        result = await PipelineExecutor(pipeline).execute()
        assert result.failed_steps == ["few"]
        assert "count" in result.error_details["few"]


class TestModes:
    async def test_serial_steps_never_overlap_and_keep_definition_order(self) -> None:
        order: list[str] = []
        pipeline = Pipeline("serial")
        for name in ("c", "a", "b"):

            async def body(name: str = name) -> None:
                order.append(f"{name}>")
                await asyncio.sleep(0)
                order.append(f"<{name}")

            pipeline.put(PipelineStep(name, name, body=_async_body(name, body)))
        await PipelineExecutor(pipeline).execute()
        assert order == ["c>", "<c", "a>", "<a", "b>", "<b"]

    async def test_concurrent_steps_overlap(self) -> None:
        barrier = asyncio.Barrier(3)
        pipeline = Pipeline("concurrent", default_mode=ExecutionMode.CONCURRENT)
        for name in ("a", "b", "c"):
            pipeline.task(_meet(barrier, name))
        result = await asyncio.wait_for(PipelineExecutor(pipeline).execute(), 10)
        assert result.success

    async def test_serial_steps_do_not_hold_up_concurrent_ones(self) -> None:
        barrier = asyncio.Barrier(2)
        pipeline = Pipeline("mixed")
        pipeline.task(_meet(barrier, "serial"))
        pipeline.task(_meet(barrier, "free"), execution_mode=ExecutionMode.CONCURRENT)
        assert (await asyncio.wait_for(PipelineExecutor(pipeline).execute(), 10)).success

    async def test_max_concurrency_bounds_the_attempts(self) -> None:
        running, most = 0, 0
        pipeline = Pipeline("bounded", default_mode=ExecutionMode.CONCURRENT)
        for index in range(10):

            async def body() -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1

            pipeline.put(
                PipelineStep(
                    f"s{index}",
                    "s",
                    body=_async_body(f"s{index}", body),
                    execution_mode=ExecutionMode.CONCURRENT,
                )
            )
        await PipelineExecutor(pipeline, max_concurrency=3).execute()
        assert most == 3

    async def test_a_long_chain_does_not_recurse(self) -> None:
        pipeline = Pipeline("chain")
        previous: list[str] = []
        for index in range(3_000):
            pipeline.put(PipelineStep(f"s{index}", "s", body=_cell(f"s{index}", "1"), depends_on=previous))
            previous = [f"s{index}"]
        pipeline.steps = [step.with_(body=_async_body(step.name, _nothing)) for step in pipeline.steps]
        result = await PipelineExecutor(pipeline).execute()
        assert result.success
        assert len(result.step_outputs) == 3_000


class TestControl:
    async def test_cancel_stops_everything_and_returns_what_is_there(self) -> None:
        entered = asyncio.Event()
        ended: list[str] = []
        pipeline = Pipeline("cancel")

        @pipeline.task
        async def first() -> int:
            return 1

        @pipeline.task
        async def endless(first: int) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("endless")

        executor = PipelineExecutor(pipeline)
        task = asyncio.ensure_future(executor.execute())
        await entered.wait()
        executor.cancel()
        executor.cancel()
        result = await task
        assert ended == ["endless"]
        assert result.cancelled
        assert not result.success
        assert result["first"] == 1
        assert statuses(result)["endless"] == "cancelled"
        executor.cancel()

    async def test_cancelling_the_awaiting_task_cancels_the_run(self) -> None:
        entered = asyncio.Event()
        pipeline = Pipeline("cancelled task")

        @pipeline.task
        async def endless() -> None:
            entered.set()
            await asyncio.Event().wait()

        executor = PipelineExecutor(pipeline)
        task = asyncio.ensure_future(executor.execute())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert executor.result is not None
        assert executor.result.cancelled
        assert not executor.running

    async def test_pause_holds_the_next_step_and_resume_lets_it_go(self) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        pipeline = Pipeline("pause")

        @pipeline.task
        async def first() -> int:
            entered.set()
            await leave.wait()
            return 1

        @pipeline.task
        async def second(first: int) -> int:
            return 2

        executor = PipelineExecutor(pipeline)
        finished, paused = asyncio.Event(), asyncio.Event()

        def watch(event: events.Event) -> None:
            if isinstance(event, events.StepFinished) and event.step == "first":
                finished.set()
            if isinstance(event, events.RunPaused):
                paused.set()

        executor.subscribe(watch)
        task = asyncio.ensure_future(executor.execute())
        await entered.wait()
        executor.pause()
        await paused.wait()
        leave.set()
        await finished.wait()
        await asyncio.sleep(0)
        assert executor.memory is not None
        assert executor.memory.paused
        assert executor.memory.steps["second"].status is StepStatus.PENDING
        executor.resume()
        assert (await task)["second"] == 2

    def test_an_interrupted_wait_cancels_the_run(self) -> None:
        entered = threading.Event()
        pipeline = Pipeline("interrupt")

        @pipeline.task
        async def endless() -> None:
            entered.set()
            await asyncio.Event().wait()

        handle = PipelineExecutor(pipeline).start()
        assert entered.wait(10)
        assert not handle.done()
        assert "running" in repr(handle)
        with pytest.raises(TimeoutError, match="goes on"):
            handle.result(timeout=0)
        handle.cancel(wait=10)
        assert handle.done()
        assert handle.result().cancelled

    async def test_stream_gives_every_event_in_order(self) -> None:
        kinds = [type(event).__name__ async for event in PipelineExecutor(numbers()).stream()]
        assert kinds[0] == "RunStarted"
        assert kinds[-1] == "RunFinished"
        assert kinds.count("StepFinished") == 3

    async def test_leaving_a_stream_cancels_the_run(self) -> None:
        pipeline = Pipeline("left")

        @pipeline.task
        async def endless() -> None:
            await asyncio.Event().wait()

        executor = PipelineExecutor(pipeline)
        stream = executor.stream()
        async for event in stream:
            if isinstance(event, events.StepStarted):
                break
        await stream.aclose()
        assert not executor.running
        assert executor.result is not None
        assert executor.result.cancelled

    async def test_a_broken_observer_is_left_out_and_reported(self) -> None:
        calls: list[str] = []

        def broken(event: events.Event) -> None:
            calls.append("broken")
            raise RuntimeError("view is gone")

        result = await PipelineExecutor(numbers(), observers=[broken]).execute()
        assert result.success
        assert calls == ["broken"]
        assert "view is gone" in result.warnings[0]


def _cell(name: str, expression: str) -> Any:
    from tagent_nb.pipeline import PythonBody

    return PythonBody.from_cell(name, expression)


def _async_body(name: str, function: Any) -> Any:
    from dataclasses import replace

    return replace(_cell(name, "None"), kind="function", function=function)


async def _nothing() -> None:
    return None


def _meet(barrier: asyncio.Barrier, name: str) -> Any:
    async def meet() -> None:
        await barrier.wait()

    meet.__name__ = name
    return meet


async def test_to_cancel_in_the_moment_a_run_ends_does_nothing() -> None:
    """Heard just before the end or just after it: the run has its result, and another can begin."""
    executor = PipelineExecutor(numbers())
    ended = asyncio.Event()
    executor.subscribe(lambda event: ended.set() if isinstance(event, events.RunFinished) else None)
    running = asyncio.ensure_future(executor.execute())
    await ended.wait()
    while not running.done():
        executor.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await running).success
    assert (await executor.execute()).success


@pytest.mark.parametrize("options", [{"resume": 7}, {"resume": ["a"]}, {"until": ["a", "b"]}, {"until": 1}])
def test_what_names_no_run_and_no_step_is_refused(options: dict[str, Any]) -> None:
    """A number is no id, and must not stand for the newest run."""
    pipeline = Pipeline("names").step("a", "Go.")
    with pytest.raises(errors.DefinitionError, match=f"{next(iter(options))} must name one"):
        PipelineExecutor(pipeline, model="test").run(**options)


@pytest.mark.parametrize("cache", [True, "folder", Path("folder")])
def test_what_is_no_cache_is_refused_with_what_to_write(cache: Any) -> None:
    with pytest.raises(DefinitionError, match="cache must be a ResultCache, None or False"):
        PipelineExecutor(Pipeline("p"), cache=cache)
