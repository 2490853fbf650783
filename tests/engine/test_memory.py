"""PipelineMemory: what is known about a run is a fold over its events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tagent_nb import DefinitionError, StepMemoryEntry, StepStatus, TokenUsage, events
from tagent_nb.engine import PipelineMemory
from tagent_nb.engine.memory.entries import new_run_id
from tagent_nb.naming import safe_id
from tagent_nb.serde import StoredValue

RUN = "run-1"


def step(kind: type[Any], name: str = "a", **fields: Any) -> Any:
    return kind(run_id=RUN, step=name, **fields)


def finished(name: str = "a", value: Any = 1, **fields: Any) -> Any:
    return step(events.StepFinished, name, output=StoredValue.of(value), **fields)


@pytest.fixture
def memory() -> PipelineMemory:
    memory = PipelineMemory("pid", RUN)
    memory.apply(events.RunStarted(run_id=RUN, at=100.0, pipeline="p", steps=("a", "b")))
    return memory


class TestSpecifiedSurface:
    def test_a_saved_result_is_kept_falsy_ones_too(self) -> None:
        memory = PipelineMemory("pid")
        memory.save_step_result("load", 0)
        assert memory.has_step_result("load")
        assert memory.get_step_result("load") == 0
        assert not memory.has_step_result("other")
        assert memory.get_step_result("other") is None

    def test_entries_carry_time_run_and_what_was_read(self, memory: PipelineMemory) -> None:
        components = {"goal": "1", "input:load.text": "2", "input:load.id": "3", "input:extra": "4"}
        memory.apply(finished(value=[1], at=160.0, components=components, metadata={"model": "test"}))
        entry = memory.step_results["a"]
        assert (entry.step_name, entry.pipeline_id, entry.execution_id) == ("a", "pid", RUN)
        assert entry.data == [1]
        assert entry.timestamp.timestamp() == 160.0
        assert entry.dependencies_used == ["load", "extra"]
        assert entry.metadata == {"model": "test"}

    def test_history_lists_events_in_order(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepStarted))
        memory.apply(step(events.StepStreamed, text="not kept"))
        memory.apply(finished())
        history = memory.execution_history
        assert [record["event"] for record in history] == ["RunStarted", "StepStarted", "StepFinished"]
        assert history[1]["step"] == "a"
        assert history[0]["timestamp"].timestamp() == 100.0

    def test_history_has_the_specified_words_beside_the_events(self, memory: PipelineMemory) -> None:
        """``status`` is ``"completed"`` and the like; ``step_name`` is there as ``step`` is."""
        memory.apply(step(events.StepStarted))
        memory.apply(step(events.StepRetried, attempt=1, error_type="E", message="m", delay=0.0))
        memory.apply(finished())
        memory.apply(step(events.StepFailed, "b", error_type="E", message="m"))
        memory.apply(step(events.StepSkipped, "c", reason="r"))
        memory.apply(events.RunPaused(run_id=RUN))
        memory.apply(events.RunUnpaused(run_id=RUN))
        memory.apply(events.Warned(run_id=RUN, message="careful"))
        memory.apply(events.RunFinished(run_id=RUN, success=False))
        assert [(entry["step_name"], entry["status"]) for entry in memory.execution_history] == [
            (None, "running"),
            ("a", "running"),
            ("a", "waiting"),
            ("a", "completed"),
            ("b", "failed"),
            ("c", "skipped"),
            (None, "paused"),
            (None, "running"),
            (None, None),
            (None, "failed"),
        ]

    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ({"success": True}, "completed"),
            ({"success": False, "cancelled": True}, "cancelled"),
            ({"success": False, "waiting": ("a",)}, "waiting"),
        ],
    )
    def test_history_says_how_the_run_ended(
        self, memory: PipelineMemory, fields: dict[str, Any], word: str
    ) -> None:
        memory.apply(events.RunFinished(run_id=RUN, **fields))
        assert memory.execution_history[-1]["status"] == word

    def test_history_cannot_be_changed_by_hand(self, memory: PipelineMemory) -> None:
        history = memory.execution_history
        for change in (
            lambda: history.append({}),
            lambda: history.clear(),
            lambda: history.__setitem__(0, {}),
            lambda: history.__iadd__([{}]),
        ):
            with pytest.raises(DefinitionError, match="cannot be changed by hand"):
                change()
        assert len(memory.execution_history) == 1
        assert PipelineMemory("pid").execution_history == []

    def test_results_can_be_set_as_entries(self, memory: PipelineMemory) -> None:
        """What the specification's own code does: ``memory.step_results[name] = entry``."""
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        memory.step_results["a"] = StepMemoryEntry("a", "pid", [1], moment, "x", metadata={"model": "m"})
        entry = memory.step_results["a"]
        assert (entry.data, entry.timestamp, entry.metadata) == ([1], moment, {"model": "m"})
        assert entry.execution_id == RUN
        assert memory.get_step_result("a") == [1]
        assert list(memory.step_results) == ["a"]
        assert len(memory.step_results) == 1
        assert repr(memory.step_results) == repr({"a": entry})
        assert memory.execution_history[-1]["status"] == "completed"

    def test_results_refuse_bare_values_and_deletion(self, memory: PipelineMemory) -> None:
        memory.save_step_result("a", 1)
        with pytest.raises(DefinitionError, match=r"save_step_result\('b', value\)"):
            memory.step_results["b"] = 2  # type: ignore[assignment]
        with pytest.raises(DefinitionError, match="cannot be deleted"):
            del memory.step_results["a"]
        with pytest.raises(KeyError):
            memory.step_results["b"]
        assert "b" not in memory.step_results

    def test_current_step_follows_the_run(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepStarted, "b"))
        assert memory.current_step == "b"
        memory.apply(events.RunFinished(run_id=RUN, success=True))
        assert memory.current_step is None

    def test_run_ids_are_safe_and_sort_by_time(self) -> None:
        assert safe_id(new_run_id())
        assert PipelineMemory("pid").run_id != PipelineMemory("pid").run_id


