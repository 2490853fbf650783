"""PythonRunner: inputs, values, prints and errors of Python steps, and how they are stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tagent_nb.errors import DefinitionError, StepError
from tagent_nb.events import Event, StepProgress, StepStreamed
from tagent_nb.pipeline import PipelineStep, PythonBody
from tagent_nb.runners import PythonRunner, StepContext
from tagent_nb.user_objects import Interrupted


class Seen(list[Event]):
    """Events, as an observer sees them."""

    @property
    def text(self) -> str:
        return "".join(event.text for event in self if isinstance(event, StepStreamed))

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self if isinstance(event, StepProgress)]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def context(seen: Seen) -> StepContext:
    return StepContext(run_id="run", pipeline="demo", step="s", emit=seen.append)


def cell(source: str, **options: Any) -> PipelineStep:
    return PipelineStep(name="s", goal="g", body=PythonBody.from_cell("s", source), **options)


def function(target: Callable[..., Any], **options: Any) -> PipelineStep:
    return PipelineStep(name="s", goal="g", body=PythonBody.from_function(target), **options)


async def run(step: PipelineStep, context: StepContext, **changes: Any) -> Any:
    for name, value in changes.items():
        setattr(context, name, value)
    return await PythonRunner().run(step, context)


# -- inputs -----------------------------------------------------------------------------------


async def test_a_cell_reads_inputs_before_the_namespace(context: StepContext) -> None:
    """Names of steps are local arguments; other names come from the notebook."""
    value = await run(
        cell("load = [x * factor for x in load]\nload"),
        context,
        inputs={"load": [1, 2], "unread": 0},
        namespace={"load": "the notebook's", "factor": 10},
    )
    assert value == [10, 20]


async def test_a_cell_never_changes_the_notebook(context: StepContext) -> None:
    namespace = {"n": 1}
    assert await run(cell("import math as n\nm = 2\nn.floor(2.5)"), context, namespace=namespace) == 2
    assert namespace == {"n": 1}


async def test_classes_of_a_cell_have_a_module(context: StepContext) -> None:
    source = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nA().x"
    assert await run(cell(source), context) == 1


async def test_a_function_gets_its_parameters(context: StepContext) -> None:
    def step(load: list[int], *, extra: int = 5, shared: Any, facts: Any, memories: Any) -> Any:
        return load, extra, shared, facts, memories

    value = await run(
        function(step), context, inputs={"load": [1]}, shared={"a": 1}, facts={"b": 2}, memories={"c": 3}
    )
    assert value == ([1], 5, {"a": 1}, {"b": 2}, {"c": 3})


async def test_none_of_a_weak_dependency_is_passed_on(context: StepContext) -> None:
    def step(load: Any = "default") -> Any:
        return load

    assert await run(function(step), context, inputs={"load": None}) is None
    assert await run(function(step), context, inputs={}) == "default"


async def test_a_missing_input_is_named(context: StepContext) -> None:
    def step(load: Any) -> Any:
        return load

    with pytest.raises(StepError, match=r"Step 's' reads 'load', which has no value in this run"):
        await run(function(step), context)


async def test_context_is_the_attempts_own(context: StepContext, seen: Seen) -> None:
    def step(context: StepContext) -> str:
        context.progress("half")
        return context.run_id

    assert await run(function(step), context) == "run"
    assert await run(cell("context.progress('more')\ncontext.step"), context) == "s"
    assert seen.kinds == ["half", "more"]


async def test_a_mapped_step_gets_the_item_by_two_names(context: StepContext) -> None:
    """The source's name and ``item`` both stand for the current item, a falsy one too."""
    inputs = {"load": 0}
    assert await run(cell("(load, item)", map_over="load.rows"), context, inputs=inputs, item="0") == (0, 0)

    def step(item: int, load: int) -> Any:
        return item, load

    assert await run(function(step, map_over="load"), context, inputs=inputs, item="0") == (0, 0)


