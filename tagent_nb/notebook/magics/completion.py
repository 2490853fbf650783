"""Tab in the lines of magics and in goals: options, steps, schemas, pipelines, and fields after a dot."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable
from inspect import isclass
from typing import Any

from IPython.core import completer

from tagent_nb.engine import submit
from tagent_nb.errors import TagentError
from tagent_nb.notebook.magics.registry import magic_functions
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import PipelineStep, is_variable

_LINE = re.compile(r"^\s*(?:\w+\s*=\s*)?(%%?)(tagent_\w+)[ \t](.*)$", re.DOTALL)
_REFERENCE = re.compile(r"\{[{%](?:(?![}%]\}).)*?(?P<step>\w+\.)?(?P<word>\w*)$", re.DOTALL)
_STEP_OPTIONS = ("--depends-on", "--items", "--until", "--force", "--retry-failed", "--remove", "--clear")
_STEP_MAGICS = ("tagent_explain", "tagent_results")
_RUN_OPTIONS = ("--resume", "--run")
HAS_MATCHERS = hasattr(completer, "context_matcher")
"""Whether this IPython asks others what Tab offers, as 8.6 and later do. Before, Tab knows magics only."""
_MAX_RUNS = 1000
"""Newest runs that Tab offers."""

_RUNS_TIMEOUT = 1.0
"""Seconds that a storage may take to list runs while the keyboard waits."""
_MODELS = ("local", "test", "openai:", "anthropic:", "google:", "ollama:")


class MagicCompleter:
    """Completes what the magics of a session read.

    Args:
        session: Knows steps, pipelines and schemas.
        shell: The IPython shell.
    """

    def __init__(self, session: Session, shell: Any) -> None:
        self.session = session
        self.shell = shell

    def install(self) -> None:
        """Add :meth:`complete` to the shell's matchers, if its IPython has these."""
        if HAS_MATCHERS:
            self._matcher = completer.context_matcher(identifier="tagent_nb")(
                lambda context: self.complete(context)
            )
            self.shell.Completer.custom_matchers.append(self._matcher)

    def remove(self) -> None:
        """Take it away again."""
        if HAS_MATCHERS:
            self.shell.Completer.custom_matchers.remove(self._matcher)

    def complete(self, context: Any) -> dict[str, Any]:
        """What IPython asks, with the whole text and the place of the cursor in it."""
        lines = context.full_text.split("\n")[: context.cursor_line + 1]
        lines[-1] = lines[-1][: context.cursor_position]
        fragment, words, more = self.words("\n".join(lines))
        fitting = [word for word in words if word.startswith(fragment)]
        completions = [completer.SimpleCompletion(text=word, type="magic") for word in fitting]
        # Inside our own lines, Python's names would only be in the way.
        suppress = bool(completions) and not more
        return {"completions": completions, "matched_fragment": fragment, "suppress": suppress}

    def words(self, text: str) -> tuple[str, list[str], bool]:
        """What may stand at the end of ``text``: what of it is there, the words, and whether others may."""
        _, newline, body = text.rpartition("\n")
        line = _LINE.match(text.partition("\n")[0] if text.startswith("%%tagent_step") else body)
        if line is None:
            return "", [], True
        if newline and text.startswith("%%tagent_step"):
            return self._in_goal(text.partition("\n")[2])
        return self._in_line(line.group(2), line.group(3))

    def _in_goal(self, body: str) -> tuple[str, list[str], bool]:
        reference = _REFERENCE.search(body)
        if reference is None:
            return "", [], True
        if reference["step"] is None:
            return reference["word"], [*self._steps(), *self._variables()], True
        return reference["word"], self._fields(reference["step"][:-1]), True

    def _in_line(self, magic: str, rest: str) -> tuple[str, list[str], bool]:
        parser = getattr(magic_functions().get(magic), "parser", None)
        if parser is None:
            return "", [], True
        words = re.split(r"\s", rest)
        fragment, before = words[-1], next((word for word in reversed(words[:-1]) if word), "")
        if fragment.startswith("-"):
            options = [option for action in parser._actions for option in action.option_strings]
            return fragment, sorted(set(options) - set(words[:-1])), False
        return self._value(magic, before, fragment)

    def _value(self, magic: str, before: str, fragment: str) -> tuple[str, list[str], bool]:
        if before == "--output-schema":
            return fragment, sorted(self.session.schemas()), False
        if before == "--check":
            return fragment.rpartition(",")[2], sorted(self.session.functions()), False
        if before == "--retry-on":
            return fragment.rpartition(",")[2], self._errors(), True
        if before == "--model":
            return fragment, list(_MODELS), True
        if before == "--on-change":
            return fragment, ["refuse", "rerun"], False
        if before in ("--map-over", "--reduce-over"):
            return fragment, [*self._steps(), *self._variables()], False
        if before in _STEP_OPTIONS or (not before and magic in _STEP_MAGICS):
            return fragment.rpartition(",")[2], self._steps(), False
        if before in _RUN_OPTIONS or (not before and magic == "tagent_history"):
            return fragment, self._runs(), False
        if magic == "tagent_compare" and not before.startswith("-"):
            return fragment, [*sorted(self.session.workspaces), *self._runs()], False
        if before == "--set":
            fields = [field for field in PipelineStep.__dataclass_fields__ if field not in ("name", "body")]
            return fragment, [f"{step}.{field}=" for step in self._steps() for field in fields], False
        if not before and magic == "tagent_pipeline":
            return fragment, sorted(self.session.workspaces), False
        if not before and magic == "tagent_nest":
            return fragment, ["on"], False
        return "", [], True

    def _steps(self) -> list[str]:
        return [step.name for step in self.session.pipeline.steps] if self.session.workspaces else []

    def _errors(self) -> list[str]:
        """Classes of errors of the notebook and of Python."""
        names = {**vars(builtins), **self.session.namespace}
        return sorted(name for name, kind in names.items() if isclass(kind) and issubclass(kind, Exception))

    def _variables(self) -> list[str]:
        """Variables that can be inputs."""
        space, steps = self.session.namespace, self._steps()
        return sorted(name for name in list(space) if name not in steps and is_variable(name, space))

    def _runs(self) -> list[str]:
        """Ids of recorded runs, the newest first; none where the storage cannot say so soon."""
        if not self.session.workspaces:
            return []
        space = self.session.workspace
        listing = submit(space.storage.runs(space.pipeline.id, limit=_MAX_RUNS))
        try:
            return [run.run_id for run in reversed(listing.result(_RUNS_TIMEOUT))]
        except (TagentError, TimeoutError):
            # The magic itself reports what is wrong; Tab has no place for it.
            listing.cancel()
            return []

    def _fields(self, name: str) -> list[str]:
        """Fields of a step's schema; of a mapped step's items they are read through a loop."""
        steps: Iterable[Any] = self.session.pipeline.steps if self.session.workspaces else ()
        schemas = [step.output_schema for step in steps if step.name == name]
        if schemas:
            return [field for schema in schemas if schema is not None for field in schema.model_fields]
        value = self.session.namespace.get(name)
        columns = value if isinstance(value, dict) else getattr(value, "columns", ())
        return [column for column in columns if isinstance(column, str) and column.isidentifier()]