class TestFold:
    def test_a_step_goes_through_its_statuses(self, memory: PipelineMemory) -> None:
        seen = [memory.steps["a"].status]
        for event in (
            step(events.StepStarted),
            step(events.StepRetried, attempt=1, error_type="OSError", message="no", delay=0.1),
            step(events.StepStarted, attempt=2),
            finished(),
        ):
            memory.apply(event)
            seen.append(memory.steps["a"].status)
        assert [status.name for status in seen] == ["PENDING", "RUNNING", "WAITING", "RUNNING", "COMPLETED"]
        assert memory.steps["a"].attempts == 2
        assert memory.steps["a"].error == ""

    def test_failed_attempts_cost_money_too(self, memory: PipelineMemory) -> None:
        used = TokenUsage(input_tokens=10, requests=1)
        memory.apply(
            step(events.StepRetried, attempt=1, error_type="E", message="m", delay=0, usage=used, cost=0.5)
        )
        memory.apply(finished(usage=used, cost=0.25))
        memory.apply(step(events.StepFailed, "b", error_type="E", message="m", usage=used, cost=0.125))
        result = memory.to_result()
        assert result.cost_per_step == {"a": 0.75, "b": 0.125}
        assert result.total_cost == 0.875
        assert result.token_usage["a"].input_tokens == 20

    def test_an_unknown_price_is_never_zero(self, memory: PipelineMemory) -> None:
        memory.apply(finished("a", cost=None, usage=TokenUsage(requests=1)))
        memory.apply(finished("b", cost=0.5, usage=TokenUsage(requests=1)))
        result = memory.to_result()
        assert result.cost_per_step == {"a": None, "b": 0.5}
        assert result.unpriced_steps == ["a"]
        assert result.total_cost == 0.5

    def test_a_cached_step_costs_nothing_and_says_what_it_saved(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepCached, output=StoredValue.of(1), key="k", saved_cost=0.5))
        memory.apply(step(events.StepCached, "b", output=StoredValue.of(1), key="k", saved_cost=None))
        assert memory.steps["a"].status is StepStatus.CACHED
        assert memory.steps["a"].cost == 0.0
        assert memory.steps["a"].saved_cost == 0.5
        assert memory.steps["b"].saved_cost is None

    def test_items_add_up_to_their_step(self, memory: PipelineMemory) -> None:
        used = TokenUsage(output_tokens=3)
        memory.apply(step(events.StepStarted, items=2))
        for key in ("1", "0"):
            memory.apply(step(events.StepStarted, item=key))
            memory.apply(finished(item=key, value=key, usage=used, cost=0.5))
        kinds = [type(event) for event in memory.events[1:]]
        assert kinds == [events.StepStarted, events.StepFinished, events.StepFinished]
        memory.apply(finished(value=["0", "1"], metadata={"item_keys": ["0", "1"], "item_index": [7, 8]}))
        state = memory.steps["a"]
        assert state.usage.output_tokens == 6
        assert state.cost == 1.0
        assert state.items is not None
        assert [(item.key, item.index, item.attempts) for item in state.items.values()] == [
            ("0", 7, 1),
            ("1", 8, 1),
        ]

    def test_a_map_whose_process_died_counts_the_time_of_its_items(self, memory: PipelineMemory) -> None:
        """Items that overlap count once; the next session adds what the step itself says of it."""
        memory.apply(finished(item="0", at=110.0, seconds=4.0))
        memory.apply(step(events.StepFailed, item="1", at=112.0, seconds=5.0, error_type="E", message="m"))
        memory.apply(step(events.StepCached, item="2", at=113.0, output=StoredValue.of(1), key="k"))
        assert memory.steps["a"].seconds == 7.0
        memory.apply(events.RunResumed(run_id=RUN, at=500.0, steps=("a", "b")))
        memory.apply(finished(item="1", at=510.0, seconds=2.0))
        assert memory.steps["a"].seconds == 9.0
        memory.apply(finished(at=511.0, seconds=10.5))
        assert memory.steps["a"].seconds == 17.5
        items = memory.steps["a"].items
        assert items is not None
        assert [item.seconds for item in items.values()] == [4.0, 7.0, 0.0]

    def test_a_map_that_ends_says_itself_how_long_it_took(self, memory: PipelineMemory) -> None:
        for ending in (
            finished(seconds=3.0),
            step(events.StepFailed, seconds=3.0, error_type="E", message="m"),
            step(events.StepCancelled, seconds=3.0),
        ):
            before = memory.steps["a"].seconds
            memory.apply(events.RunResumed(run_id=RUN, steps=("a", "b")))
            memory.apply(finished(item="0", at=110.0, seconds=4.0))
            memory.apply(ending)
            assert memory.steps["a"].seconds == before + 3.0
        memory.apply(step(events.StepCached, item="0", at=113.0, output=StoredValue.of(1), key="k"))
        memory.apply(step(events.StepCached, item="1", at=114.0, output=StoredValue.of(1), key="k"))
        memory.apply(step(events.StepCached, output=StoredValue.of([1, 1]), key="k"))
        assert memory.steps["a"].seconds == 9.0

    def test_saved_cost_of_items_is_counted_once(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepStarted, items=1))
        memory.apply(step(events.StepCached, item="0", output=StoredValue.of(1), key="k", saved_cost=0.5))
        memory.apply(step(events.StepCached, output=StoredValue.of([1]), key="k", saved_cost=0.0))
        assert memory.steps["a"].saved_cost == 0.5

    def test_a_failed_map_keeps_its_items_in_order(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepStarted, items=2))
        memory.apply(step(events.StepFailed, item="1", error_type="E", message="m"))
        memory.apply(finished(item="0"))
        labels = {"item_keys": ["0", "1"], "item_index": ["x", "y"]}
        memory.apply(step(events.StepFailed, error_type="StepError", message="1 of 2", metadata=labels))
        items = memory.steps["a"].items
        assert items is not None
        assert [(item.index, item.status.value) for item in items.values()] == [
            ("x", "completed"),
            ("y", "failed"),
        ]

    def test_skipped_and_cancelled_steps_say_so(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepSkipped, "a", reason="step 'x' failed", cause="x"))
        memory.apply(step(events.StepCancelled, "b", seconds=2.0))
        memory.apply(step(events.StepCancelled, "b", item="3", seconds=1.0))
        assert memory.steps["a"].reason == "step 'x' failed"
        assert memory.steps["b"].status is StepStatus.CANCELLED
        assert memory.steps["b"].seconds == 2.0

    def test_facts_memories_warnings_and_pauses(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.FactLearned, key="k", value=1))
        memory.apply(step(events.MemorySaved, key="m", value=2))
        memory.apply(events.Warned(run_id=RUN, message="careful"))
        memory.apply(events.RunPaused(run_id=RUN))
        assert (memory.facts, memory.memories, memory.warnings) == ({"k": 1}, {"m": 2}, ["careful"])
        assert memory.paused
        memory.apply(events.RunUnpaused(run_id=RUN))
        assert not memory.paused

    def test_continuing_resets_what_is_not_kept_but_not_what_it_cost(self, memory: PipelineMemory) -> None:
        memory.apply(finished("a", cost=0.5))
        memory.apply(step(events.StepFailed, "b", error_type="E", message="m", cost=0.25, at=110.0))
        memory.apply(
            events.RunResumed(run_id=RUN, at=500.0, steps=("a", "b", "new"), kept=("a",), definition={"n": 1})
        )
        assert memory.has_step_result("a")
        assert memory.steps["b"].status is StepStatus.PENDING
        assert memory.steps["b"].cost == 0.25
        assert list(memory.steps) == ["a", "b", "new"]
        assert memory.definition == {"n": 1}

    def test_a_step_that_a_session_left_out_is_still_known(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepFailed, "b", error_type="E", message="m", cost=0.25))
        memory.apply(events.RunResumed(run_id=RUN, steps=("a",)))
        assert list(memory.steps) == ["a"]
        assert memory.step("b").cost == 0.25
        memory.apply(events.RunResumed(run_id=RUN, steps=("a", "b")))
        assert memory.steps["b"].cost == 0.25

    def test_what_is_reset_keeps_how_it_ended_as_its_reason(self, memory: PipelineMemory) -> None:
        again = events.RunResumed(run_id=RUN, steps=("a", "b", "c", "d"))
        memory.apply(step(events.StepFailed, "a", error_type="StopIteration", message=""))
        memory.apply(step(events.StepCancelled, "b"))
        memory.apply(step(events.StepSkipped, "c", reason="condition not met: a"))
        memory.apply(finished("d"))
        for _ in range(2):
            memory.apply(again)
            assert [step_memory.reason for step_memory in memory.steps.values()] == [
                "the last time it failed (StopIteration)",
                "the last time it was stopped",
                "the last time it was skipped (condition not met: a)",
                "",
            ]

    def test_seconds_leave_out_the_time_between_sessions(self, memory: PipelineMemory) -> None:
        memory.apply(finished("a", at=110.0))
        memory.apply(events.RunResumed(run_id=RUN, at=500.0, steps=("a", "b"), kept=("a",)))
        memory.apply(finished("b", at=502.0))
        memory.apply(events.RunFinished(run_id=RUN, at=505.0, success=True))
        assert memory.seconds == 15.0
        assert memory.to_result().execution_time == 15.0

    def test_unfinished_items_are_pending_after_a_stop(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepStarted, items=2))
        memory.apply(finished(item="0"))
        memory.apply(step(events.StepStarted, item="1"))
        memory.apply(events.RunResumed(run_id=RUN, steps=("a",), kept=()))
        items = memory.steps["a"].items
        assert items is not None
        assert [item.status.value for item in items.values()] == ["completed", "pending"]


