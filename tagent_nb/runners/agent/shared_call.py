"""One call for several rows of an agent step: what it says, and what of its answer is whose."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from tagent_nb.errors import OutputValidationError
from tagent_nb.events import ASKED_ALONE, ROWS_IN_CALL, Warned
from tagent_nb.formatting import count
from tagent_nb.pipeline import PipelineStep
from tagent_nb.redaction import redact
from tagent_nb.runners.base import UNKNOWN_REASON, ModelCall, SharedRows
from tagent_nb.runners.calls import model_chain
from tagent_nb.runners.models.resolve import (
    ASSUMED_INPUT,
    ASSUMED_OUTPUT,
    SHARED_REQUESTS,
    too_long,
)
from tagent_nb.runners.row_groups import Seat, SharedContext
from tagent_nb.serde import inner_type, is_bare

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings


ROWS_RULE = (
    "You are asked for several rows at once. Each stands between <row ID> and </row ID>. Do the task for "
    "each row as if it were the only one: no row says anything about another. Answer with a list that has "
    "exactly one entry for each row, under its ID as it is written."
)
"""What a model reads besides where it is asked for several rows."""

ROW_TOKENS = 24
"""Tokens that an entry of the answer may take besides its value."""

LEAST_REJECTED = 4
"""Rows from which on a model that rejects each call for any of them is not asked for several again."""

_LETTERS = "bcdfghjkmnpqrstvwxz"
_ID_LENGTH = 4


class SharedCalls:
    """Asks for several rows of a step at once, in one run.

    Args:
        step: The step.
        model: Whom it asks.
        system: The system instruction of its units.
        settings: Those of the step.
    """

    def __init__(self, step: PipelineStep, model: Model[Any], system: str, settings: ModelSettings) -> None:
        from pydantic import TypeAdapter

        from tagent_nb.runners.models.output import output_of

        self._step = step
        self._model = model
        self._settings = settings
        schema = step.output_schema
        kind: Any = str if schema is None else inner_type(schema) if is_bare(schema) else schema
        self._values: TypeAdapter[Any] = TypeAdapter(kind)
        self._form = rows_form(kind)
        self._output, hint = output_of(model, self._form, step.output_mode)
        self._instructions = "\n\n".join([system, ROWS_RULE, *hint])
        self._agent: Agent[Any, Any] | None = None
        self._most = step.rows_per_call
        self._has_answered = False
        self._has_warned = False

    async def values(self, groups: SharedRows, seat: Seat, model: Model[Any]) -> tuple[Sequence[Any], str]:
        """What an answer has under the ID of a row, as plain data, and why that will not do unless it is one.

        What the journal of the run has recorded of the row answers for it, with whomever it was asked then.

        Raises:
            Exception: What the call has failed with.
        """
        from tagent_nb.runners.models.accounting import account

        context = seat.context
        has_asked = False

        async def ask(call: ModelCall) -> ModelResponse:
            nonlocal has_asked
            has_asked = True
            return await groups.answer(seat)

        layers = context.middleware
        if not context.offline:
            layers = [layer for layer in layers if layer.of_rows]
        response = await model_chain(layers, self._row_call(seat, model), ask)
        if not has_asked:
            account(context, response)
        notes = response.metadata or {}
        context.metadata[ROWS_IN_CALL] = notes.get(ROWS_IN_CALL, 1)
        if UNKNOWN_REASON in notes:
            context.metadata[UNKNOWN_REASON] = notes[UNKNOWN_REASON]
        values = _listed(response.text or "")
        missing = notes.get(ASKED_ALONE) or "the answer left it out"
        return values, f"the answer had it {len(values)} times" if values else missing

    def value(self, data: Any) -> Any:
        """The value of a row from what stands under its ID.

        Raises:
            ValueError: It does not match the step's schema, or is no text without one.
        """
        from pydantic_core import to_json

        try:
            return self._values.validate_json(to_json(data))
        except Exception as error:  # validators of the user raise what they like
            raise ValueError(str(error)) from error

    def _row_call(self, seat: Seat, model: Model[Any]) -> ModelCall:
        """A row's part of a call as a call for that row alone: by it, the journal knows the row again."""
        from pydantic_ai.messages import ModelRequest, UserPromptPart

        request = ModelRequest(parts=[UserPromptPart(seat.task)], instructions=self._instructions)
        return ModelCall(seat.context, model, [request], self._settings, self._row_parameters)

    @cached_property
    def _row_parameters(self) -> ModelRequestParameters:
        from pydantic_ai.models import ModelRequestParameters
        from pydantic_ai.output import OutputObjectDefinition

        return ModelRequestParameters(output_object=OutputObjectDefinition(self._form.model_json_schema()))

    # -- the call ---------------------------------------------------------------------------

    def parts(self, seats: Sequence[Seat]) -> Iterator[Sequence[Seat]]:
        """These rows in as many calls as the model needs to read each at once, and as it has not rejected."""
        place = 0
        for rows in fitting(seats[0].context.model, [seat.pieces for seat in seats]):
            for start in range(place, place + len(rows), self._most):
                yield seats[start : min(start + self._most, place + len(rows))]
            place += len(rows)

    async def ask(self, seats: Sequence[Seat]) -> list[ModelResponse | Exception]:
        """Make one call; returns each row's part of the answer, or what has failed for it, in order.

        An answer that is no list, or was cut or filtered, has no part for any row: each is asked for by
        itself then. A request that the provider rejects is made again for each half of the rows, and one that
        is at fault is asked for by itself, and fails alone. How many rows are too many is learnt from that.

        Raises:
            Exception: The call has failed in another way, as it would have for each row.
        """
        if self._most == 1:
            trouble = f"the model has rejected all calls for several rows of step {self._step.name!r}"
            return [self._alone(seat, 1, trouble) for seat in seats]
        answers, trouble = await self._answers(seats)
        if not trouble or len(seats) == 1:
            self._has_answered = self._has_answered or not trouble
            return [*answers]
        parts: list[ModelResponse | Exception] = []
        rejected = await self._by_halves(seats, trouble, parts)
        if rejected and not self._has_answered and len(seats) >= LEAST_REJECTED:
            self._most = 1
            self._warn(seats, "and all smaller ones, so each row is asked for by itself", trouble)
        return parts

    async def _by_halves(
        self, seats: Sequence[Seat], trouble: str, parts: list[ModelResponse | Exception]
    ) -> bool:
        """Ask for each half of rows whose call was rejected; returns whether all their calls were.

        Args:
            seats: The rows.
            trouble: Why their call was rejected.
            parts: Takes each row's part, in order.
        """
        if len(seats) == 2:
            parts += [self._alone(seat, 2, trouble) for seat in seats]
            return True
        middle = -(-len(seats) // 2)
        outcomes: list[bool | None] = []
        for half in (seats[:middle], seats[middle:]):
            if len(half) == 1:
                parts.append(self._alone(half[0], len(seats), trouble))
                continue
            try:
                answers, again = await self._answers(half)
            except Exception as error:  # the other half's answers are paid for, and are kept
                parts += [error] * len(half)
                outcomes.append(None)
                continue
            outcomes.append(bool(again))
            if again:
                outcomes[-1] = await self._by_halves(half, again, parts)
            else:
                self._has_answered = True
                parts += answers
        if outcomes == [False, False] and middle < self._most:
            # Neither half holds a row that is at fault: there were too many.
            self._most = middle
            self._warn(seats, f"and took calls for {middle:,}, so no later one is for more", trouble)
        return all(outcomes)

    def _warn(self, seats: Sequence[Seat], then: str, trouble: str) -> None:
        """Say once for a run that calls are for fewer rows than the step says."""
        if not self._has_warned:
            self._has_warned = True
            message = (
                f"Step {self._step.name!r}: the model rejected a call for {count(len(seats), 'row')}, "
                f"{then}. Set a smaller rows_per_call (--rows-per-call), or a smaller max_tokens, which is "
                f"that of one row. What came: {trouble}"
            )
            context = seats[0].context
            context.emit(Warned(run_id=context.run_id, message=redact(message), step=self._step.name))

    def _alone(self, seat: Seat, rows: int, trouble: str) -> ModelResponse:
        """The part of a row that is to be asked for by itself."""
        return self._part(seat, (), None, {}, rows, trouble)

    async def _answers(self, seats: Sequence[Seat]) -> tuple[list[ModelResponse], str]:
        """Make one call; returns each row's part, and why the provider has rejected it if it has."""
        from pydantic_ai import Agent, capture_run_messages, exceptions

        from tagent_nb.runners.models.errors import explained
        from tagent_nb.runners.models.gateway import ModelGateway

        context = SharedContext(seats)
        task = rows_prompt([seat.pieces for seat in seats])
        if self._agent is None:
            self._agent = Agent(
                None,
                output_type=self._output,
                instructions=self._instructions,
                name=self._step.name,
                deps_type=SharedContext,
                retries={"output": 0, "tools": 0},
            )
        rows: Any = ()
        trouble = ""
        is_rejected = False
        with capture_run_messages() as messages:
            try:
                result = await self._agent.run(
                    task.text,
                    model=ModelGateway(self._model, context, structured=True),
                    deps=context,
                    model_settings=self._settings_for(len(seats)),
                )
                rows = result.output.rows
            except (exceptions.ModelAuthenticationError, exceptions.ModelNotFoundError):
                raise
            except (
                exceptions.UnexpectedModelBehavior,
                exceptions.ModelRequestRejectedError,
                OutputValidationError,
            ) as error:
                is_rejected = isinstance(error, exceptions.ModelRequestRejectedError)
                better = explained(self._step, context, error, messages)
                trouble = f"the call for {count(len(seats), 'row')} failed: {better}"
        answer = next((message for message in reversed(messages) if message.kind == "response"), None)
        values = _by_id(rows, task.ids)
        parts = [
            self._part(seat, values[row], answer, context.metadata, len(seats), trouble)
            for seat, row in zip(seats, task.ids, strict=True)
        ]
        return parts, trouble if is_rejected else ""

    def _settings_for(self, rows: int) -> ModelSettings:
        """The step's settings, whose ``max_tokens`` are those of one row."""
        settings: Any = {**self._settings}
        if isinstance(settings.get("max_tokens"), int):
            settings["max_tokens"] = rows * (settings["max_tokens"] + ROW_TOKENS)
        return settings  # type: ignore[no-any-return]

    def _part(
        self,
        seat: Seat,
        values: Sequence[Any],
        answer: ModelResponse | None,
        metadata: Mapping[str, Any],
        rows: int,
        trouble: str,
    ) -> ModelResponse:
        """A row's part of an answer, as an answer of its own: it is recorded, and replayed, as one."""
        from pydantic_ai.messages import ModelResponse, TextPart
        from pydantic_ai.usage import RequestUsage
        from pydantic_core import to_json

        used, cost = seat.usage, seat.cost
        details = {SHARED_REQUESTS: used.requests}
        if used.unmeasured:
            details |= {ASSUMED_INPUT: used.assumed_input_tokens, ASSUMED_OUTPUT: used.assumed_output_tokens}
        notes: dict[str, Any] = {ROWS_IN_CALL: rows}
        if trouble:
            notes[ASKED_ALONE] = trouble
        if UNKNOWN_REASON in metadata:
            notes[UNKNOWN_REASON] = metadata[UNKNOWN_REASON]
        return ModelResponse(
            parts=[TextPart(to_json(list(values)).decode())],
            usage=RequestUsage(
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                cache_read_tokens=used.cached_tokens,
                output_reasoning_tokens=used.reasoning_tokens,
                unmeasured_requests=int(used.unmeasured),
                details=details,
                cost=None if cost is None else Decimal(repr(cost)),
            ),
            model_name=None if answer is None else answer.model_name,
            provider_name=None if answer is None else answer.provider_name,
            metadata=notes,
        )


# -- what it says -----------------------------------------------------------------------------


class RowsPrompt(NamedTuple):
    """The prompt of a call for several rows.

    Attributes:
        text: The prompt.
        ids: The ID of each row.
    """

    text: str
    ids: Sequence[str]


def rows_prompt(rows: Sequence[Sequence[str]]) -> RowsPrompt:
    """The prompt of a call for rows whose tasks are these pieces.

    What is the same for all of them is said once, with marks where the rows differ, if that is shorter.
    """
    ids = row_ids(["".join(pieces) for pieces in rows])
    whole = f"Each row below has a task of its own.\n\n{_blocks(ids, [''.join(pieces) for pieces in rows])}"
    marked = _marked(ids, rows)
    return RowsPrompt(whole if marked is None or len(marked) >= len(whole) else marked, ids)


def fitting(model: Any, rows: Sequence[Sequence[str]]) -> Iterator[Sequence[Sequence[str]]]:
    """Rows, given by the pieces of their tasks, in as many parts as a model needs to read each at once."""
    if len(rows) == 1 or not too_long(model, rows_prompt(rows).text):
        yield rows
    else:
        half = len(rows) // 2
        yield from fitting(model, rows[:half])
        yield from fitting(model, rows[half:])


def _marked(ids: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """The prompt that says once what is the same; ``None`` where the tasks are not built alike."""
    first = rows[0]
    if any(len(pieces) != len(first) for pieces in rows):
        return None
    differ = [place for place, piece in enumerate(first) if any(pieces[place] != piece for pieces in rows)]
    if not differ or any("[[ROW" in piece for piece in first):
        return None
    marks = {place: "[[ROW]]" if len(differ) == 1 else f"[[ROW {n}]]" for n, place in enumerate(differ, 1)}
    frame = "".join(marks.get(place, piece) for place, piece in enumerate(first))
    prefixes = {place: "" if len(differ) == 1 else f"{marks[place]} " for place in differ}
    texts = ["\n".join(prefixes[place] + pieces[place] for place in differ) for pieces in rows]
    stands = "[[ROW]] stands" if len(differ) == 1 else f"{marks[differ[0]]} to {marks[differ[-1]]} stand"
    return (
        f"The task, the same for each row; {stands} for what is given below for the row:\n\n{frame}\n\n"
        f"The rows:\n\n{_blocks(ids, texts)}"
    )


def _blocks(ids: Sequence[str], texts: Sequence[str]) -> str:
    return "\n\n".join(f"<row {row}>\n{text}\n</row {row}>" for row, text in zip(ids, texts, strict=True))


def row_ids(tasks: Sequence[str]) -> list[str]:
    """IDs of rows in one call: a few letters of a digest, so that a model that counts rows hits none.

    Equal tasks get IDs of their own.
    """
    ids: list[str] = []
    for task in tasks:
        number = 0
        while (row := _id(f"{number}:{task}")) in ids:
            number += 1
        ids.append(row)
    return ids


def _id(text: str) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8])
    letters = ""
    for _ in range(_ID_LENGTH):
        number, place = divmod(number, len(_LETTERS))
        letters += _LETTERS[place]
    return letters


