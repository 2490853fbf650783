"""Objects whose methods raise cost the step that meets them, and no other."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagent_nb import (
    CorruptRecordError,
    EncodeError,
    ExecutionMode,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    Price,
    ResultCache,
    ResumeConflictError,
    StepContext,
    StepStatus,
    TokenUsage,
    events,
)
from tagent_nb.formatting import short_text
from tagent_nb.runners import user_traceback
from tagent_nb.serde import own_copy
from tagent_nb.serde import value as codec
from tagent_nb.user_objects import (
    Interrupted,
    blame,
    class_name,
    message_of,
    raising_method,
    safe_repr,
    safe_str,
)

METHODS = [
    "__str__",
    "__len__",
    "__getattr__",
    "__getattribute__",
    "__class__",
    "__repr__",
    "__eq__",
    "__hash__",
]
MORE = ["__bool__", "__iter__", "__deepcopy__", "__reduce__", "__format__"]


class Stop(BaseException):
    """Neither an Exception nor one of those that end a program."""


def odd_class(base: type, method: str, error: type[BaseException] = ValueError) -> Any:
    """A class of which one method raises."""

    def raises(*_: Any) -> Any:
        raise error("no")

    members: dict[str, Any] = {method: property(raises) if method == "__class__" else raises}
    if method == "__eq__":
        members["__hash__"] = object.__hash__
    return type("Odd", (base,), members)


@pytest.fixture
def odd() -> Any:
    """A module for what a step hands out, without the step's code referring to the value itself."""
    module = ModuleType("odd_things")
    sys.modules["odd_things"] = module
    yield module
    del sys.modules["odd_things"]


def pipeline_with_others(name: str = "odd") -> Pipeline:
    """A pipeline with two steps that have nothing to do with the rest."""
    pipeline = Pipeline(name)

    @pipeline.task
    def before() -> int:
        return 1

    @pipeline.task(execution_mode=ExecutionMode.CONCURRENT)
    def beside() -> int:
        return 2

    return pipeline


def run(pipeline: Pipeline, folder: Path) -> PipelineResult:
    """Run with all that looks at values: a store, a cache, an observer; then look at all views."""
    seen: list[events.Event] = []
    executor = PipelineExecutor(
        pipeline,
        storage=folder / "runs",
        cache=ResultCache(folder / "cache"),
        observers=[seen.append],
        retry_delay=0,
    )
    result = executor.run()
    executor.cache.close()  # type: ignore[union-attr]
    assert result.step_outputs["before"] == 1
    assert result.step_outputs["beside"] == 2
    assert all(step.status not in (StepStatus.RUNNING, StepStatus.PENDING) for step in result.steps.values())
    for view in (repr(result), result._repr_html_(), str(result.to_frame()), str(result.events_frame())):
        assert view
    return result


