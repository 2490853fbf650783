"""The public way to run a pipeline, from anywhere: script, notebook, or inside a running loop."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagent_nb.engine.approval.gate import checked_approver, chosen, decision_event, open_requests
from tagent_nb.engine.background import background_loop, submit
from tagent_nb.engine.context import RunOptions, RunServices
from tagent_nb.engine.handle import RunHandle
from tagent_nb.engine.memory.load import read_memory, schemas_of
from tagent_nb.engine.memory.memory import PipelineMemory
from tagent_nb.engine.memory.store import change_memories
from tagent_nb.engine.preflight import (
    TakenInputs,
    agent_problems,
    asks_models,
    budget_of,
    checked_poll,
    error_problems,
    expected_names,
    ledger_of,
    looking_in,
    missing_warnings,
    name_warnings,
    paid_middleware,
    part_of,
    refuse_batches,
    refuse_models,
    refuse_problems,
    refuse_unpriced,
    run_options,
    settle,
    take,
)
from tagent_nb.engine.recorder import ValueChecks
from tagent_nb.engine.recordings import calls_on
from tagent_nb.engine.session import (
    Runners,
    Session,
    begin,
    cancel_recorded,
    context_of,
    definition_of,
    lease_held,
    memory_of,
    preparation_of,
    record_decision,
    recorder_of,
    run_id_of,
    session_of,
)
from tagent_nb.engine.unit.prepared import model_of
from tagent_nb.errors import DefinitionError, LeaseLostError, NotStoredError, RunInProgressError, did_you_mean
from tagent_nb.events import CallRecorded, Event, Observer
from tagent_nb.foreign_words import EXECUTOR, own_keywords
from tagent_nb.pipeline import (
    ApprovalRequest,
    Approved,
    Approver,
    Budget,
    Decision,
    Edited,
    Limit,
    Pipeline,
    Price,
    Rejected,
    checked_prices,
    checked_timeout,
    defaults,
    map_warnings,
    shape_text,
)
from tagent_nb.redaction import note_secrets
from tagent_nb.results import PipelineResult
from tagent_nb.runners import Ledger, RateLimiter, traced
from tagent_nb.serde import Classes, to_tree
from tagent_nb.storage import RunInfo, open_storage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.cache import ResultCache
    from tagent_nb.engine.dry_run.plan import Plan
    from tagent_nb.results import RunHistory
    from tagent_nb.runners import CallMiddleware, StepRunner, Tracing
    from tagent_nb.storage import StorageBackend


CONCURRENCY, NETWORK_CONCURRENCY = 8, 32
"""Attempts at the same time without a say: those that take a thread or the local model, and those that wait
for a model over the network. A provider that finds that too many is asked less; see :class:`RateLimiter`."""

SECRET_VALUES = ("warn", "fail", "ignore")
"""What may be done about values that hold a secret."""


class PipelineExecutor:
    """Runs a pipeline: statuses, retries, timeouts, cache, records and events.

    Args:
        pipeline: What to run. It may be changed while a run goes on; the run does not see it.
        storage: Where runs are recorded: a backend, a folder, or a URL for :func:`open_storage`.
            Without one, what ``TAGENT_NB_STORAGE`` says, or else in memory, as long as this object lives.
        cache: Answers unchanged steps; ``None`` is what ``TAGENT_NB_CACHE`` says, or else none, and ``False``
            is none.
        model: Model of agent steps that do not name one; overrides the pipeline's. Where none is named, it
            is what ``TAGENT_NB_MODEL`` says.
        max_concurrency: Most attempts at the same time, items of mapped steps included. Without a say it is
            32 for steps that ask models over the network, and 8 for all others together.
        observers: Called with every event, on the run's loop; they must return fast.
        namespace: Names that Python bodies see besides the steps, such as the notebook's.
        schemas: Model classes that stored values are turned back into.
        retry_delay: Seconds; the ceiling of the first wait between attempts, doubled each time.
        runners: Other runners by kind (``"python"``, ``"agent"``, ``"plan"``).
        middleware: What each call to a model or a tool passes on its way, the first one outermost.
        gates: The earlier name of ``middleware``.
        trace_content: Whether OpenTelemetry spans, where that is set up, hold what is sent and answered.
        prices: Prices of own models by name, such as ``{"openai:my-model": Price(0.5, 1.5)}``; they
            come before the known ones.
        approver: Decides on what steps with ``approve`` and tools with ``approval_required`` suspend: a
            function that takes an :class:`ApprovalRequest` and returns :class:`Approved`,
            :class:`Edited` or :class:`Rejected`, or ``"wait"``: the run waits for :meth:`approve` and
            :meth:`reject`. ``None``: the run does what else it can and ends; it can be resumed.
        budget: Most that a run may spend: USD, a text such as ``"5000 tokens"``, or a :class:`Budget`.
            It is checked before each call of a model.
        limits: How fast each provider may be asked, such as ``{"openai": Limit(concurrency=8)}``; or the
            rate limiter itself, to be shared by executors on one loop.
        secret_values: What is done about a value that holds a secret of the environment, as it is or
            encoded, and that is about to be stored: ``"warn"`` stores it and warns, ``"fail"`` fails the
            step and stores nothing of it, ``"ignore"`` stores it. Values are never changed.
        recording: A file of :meth:`export_recording`. Its calls answer agent steps, and every run is
            offline: what is not recorded fails.
        batch_poll: Seconds after which a batch of requests is looked at for the first time, and most seconds
            from one look to the next; the waits between grow.

    Attributes:
        memory: Memory of the current or last run; ``None`` before the first.
        ledger: What the current or last run has spent and reserved.
    """

    @own_keywords(EXECUTOR)
    def __init__(
        self,
        pipeline: Pipeline,
        *,
        storage: StorageBackend | str | Path | None = None,
        cache: ResultCache | Literal[False] | None = None,
        model: Any = None,
        max_concurrency: int | None = None,
        observers: Iterable[Observer] = (),
        namespace: Mapping[str, Any] | None = None,
        schemas: Iterable[type[BaseModel]] = (),
        retry_delay: float = 0.5,
        runners: Mapping[str, StepRunner] | None = None,
        middleware: Iterable[CallMiddleware] = (),
        gates: Iterable[CallMiddleware] = (),
        trace_content: bool = False,
        prices: Mapping[str, Price] | None = None,
        approver: Approver | None = None,
        budget: Budget | float | str | None = None,
        limits: Mapping[str, Limit] | RateLimiter | None = None,
        recording: str | Path | None = None,
        secret_values: str = "warn",
        batch_poll: tuple[float, float] = (30.0, 600.0),
    ) -> None:
        if max_concurrency is not None and (
            not isinstance(max_concurrency, int) or isinstance(max_concurrency, bool) or max_concurrency < 1
        ):
            raise DefinitionError(
                f"max_concurrency must be a whole number from 1 on, not {max_concurrency!r}."
            )
        self.pipeline = pipeline
        self.defaults = defaults()
        self.storage = open_storage(self.defaults.storage if storage is None else storage)
        if cache is None and self.defaults.cache is not None:
            cache = _cache_in(Path(self.defaults.cache).resolve())
        if isinstance(cache, bool | str | Path) and cache is not False:
            raise DefinitionError(
                f"cache must be a ResultCache, None or False, not {cache!r}. "
                "Write cache=ResultCache('folder')."
            )
        self.cache = None if cache is False else cache
        self.model = model
        self.max_concurrency = max_concurrency
        self.namespace: Mapping[str, Any] = {} if namespace is None else namespace
        self.schemas = list(schemas)
        self.retry_delay = retry_delay
        self.runners: dict[str, StepRunner] = Runners()
        self.runners.update(runners or {})
        self.middleware = [*middleware, *gates]
        self.trace_content = trace_content
        if secret_values not in SECRET_VALUES:
            raise DefinitionError(
                f"secret_values must be {', '.join(map(repr, SECRET_VALUES))}, not {secret_values!r}."
            )
        self.secret_values = secret_values
        self.batch_poll = checked_poll(batch_poll)
        self._tracing: Tracing | None = None
        self.prices = checked_prices(prices)
        self.approver = checked_approver(approver)
        self.budget = self.defaults.budget if budget is None else Budget.of(budget)
        self.ledger = Ledger()
        self.limits = limits if isinstance(limits, RateLimiter) else RateLimiter(limits)
        self.recording = calls_on(recording)
        self.memory: PipelineMemory | None = None
        self._observers: list[Observer] = list(observers)
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Set from start() until execute() begins: a cancel() between the two counts.
        self._starting: asyncio.AbstractEventLoop | None = None
        self._actions: list[Callable[[Session], None]] = []

    # -- running ----------------------------------------------------------------------------

    async def execute(
        self,
        *,
        resume: bool | str = False,
        force: bool | Iterable[str] = (),
        until: str | None = None,
        offline: bool | None = None,
        use_cache: bool | None = None,
        on_change: str = "refuse",
        budget: Budget | float | str | None = None,
        inputs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        retry_failed: bool | str | Iterable[str] = False,
        wait: bool = True,
    ) -> PipelineResult:
        """Run the pipeline on the current loop.

        Args:
            resume: Carry on the newest run, or the run of this id; recorded steps are not run again.
            force: Steps (or ``True``: all) that neither cache nor record may answer for. Those of a run
                that is carried on stay forced until they have ended.
            until: Run only this step and what it depends on.
            offline: Agent steps are answered by the cache and by recorded calls only, those of the
                recording or else of the stored runs; a miss fails the step. Without a say a resumed
                run is as it was, and a new one is not offline.
            use_cache: ``False`` neither asks nor fills the cache. Without a say a resumed run does as
                it did, and a new one uses it.
            on_change: What a resumed run does about recorded steps whose definition changed:
                ``"refuse"`` raises, ``"rerun"`` runs them again and what depends on them.
            budget: Most that the run may spend, all its sessions together, in place of the executor's.
                ``"none"`` limits nothing; without a say a resumed run keeps the one that it had.
            inputs: Values by name that steps read and no step makes, such as ``{"df": df}``. They come
                before the pipeline's ``inputs``, and these before variables of ``namespace``. A run copies
                and records them when it begins; one that is carried on has those it recorded.
            timeout: Most seconds that this session may take, waits included, in place of the pipeline's. A
                run that takes longer is stopped, fails, and can be resumed.
            retry_failed: Carry on the newest run, or the one that ``resume`` names, and run the failed items
                of these mapped steps again (``True``: of all), also where a step has a value since enough
                of them succeeded. Steps below run again if what they read has changed by it.
            wait: Whether to wait for batches of requests (steps with ``batch``). ``False`` does what else can
                be done and ends while the provider has them, as with approvals; ``resume=True`` takes
                up the same batches, in any process.

        Returns:
            The result. A cancelled run returns what it has, with ``cancelled`` set, and one that ran out of
            time with ``timed_out``.

        Raises:
            PipelineValidationError: The definition has problems; it names all of them.
            DefinitionError: A budget cannot be read, or is in USD and a model's price is unknown; or
                ``retry_failed`` names a step of which nothing has failed.
            ModelError: A model cannot be used. Nothing was run.
            UnknownStepError: ``force``, ``until`` or ``retry_failed`` names no step.
            ResumeConflictError: Recorded steps have changed and ``on_change`` is ``"refuse"``.
            NotStoredError: There is no run to resume.
            RunInProgressError: This executor is running already.
            LeaseLostError: Another process carries the run on, from the start or since a while.
            StorageError: A result could not be recorded. What was recorded before is kept.
        """
        self._starting = None
        if self.running:
            raise RunInProgressError(
                f"Pipeline {self.pipeline.name!r} is running already. Wait for it, or cancel() it first."
            )
        self._loop = asyncio.get_running_loop()
        try:
            taken = self.take_inputs(inputs)
            options = run_options(
                self.pipeline,
                resume=resume,
                force=force,
                until=until,
                offline=True if self.recording is not None else offline,
                use_cache=use_cache,
                on_change=on_change,
                budget=budget,
                retry_failed=retry_failed,
                wait=wait,
            )
            limit = checked_timeout("The run", timeout)
            options = replace(options, timeout=limit or self.pipeline.timeout or self.defaults.timeout)
            return await self._run_session(self._checked(options, taken), options, taken)
        finally:
            self._session = self._loop = None
            self._actions.clear()

    def run(self, **options: Any) -> PipelineResult:
        """:meth:`execute` from anywhere: it works on a loop in a thread of its own and waits for it.

        ``KeyboardInterrupt`` cancels the run, waits for its steps to clean up, and is raised again;
        the run can be resumed and :attr:`result` has what was done.
        """
        try:
            return self.start(**options).result()
        except KeyboardInterrupt:
            self.cancel()  # once more, in case that it came before the wait began
            raise

    def retry_failed(self, *steps: str, **options: Any) -> PipelineResult:
        """Run the failed items of mapped steps again, and nothing else but what reads them; as :meth:`run`.

        It carries on the newest run, or the one that ``resume`` names. What else of that run is not done,
        such as a step that failed, is done as well.

        Args:
            steps: Names of mapped steps; without any it is all that have failed items.
            **options: Those of :meth:`execute`.

        Raises:
            DefinitionError: Nothing of these steps has failed.
        """
        return self.run(retry_failed=steps or True, **options)

    def start(self, **options: Any) -> RunHandle:
        """:meth:`execute` in the background; returns at once with a handle. Inputs are taken before that.

        Raises:
            DefinitionError: ``inputs`` has a name that is no input of the pipeline.
        """
        options["inputs"] = self.take_inputs(options.get("inputs"))
        self._starting = background_loop()
        return RunHandle(self, submit(self.execute(**options)))

    async def stream(self, **options: Any) -> AsyncIterator[Event]:
        """:meth:`execute`, giving each event as it happens. Leaving the loop early cancels the run.

        Raises what :meth:`execute` raises, after the last event.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._observers.append(events.put_nowait)
        task = asyncio.ensure_future(self.execute(**options))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await task
        finally:
            self._observers.remove(events.put_nowait)
            if not task.done():
                self.cancel()
                await asyncio.wait([task])

    def subscribe(self, observer: Observer) -> None:
        """Call ``observer`` with every event from now on."""
        self._observers.append(observer)

    # -- before a run -----------------------------------------------------------------------

    async def plan(
        self,
        *,
        resume: bool | str = False,
        force: bool | Iterable[str] = (),
        until: str | None = None,
        offline: bool | None = None,
        use_cache: bool | None = None,
        on_change: str = "refuse",
        budget: Budget | float | str | None = None,
        inputs: Mapping[str, Any] | None = None,
        retry_failed: bool | str | Iterable[str] = False,
    ) -> Plan:
        """What :meth:`execute` would do with the same options, and why. Calls no runner, records nothing.

        Where prompts are known, the plan says what their answers are likely to cost, from and to.

        Raises what :meth:`execute` raises before it begins; a resumed run that would be refused
        because steps have changed is planned, with ``conflicts`` set.
        """
        from tagent_nb.engine.dry_run.dry_run import DryRun
        from tagent_nb.engine.dry_run.history import EarlierRuns
        from tagent_nb.engine.dry_run.plan import Plan
        from tagent_nb.engine.resume import judge

        options = run_options(
            self.pipeline,
            resume=resume,
            force=force,
            until=until,
            offline=True if self.recording is not None else offline,
            use_cache=use_cache,
            on_change=on_change,
            budget=budget,
            retry_failed=retry_failed,
        )
        taken = self.take_inputs(inputs)
        pipeline = self._checked(options, taken)
        schemas = schemas_of(pipeline, self.schemas, self.namespace)
        run_id = await run_id_of(self.storage, pipeline, options)
        memory, _ = await memory_of(self.storage, pipeline, options, schemas, run_id, self.memory)
        values, other = await settle(pipeline, taken, memory)
        options = self._carried_on(pipeline, options, memory)
        services = self._services(pipeline, options, memory, schemas)
        if asks_models(pipeline, self.runners, offline=options.offline):
            refuse_unpriced(pipeline, self.model, services.budget, self.prices)
        context, unreadable = await context_of(pipeline, options, memory, services, values)
        recorder = recorder_of(context, memory)
        preparation = preparation_of(context, recorder)
        verdict = None
        if options.resume is not False:
            definition = definition_of(self.storage, pipeline)
            verdict = await judge(context, recorder, preparation, definition, other)
        history = EarlierRuns(self.storage, pipeline.id, pipeline.name)
        dry_run = DryRun(context, recorder, preparation, verdict, unreadable, history)
        steps = await dry_run.steps()
        changed = verdict.changed if verdict is not None and options.on_change == "refuse" else {}
        resumed = None if verdict is None else memory.run_id
        inputs = {name: shape_text(output.value) for name, output in values.items()}
        return Plan(
            pipeline.name,
            steps,
            resumed,
            changed,
            map_warnings(pipeline),
            inputs,
            services.budget,
            self._at_once(pipeline),
            dry_run.seconds_range(steps),
        )

    def _at_once(self, pipeline: Pipeline) -> str:
        """What the plan says of models over the network; empty without any."""
        models = [model_of(pipeline, step, self.model) for step in pipeline.steps if not step.is_python]
        if not models:
            return ""
        from tagent_nb.runners import asks_network

        if not any(map(asks_network, models)):
            return ""
        if self.max_concurrency is not None:
            return f"at most {self.max_concurrency} attempts at once"
        return f"at most {NETWORK_CONCURRENCY} requests at once over the network, and {CONCURRENCY} others"

    def take_inputs(self, inputs: Mapping[str, Any] | None = None) -> TakenInputs:
        """Copy what steps read that no step makes, as it is now: what ``run(inputs=...)`` takes by itself.

        Args:
            inputs: Values for a run, by name. They come before those of the pipeline, and these before
                variables of ``namespace``.

        Raises:
            DefinitionError: A name is no input of the pipeline.
        """
        return take(self.pipeline, inputs, self.namespace)

    # -- control, from any thread -----------------------------------------------------------

    def cancel(self, *, batches: bool = False) -> None:
        """Stop the run now; it can be resumed. Without a run, or called again, it does nothing.

        Args:
            batches: Whether batches that providers have are cancelled there, too. Else they go on, and a
                resumed run takes them up. What a provider has answered by then is paid, and kept.
        """

        def stop(session: Session) -> None:
            session.batches.cancelling = batches or session.batches.cancelling
            session.loop.cancel()

        self._act(stop)

    def cancel_batches(self) -> int:
        """Cancel at their providers the batches of the last run, which does not go on any more.

        A resumed run keeps what they have answered, and sends the rest again. One that may be another
        program's is left, with a warning.

        Returns:
            How many there were.

        Raises:
            RunInProgressError: The run goes on; :meth:`cancel` stops it.
            LeaseLostError: Another process carries it on.
            StorageError: It cannot be read, or the change could not be recorded.
        """
        if self.running:
            raise RunInProgressError(
                f"Pipeline {self.pipeline.name!r} is running. Stop it with cancel(batches=True)."
            )
        memory = self._newest_memory()
        if memory is None:
            return 0
        for name in memory.batches.supposed():
            warnings.warn(
                f"Batch {name} is not cancelled, since it may be another program's. A resumed run takes "
                "it up.",
                stacklevel=2,
            )
        if not memory.batches.under_way():
            return 0
        return submit(cancel_recorded(self.storage, self.pipeline, memory, self.model)).result()

    def pause(self) -> None:
        """Start nothing further until :meth:`resume`; what runs goes on."""
        self._act(lambda session: session.loop.pause())

    def resume(self) -> None:
        """Go on after :meth:`pause`. (To carry on an earlier run: ``run(resume=True)``.)"""
        self._act(lambda session: session.loop.unpause())

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self._loop is not None

    @property
    def result(self) -> PipelineResult | None:
        """The result as it stands now: live while a run goes on; ``None`` before the first."""
        return None if self.memory is None else self.memory.to_result()

    def _act(self, action: Callable[[Session], None]) -> None:
        """Do something with the run, on its loop; with one that is about to begin, when it has."""
        loop = self._loop or self._starting
        if loop is not None:
            loop.call_soon_threadsafe(self._act_now, action)

    def _act_now(self, action: Callable[[Session], None]) -> None:
        if self._session is not None:
            action(self._session)
        elif self._loop is not None or self._starting is not None:
            self._actions.append(action)

    # -- approvals, from any thread ---------------------------------------------------------

    def pending_approvals(self) -> list[ApprovalRequest]:
        """What waits for a decision in the run that goes on, or else in the last one, oldest first.

        Raises:
            StorageError: The last run cannot be read.
        """
        memory = self._newest_memory()
        return [] if memory is None else open_requests(memory, self.pipeline)

    def approve(
        self, step: str, item: str | None = None, *, tool: str | None = None, value: Any = ...
    ) -> None:
        """Approve what a step has suspended. A run with ``approver="wait"`` goes on with it at once. Without
        a run, or where it began without an approver, ``run(resume=True)`` goes on with it.

        Args:
            step: Whose result, or whose call of a tool.
            item: Which item of a mapped step; needed only where several wait.
            tool: The tool that is to be called; needed only where several wait.
            value: What to use in place of the result, or of the tool's arguments; without it they stay
                as they are.

        Raises:
            DefinitionError: Nothing of it waits, or several things do.
            OutputValidationError: ``value`` does not match the schema; nothing is decided.
            StorageError: The decision could not be recorded.
        """
        self._decide(step, item, tool, Approved() if value is ... else Edited(value))

    def reject(
        self,
        step: str,
        reason: str,
        *,
        item: str | None = None,
        tool: str | None = None,
        retry: bool = False,
    ) -> None:
        """Refuse what a step has suspended; arguments and errors as for :meth:`approve`.

        Args:
            step: Whose result, or whose call of a tool.
            reason: Why, in words. A result fails its step with it; a call of a tool is not made, and the
                model gets the reason.
            item: Which item of a mapped step.
            tool: Which tool.
            retry: Let the step try again, with the reason, if it has retries left.
        """
        self._decide(step, item, tool, Rejected(reason, retry))

    def decide(self, request: ApprovalRequest, decision: Decision) -> None:
        """Decide on one of :meth:`pending_approvals`; errors as for :meth:`approve`."""
        decided = decision_event(request, decision)
        if self.running:
            self._act(lambda session: session.approvals.decide(decided))
        else:
            submit(record_decision(self.storage, self.pipeline.id, self.memory, decided)).result()

    def _decide(self, step: str, item: str | None, tool: str | None, decision: Decision) -> None:
        self.decide(chosen(self.pending_approvals(), step, item, tool), decision)

    def _newest_memory(self) -> PipelineMemory | None:
        """The memory of the run that goes on, or else of the last one."""
        if self.memory is not None:
            return self.memory
        try:
            return submit(read_memory(self.storage, self.pipeline.name, None, self._classes())).result()
        except NotStoredError:
            return None

    # -- recorded runs ----------------------------------------------------------------------

    async def history(self) -> list[RunInfo]:
        """The recorded runs of the pipeline, oldest first."""
        return await self.storage.runs(self.pipeline.id)

    async def load_result(self, run_id: str | None = None) -> PipelineResult:
        """The result of a recorded run, without an id of the newest.

        Raises:
            NotStoredError: There is no such run.
            CorruptRecordError: It is damaged.
        """
        return (await read_memory(self.storage, self.pipeline.name, run_id, self._classes())).to_result()

    async def load_history(self, last: int = 20) -> RunHistory:
        """The results of the newest recorded runs, the oldest of them first, to be looked at together.

        Raises:
            DefinitionError: ``last`` is less than 1.
            CorruptRecordError: One of them is damaged.
        """
        from tagent_nb.results import RunHistory

        if not isinstance(last, int) or last < 1:
            raise DefinitionError(f"last must be a whole number from 1 on, not {last!r}.")
        runs = await self.storage.runs(self.pipeline.id, limit=last)
        return RunHistory([await self.load_result(run.run_id) for run in runs], runs)

    async def export_recording(self, path: str | Path, run_id: str | None = None) -> int:
        """Write the calls behind a recorded run, without an id the newest, to a file that replays it.

        Secrets of the environment are left out; prompts, answers and what tools gave are in it.

        Returns:
            The number of calls.

        Raises:
            NotStoredError: There is no such run, it made no calls, or the cache answered and the calls are
                gone.
            StorageError: The file cannot be written.
        """
        from tagent_nb.engine.recordings import calls_behind, write_recording

        calls = await calls_behind(self.storage, self.pipeline, run_id)
        return await asyncio.to_thread(write_recording, path, self.pipeline.name, calls)

    # -- saved memories, from any thread ----------------------------------------------------

    def memories(self) -> dict[str, Any]:
        """The saved memories of the pipeline, the newest last.

        Raises:
            CorruptRecordError: They are damaged.
        """
        return submit(self.storage.memories(self.pipeline.id, self._classes())).result()

    def set_memory(self, key: str, value: Any) -> None:
        """Save a memory, or replace the one of this key.

        Raises:
            DefinitionError: The key is no text, or empty.
            EncodeError: The value cannot be stored; the message has the path to it.
            StorageError: It could not be stored.
        """
        if not isinstance(key, str) or not key.strip():
            raise DefinitionError(f"The key of a memory must be a text, not {key!r}.")
        to_tree(value, path=f"memory {key!r}")

        def change(stored: dict[str, Any]) -> None:
            stored.pop(key, None)
            stored[key] = value

        self._change_memories(change)

    def forget_memory(self, key: str) -> None:
        """Delete a memory.

        Raises:
            DefinitionError: There is none of this key.
            StorageError: It could not be stored.
        """

        def change(stored: dict[str, Any]) -> None:
            if key not in stored:
                raise DefinitionError(
                    f"Pipeline {self.pipeline.name!r} has no memory {key!r}.{did_you_mean(str(key), stored)} "
                    f"Saved: {', '.join(stored) or 'none'}."
                )
            del stored[key]

        self._change_memories(change)

    def _change_memories(self, change: Callable[[dict[str, Any]], None]) -> None:
        submit(change_memories(self.storage, self.pipeline.id, self._classes(), change)).result()

    def _classes(self) -> Classes:
        return schemas_of(self.pipeline, self.schemas, self.namespace)

    # -- inside -----------------------------------------------------------------------------

    async def _run_session(
        self, pipeline: Pipeline, options: RunOptions, taken: TakenInputs
    ) -> PipelineResult:
        """One session of a run: from its lease to its last record."""
        note_secrets()
        schemas = schemas_of(pipeline, self.schemas, self.namespace)
        run_id = await run_id_of(self.storage, pipeline, options)

        def lost(error: LeaseLostError) -> None:
            self._act_now(lambda session: session.loop.fail(error))

        tracing = traced(self._observers, pipeline.name, self.trace_content)
        with self.storage.subscribe(self._on_storage_warning), tracing as self._tracing:
            # Read under the lease: what another process records until it gives the run back is seen.
            async with lease_held(self.storage, pipeline.id, run_id, lost) as lease:
                memory, late = await memory_of(self.storage, pipeline, options, schemas, run_id, self.memory)
                values, changed = await settle(pipeline, taken, memory)
                options = self._carried_on(pipeline, options, memory)
                calls = await self._calls(pipeline, options)
                services = self._services(pipeline, options, memory, schemas, calls)
                context, unreadable = await context_of(
                    pipeline, options, memory, services, values, lease.token
                )
                recorder = recorder_of(context, memory)
                preparation = preparation_of(context, recorder)
                checks = ValueChecks(context, recorder)
                if asks_models(pipeline, self.runners, offline=options.offline):
                    refuse_unpriced(pipeline, self.model, services.budget, self.prices)

                def accepted() -> None:
                    self.memory, self.ledger = memory, services.ledger

                await begin(context, recorder, preparation, checks, changed, unreadable, accepted)
                self._session = session = session_of(context, recorder, preparation, checks)
                if late:
                    await recorder.save_memories(late)
                for message in self._warnings(pipeline, options):
                    recorder.warn(message)
                for action in self._actions:
                    action(session)
                if self.cache is not None:
                    self.cache.protect(run_id, recorder.warn_from_anywhere)
                try:
                    await session.loop.drive()
                finally:
                    if self.cache is not None:
                        await self.cache.arelease(run_id)
            # Warnings of storage, which tidied up after the run, are on their way.
            await asyncio.sleep(0)
        return memory.to_result()

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
        problems = agent_problems(pipeline, settings=asks_models(pipeline, self.runners, offline=False))
        refuse_problems(pipeline, [*problems, *error_problems(pipeline, self.namespace)])
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
        if asks_models(pipeline, self.runners, offline=options.offline):
            refuse_models(pipeline, self.model)
            refuse_batches(pipeline, self.model)

    def _warnings(self, pipeline: Pipeline, options: RunOptions) -> list[str]:
        """What the user should know of a run that begins."""
        messages = [*map_warnings(pipeline), *missing_warnings(pipeline, self.namespace)]
        if asks_models(pipeline, self.runners, offline=options.offline):
            messages += name_warnings(pipeline, self.model, self.prices, self.limits.limited)
        return messages

    async def _calls(self, pipeline: Pipeline, options: RunOptions) -> list[CallRecorded] | None:
        """The calls that may answer for models, in an offline run."""
        if not options.offline or all(step.is_python for step in pipeline.steps):
            return None
        if self.recording is not None:
            return self.recording
        from tagent_nb.engine.recordings import calls_of_runs

        return await calls_of_runs(self.storage, pipeline.id)

    def _on_storage_warning(self, problem: str) -> None:
        """Storage has met a problem, and got over it: a warning of the run, or of the one that begins."""
        self._act(lambda session: session.recorder.warn(problem))

    def _services(
        self,
        pipeline: Pipeline,
        options: RunOptions,
        memory: PipelineMemory,
        schemas: Mapping[str, type],
        calls: list[CallRecorded] | None = None,
    ) -> RunServices:
        budget = budget_of(options, self.budget, memory)
        ledger = ledger_of(pipeline, self.model, budget, self.prices, memory)
        return RunServices(
            storage=self.storage,
            cache=self.cache,
            runners=self.runners,
            model=self.model,
            namespace=self.namespace,
            schemas=schemas,
            max_concurrency=self.max_concurrency or CONCURRENCY,
            network_concurrency=NETWORK_CONCURRENCY if self.max_concurrency is None else None,
            retry_delay=self.retry_delay,
            middleware=tuple(self.middleware if self._tracing is None else [self._tracing, *self.middleware]),
            # An offline run asks no provider, and so waits for none.
            paid=paid_middleware(pipeline, ledger, None if options.offline else self.limits),
            prices=self.prices,
            budget=budget,
            ledger=ledger,
            recorded=calls,
            observers=self._observers,
            approver=checked_approver(self.approver),
            secret_values=self.secret_values,
            batch_poll=self.batch_poll,
        )


def run_pipeline(pipeline: Pipeline, **options: Any) -> PipelineResult:
    """Run a pipeline; see :meth:`Pipeline.run`."""
    running, making = split_options(options)
    return PipelineExecutor(pipeline, **making).run(**running)


@cache
def _cache_in(folder: Path) -> ResultCache:
    """The cache of a folder, one for all executors of this process."""
    from tagent_nb.cache import ResultCache

    return ResultCache(folder)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a run, and all others."""
    own = set(inspect.signature(PipelineExecutor.execute).parameters) - executor_keywords()
    running = {name: value for name, value in options.items() if name in own}
    return running, {name: value for name, value in options.items() if name not in own}


@cache
def executor_keywords() -> frozenset[str]:
    """What :class:`PipelineExecutor` takes besides a pipeline."""
    return frozenset(inspect.signature(PipelineExecutor).parameters) - {"pipeline"}
