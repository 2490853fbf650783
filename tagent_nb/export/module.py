"""A pipeline as a Python module that runs by itself."""

from __future__ import annotations

import argparse
import ast
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from tagent_nb.engine import looking_in, refuse_problems, taken_names
from tagent_nb.errors import DefinitionError, StepError
from tagent_nb.export.globals import PACKAGE, Surroundings, function_source, home_of
from tagent_nb.pipeline import (
    And,
    Condition,
    Contains,
    DataExists,
    ExecutionMode,
    IsEmpty,
    IsEqualTo,
    IsGreaterThan,
    IsLessThan,
    Not,
    Or,
    Pipeline,
    PipelineStep,
    PythonBody,
    input_text,
    input_value,
    schema_of,
)
from tagent_nb.runners import ToolOptions, named_tools, options_of, registered_tools
from tagent_nb.serde import is_bare
from tagent_nb.user_objects import function_name

MARK = "# Written by tagent-nb "
"""How an exported module begins; a digest of what follows is behind it."""

_OWN = ("name", "goal", "body")
_CONDITIONS = (DataExists, IsEmpty, IsEqualTo, IsGreaterThan, IsLessThan, Contains)

_MAIN = '''
def {main}() -> int:
    """Run the pipeline, and print a table of its steps."""
    parser = argparse.ArgumentParser(description=f"Run the pipeline {{{pipeline}.name!r}}.")
    parser.add_argument("--model", help="model of agent steps that name none: local, test, openai:...")
    parser.add_argument("--storage", default=".tagent/runs", help="folder or URL where runs are recorded")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="RUN",
        help="carry on the newest run, or this one: recorded steps are not run again",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="let a step give the rows of this file (.csv, .jsonl, .json ...) instead of its own, or give "
        "them as an input; without NAME, the one Python step that reads nothing, or the missing input",
    )
    args = parser.parse_args()
    try:
        for source in args.input:
            tagent_nb.feed({pipeline}, source)
        result = tagent_nb.PipelineExecutor(
            {pipeline},
            model=args.model,
            storage=args.storage,
            cache=tagent_nb.ResultCache(".tagent/cache"),
            namespace=globals(),
        ).run(resume=args.resume)
    except tagent_nb.TagentError as error:
        print(error, file=sys.stderr)
        return 1
    print(result.to_frame().to_string())
    for step, error in result.error_details.items():
        print(f"{{step}}: {{error}}", file=sys.stderr)
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit({main}())
'''


def export_module(pipeline: Pipeline, namespace: Mapping[str, Any] | None = None) -> str:
    """A Python module that makes ``pipeline``, and runs it when it is run as a script.

    It holds the steps with their options, the schemas, and what of ``namespace`` Python steps, schemas and
    tools refer to: functions and classes as source, modules as imports, plain values as they are. Inputs
    that are plain values stand in it; others, such as a DataFrame, are named. Goals and
    cells are the same to the letter, so that what the notebook has cached and recorded serves the module.

    Args:
        pipeline: The pipeline.
        namespace: Names that its Python cells see, such as the notebook's.

    Raises:
        PipelineValidationError: The pipeline has problems.
        DefinitionError: Something cannot be written as Python; the message lists all of it.
    """
    snapshot = looking_in(pipeline, {}, namespace or {})
    refuse_problems(snapshot)
    return _Writer(snapshot, {} if namespace is None else namespace).module()