@pytest.mark.parametrize("method", METHODS + MORE)
def test_a_value_that_raises_costs_no_other_step(odd: Any, tmp_path: Path, method: str) -> None:
    """It is read by a step, mapped over, compared by a condition, shown; the others go on."""
    pipeline = pipeline_with_others()
    for base in (object, list, dict, str):
        name = f"gives_{base.__name__}"
        setattr(odd, name, odd_class(base, method)())

        def gives(context: StepContext) -> Any:
            return getattr(sys.modules["odd_things"], context.step)

        pipeline.task(name=name, max_retries=0)(gives)
        for option in ({}, {"map_over": name}, {"when": f"{name} == 3"}):
            step = f"after_{len(pipeline)}"
            pipeline.put(PipelineStep.from_cell(step, f"{name}\n1", python=True, max_retries=0, **option))
    run(pipeline, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_that_raises_fails_its_step_and_says_which_method(tmp_path: Path, method: str) -> None:
    kind = odd_class(Exception, method)
    pipeline = pipeline_with_others()

    @pipeline.task(max_retries=1)
    def breaks() -> None:
        raise kind("the reason")

    result = run(pipeline, tmp_path)
    assert result.failed_steps == ["breaks"]
    step = result.steps["breaks"]
    assert step.error_type == "Odd"
    assert (
        "Odd.__str__ raised ValueError: no" in step.error if method == "__str__" else "reason" in step.error
    )
    assert "breaks" in step.traceback


@pytest.mark.parametrize("error", [ValueError, RecursionError, Stop, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("method", ["__len__", "__class__", "__iter__"])
def test_a_shared_value_and_a_global_that_raise(
    tmp_path: Path, method: str, error: type[BaseException]
) -> None:
    """What a step refers to is asked for its digest before the step begins."""
    namespace = {"value": odd_class(list, method, error)([1])}
    exec("def refers():\n    return str(type(value))\n", namespace)
    pipeline = pipeline_with_others().share(thing=odd_class(object, method, error)())
    pipeline.task(max_retries=0)(namespace["refers"])
    result = run(pipeline, tmp_path)
    if "refers" in result.failed_steps:
        assert f"Odd.{method} raised {error.__name__}: no" in result.steps["refers"].error


@pytest.mark.parametrize("method", ["__str__", "__repr__", "__class__", "__len__"])
def test_one_item_that_raises_fails_alone(odd: Any, tmp_path: Path, method: str) -> None:
    odd.value = [1, odd_class(list, method)([1]), 3]
    pipeline = pipeline_with_others()

    @pipeline.task
    def rows() -> Any:
        return sys.modules["odd_things"].value

    @pipeline.task(map_over="rows", min_success=0.5, max_retries=0)
    def each(item: Any) -> str:
        return str(item) if type(item) is int else f"{item} {item!r} {len(item)} {item.__class__}"

    result = run(pipeline, tmp_path)
    items = result.steps["each"].items
    assert items is not None
    assert [items["0"].output.value, items["2"].output.value] == ["1", "3"]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["__str__", "__repr__", "__class__", "__getattribute__", "__len__"])
def test_a_tool_may_give_or_raise_what_raises(odd: Any, tmp_path: Path, method: str) -> None:
    from pydantic_ai.models.test import TestModel

    odd.value, odd.error = odd_class(list, method)([1]), odd_class(Exception, method)("bad")

    def give() -> Any:
        """Give."""
        return sys.modules["odd_things"].value

    def fail() -> Any:
        """Fail."""
        raise sys.modules["odd_things"].error

    pipeline = pipeline_with_others()
    pipeline.step("gives", "Call it.", tools=[give], model=TestModel(), max_retries=0)
    pipeline.step("fails", "Call it.", tools=[fail], model=TestModel(), max_retries=0)
    run(pipeline, tmp_path)


@pytest.mark.parametrize("base", [str, list, Exception])
@pytest.mark.parametrize("method", ["__len__", "__bool__", "__iter__", "__getattribute__", "__class__"])
def test_a_tool_whose_result_closes_coroutines_costs_its_step(
    odd: Any, tmp_path: Path, base: type, method: str
) -> None:
    """GeneratorExit from a task closes all that awaits it, which must not be the run."""
    from pydantic_ai.models.test import TestModel

    odd.value = odd_class(base, method, GeneratorExit)()

    def use() -> Any:
        """Use."""
        if base is Exception:
            raise sys.modules["odd_things"].value
        return sys.modules["odd_things"].value

    pipeline = pipeline_with_others()
    pipeline.step("asks", "Call it.", tools=[use], model=TestModel(), max_retries=0)
    result = run(pipeline, tmp_path)
    if "asks" in result.failed_steps:
        assert result.steps["asks"].error


@pytest.mark.parametrize("error", [Stop, GeneratorExit])
@pytest.mark.parametrize("method", ["__str__", "__len__", "__getattribute__"])
def test_what_ends_a_program_is_named_with_the_method_that_raised_it(
    tmp_path: Path, method: str, error: type[BaseException]
) -> None:
    """And what the step's own code raises with its name."""
    value = odd_class(list, method, error)()
    pipeline = pipeline_with_others()

    @pipeline.task(max_retries=0)
    def asks() -> Any:
        return {"__str__": str, "__len__": len, "__getattribute__": lambda thing: thing.name}[method](value)

    @pipeline.task(max_retries=0)
    def ends() -> None:
        raise error

    result = PipelineExecutor(pipeline).run()
    assert f"Odd.{method} raised {error.__name__}: no" in result.error_details["asks"]
    assert f"Step 'ends' raised {error.__name__}, which would end the program" in result.error_details["ends"]


@pytest.mark.parametrize("method", ["__str__", "__repr__", "__eq__", "__hash__", "__bool__", "model_name"])
def test_a_model_object_that_raises_costs_its_own_step(tmp_path: Path, method: str) -> None:
    from pydantic_ai.models.test import TestModel

    def raises(*_: Any) -> Any:
        raise ValueError("no")

    member = property(raises) if method == "model_name" else raises
    kind: Callable[[], Any] = type("Odd", (TestModel,), {method: member})
    pipeline = pipeline_with_others()
    pipeline.step("asks", "Say something.", model=kind(), max_retries=0)
    run(pipeline, tmp_path)


@pytest.mark.parametrize("place", ["step", "executor", "pipeline"])
@pytest.mark.parametrize("method", ["__eq__", "__hash__", "__getattribute__", "startswith", "partition"])
def test_a_name_of_a_model_that_raises_costs_at_most_the_step_that_asks_it(
    tmp_path: Path, method: str, place: str
) -> None:
    """Also what is no Exception, where prices and budgets look at it, and beside a model of the same name."""
    kind = odd_class(str, method, Stop)
    if method == "__eq__":
        kind.__hash__ = str.__hash__
    name = kind("test")
    pipeline = Pipeline("odd", model=name if place == "pipeline" else None)
    pipeline.step("asks", "Say something.", model=name if place == "step" else None, max_retries=0)
    pipeline.step("plain", "Say something.", model="test", max_retries=0)
    executor = PipelineExecutor(
        pipeline,
        model=name if place == "executor" else None,
        prices={"openai:gpt-none": Price(1.0, 1.0)},
        budget="5 USD",
        storage=tmp_path / "runs",
    )
    plan = asyncio.run(executor.plan())
    assert [step.step for step in plan] == ["asks", "plain"]
    result = executor.run()
    assert result.step_outputs["plain"]
    if result.failed_steps or method in ("__eq__", "__getattribute__", "partition"):
        assert result.failed_steps == ["asks"]
        assert "Stop: no" in result.steps["asks"].error


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_what_a_model_raises_in_checks_of_prices_and_plans(error: type[BaseException]) -> None:
    """One that the check of models never sees, since another runner asks it: Ctrl-C counts everywhere."""
    from tagent_nb.engine.preflight import name_warnings, refuse_models, refuse_unpriced
    from tagent_nb.pipeline import Budget

    kind = odd_class(str, "__getattribute__", error)
    pipeline = Pipeline("odd").step("asks", "Say something.", model=kind("odd:model"), max_retries=0)
    prices = {"openai:gpt-none": Price(1.0, 1.0)}

    def look() -> list[str]:
        refuse_unpriced(pipeline, None, Budget.of("5 USD"), prices)
        return name_warnings(pipeline, None, prices, [])

    if error is Stop:
        assert look() == []
    else:
        with pytest.raises(error):
            look()
        with pytest.raises(error):
            name_warnings(pipeline, None, prices, [])
        with pytest.raises(error):
            refuse_models(pipeline, None)


@pytest.mark.parametrize("error", [Stop, asyncio.CancelledError, StopIteration])
def test_a_model_may_raise_what_is_no_exception(tmp_path: Path, error: type[BaseException]) -> None:
    from pydantic_ai.models.function import FunctionModel

    def answer(*_: Any) -> Any:
        raise error("gone")

    pipeline = pipeline_with_others()
    pipeline.step("asks", "Say something.", model=FunctionModel(answer), max_retries=0)
    result = run(pipeline, tmp_path)
    assert result.failed_steps == ["asks"]
    assert "gone" in result.steps["asks"].error or error is StopIteration


def test_what_a_broken_attempt_has_spent_counts(tmp_path: Path) -> None:
    class Spends:
        version = "1"

        async def run(self, step: PipelineStep, context: StepContext) -> Any:
            if step.name == "spends":
                context.spend(TokenUsage(requests=1), 0.5)
                raise Stop("at the end")
            return {"before": 1, "beside": 2}[step.name]

    pipeline = pipeline_with_others()
    pipeline.put(PipelineStep.from_cell("spends", "1", python=True))
    result = PipelineExecutor(pipeline, runners={"python": Spends()}, retry_delay=0.0).run()
    assert result.failed_steps == ["spends"]
    assert result.total_cost == 0.5
    assert "Stop: at the end" in result.steps["spends"].error
    assert result.step_outputs["before"] == 1


def test_a_source_that_can_be_read_twice_only_fails_its_map(odd: Any, tmp_path: Path) -> None:
    class Source:
        reads = 0

        @property
        def __rows__(self) -> list[int]:
            self.reads += 1
            if self.reads > 2:
                raise ValueError("gone")
            return [1, 2]

    class Holder(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return super().__getitem__(name).__rows__ if name == "rows" else super().__getitem__(name)

    odd.value = Holder(rows=Source())
    pipeline = pipeline_with_others()

    @pipeline.task
    def rows() -> Any:
        return sys.modules["odd_things"].value

    @pipeline.task(map_over="rows.rows", max_retries=0)
    def each(item: int) -> int:
        return item

    run(pipeline, tmp_path)


async def test_a_plan_names_the_step_that_a_value_breaks(tmp_path: Path) -> None:
    namespace = {"value": odd_class(list, "__len__")([1])}
    exec("def refers():\n    return str(type(value))\n", namespace)
    pipeline = pipeline_with_others()
    pipeline.task(namespace["refers"])
    plan = await PipelineExecutor(pipeline, storage=tmp_path).plan()
    by_name = {step.step: step for step in plan.steps}
    assert "Odd.__len__ raised ValueError: no" in str(by_name["refers"])
    assert by_name["before"].action != "fail"


def pipeline_that_reads(value: Any) -> Any:
    """A pipeline of which one step's fingerprint asks ``value``, and what makes executors for it."""
    pipeline = pipeline_with_others()
    pipeline.put(PipelineStep.from_cell("reads", "type(value).__name__", python=True, depends_on=["before"]))
    return pipeline, {"value": value}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_object_that_ends_the_program_ends_its_run_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """Anyone who waits for the run gets what was raised, observers see it end, and it can be resumed."""
    pipeline, namespace = pipeline_that_reads(odd_class(list, "__len__", error)([1]))
    seen: list[events.Event] = []
    executor = PipelineExecutor(
        pipeline, storage=tmp_path, namespace=namespace, observers=[seen.append], retry_delay=0
    )
    with pytest.raises(error, match="no"):
        executor.run()
    assert type(seen[-1]) is events.RunFinished
    assert not seen[-1].success
    with pytest.raises(error, match="no"):
        asyncio.run(PipelineExecutor(pipeline, storage=tmp_path, namespace=namespace).plan())
    resumed = PipelineExecutor(pipeline, storage=tmp_path, namespace={"value": [1]}).run(resume=True)
    assert resumed.success
    assert resumed.step_outputs["reads"] == "list"
    with pytest.raises(error, match="no"):
        PipelineExecutor(pipeline, storage=tmp_path, namespace=namespace).run(resume=True)


def test_a_recorded_step_whose_objects_raise_now_is_named_with_them(tmp_path: Path) -> None:
    pipeline, namespace = pipeline_that_reads([1])
    assert PipelineExecutor(pipeline, storage=tmp_path, namespace=namespace).run().success
    namespace["value"] = odd_class(list, "__len__", Stop)([1])
    with pytest.raises(ResumeConflictError, match=r"reads.*Odd\.__len__ raised Stop: no"):
        PipelineExecutor(pipeline, storage=tmp_path, namespace=namespace).run(resume=True)


def test_what_raises_while_it_is_encoded_cannot_be_stored_and_says_why() -> None:
    for method in ("__len__", "__iter__"):
        value = odd_class(list, method)([1])
        for encode in (codec.encode, codec.to_tree, codec.digest):
            with pytest.raises(EncodeError, match=rf"output: .*Odd\.{method} raised ValueError: no"):
                encode(value)
        stored = codec.StoredValue.of({"a": value})
        assert not stored.storable
        assert f"Odd.{method}" in str(stored.problem)


class Refuses:
    """A field of a dataclass that looks at what is put into it."""

    error: type[BaseException] | None = None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return 0 if instance is None else vars(instance)["n"]

    def __set__(self, instance: Any, value: Any) -> None:
        if self.error is not None:
            raise self.error("no")
        vars(instance)["n"] = value


@dataclasses.dataclass
class Refusing:
    n: Any = Refuses()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError, "cannot be read: no"),
        (RuntimeError, "cannot be read, since Refuses.__set__ raised RuntimeError: no"),
        (Stop, "cannot be read, since Refuses.__set__ raised Stop: no"),
    ],
)
def test_what_raises_while_it_is_read_is_damaged_and_says_why(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], message: str
) -> None:
    value = Refusing(1)
    blob, tree = codec.encode(value), codec.to_tree(value)
    schemas = {"Refusing": Refusing}
    assert codec.decode(blob, schemas) == codec.from_tree(tree, schemas) == value
    monkeypatch.setattr(Refuses, "error", error)
    for read in (lambda: codec.decode(blob, schemas), lambda: codec.from_tree(tree, schemas)):
        with pytest.raises(CorruptRecordError, match=message):
            read()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Interrupted])