class TestResult:
    def test_a_live_result_is_not_a_success_yet(self, memory: PipelineMemory) -> None:
        memory.apply(finished())
        assert not memory.to_result().success
        memory.apply(events.RunFinished(run_id=RUN, success=True))
        assert memory.to_result().success

    def test_errors_carry_type_message_and_traceback(self, memory: PipelineMemory) -> None:
        memory.apply(step(events.StepFailed, error_type="ValueError", message="no", traceback="line 1"))
        result = memory.to_result()
        assert result.failed_steps == ["a"]
        assert result.error_details == {"a": "ValueError: no\nline 1"}

    def test_steps_that_did_not_run_have_no_cost_row(self, memory: PipelineMemory) -> None:
        memory.apply(finished())
        assert list(memory.to_result().cost_per_step) == ["a"]


class TestCallsOfAttemptsThatDied:
    """What an attempt uses counts when it ends; if no one could say its end, its recorded calls count."""

    def call(self, cost: float | None = 0.5, **fields: Any) -> Any:
        usage = TokenUsage(10, 5, requests=1)
        return events.CallRecorded(
            run_id=RUN, step="a", kind="model", key="k", usage=usage, cost=cost, **fields
        )

    def test_they_count_when_the_run_is_carried_on(self, memory: PipelineMemory) -> None:
        memory.apply(self.call())
        memory.apply(self.call(item="1"))
        assert memory.steps["a"].usage == TokenUsage()
        assert memory.spent()["a"] == (TokenUsage(20, 10, requests=2), 1.0)
        memory.apply(events.RunResumed(run_id=RUN, steps=("a", "b")))
        assert (memory.steps["a"].usage, memory.steps["a"].cost) == memory.spent()["a"]
        assert memory.spent()["a"] == (TokenUsage(20, 10, requests=2), 1.0)

    def test_they_do_not_count_beside_the_attempt(self, memory: PipelineMemory) -> None:
        memory.apply(self.call())
        memory.apply(finished(usage=TokenUsage(10, 5, requests=1), cost=0.5))
        memory.apply(events.RunResumed(run_id=RUN, steps=("a", "b"), kept=("a",)))
        assert memory.spent()["a"] == (TokenUsage(10, 5, requests=1), 0.5)

    def test_an_unknown_price_makes_the_cost_unknown(self, memory: PipelineMemory) -> None:
        memory.apply(self.call(cost=None))
        memory.apply(self.call())
        assert memory.spent()["a"] == (TokenUsage(20, 10, requests=2), None)

    @pytest.mark.parametrize("call", ["", "c1"])
    def test_a_tool_that_waits_for_approval_ends_no_attempt(self, memory: PipelineMemory, call: str) -> None:
        memory.apply(self.call())
        used = {"usage": TokenUsage(10, 5, requests=1), "cost": 0.5} if not call else {"tool": "send"}
        memory.apply(step(events.ApprovalRequested, output=StoredValue.of({}), call=call, **used))
        assert memory.spent()["a"] == (TokenUsage(10, 5, requests=1), 0.5)
