"""Phases and tasks: what may follow what, retries, plans, and the way to and from plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tagent_nb.errors import DefinitionError, IllegalTransitionError
from tagent_nb.pipeline import Phase, Task, TaskBasedStateMachine, TaskStatus

TABLE = TaskBasedStateMachine.TRANSITIONS
PATHS = {
    Phase.INIT: [],
    Phase.PLANNING: [Phase.PLANNING],
    Phase.EXECUTING: [Phase.EXECUTING],
    Phase.EVALUATING: [Phase.EXECUTING, Phase.EVALUATING],
    Phase.FINALIZING: [Phase.EXECUTING, Phase.EVALUATING, Phase.FINALIZING],
    Phase.COMPLETED: [Phase.EXECUTING, Phase.COMPLETED],
    Phase.FAILED: [Phase.FAILED],
}
"""A way to each phase."""


def machine(*descriptions: str, phase: Phase = Phase.EXECUTING, **options: Any) -> TaskBasedStateMachine:
    """A machine with these tasks, moved to ``phase``."""
    made = TaskBasedStateMachine("goal", map(Task, descriptions), **options)
    for after in PATHS[phase]:
        made.transition(after)
    return made


class Pausable(TaskBasedStateMachine):
    """A machine with a table of its own."""

    TRANSITIONS: ClassVar[Mapping[Phase, frozenset[Phase]]] = {
        **TABLE,
        Phase.EXECUTING: frozenset({*TABLE[Phase.EXECUTING], Phase.PAUSED}),
        Phase.PAUSED: frozenset({Phase.RESUMING}),
        Phase.RESUMING: frozenset({Phase.EXECUTING}),
    }


class TestPhases:
    @pytest.mark.parametrize("before", TABLE)
    @pytest.mark.parametrize("after", Phase)
    def test_only_the_transitions_of_the_table_are_allowed(self, before: Phase, after: Phase) -> None:
        states = machine(phase=before)
        if after in TABLE[before]:
            states.transition(after)
            assert states.phase is after
            assert states.history == [Phase.INIT, *PATHS[before], after]
        else:
            with pytest.raises(IllegalTransitionError, match=f"{before.name} cannot become {after.name}"):
                states.transition(after)
            assert states.phase is before
            assert states.history == [Phase.INIT, *PATHS[before]]

    def test_the_error_lists_what_is_allowed(self) -> None:
        with pytest.raises(IllegalTransitionError) as caught:
            machine(phase=Phase.PLANNING).transition(Phase.COMPLETED)
        assert str(caught.value) == "PLANNING cannot become COMPLETED. Allowed: EXECUTING, FAILED."
        with pytest.raises(IllegalTransitionError) as caught:
            machine(phase=Phase.COMPLETED).transition(Phase.PLANNING)
        assert str(caught.value) == "COMPLETED cannot become PLANNING. It is an end; start anew."

    def test_the_work_is_done_when_it_completed_or_failed(self) -> None:
        assert {phase for phase in TABLE if machine(phase=phase).is_done} == {Phase.COMPLETED, Phase.FAILED}

    def test_a_subclass_may_pause_and_resume_and_its_base_may_not(self) -> None:
        states = Pausable("goal")
        for phase in (Phase.EXECUTING, Phase.PAUSED, Phase.RESUMING, Phase.EXECUTING):
            states.transition(phase)
        assert states.allowed == [
            Phase.PLANNING,
            Phase.EVALUATING,
            Phase.COMPLETED,
            Phase.FAILED,
            Phase.PAUSED,
        ]
        with pytest.raises(IllegalTransitionError, match="EXECUTING cannot become PAUSED"):
            machine().transition(Phase.PAUSED)

    def test_a_phase_that_the_table_lacks_is_an_end(self) -> None:
        states = machine()
        states.phase = Phase.PAUSED
        with pytest.raises(IllegalTransitionError, match="PAUSED cannot become EXECUTING. It is an end"):
            states.transition(Phase.EXECUTING)


class TestTasks:
    def test_tasks_get_ids_in_order_and_keep_their_own(self) -> None:
        states = TaskBasedStateMachine("goal", [Task("a"), Task("b", id="own"), Task("c", id="task_4")])
        states.add_task(Task("d"))
        assert [task.id for task in states.tasks] == ["task_1", "own", "task_4", "task_5"]
        assert states.task("own").description == "b"

    def test_an_id_is_given_once(self) -> None:
        states = machine("a")
        with pytest.raises(DefinitionError, match="There is a task 'task_1' already"):
            states.add_task(Task("b", id="task_1"))
        assert [task.description for task in states.tasks] == ["a"]

    def test_the_list_of_tasks_is_a_copy(self) -> None:
        states = machine("a")
        states.tasks.clear()
        assert [task.description for task in states.tasks] == ["a"]

    @pytest.mark.parametrize("phase", [Phase.COMPLETED, Phase.FAILED])
    def test_nothing_is_added_when_the_work_has_ended(self, phase: Phase) -> None:
        with pytest.raises(IllegalTransitionError, match=f"cannot be added in {phase.name}"):
            machine(phase=phase).add_task(Task("late"))

    def test_an_unknown_task_is_named_with_a_near_one(self) -> None:
        with pytest.raises(DefinitionError) as caught:
            machine("a", "b").start_task("tsk_1")
        assert str(caught.value) == "There is no task 'tsk_1'. Did you mean 'task_1'? Tasks: task_1, task_2."
        with pytest.raises(DefinitionError, match="Tasks: none."):
            machine().task("any")

    @pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
    def test_max_retries_is_a_whole_number(self, wrong: Any) -> None:
        with pytest.raises(DefinitionError, match="Task 'a': max_retries must be a whole number"):
            Task("a", max_retries=wrong)

    def test_tasks_run_one_after_the_other(self) -> None:
        states = machine("a", "b")
        done = []
        while task := states.next_task():
            assert states.start_task(task.id).status is TaskStatus.RUNNING
            done.append(states.complete_task(task.id, result=task.description * 2).status)
        assert done == [TaskStatus.COMPLETED] * 2
        assert states.results == {"task_1": "aa", "task_2": "bb"}
        assert states.failed_tasks == []

    def test_several_tasks_may_run_at_once(self) -> None:
        states = machine("a", "b")
        for name in ("task_1", "task_2"):
            assert states.next_task() is states.task(name)
            states.start_task(name)
        assert states.next_task() is None
        states.complete_task("task_2", None)
        assert states.results == {"task_2": None}

    def test_a_failing_task_is_tried_max_retries_times_more(self) -> None:
        states = machine("a", "b")
        task = states.task("task_1")
        task.max_retries = 2
        for attempt in (1, 2, 3):
            states.start_task("task_1")
            assert states.fail_task("task_1", f"error {attempt}") is (attempt < 3)
            assert (task.attempts, task.retries, task.error) == (attempt, attempt - 1, f"error {attempt}")
        assert task.status is TaskStatus.FAILED
        assert states.failed_tasks == [task]
        assert states.next_task() is states.task("task_2")

    def test_a_retry_that_succeeds_clears_the_error(self) -> None:
        states = machine("a")
        states.start_task("task_1")
        assert states.fail_task("task_1", "once")
        assert states.next_task() is states.start_task("task_1")
        task = states.complete_task("task_1", 7)
        assert (task.status, task.result, task.error, task.retries) == (TaskStatus.COMPLETED, 7, "", 1)

    def test_a_hopeless_failure_is_not_tried_again(self) -> None:
        states = machine("a")
        states.start_task("task_1")
        assert not states.fail_task("task_1", "no such tool", retry=False)
        assert states.task("task_1").status is TaskStatus.FAILED
        assert states.task("task_1").retries == 0

    def test_an_interrupted_attempt_does_not_count(self) -> None:
        states = machine("a")
        states.start_task("task_1")
        task = states.release_task("task_1")
        assert (task.status, task.attempts, task.retries) == (TaskStatus.PENDING, 0, 0)
        assert states.next_task() is task

    @pytest.mark.parametrize("phase", [phase for phase in TABLE if phase is not Phase.EXECUTING])
    def test_tasks_start_in_executing_only(self, phase: Phase) -> None:
        states = machine("a", phase=phase)
        remedy = "Move to EXECUTING first" if Phase.EXECUTING in TABLE[phase] else "Only EXECUTING allows it"
        with pytest.raises(IllegalTransitionError) as caught:
            states.start_task("task_1")
        assert str(caught.value) == f"Task 'task_1' cannot start in {phase.name}. {remedy}."
        assert states.task("task_1").attempts == 0

    def test_moves_that_a_task_cannot_make_are_refused(self) -> None:
        states = machine("a", "b", "c")
        states.start_task("task_2")
        states.start_task("task_3")
        states.complete_task("task_3")
        refused = {
            "task_1": [states.complete_task, lambda name: states.fail_task(name, "no"), states.release_task],
            "task_2": [states.start_task],
            "task_3": [states.start_task, states.complete_task, lambda name: states.fail_task(name, "no")],
        }
        before = states.to_dict()
        for name, moves in refused.items():
            for move in moves:
                with pytest.raises(IllegalTransitionError, match=f"Task '{name}' is .* only a .* one can."):
                    move(name)
        assert states.to_dict() == before


class TestPlans:
    def test_a_second_plan_takes_the_place_of_what_still_waits(self) -> None:
        states = machine(phase=Phase.PLANNING)
        first, *_ = states.add_plan([Task("look"), Task("count", max_retries=0), Task("write")])
        states.transition(Phase.EXECUTING)
        states.start_task(first.id)
        states.complete_task(first.id, "seen")
        states.start_task("task_2")
        states.fail_task("task_2", "cannot count")
        assert [task.description for task in states.failed_tasks] == ["count"]
        states.transition(Phase.EVALUATING)
        states.transition(Phase.PLANNING)
        again = states.add_plan([Task("guess", arguments={"from": "{{ task_1 }}"}), Task("write")])
        assert [(task.id, task.plan) for task in again] == [("task_4", 2), ("task_5", 2)]
        assert [task.status.value for task in states.tasks] == [
            "completed",
            "failed",
            "skipped",
            "pending",
            "pending",
        ]
        assert states.next_task() is again[0]
        assert states.results == {"task_1": "seen"}
        assert states.failed_tasks == []

    def test_plans_are_bounded(self) -> None:
        states = machine(phase=Phase.PLANNING, max_plans=2)
        for number in (1, 2):
            assert states.may_plan
            states.add_plan([Task(f"plan {number}")])
        assert not states.may_plan
        with pytest.raises(IllegalTransitionError, match="2 of 2 plans have been made. Move to FAILED"):
            states.add_plan([Task("plan 3")])
        assert len(states.tasks) == 2

    def test_a_plan_is_added_in_planning_only(self) -> None:
        with pytest.raises(IllegalTransitionError) as caught:
            machine(phase=Phase.EVALUATING).add_plan([Task("a")])
        assert str(caught.value) == "A plan cannot be added in EVALUATING. Move to PLANNING first."

    def test_an_empty_plan_is_refused(self) -> None:
        states = machine(phase=Phase.PLANNING)
        with pytest.raises(DefinitionError, match="A plan needs at least one task"):
            states.add_plan([])
        assert states.plans == 0

    def test_a_plan_may_bring_its_own_ids(self) -> None:
        states = machine("before", phase=Phase.PLANNING)
        plan = states.add_plan([Task("a"), Task("b", id="task_2"), Task("c")])
        assert [task.id for task in plan] == ["task_3", "task_2", "task_4"]

    @pytest.mark.parametrize("ids", [["task_1"], ["x", "x"]])
    def test_a_plan_that_repeats_an_id_changes_nothing(self, ids: list[str]) -> None:
        states = machine("before", phase=Phase.PLANNING)
        before = states.to_dict()
        with pytest.raises(DefinitionError, match=f"There is a task '{ids[-1]}' already"):
            states.add_plan([Task("a"), *[Task("b", id=name) for name in ids]])
        assert states.to_dict() == before


class TestStoring:
    def test_a_machine_comes_back_from_json_as_it_was(self) -> None:
        states = machine(phase=Phase.PLANNING, max_plans=5)
        states.add_plan([Task("a", "search", {"query": "x"}, max_retries=0), Task("b"), Task("c")])
        states.transition(Phase.EXECUTING)
        states.start_task("task_1")
        states.fail_task("task_1", "down")
        states.start_task("task_2")
        states.complete_task("task_2", {"rows": [1, 2]})
        data = json.loads(json.dumps(states.to_dict()))
        back = TaskBasedStateMachine.from_dict(data)
        assert back.to_dict() == states.to_dict()
        assert back.tasks == states.tasks
        assert (back.phase, back.history, back.plans, back.max_plans) == (
            Phase.EXECUTING,
            [Phase.INIT, Phase.PLANNING, Phase.EXECUTING],
            1,
            5,
        )
        assert back.next_task() == back.task("task_3")

    def test_what_ran_when_it_was_stored_waits_again(self) -> None:
        states = machine("a")
        states.start_task("task_1")
        stored = states.to_dict()
        task = TaskBasedStateMachine.from_dict(stored).task("task_1")
        assert (task.status, task.attempts) == (TaskStatus.PENDING, 0)
        assert states.task("task_1").status is TaskStatus.RUNNING

    def test_the_data_is_no_part_of_the_machine(self) -> None:
        states = machine()
        states.add_task(Task("a", arguments={"x": 1}))
        data = states.to_dict()
        data["tasks"][0]["arguments"]["x"] = 2
        data["history"].clear()
        assert states.task("task_1").arguments == {"x": 1}
        assert states.history == [Phase.INIT, Phase.EXECUTING]

    def test_a_subclass_comes_back_as_itself(self) -> None:
        states = Pausable("goal")
        states.transition(Phase.EXECUTING)
        states.transition(Phase.PAUSED)
        back = Pausable.from_dict(states.to_dict())
        assert type(back) is Pausable
        assert back.allowed == [Phase.RESUMING]

    @pytest.mark.parametrize(
        "change",
        [
            {"phase": "dreaming"},
            {"history": [1]},
            {"tasks": None},
            {"tasks": [{"description": "a"}]},
            {"tasks": [{**Task("a").to_dict(), "status": "lost"}]},
            {"tasks": [{**Task("a").to_dict(), "surprise": 1}]},
            {"tasks": [{**Task("a").to_dict(), "arguments": 3}]},
            {"plans": "many"},
        ],
    )
    def test_other_data_is_refused_and_changes_nothing(self, change: dict[str, Any]) -> None:
        states = machine("kept")
        before = states.to_dict()
        with pytest.raises(DefinitionError, match="This is not a stored state machine: .* to_dict"):
            states.restore({**machine("a").to_dict(), **change})
        assert states.to_dict() == before

    def test_missing_parts_are_named(self) -> None:
        with pytest.raises(DefinitionError, match="This is not a stored state machine: KeyError: 'goal'"):
            TaskBasedStateMachine.from_dict({})
        with pytest.raises(DefinitionError, match="This is not a stored task: KeyError: 'status'"):
            Task.from_dict({})


class Planner(RuleBasedStateMachine):
    """Any order of calls: either it is allowed and consistent, or refused and nothing changed."""

    ids = st.integers(1, 6).map(lambda n: f"task_{n}")

    @initialize(plans=st.integers(1, 3))
    def start(self, plans: int) -> None:
        self.machine = TaskBasedStateMachine("goal", max_plans=plans)

    def attempt(self, call: Any) -> None:
        before = self.machine.to_dict()
        try:
            call()
        except (IllegalTransitionError, DefinitionError):
            assert self.machine.to_dict() == before

    @rule(phase=st.sampled_from(list(TABLE)))
    def move(self, phase: Phase) -> None:
        self.attempt(lambda: self.machine.transition(phase))

    @rule(sizes=st.integers(0, 3), retries=st.integers(0, 2))
    def plan(self, sizes: int, retries: int) -> None:
        self.attempt(lambda: self.machine.add_plan(Task("t", max_retries=retries) for _ in range(sizes)))

    @rule(name=ids)
    def begin(self, name: str) -> None:
        self.attempt(lambda: self.machine.start_task(name))

    @rule(name=ids, retry=st.booleans())
    def fail(self, name: str, retry: bool) -> None:
        self.attempt(lambda: self.machine.fail_task(name, "no", retry=retry))

    @rule(name=ids)
    def complete(self, name: str) -> None:
        self.attempt(lambda: self.machine.complete_task(name, name))

    @precondition(lambda self: self.machine.tasks)
    @rule()
    def store_and_restore(self) -> None:
        self.machine = TaskBasedStateMachine.from_dict(self.machine.to_dict())

    @invariant()
    def consistent(self) -> None:
        states = self.machine
        assert states.history[-1] is states.phase
        assert states.plans <= states.max_plans
        assert set(states.results) == {
            task.id for task in states.tasks if task.status is TaskStatus.COMPLETED
        }
        for task in states.tasks:
            assert 0 <= task.attempts <= task.max_retries + 1
            assert task.attempts or task.status in (TaskStatus.PENDING, TaskStatus.SKIPPED)


TestAnyOrderOfCalls = Planner.TestCase
