"""The part of an executor that says what a run would be, and refuses what cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tagent_nb.engine.context import RunOptions
from tagent_nb.engine.inputs import TakenInputs, expected_names, looking_in, take
from tagent_nb.engine.preflight import (
    agent_problems,
    asked_budget,
    missing_warnings,
    name_warnings,
    part_of,
    refuse_models,
    refuse_problems,
)
from tagent_nb.errors import DefinitionError
from tagent_nb.pipeline import Budget, Pipeline, map_warnings

if TYPE_CHECKING:
    from tagent_nb.engine.memory.memory import PipelineMemory
    from tagent_nb.events import CallRecorded
    from tagent_nb.pipeline import Defaults, Price
    from tagent_nb.runners import RateLimiter, StepRunner


class Checking:
    """What :class:`PipelineExecutor` looks at before a run begins."""

    pipeline: Pipeline
    model: Any
    namespace: Mapping[str, Any]
    runners: dict[str, StepRunner]
    prices: dict[str, Price]
    limits: RateLimiter
    defaults: Defaults
    recording: list[CallRecorded] | None

    def _options(
        self,
        resume: bool | str,
        force: bool | Iterable[str],
        until: str | None,
        offline: bool | None,
        use_cache: bool | None,
        on_change: str,
        budget: Budget | float | str | None = None,
    ) -> RunOptions:
        if on_change not in ("refuse", "rerun"):
            raise DefinitionError(f"on_change must be 'refuse' or 'rerun', not {on_change!r}.")
        if not isinstance(resume, bool | str):
            raise DefinitionError(f"resume must name one run, or be True for the newest, not {resume!r}.")
        if not isinstance(until, str | None):
            raise DefinitionError(f"until must name one step, not {until!r}.")
        forced: bool | frozenset[str] = True
        if force is not True:
            names = [force] if isinstance(force, str) else list(force or ())
            forced = frozenset(self.pipeline.get_step(name).name for name in names)
        if self.recording is not None:
            offline = True
        open_switches = {"offline": offline, "use_cache": use_cache} if resume is not False else {}
        return RunOptions(
            resume,
            forced,
            until,
            bool(offline),
            use_cache is not False,
            on_change,
            asked_budget(budget),
            inherits=frozenset(name for name, value in open_switches.items() if value is None),
        )

    def take_inputs(self, inputs: Mapping[str, Any] | None = None) -> TakenInputs:
        """Copy what steps read that no step makes, as it is now: what ``run(inputs=...)`` takes by itself.

        Args:
            inputs: Values for a run, by name. They come before those of the pipeline, and these before
                variables of ``namespace``.

        Raises:
            DefinitionError: A name is no input of the pipeline.
        """
        return take(self.pipeline, inputs, self.namespace)

    def _checked(self, options: RunOptions, taken: TakenInputs) -> Pipeline:
        """A snapshot of what is to run, or an error with all that is wrong with it.

        In a run that is carried on, a name that nothing defines here may be an input that it has recorded.
        """
        pipeline = part_of(looking_in(self.pipeline, taken, self.namespace), options.until)
        if options.resume is not False:
            pipeline.inputs.update(dict.fromkeys(expected_names(pipeline)))
            pipeline.forget_dependencies()
        if pipeline.model is None:
            pipeline.model = self.defaults.model
        refuse_problems(
            pipeline, agent_problems(pipeline, settings=self._asks_models(pipeline, offline=False))
        )
        if "offline" not in options.inherits:
            self._check_models(pipeline, options)
        return pipeline

    def _carried_on(self, pipeline: Pipeline, options: RunOptions, memory: PipelineMemory) -> RunOptions:
        """The options, complete once it is read what the run that is carried on began with."""
        if options.resume is False:
            return options
        from tagent_nb.engine.resume import carried_on

        complete = carried_on(options, memory)
        if "offline" in options.inherits:
            self._check_models(pipeline, complete)
        return complete

    def _check_models(self, pipeline: Pipeline, options: RunOptions) -> None:
        if self._asks_models(pipeline, options.offline):
            refuse_models(pipeline, self.model)

    def _warnings(self, pipeline: Pipeline, options: RunOptions) -> list[str]:
        """What the user should know of a run that begins."""
        found = [*map_warnings(pipeline), *missing_warnings(pipeline, self.namespace)]
        if self._asks_models(pipeline, options.offline):
            found += name_warnings(pipeline, self.model, self.prices, self.limits.limited)
        return found

    def _asks_models(self, pipeline: Pipeline, offline: bool) -> bool:
        """Whether steps ask models that are known here; a runner of the user has its own."""
        if offline or all(step.is_python for step in pipeline.steps):
            return False
        from tagent_nb.runners import AgentRunner

        return isinstance(self.runners["agent"], AgentRunner)
