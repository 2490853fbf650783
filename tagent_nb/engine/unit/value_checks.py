"""What is warned of, or refused, in values that are about to be stored: secrets, and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tagent_nb.errors import DefinitionError, StepError
from tagent_nb.events import Event, FactLearned, InputTaken, MemorySaved, Output, StepFinished
from tagent_nb.redaction import note_secrets
from tagent_nb.serde import Classes, StoredValue

if TYPE_CHECKING:
    from tagent_nb.engine.context import RunContext
    from tagent_nb.engine.recorder import Recorder

SEARCHED = 1_000_000
"""Most bytes of an encoded value that are searched for secrets: searching more would be felt."""


class ValueChecks:
    """Looks at the values of one run before they are stored.

    Args:
        context: Of the run.
        recorder: Takes the warnings.

    Attributes:
        searching: Whether values of steps are searched for secrets at all.
    """

    def __init__(self, context: RunContext, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder
        # Noted once: a step may take one out of the environment, but seldom puts one in.
        self._secrets = note_secrets()
        services = context.services
        stored = services.storage.durable or services.cache is not None
        self.searching = bool(self._secrets.needles) and stored and services.secret_values != "ignore"
        self._classes: dict[str, set[type]] = {}
        self._left_out: set[tuple[str, str]] = set()

    def look_for_secrets(self, step: str, events: Sequence[Event]) -> None:
        """Warn of values of a step that hold a secret of the environment, and are about to be stored.

        Raises:
            StepError: There is one, and the executor's ``secret_values`` is ``"fail"``.
        """
        if not self.searching:
            return
        for event in events:
            if isinstance(event, StepFinished):
                output, what = event.output, "its value"
            else:
                assert isinstance(event, FactLearned | MemorySaved)
                output, what = StoredValue.of(event.value), f"what it learned as {event.key!r}"
            name = self._secret_in(output)
            if name is None:
                continue
            holds = f"holds the value of the environment variable {name}, as it is or encoded"
            message = f"Step {step!r}: {what} {holds}"
            if self._context.services.secret_values == "fail":
                raise StepError(
                    f"{message}. Nothing of it was stored. Leave it out of what the step returns."
                )
            self._recorder.warn(
                f"{message}, and is stored with it. Leave it out of what the step returns, or let the step "
                'fail: PipelineExecutor(..., secret_values="fail").',
                step,
            )

    def secret_of_input(self, event: InputTaken) -> str:
        """What to warn of when an input holds a secret and is about to be stored; else empty.

        Raises:
            DefinitionError: It holds a secret, and the executor's ``secret_values`` is ``"fail"``.
        """
        services = self._context.services
        if not self._secrets.needles or services.secret_values == "ignore" or not services.storage.durable:
            return ""
        name = self._secret_in(event.output)
        if name is None:
            return ""
        message = (
            f"Input {event.name!r} holds the value of the environment variable {name}, as it is or encoded"
        )
        if services.secret_values == "fail":
            raise DefinitionError(f"{message}. Nothing was stored or run. Leave it out of the variable.")
        return f"{message}, and is stored with the run. Leave it out of the variable."

    def warn_of_losses(self, step: str, output: Output) -> None:
        """Warn once of classes that another process will not find when it reads a step's value."""
        left_out = {(step, what) for what in getattr(output, "left_out", ())} - self._left_out
        if left_out:
            self._left_out |= left_out
            self._recorder.warn(
                f"Step {step!r}: its value will come back without some attributes, which cannot be stored: "
                f"{'; '.join(sorted(what for _, what in left_out))}. Keep what a later step needs in fields.",
                step,
            )
        seen = self._classes.setdefault(step, set())
        new = getattr(output, "classes", seen) - seen
        if not new:
            return
        seen |= new
        schemas = Classes.of(self._context.services.schemas, step)
        losses = sorted(loss for loss in map(schemas.loss_of, new) if loss)
        if losses:
            self._recorder.warn(
                f"Step {step!r}: its value will not come back as it is when a later session reads it: "
                f"{'; '.join(losses)}. Define such a class in a cell of its own or in a module, and name it "
                "in the step's code or as its output schema.",
                step,
            )

    def _secret_in(self, output: Output) -> str | None:
        """The variable whose value is in an output that can be stored."""
        stored = output if isinstance(output, StoredValue) else StoredValue.of(output.value)
        if not stored.storable:
            return None
        blob = stored.blob
        if len(blob) > SEARCHED or not self._secrets.are_in_bytes(blob):
            return None
        return next(name for _, name in self._secrets.forms_in(blob.decode()))