async def test_item_belongs_to_mapped_steps(context: StepContext) -> None:
    def step(item: Any) -> Any:
        return item

    def lenient(item: Any = "none") -> Any:
        return item

    with pytest.raises(StepError, match="asks for 'item', but it is not mapped"):
        await run(function(step), context)
    assert await run(function(lenient), context) == "none"
    assert await run(cell("item"), context, namespace={"item": "the notebook's"}) == "the notebook's"


async def test_a_rebuilt_function_runs_from_its_source(context: StepContext) -> None:
    """Defaults, decorators and globals come from the namespace of the run."""
    source = "def step(load, rate=RATE):\n    return load * rate\n"
    body = PythonBody.from_dict({"kind": "function", "name": "step", "source": source})
    step = PipelineStep(name="s", goal="g", body=body)
    assert await run(step, context, inputs={"load": 2}, namespace={"RATE": 4}) == 8


async def test_only_python_steps_are_run(context: StepContext) -> None:
    with pytest.raises(StepError, match="has no Python body"):
        await run(PipelineStep(name="s", goal="g"), context)


# -- sync and async ---------------------------------------------------------------------------


async def test_a_sync_body_runs_in_a_daemon_thread_of_its_own(context: StepContext) -> None:
    def step() -> Any:
        return threading.current_thread()

    first, two = await run(function(step), context), await run(function(step), context)
    assert first is not two
    assert first is not threading.main_thread()
    assert first.daemon
    assert first.name == "tagent-step-s"


async def test_an_async_body_runs_where_the_run_lives(context: StepContext) -> None:
    async def step(load: int) -> Any:
        await asyncio.sleep(0)
        return load, threading.current_thread()

    assert await run(function(step), context, inputs={"load": 3}) == (3, threading.current_thread())
    assert await run(cell("import asyncio\nawait asyncio.sleep(0, load)"), context) == 3


async def test_an_awaitable_that_a_sync_body_returns_is_awaited(context: StepContext) -> None:
    def step() -> Any:
        return asyncio.sleep(0, "later")

    assert await run(function(step), context) == "later"


# -- prints -----------------------------------------------------------------------------------


