"""Other rows for a pipeline: a step that reads a file instead of what it was written to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagent_nb.engine import expected_names, taken_names
from tagent_nb.errors import DefinitionError, StepError
from tagent_nb.pipeline import CELL_FUNCTION, ExecutionMode, Pipeline, PipelineStep, PythonBody

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["feed", "read_lines"]

_FRAME = "# The rows of {file}\nimport pandas as pd\npd.read_{kind}({path!r}{more})"
_TABLE = (
    "# The rows of {file}, in which what looks like a number is read as one, 007 as 7;\n"
    "# with dtype=str all is text.\n"
    "import pandas as pd\npd.read_{kind}({path!r}{more})"
)
_LINES = "# The rows of {file}\nfrom tagent_nb.export.inputs import read_lines\nread_lines({path!r})"
_JSON = (
    "# What {file} says\nimport json\n"
    "with open({path!r}, encoding='utf-8-sig') as file:\n    value = json.load(file)\nvalue"
)
_TEXT = "# The text of {file}\nfrom pathlib import Path\nPath({path!r}).read_text(encoding='utf-8-sig')"
_READERS = {
    ".csv": (_TABLE, "csv", ""),
    ".tsv": (_TABLE, "csv", ", sep='\\t'"),
    ".jsonl": (_LINES, "", ""),
    ".parquet": (_FRAME, "parquet", ""),
    ".json": (_JSON, "", ""),
    ".txt": (_TEXT, "", ""),
}


def feed(pipeline: Pipeline, source: str | Path) -> PipelineStep | None:
    """Let a step of the pipeline give what a file holds, or give that to the pipeline as an input.

    A step's own work is not done. A name that steps read and that is no step is an input: the file is read
    now, into :attr:`Pipeline.inputs`.

    CSV, TSV, JSON lines and Parquet give a DataFrame, a row a line; JSON gives its value, text a string. The
    step keeps its name, so that others read it as before; it is never answered from the cache, since
    the file may change.

    JSON lines and JSON have types, which stay: ``"01234"`` is text, and no text is taken for a date. CSV and
    TSV have none: pandas reads what looks like numbers as numbers (``01234`` as 1234), empty cells, ``NA``
    and the like as missing, ``True`` and ``False`` as booleans, and dates as text. Where that is wrong, feed
    JSON lines, or let the step itself read the file with ``pd.read_csv(..., dtype=str)``.

    Args:
        pipeline: Is changed.
        source: ``"NAME=FILE"``, the name of a step or an input. Without ``NAME=`` it is the one Python step
            that reads nothing, or the one input that has no value yet.

    Returns:
        The step; ``None`` for an input.

    Raises:
        DefinitionError: The file is not there or of no known kind, cannot be read, or it is not clear what is
            meant.
        UnknownStepError: The pipeline has no such step or input.
    """
    name, separator, file = str(source).partition("=")
    if not separator:
        name, file = "", str(source)
    path = Path(file)
    if path.suffix not in _READERS:
        raise DefinitionError(
            f"{file!r} cannot be an input: its name must end in {', '.join(_READERS)}. "
            "Write STEP=FILE, or FILE alone."
        )
    if not path.is_file():
        raise DefinitionError(f"There is no file {file!r} to read. Look at its path: {path.absolute()}")
    text, kind, more = _READERS[path.suffix]
    code = text.format(file=path.name, path=str(path), kind=kind, more=more)
    name = name or _source(pipeline, file)
    if name not in pipeline and name in {*expected_names(pipeline), *taken_names(pipeline)}:
        pipeline.give(**{name: _value(name, file, code)})
        return None
    step = pipeline.get_step(name)
    made = PipelineStep.from_cell(
        step.name, code, python=True, cache=False, execution_mode=ExecutionMode.CONCURRENT
    )
    pipeline.put(made)
    return made


def read_lines(path: str | Path) -> pd.DataFrame:
    """The rows of a file of JSON lines, with the types that JSON has; empty lines are left out.

    Raises:
        StepError: A line is no JSON; the message has its number.
        OSError: The file cannot be read.
    """
    from tagent_nb.results import frame_of

    rows = []
    with Path(path).open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise StepError(
                    f"Line {number} of {str(path)!r} is no JSON: {error}. Each line must be one value, such "
                    'as {"text": "Great"}.'
                ) from None
    return frame_of(rows)


def _value(name: str, file: str, code: str) -> Any:
    """What the code of a step that reads a file gives."""
    names: dict[str, Any] = {}
    try:
        exec(PythonBody.from_cell(name, code).compile(()), names)
        return names[CELL_FUNCTION]()
    except Exception as error:  # pandas and what reads for it raise many kinds
        raise DefinitionError(f"{file!r} cannot be read for the input {name!r}: {error}") from error


def _source(pipeline: Pipeline, file: str) -> str:
    """The name of what a file is for that comes without one."""
    steps = [
        step.name
        for step in pipeline.steps
        if step.is_python and not pipeline.dependencies(step) and not pipeline.inputs_of(step)
    ]
    candidates = [*steps, *expected_names(pipeline)]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(candidates or [step.name for step in pipeline.steps])
    if len(steps) < len(candidates):
        why = "several steps and inputs could be meant"
    else:
        why = (
            "several Python steps read no other step" if candidates else "no Python step reads no other step"
        )
    raise DefinitionError(
        f"Which step of {pipeline.name!r} gives the rows of {file!r}? In it, {why}. Write STEP={file}, "
        f"where STEP is one of: {names}."
    )