def is_own(text: str) -> bool:
    """Whether a module is as :func:`export_module` wrote it, and it has not been changed since."""
    head, _, rest = text.partition("\n")
    return head.startswith(MARK) and head.endswith(f" {_digest(rest)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Writer:
    """Writes one pipeline."""

    def __init__(self, pipeline: Pipeline, namespace: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.namespace = namespace
        self.around = Surroundings()
        self.problems = self.around.problems
        self._steps = {step.name for step in pipeline.steps}
        self._inputs = taken_names(pipeline)
        self._placed: dict[str, PythonBody] = {}

    def module(self) -> str:
        """All of it."""
        taken = {*self.namespace, *self._steps}
        own, main = _free("pipeline", taken), _free("main", taken)
        for module in (argparse, sys, PACKAGE):
            self.around.reserve(module.__name__, module)
        for step in self.pipeline.steps:
            function = step.body.function if step.body is not None else None
            if function is not None:
                self.around.reserve(function.__name__, function)
        head = self._head(own)
        steps = [self._step(step, own) for step in self.pipeline.steps]
        tools = self._registered()
        self._refuse()
        imports = sorted(
            {*self.around.imports, "import argparse", "import sys", "import tagent_nb"}, key=_order
        )
        parts = [
            '"""A pipeline that was written in a notebook. Run it: python FILE --help"""',
            *(["from __future__ import annotations"] if self.around.future else []),
            "\n".join(sorted(imports, key=_order)),
            *self.around.definitions,
            *tools,
            head,
            *steps,
        ]
        text = "\n\n".join(part for part in parts if part) + "\n\n" + _MAIN.format(pipeline=own, main=main)
        compile(text, "<export>", "exec", dont_inherit=True)
        return f"{MARK}{PACKAGE.__version__} {_digest(text)}\n{text}"

    def _refuse(self) -> None:
        if self.problems:
            lines = "\n".join(f"  - {name}: {why}" for name, why in self.problems.items())
            raise DefinitionError(f"Pipeline {self.pipeline.name!r} cannot be written as a module:\n{lines}")

    # -- the pipeline -----------------------------------------------------------------------

    def _head(self, own: str) -> str:
        pipeline = self.pipeline
        lines = []
        words = [repr(pipeline.name)]
        if pipeline.description:
            words.append(repr(pipeline.description))
        if pipeline.default_mode is not ExecutionMode.SERIAL:
            words.append(f"default_mode={_mode(pipeline.default_mode)}")
        if isinstance(pipeline.model, str):
            words.append(f"model={pipeline.model!r}")
        elif pipeline.model is not None:
            # It may hold a key or a connection. The user of the module names a model.
            lines.append(
                f"# The notebook used a model object ({type(pipeline.model).__name__}): give --model."
            )
        if pipeline.instructions is not None:
            words.append(f"instructions={_text(pipeline.instructions)}")
        if pipeline.timeout is not None:
            words.append(f"timeout={pipeline.timeout!r}")
        if pipeline.final is not None:
            words.append(f"final={pipeline.final!r}")
        lines.append(f"{own} = tagent_nb.Pipeline({', '.join(words)})")
        if pipeline.global_constraints:
            lines.append(f"{own}.constraint{_call(map(_text, pipeline.global_constraints))}")
        for name, value in pipeline.shared_context.items():
            lines.append(f"{own}.share({name}={self.around.value(f'shared {name}', value)})")
        lines += [self._input(name, own) for name in self._inputs]
        return "\n".join(lines)

    def _input(self, name: str, own: str) -> str:
        """A statement that gives an input, or a comment on one that cannot stand here."""
        path = f"input {name}"
        text = self.around.value(path, input_value(self.pipeline, name))
        if self.problems.pop(path, None) is None:
            return f"{own}.give({name}={text})"
        about = input_text(self.pipeline, name).removeprefix("input:")
        return f"# The input {about} does not stand here. Give it: --input {name}=FILE"

    # -- one step -----------------------------------------------------------------------------

    def _step(self, step: PipelineStep, own: str) -> str:
        body = step.body
        if body is None:
            options = self._options(step, self.pipeline.default_mode)
            self._tools(step)
            return f"{own}.step{_call([_text(step.name), _text(step.goal), *options])}"
        if body.kind == "function":
            return self._function(step, body, own)
        options = ["python=True", *self._options(step, ExecutionMode.SERIAL)]
        # Its own name is no step that it could read.
        reads = body.names - (self._steps - {step.name}) - {"item", *self._inputs}
        self.around.names(reads, self.namespace)
        cell = f"tagent_nb.PipelineStep.from_cell{_call([_text(step.name), _cell(body.source), *options])}"
        goal = "" if step.goal == body.summary else f".with_(goal={_text(step.goal)})"
        return f"{own}.put({cell}{goal})"

    def _function(self, step: PipelineStep, body: PythonBody, own: str) -> str:
        options = self._options(step, self.pipeline.default_mode)
        if step.goal != body.summary:
            options = [f"goal={_text(step.goal)}", *options]
        if step.name != body.name:
            options = [f"name={step.name!r}", *options]
        decorator = f"{own}.task" + (_call(options) if options else "")
        path = f"step {step.name}"
        function = body.function
        home = None if function is None else home_of(function)
        if home is not None:
            self.around.imports[f"from {home} import {body.name}"] = None
        if home is not None or body.name in self._placed:
            if self._placed.setdefault(body.name, body).source != body.source:
                self.problems[path] = f"there are two functions {body.name!r}; rename one of them"
            return f"{decorator}({body.name})"
        self._placed[body.name] = body
        try:
            source = body.source if function is None else function_source(function)
        except LookupError as error:
            self.problems[path] = str(error)
            return ""
        if body.name == "<lambda>":
            self.problems[path] = "a lambda has no name; write it with def"
            return ""
        self.around.code(source, getattr(function, "__globals__", self.namespace))
        return f"@{decorator}\n{source}"

    def _options(self, step: PipelineStep, mode: ExecutionMode) -> list[str]:
        """The fields of a step that differ from their default, as keywords."""
        options = []
        for field in fields(step):
            value = getattr(step, field.name)
            default = field.default if field.default_factory is MISSING else field.default_factory()
            default = mode if field.name == "execution_mode" else default
            if field.name in _OWN or value is default or (field.name != "when" and value == default):
                continue
            options.append(f"{field.name}={self._option(step, field.name, value)}")
        return options

    def _option(self, step: PipelineStep, name: str, value: Any) -> str:
        path = f"step {step.name}, {name}"
        if name == "execution_mode":
            return _mode(value)
        if name == "depends_on":
            return repr([str(dependency) for dependency in value])
        if name == "budget":
            return repr(str(value))
        if name == "output_schema" and is_bare(value):
            self.problems[path] = f"{value.__name__} is no class that can be written; name a pydantic model"
            return ""
        if name == "output_schema":
            return self._reference(value)
        if name in ("tools", "checks"):
            return f"[{', '.join(self._function_name(path, function) for function in value)}]"
        if name == "retry_on":
            self.around.names({kind.split(".")[0] for kind in value if isinstance(kind, str)}, self.namespace)
            kinds = (repr(kind) if isinstance(kind, str) else self._reference(kind) for kind in value)
            return f"[{', '.join(kinds)}]"
        if isinstance(value, Condition):
            return self._condition(path, value)
        if name == "models" and not all(isinstance(model, str) for model in value.values()):
            self.problems[path] = "a model object cannot be written; name it by a string"
            return ""
        if name == "model" and not isinstance(value, str):
            self.problems[path] = (
                f"a model object ({type(value).__name__}) cannot be written; name it by a string"
            )
            return ""
        return self.around.value(path, value)

    def _condition(self, path: str, condition: Condition) -> str:
        kind = type(condition).__name__
        if isinstance(condition, And | Or):
            return f"tagent_nb.{kind}{_call(self._condition(path, part) for part in condition.conditions)}"
        if isinstance(condition, Not):
            return f"tagent_nb.Not({self._condition(path, condition.condition)})"
        if type(condition) not in _CONDITIONS:
            self.problems[path] = f"a condition of the class {kind} cannot be written; use one of tagent_nb's"
            return ""
        words = [repr(vars(condition)["reference"])]
        if "value" in vars(condition):
            words.append(self.around.value(path, vars(condition)["value"]))
        return f"tagent_nb.{kind}({', '.join(words)})"

    # -- classes and functions that steps name ------------------------------------------------

    def _function_name(self, path: str, function: Callable[..., Any]) -> str:
        if schema_of(function) is not None:
            return ""  # _tools reports it
        if not function_name(function).isidentifier():
            self.problems[path] = f"{function_name(function)} has no name; write it with def"
            return ""
        return self._reference(function)

    def _reference(self, value: Any) -> str:
        """The name of a class or function, which is defined or imported above."""
        name: str = getattr(value, "__name__", type(value).__name__)
        self.around.name(name, value)
        return name

    def _tools(self, step: PipelineStep) -> None:
        try:
            for name, function in named_tools(step).items():
                if schema_of(function) is None:
                    self.around.name(name, function)
                else:
                    self.problems[f"step {step.name}, tool {name}"] = (
                        "it comes from a toolset, which cannot be written; leave it out with tools_filter, "
                        "or write the tool as a function"
                    )
        except StepError as error:
            self.problems[f"step {step.name}, tools_filter"] = str(error)

    def _registered(self) -> list[str]:
        """Statements that register the tools that agent steps may use by their name."""
        used: dict[str, Callable[..., Any]] = {}
        for step in self.pipeline.steps:
            if not step.is_python and f"step {step.name}, tools_filter" not in self.problems:
                used.update(named_tools(step))
        done = _decorated("\n".join(self.around.definitions))
        lines = []
        for name, function in registered_tools().items():
            if used.get(name) is function and name not in done and schema_of(function) is None:
                settings = _settings(options_of(function))
                lines.append(f"tagent_nb.tool{settings}({function_name(function)})")
        return ["\n".join(lines)]


def _settings(options: ToolOptions) -> str:
    """The arguments of ``tool`` that make these options, in parentheses if there are any."""
    settings = {"timeout": options.timeout, "approval_required": options.approval_required or None}
    if options.effect:
        settings[options.effect] = True
    words = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
    return f"({words})" if words else ""


def _decorated(source: str) -> set[str]:
    """Functions that ``@tool`` stands above."""
    names = set()
    for node in ast.parse(source).body:
        for decorator in getattr(node, "decorator_list", ()):
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if getattr(target, "attr", getattr(target, "id", "")) == "tool":
                names.add(node.name)  # type: ignore[attr-defined]
    return names


# -- notation -----------------------------------------------------------------------------------


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _order(statement: str) -> tuple[bool, str]:
    return statement.startswith("from"), statement


def _mode(mode: ExecutionMode) -> str:
    return f"tagent_nb.ExecutionMode.{mode.name}"


def _call(arguments: Any) -> str:
    """Arguments in parentheses, one a line where one line would be too long."""
    words = list(arguments)
    line = f"({', '.join(words)})"
    if len(line) <= 80 and "\n" not in line:
        return line
    return "(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _text(text: str) -> str:
    """A text in the notation that reads best."""
    return _block(text, "\\\n", "") if "\n" in text else repr(text)


def _cell(source: str) -> str:
    """A cell's text: lines of its own, which from_cell strips."""
    return _block(source, "\n", "\n")


def _block(text: str, before: str, after: str) -> str:
    quotes = '"' if text.endswith('"') else '"""'  # a last quote would end the block too early
    escaped = text.replace("\\", "\\\\").replace(quotes, quotes.replace('"', '\\"'))
    plain = all(letter.isprintable() or letter in "\n\t" for letter in text)
    return f'"""{before}{escaped}{after}"""' if plain else repr(text)