async def test_prints_go_to_the_step_line_by_line(
    context: StepContext, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(cell("print('a', 'b')\nprint('c', end='')\nprint('d')\nprint('rest', end='')"), context)
    assert [event.text for event in seen if isinstance(event, StepStreamed)] == ["a b\n", "cd\n", "rest"]
    assert capsys.readouterr().out == ""


async def test_prints_of_async_bodies_and_their_awaitables_are_captured(
    context: StepContext, seen: Seen
) -> None:
    async def say() -> None:
        print("async")

    async def step() -> None:
        await asyncio.gather(say(), say())

    def sync() -> Any:
        print("sync")
        return say()

    await run(function(step), context)
    await run(function(sync), context)
    assert seen.text == "async\nasync\nsync\nasync\n"


async def test_prints_of_overlapping_steps_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Two threads and a task print at once; each sees its own, and the rest goes on as before."""
    barrier = threading.Barrier(3)
    all_seen = {name: Seen() for name in "abc"}

    def sync(context: StepContext) -> None:
        barrier.wait(10)
        for number in range(50):
            print(context.step, number)

    async def later(context: StepContext) -> None:
        await asyncio.to_thread(barrier.wait, 10)
        for number in range(50):
            print(context.step, number)
            await asyncio.sleep(0)

    steps = {"a": function(sync), "b": function(sync), "c": function(later)}
    jobs = [
        PythonRunner().run(step, StepContext("r", "p", name, emit=all_seen[name].append))
        for name, step in steps.items()
    ]
    gathered = asyncio.gather(*jobs)
    await asyncio.sleep(0)
    print("mine")
    await gathered
    for name, names in all_seen.items():
        assert names.text == "".join(f"{name} {number}\n" for number in range(50))
    assert capsys.readouterr().out == "mine\n"


async def test_stdout_is_itself_again_afterwards(context: StepContext) -> None:
    before = sys.stdout
    inside = await run(cell("import sys\nsys.stdout"), context)
    assert inside is not before
    assert sys.stdout is before


# -- errors -----------------------------------------------------------------------------------


async def test_errors_come_out_as_they_are(context: StepContext) -> None:
    with pytest.raises(ZeroDivisionError):
        await run(cell("1 / 0"), context)

    async def step() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await run(function(step), context)


@pytest.mark.parametrize("what", ["SystemExit(3)", "KeyboardInterrupt", "GeneratorExit"])
@pytest.mark.parametrize("wait", ["", "import asyncio\nawait asyncio.sleep(0)\n"])
async def test_what_would_end_the_program_fails_the_step(context: StepContext, what: str, wait: str) -> None:
    with pytest.raises(StepError, match="which would end the program") as caught:
        await run(cell(f"{wait}raise {what}"), context)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("wait", ["", "await asyncio.sleep(0)\n"])
async def test_a_body_that_cancels_itself_fails(context: StepContext, wait: str) -> None:
    """A CancelledError that no one asked for is a failure, not a Stop."""
    with pytest.raises(StepError, match="awaited something that was cancelled"):
        await run(cell(f"import asyncio\n{wait}raise asyncio.CancelledError"), context)
    assert not context.stop.is_set()


async def test_assigning_a_notebook_variable_that_is_read_has_a_remedy(context: StepContext) -> None:
    with pytest.raises(StepError, match=r"Step 's', line 2: 'n' is read before it has a value.*'new_n = "):
        await run(cell("\nn = n + 1\nn"), context, namespace={"n": 1})


async def test_other_unbound_names_stay_what_they_are(context: StepContext) -> None:
    with pytest.raises(UnboundLocalError):
        await run(cell("def f():\n    n = n + 1\nf()"), context, namespace={"n": 1})
    with pytest.raises(UnboundLocalError, match="by hand"):
        await run(cell("raise UnboundLocalError('by hand')"), context)


async def test_a_stored_body_that_is_damaged_is_a_definition_error(context: StepContext) -> None:
    step = PipelineStep(name="s", goal="g", body=PythonBody("def f(:", "function", "f"))
    with pytest.raises(DefinitionError, match="not valid Python"):
        await run(step, context)


# -- stopping ---------------------------------------------------------------------------------


async def cancel_when(ready: threading.Event, job: asyncio.Task[Any]) -> None:
    """Cancel a job as soon as its body says so, and wait for the end of both."""
    assert await asyncio.to_thread(ready.wait, 10)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_cancelling_ends_a_busy_body(context: StepContext, seen: Seen) -> None:
    """A loop of Python is stopped, its finally blocks run, and nothing is left."""
    ready, ended = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def step() -> None:
        try:
            ready.set()
            while True:
                sum(range(10))
        except Exception as error:
            caught.append(error)
        finally:
            ended.set()

    await cancel_when(ready, asyncio.create_task(run(function(step), context)))
    assert ended.is_set()
    assert caught == []
    assert seen.kinds == []
    assert context.stop.is_set()


async def test_a_timeout_ends_a_busy_body(context: StepContext) -> None:
    ended = threading.Event()

    def step() -> None:
        try:
            while True:
                sum(range(10))
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run(function(step), context)
    assert ended.is_set()


async def test_a_body_that_looks_at_stop_ends_by_itself(context: StepContext) -> None:
    ready, reasons = threading.Event(), []

    def step(context: StepContext) -> None:
        try:
            ready.set()
            while not context.stop.wait(0.01):
                pass
            reasons.append("asked")
        except Interrupted:
            reasons.append("interrupted")

    await cancel_when(ready, asyncio.create_task(run(function(step), context)))
    assert reasons == ["asked"]


async def test_a_body_with_context_that_does_not_look_is_interrupted(context: StepContext) -> None:
    ready, ended = threading.Event(), threading.Event()

    def step(context: StepContext) -> None:
        try:
            ready.set()
            while True:
                sum(range(10))
        finally:
            ended.set()

    await cancel_when(ready, asyncio.create_task(run(function(step), context)))
    assert ended.is_set()


async def test_a_body_stuck_in_a_call_is_left_and_reported(context: StepContext, seen: Seen) -> None:
    """It ends when its call returns; what it prints and returns by then is dropped."""
    ready, release, ended = threading.Event(), threading.Event(), threading.Event()

    def step() -> str:
        ready.set()
        try:
            release.wait(30)
        except Interrupted:
            print("late")
        ended.set()
        return "late"

    job = asyncio.create_task(PythonRunner(grace=0.05).run(function(step), context))
    await cancel_when(ready, job)
    assert not ended.is_set()
    assert seen.kinds == ["left_running"]
    detail = next(event.detail for event in seen if isinstance(event, StepProgress))
    assert detail["thread"] == "tagent-step-s"
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)
    for thread in threading.enumerate():
        if thread.name == "tagent-step-s":
            await asyncio.to_thread(thread.join, 10)
    assert seen.text == ""


async def test_a_second_cancel_does_not_lose_the_first(context: StepContext) -> None:
    """Cancelled again while it waits for a polite end, the body is interrupted all the same."""
    ready, ended = threading.Event(), threading.Event()

    def step(context: StepContext) -> None:
        try:
            ready.set()
            while True:
                sum(range(10))
        finally:
            ended.set()

    job = asyncio.create_task(run(function(step), context))
    assert await asyncio.to_thread(ready.wait, 10)
    job.cancel()
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert await asyncio.to_thread(ended.wait, 10)


async def test_cancelling_an_async_body_cancels_what_it_awaits(context: StepContext) -> None:
    ready, reasons = threading.Event(), []

    async def step() -> None:
        try:
            ready.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            reasons.append("cancelled")
            raise

    await cancel_when(ready, asyncio.create_task(run(function(step), context)))
    assert reasons == ["cancelled"]
    assert context.stop.is_set()


def test_a_loop_that_closed_meanwhile_is_no_error(context: StepContext) -> None:
    """A body that was left running ends quietly after the program's loop."""
    ready, release = threading.Event(), threading.Event()
    errors: list[Any] = []

    def step() -> None:
        ready.set()
        release.wait(30)

    async def main() -> None:
        job = asyncio.create_task(PythonRunner(grace=0).run(function(step), context))
        await cancel_when(ready, job)

    before = threading.excepthook
    threading.excepthook = errors.append
    try:
        asyncio.run(main())
        left = next(thread for thread in threading.enumerate() if thread.name == "tagent-step-s")
        release.set()
        left.join(10)
    finally:
        threading.excepthook = before
    assert errors == []


TRACED = """
import asyncio, sys, threading, time
from tagent_nb.pipeline.python_body import PythonBody
from tagent_nb.pipeline import PipelineStep
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.python import PythonRunner

ready, release = threading.Event(), threading.Lock()
release.acquire()

async def main():
    body = PythonBody.from_cell("s", "ready.set(); release.acquire()")
    context = StepContext("r", "p", "s", namespace=globals(), emit=lambda event: print(event.kind))
    runner = PythonRunner(grace=0)
    job = asyncio.create_task(runner.run(PipelineStep(name="s", goal="g", body=body), context))
    await asyncio.to_thread(ready.wait)
    job.cancel()
    await asyncio.wait({job})
    release.release()

def trace(*args):
    return trace

sys.settrace(trace)
asyncio.run(main())
"""


def test_a_stuck_body_does_not_stop_a_traced_program() -> None:
    """Under a debugger CPython 3.11 stands still while a thrown exception does not arrive."""
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("left_running\n", "")