def test_who_ends_the_program_is_not_held_up_by_a_stored_value(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    value = Refusing(1)
    blob, tree = codec.encode(value), codec.to_tree(value)
    monkeypatch.setattr(Refuses, "error", error)
    with pytest.raises(error):
        codec.decode(blob, {"Refusing": Refusing})
    with pytest.raises(error):
        codec.from_tree(tree, {"Refusing": Refusing})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Interrupted])
def test_who_ends_the_program_is_not_held_up(error: type[BaseException]) -> None:
    shown = odd_class(object, "__repr__", error)()
    text = odd_class(Exception, "__str__", error)()
    copied = odd_class(list, "__deepcopy__", error)()
    asks: list[Callable[[], object]] = [
        lambda: safe_repr(shown),
        lambda: safe_str(shown),
        lambda: short_text(shown),
        lambda: message_of(text),
        lambda: blame(text),
        lambda: own_copy(copied),
        lambda: codec.encode(odd_class(list, "__len__", error)()),
    ]
    for ask in asks:
        with pytest.raises(error):
            ask()


def test_names_and_texts_of_what_raises() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise ValueError("no")

    class Hidden(metaclass=Meta):
        pass

    def elsewhere(self: object) -> str:
        raise KeyError("k")

    class Renamed:
        __repr__ = elsewhere

    class Static:
        @staticmethod
        def __len__() -> int:  # type: ignore[misc]
            return 1 // 0

    class Text(str):
        __slots__ = ()

    class Says:
        def __repr__(self) -> str:
            return Text("fine")

        __str__ = __repr__

    assert class_name(Hidden()) == "Hidden"
    assert safe_repr(Renamed()) == "<Renamed that cannot be shown: Renamed.__repr__ raised KeyError: 'k'>"
    assert type(safe_repr(Says())) is str
    assert type(safe_str(Says())) is str
    assert safe_str(odd_class(object, "__str__")()) == (
        "<Odd that cannot be shown: Odd.__str__ raised ValueError: no>"
    )
    loud = odd_class(Exception, "__str__")()
    assert message_of(loud) == "(no message: Odd.__str__ raised ValueError: no)"
    assert blame(loud) == "Odd: its message cannot be read either"
    assert blame(ValueError()) == "ValueError"
    assert raising_method(ValueError()) == ""
    with pytest.raises(ZeroDivisionError) as caught:
        len(Static())
    assert raising_method(caught.value) == ""  # it has nothing that says whose method it is
    assert short_text(odd_class(dict, "__len__")()) == "Odd (its len fails: ValueError)"


def test_a_traceback_of_an_error_that_raises_shows_the_users_lines() -> None:
    def mine(error: type[BaseException]) -> BaseException:
        # Not by pytest.raises, which asks the error itself.
        try:
            raise odd_class(Exception, "__getattribute__", error)("reason")
        except Exception as caught:
            return caught

    text = user_traceback(mine(ValueError))
    assert "in mine" in text
    assert text.endswith("Odd: reason")
    leaving = mine(SystemExit)
    with pytest.raises(SystemExit):
        user_traceback(leaving)


def test_an_observer_that_breaks_and_cannot_be_shown_is_left_out(tmp_path: Path) -> None:
    class Watching:
        def __call__(self, event: events.Event) -> None:
            raise odd_class(Exception, "__repr__")("broken")

        def __repr__(self) -> str:
            raise ValueError("no")

    pipeline = pipeline_with_others()
    result = PipelineExecutor(pipeline, observers=[Watching()]).run()
    assert result.success
    assert "Watching.__repr__ raised ValueError: no" in result.warnings[0]