# -- what is answered -------------------------------------------------------------------------


def rows_form(kind: Any) -> type[BaseModel]:
    """The schema of an answer for several rows whose values are of a type.

    It is what a model reads; the values themselves are validated one by one, by :meth:`SharedCalls.value`.
    """
    from pydantic import SkipValidation, create_model, model_validator

    row = create_model("Row", row=(str, ...), value=(kind, ...))

    def listed(cls: Any, data: Any) -> Any:
        return {"rows": data} if isinstance(data, list) else data

    listed_rows: Any = SkipValidation[list[row]]  # type: ignore[valid-type]
    as_method: Any = classmethod(listed)
    validators: dict[str, Any] = {"listed": model_validator(mode="before")(as_method)}
    return create_model("Rows", rows=(listed_rows, ...), __validators__=validators)


def _by_id(rows: Any, ids: Sequence[str]) -> dict[str, list[Any]]:
    """What an answer has under each of the IDs; entries of any other form or ID count for nothing."""
    values: dict[str, list[Any]] = {row: [] for row in ids}
    for row, value in _entries(rows):
        if row in values:
            values[row].append(value)
    return values


def _entries(rows: Any) -> Iterator[tuple[str, Any]]:
    for entry in rows if isinstance(rows, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("row"), str) and "value" in entry:
            yield entry["row"].strip(), entry["value"]


def _listed(text: str) -> list[Any]:
    """The values that a row's part of an answer has."""
    from pydantic_core import from_json

    try:
        values = from_json(text)
    except ValueError:
        return []
    return values if isinstance(values, list) else []
