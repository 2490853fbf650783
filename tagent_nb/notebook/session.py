"""The objects behind a notebook's magics: its pipelines, their runs, and where these are kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tagent_nb.engine import PipelineExecutor, RunHandle, checked_approver, submit
from tagent_nb.errors import (
    DefinitionError,
    NotStoredError,
    RunInProgressError,
    did_you_mean,
)
from tagent_nb.events import Event, Observer, RunResumed, RunStarted
from tagent_nb.naming import pipeline_name
from tagent_nb.notebook.refresh import kind_of, refresh, refuse_gone
from tagent_nb.notebook.workspace import CellNames, Watch, Workspace
from tagent_nb.pipeline import (
    Approver,
    ExecutionMode,
    Limit,
    Pipeline,
    PipelineStep,
    Price,
    checked_limits,
    checked_prices,
    defaults,
)
from tagent_nb.results import PipelineResult
from tagent_nb.runners import RateLimiter
from tagent_nb.serde import bare_schema, is_expression

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.cache import ResultCache
    from tagent_nb.engine import Durations, Plan
    from tagent_nb.storage import StorageBackend

__all__ = ["STATE_FOLDER", "Session", "current"]

STATE_FOLDER = ".tagent"
"""Folder beside the notebook for runs and cached answers, unless ``--storage`` says otherwise."""


class Session:
    """The pipelines of one notebook. ``tagent_nb.current()`` gives the kernel's own.

    Args:
        namespace: Names that Python steps and schema options see: the notebook's.
        folder: Where runs and cached answers go by default.

    Attributes:
        workspaces: One :class:`Workspace` by pipeline name.
        prices: Prices of own models by name; see :meth:`set_prices`.
        limits: How fast each provider may be asked, by all pipelines together; see :meth:`set_limits`.
    """

    def __init__(self, namespace: Mapping[str, Any] | None = None, folder: str | Path = STATE_FOLDER) -> None:
        self.namespace: Mapping[str, Any] = {} if namespace is None else namespace
        self.folder = Path(folder)
        self.workspaces: dict[str, Workspace] = {}
        self.prices: dict[str, Price] = {}
        self.limits = RateLimiter()
        self._approver: Approver | None = None
        self._current: str | None = None
        self._bare_schemas: dict[str, tuple[list[type[BaseModel]], type[BaseModel]]] = {}
        self._storages: dict[tuple[str, int | None], StorageBackend] = {}
        self._cache: ResultCache | None = None

    def __repr__(self) -> str:
        return f"<Session: pipelines {', '.join(self.workspaces) or 'none'}; current {self._current}>"

    @property
    def approver(self) -> Approver | None:
        """Decides on what waits for approval, in place of forms; see :class:`PipelineExecutor`.

        Setting it raises :class:`DefinitionError` for what is neither a function nor ``"wait"`` nor ``None``.
        """
        return self._approver

    @approver.setter
    def approver(self, approver: Approver | None) -> None:
        self._approver = checked_approver(approver)

    # -- pipelines --------------------------------------------------------------------------

    def use(
        self,
        name: str,
        *,
        model: Any = None,
        description: str | None = None,
        default_mode: ExecutionMode | None = None,
        storage: StorageBackend | str | Path | None = None,
        keep_last: int | None = None,
        cached: bool | None = None,
        recording: str | None = None,
        max_concurrency: int | None = None,
        instructions: str | None = None,
        timeout: float | None = None,
    ) -> Pipeline:
        """Make a pipeline current; a new name makes a new one. What is ``None`` stays as it was.

        A ``recording`` of ``"none"`` asks models again, ``instructions`` of ``"none"`` are the usual ones,
        and a ``timeout`` of 0 is none.

        Raises:
            DefinitionError: The name, ``keep_last`` or ``max_concurrency`` is not allowed.
            RunInProgressError: The storage of a running pipeline cannot change.
            StorageError: The storage cannot be used.
        """
        if max_concurrency is not None and max_concurrency < 1:
            raise DefinitionError(f"max_concurrency must be 1 or more, not {max_concurrency}.")
        key = pipeline_name(name)
        space = self.workspaces.get(key)
        elsewhere = storage is not None or keep_last is not None
        if space is not None and elsewhere and space.running:
            raise RunInProgressError(f"Pipeline {key!r} is running: its storage cannot change now.")
        if space is None:
            space = self.workspaces[key] = self._workspace(Pipeline(key), storage, keep_last)
        elif elsewhere:
            made = self._workspace(
                space.pipeline,
                space.where if storage is None else storage,
                space.keep_last if keep_last is None else keep_last,
            )
            space.storage, space.where, space.keep_last = made.storage, made.where, made.keep_last
        space.pipeline.model = space.pipeline.model if model is None else model
        space.pipeline.description = space.pipeline.description if description is None else description
        space.pipeline.default_mode = default_mode or space.pipeline.default_mode
        if instructions is not None:
            space.pipeline.instructions = None if instructions == "none" else instructions
        if timeout is not None:
            space.pipeline.timeout = timeout or None
        space.cached = space.cached if cached is None else cached
        if recording is not None:
            space.recording = None if recording == "none" else recording
        space.max_concurrency = max_concurrency or space.max_concurrency
        self._current = key
        return space.pipeline

    def rename(self, name: str, to: str) -> Pipeline:
        """Give a pipeline another name. Its recorded runs and memories stay under the old one.

        Raises:
            DefinitionError: There is no such pipeline, the new name is not allowed, or is taken.
            RunInProgressError: It is running.
        """
        space = self._idle(name)
        key = pipeline_name(to)
        if key == space.pipeline.name:
            return space.pipeline
        if key in self.workspaces:
            raise DefinitionError(f"There is a pipeline {key!r} already. Choose another name.")
        old, space.pipeline.name = space.pipeline.name, key
        space.executor = space.handle = None  # its result is of a run under the old name
        self.workspaces = {
            key if other == old else other: workspace for other, workspace in self.workspaces.items()
        }
        self._current = key if self._current == old else self._current
        return space.pipeline

    def fork(self, name: str, changes: Mapping[str, Any]) -> Pipeline:
        """Make a second pipeline of the current one's steps with some changes, and make it current.

        It has the storage and the options of the current one. See :meth:`Pipeline.fork`.

        Raises:
            DefinitionError: The name is taken, or a change is not allowed.
            UnknownStepError: A change names no step.
        """
        space = self.workspace
        pipeline = space.pipeline.fork(name, changes)
        if pipeline.name in self.workspaces:
            raise DefinitionError(
                f"There is a pipeline {pipeline.name!r} already. Choose another name, or take it out: "
                f"%tagent_pipeline {pipeline.name} --delete"
            )
        names = {
            step: replace(cell, step=pipeline.get_step(step), objects=dict(cell.objects))
            for step, cell in space.names.items()
        }
        made = self._workspace(pipeline, space.where, space.keep_last)
        self.workspaces[pipeline.name] = replace(
            made,
            cached=space.cached,
            recording=space.recording,
            max_concurrency=space.max_concurrency,
            names=names,
            model_name=space.model_name,
        )
        self._current = pipeline.name
        return pipeline

    def delete(self, name: str, *, runs: bool = False) -> None:
        """Take a pipeline out of this notebook; another one becomes current.

        Args:
            name: Which one.
            runs: Whether its recorded runs and memories go as well. Without it they stay where they are, and
                a pipeline of this name finds them.

        Raises:
            DefinitionError: There is no such pipeline.
            RunInProgressError: It is running, here or, with ``runs``, elsewhere.
            StorageError: The runs cannot be deleted.
        """
        space = self._idle(name)
        if runs:
            submit(space.storage.delete(space.pipeline.id)).result()
        del self.workspaces[space.pipeline.name]
        if self._current == space.pipeline.name:
            self._current = next(reversed(self.workspaces), None)

    def stored_runs(self, name: str) -> int:
        """How many runs are recorded of a pipeline of this notebook."""
        space = self._named(name)
        return len(submit(space.storage.runs(space.pipeline.id)).result())

    def _named(self, name: str) -> Workspace:
        key = pipeline_name(name)
        if key not in self.workspaces:
            names = ", ".join(self.workspaces) or "none"
            raise DefinitionError(
                f"There is no pipeline {key!r}.{did_you_mean(key, self.workspaces)} Pipelines: {names}."
            )
        return self.workspaces[key]

    def _idle(self, name: str) -> Workspace:
        space = self._named(name)
        if space.running:
            raise RunInProgressError(
                f"Pipeline {space.pipeline.name!r} is running. Wait for it, or stop it first."
            )
        return space

    def set_prices(self, prices: Mapping[str, Price]) -> None:
        """Price models for all later runs of this notebook, such as ``{"openai:my-model": Price(0.5, 1.5)}``.

        Raises:
            DefinitionError: They do not map names of models to prices.
        """
        self.prices.update(checked_prices(prices))

    def set_limits(self, limits: Mapping[str, Limit]) -> None:
        """Limit how fast providers are asked by all pipelines of this notebook, from now on.

        Raises:
            DefinitionError: They do not map names of providers to limits.
        """
        for provider, limit in checked_limits(limits).items():
            self.limits.set(provider, limit)

    def adopt(self, pipeline: Pipeline) -> Workspace:
        """Make a pipeline that was built in Python current; it replaces one of the same name.

        Raises:
            RunInProgressError: The pipeline of this name is running.
        """
        replaced = self.workspaces.get(pipeline.name)
        if replaced is not None and replaced.running:
            raise RunInProgressError(f"Pipeline {pipeline.name!r} is running. Wait for it, or stop it first.")
        where, keep_last = (replaced.where, replaced.keep_last) if replaced else (None, None)
        self.workspaces[pipeline.name] = self._workspace(pipeline, where, keep_last)
        self._current = pipeline.name
        return self.workspaces[pipeline.name]

    @property
    def workspace(self) -> Workspace:
        """The current pipeline's workspace. What cells name is looked up anew; what is gone stays as it was.

        Raises:
            DefinitionError: There is no pipeline yet.
        """
        if self._current is None:
            raise DefinitionError("There is no pipeline yet. Begin with: %tagent_pipeline NAME")
        space = self.workspaces[self._current]
        refresh(space, self)
        return space

    @property
    def pipeline(self) -> Pipeline:
        """The current pipeline; raises as :attr:`workspace` does."""
        return self.workspace.pipeline

    @property
    def result(self) -> PipelineResult | None:
        """The current pipeline's last result of this kernel."""
        return self.workspace.result

    def put(self, step: PipelineStep, names: CellNames | None = None) -> PipelineStep:
        """Add a step to the current pipeline, or replace the one of its name.

        Args:
            step: The step.
            names: What its cell names: that is looked up again at each run. What was given as an object
                stays that object.
        """
        space = self.workspace
        space.pipeline.put(step)
        space.names.pop(step.name, None)
        if names is not None:
            space.names[step.name] = names
        space.redefined.add(step.name)
        return space.pipeline.get_step(step.name)

    # -- runs -------------------------------------------------------------------------------

    def executor(
        self,
        workspace: Workspace | None = None,
        observers: Iterable[Observer] = (),
        max_concurrency: int | None = None,
        approver: Approver | None = None,
    ) -> PipelineExecutor:
        """A new executor for a workspace, with its storage, cache, namespace and schemas."""
        space = workspace or self.workspace
        return PipelineExecutor(
            space.pipeline,
            storage=space.storage,
            cache=self.cache if space.cached else False,
            recording=space.recording,
            max_concurrency=space.max_concurrency if max_concurrency is None else max_concurrency,
            observers=observers,
            namespace=self.namespace,
            schemas=self.schemas().values(),
            prices=self.prices,
            limits=self.limits,
            approver=self.approver or approver,
        )

    def start(
        self,
        workspace: Workspace | None = None,
        *,
        observers: Iterable[Observer] = (),
        watches: Iterable[Watch] = (),
        max_concurrency: int | None = None,
        approver: Approver | None = None,
        **options: Any,
    ) -> RunHandle:
        """Run a pipeline in the background. Options are those of :meth:`PipelineExecutor.execute`.

        Args:
            workspace: Whose pipeline to run, without one the current.
            observers: Called with every event.
            watches: Watch this run, besides those that watch all runs of the workspace.
            max_concurrency: Most attempts at the same time, for this run only.
            approver: Decides where :attr:`approver` is not set.

        Raises:
            RunInProgressError: This pipeline is running already.
            PipelineValidationError: What a cell names is not there any more.
        """
        space = workspace or self.workspace
        if space.running:
            raise RunInProgressError(
                f"Pipeline {space.pipeline.name!r} is running already. Wait for it, or press Stop first."
            )
        refuse_gone(space, self, options.get("until"))
        watchers = [watch() for watch in dict.fromkeys([*space.watches, *watches])]
        executor = self.executor(space, [*observers, *watchers, _Begun(space)], max_concurrency, approver)
        # Now: the next cell may change a variable before the run has begun.
        options["inputs"] = executor.take_inputs(options.get("inputs"))
        earlier, space.executor = space.executor, executor

        async def run() -> PipelineResult:
            outcome: PipelineResult | BaseException
            try:
                outcome = result = await executor.execute(**options)
                return result
            except BaseException as error:
                outcome = error
                if executor.memory is None:
                    # Refused before it began: the last result is still the one before.
                    space.executor = earlier
                raise
            finally:
                for watcher in watchers:
                    watcher.end(outcome)

        future: Future[PipelineResult] = submit(run())
        space.handle = RunHandle(executor, future)
        return space.handle

    def plan(self, **options: Any) -> Plan:
        """What a run of the current pipeline would do, and why. Options and errors are those of a run."""
        refuse_gone(self.workspace, self, options.get("until"))
        return submit(self.executor().plan(**options)).result()

    def durations(self, workspace: Workspace) -> Future[Durations]:
        """How long the steps of a pipeline took before, read from its newest runs in the background."""
        from tagent_nb.engine import EarlierRuns

        pipeline = workspace.pipeline
        past = EarlierRuns(workspace.storage, pipeline.id, pipeline.name, most=3)
        return submit(past.durations([step.name for step in pipeline.steps]))

    def stored_result(self, run_id: str | None = None, workspace: Workspace | None = None) -> PipelineResult:
        """The result of a recorded run of the current pipeline, without an id of the newest.

        Raises:
            NotStoredError: There is none.
            StorageError: It cannot be read.
        """
        from tagent_nb.engine import read_memory, schemas_of

        space = workspace or self.workspace
        schemas = schemas_of(space.pipeline, self.schemas().values(), self.namespace)
        reading = read_memory(space.storage, space.pipeline.name, run_id, schemas)
        return submit(reading).result().to_result()

    def last_result(self, workspace: Workspace | None = None) -> PipelineResult:
        """The last result of this kernel, else of the storage; of the current pipeline, or of a workspace.

        Raises:
            NotStoredError: The pipeline has not run yet.
        """
        space = workspace or self.workspace
        if space.result is not None:
            return space.result
        try:
            return self.stored_result(workspace=space)
        except NotStoredError:
            raise NotStoredError(
                f"Pipeline {space.pipeline.name!r} has not run yet. Run it with %tagent_run."
            ) from None

    # -- what options name ------------------------------------------------------------------

    def schemas(self) -> dict[str, type[BaseModel]]:
        """Pydantic model classes of the namespace by name, besides those that the steps use."""
        from pydantic import BaseModel

        schemas: dict[str, type[BaseModel]] = {}
        for name, value in list(self.namespace.items()):
            if inspect.isclass(value) and issubclass(value, BaseModel) and value is not BaseModel:
                schemas.setdefault(name, value)
        for workspace in self.workspaces.values():
            for step in workspace.pipeline.steps:
                if step.output_schema is not None:
                    schemas.setdefault(step.output_schema.__name__, step.output_schema)
        return schemas

    def model(self, name: str | None) -> Any:
        """The model that an option names: a model object of the namespace, else the text itself."""
        value = self.namespace.get(name) if name is not None else None
        return value if hasattr(value, "model_name") else name

    def storage(self, name: str | None) -> StorageBackend | str | None:
        """The storage that an option names: a storage object of the namespace, else the text itself."""
        from tagent_nb.storage import StorageBackend

        value = self.namespace.get(name) if name is not None else None
        return value if isinstance(value, StorageBackend) else name

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Functions of the namespace by name."""
        return {name: value for name, value in list(self.namespace.items()) if inspect.isfunction(value)}

    def function(self, name: str) -> Callable[..., Any]:
        """The function that an option names.

        Raises:
            DefinitionError: There is none of this name, or it cannot be called.
        """
        value: Any = self.namespace.get(name)
        if callable(value):
            return cast("Callable[..., Any]", value)
        if value is not None:
            raise DefinitionError(
                f"{name!r} is {kind_of(value)}, not a function. Write: def {name}(value): ..."
            )
        raise DefinitionError(
            f"There is no function {name!r}.{did_you_mean(name, self.functions())} "
            f"Define it in a cell above: def {name}(value): ..."
        )

    def schema(self, name: str) -> type[BaseModel]:
        """The pydantic model that an option names; ``module.Model`` is looked up in the namespace too.

        A type such as ``bool``, ``list[Model]`` or ``Literal["yes", "no"]`` is a schema as well.

        Raises:
            DefinitionError: There is none of this name, or it is no pydantic model.
        """
        from pydantic import BaseModel

        if is_expression(name) and name not in self.namespace:
            return self._bare_schema(name)
        first, *rest = name.split(".")
        value: Any = self.namespace.get(first)
        for part in rest:
            value = getattr(value, part, None)
        if inspect.isclass(value) and issubclass(value, BaseModel):
            return value
        if value is not None:
            raise DefinitionError(
                f"Schema {name!r} is {kind_of(value)}, not a pydantic model. "
                f"Write: class {name.split('.')[-1]}(pydantic.BaseModel): ..."
            )
        models = [schema for schema in self.schemas() if schema in self.namespace]
        raise DefinitionError(
            f"There is no schema {name!r}.{did_you_mean(name, models)} "
            f"Define it in a cell above; pydantic models here: {', '.join(sorted(models)) or 'none'}."
        )

    def _bare_schema(self, text: str) -> type[BaseModel]:
        """The schema of a type; the same one as long as the models in it are the same."""
        models: list[type[BaseModel]] = []

        def find(name: str) -> type[BaseModel]:
            models.append(self.schema(name))
            return models[-1]

        made = bare_schema(text, find)
        earlier = self._bare_schemas.get(text)
        if earlier is None or earlier[0] != models:
            self._bare_schemas[text] = earlier = (models, made)
        return earlier[1]

    def tools(self, wanted: Iterable[str]) -> dict[str, Callable[..., Any]]:
        """Functions of the namespace among the tools that an option names, but for the registered ones."""
        from tagent_nb.runners import registered_tools

        registered = registered_tools()
        return {
            name: self.namespace[name]
            for name in wanted
            if name not in registered and callable(self.namespace.get(name))
        }

    # -- where things are kept --------------------------------------------------------------

    @property
    def cache(self) -> ResultCache:
        """The cache of this notebook's folder, shared by its pipelines."""
        if self._cache is None:
            from tagent_nb.cache import ResultCache

            self._cache = ResultCache(defaults().cache or self.folder / "cache")
        return self._cache

    def apart(self, pipeline: Pipeline) -> Workspace:
        """A workspace in this notebook's folder for a pipeline that is none of the notebook's."""
        return self._workspace(pipeline, None, None)

    def _workspace(
        self, pipeline: Pipeline, where: StorageBackend | str | Path | None, keep_last: int | None
    ) -> Workspace:
        """A workspace with its storage. Those who say the same share one."""
        from tagent_nb.storage import open_storage

        pipeline.variables = self.namespace
        if where is not None and not isinstance(where, str | Path):
            return Workspace(pipeline, open_storage(where, keep_last=keep_last), where, keep_last)
        name = str((defaults().storage or self.folder / "runs") if where is None else where)
        key = (name, keep_last)
        if key not in self._storages:
            # What is kept of one pipeline is no rule for another in the same place.
            self._storages[key] = open_storage(name, keep_last=keep_last)
        return Workspace(pipeline, self._storages[key], where, keep_last)


@dataclass(frozen=True)
class _Begun:
    """Observer: once a run has begun, its states are of the definitions of that moment."""

    workspace: Workspace
    reads_text: ClassVar[bool] = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted | RunResumed):
            self.workspace.redefined.clear()


_session: Session | None = None


def current() -> Session:
    """The session of this kernel, made at the first call: pipelines, runs and results behind the magics."""
    global _session
    if _session is None:
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        _session = Session({} if shell is None else shell.user_ns)
    return _session
