"""Forms for what waits for approval: a field for each field of the schema, and Approve, Try again, Reject.

A part of the panel (see :mod:`tagent_nb.notebook.panel.extension`). A decision in a form goes through
:meth:`PipelineExecutor.decide`; what is wrong with an edited value stands in the form, which stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tagent_nb.display import FONT, LINE, MUTED, TONES, escape
from tagent_nb.errors import TagentError
from tagent_nb.events import Event
from tagent_nb.formatting import one_line
from tagent_nb.notebook.widgets.widget_style import close_tree, tip
from tagent_nb.notebook.workspace import Workspace
from tagent_nb.pipeline import ApprovalRequest, Approved, Decision, Edited, Rejected, StepStatus
from tagent_nb.redaction import redact
from tagent_nb.user_objects import safe_repr

MAX_FORMS = 5
"""Forms that are shown at a time; the next one comes when one of them is answered."""

LONG = 60
"""Characters from which a text gets more than one line."""

MAX_ROWS = 12
"""Lines of a field at most; longer texts are scrolled."""

MAX_INTEGER = 2**53
"""Beyond this a browser cannot tell whole numbers apart."""

Decide = Callable[[ApprovalRequest, Decision], None]


_OFFERS = (
    ("approve", "Approve", "check", "Go on with what stands here", "mod-success"),
    ("retry", "Try again", "repeat", "Reject, and let the step try again", ""),
    ("reject", "Reject", "times", "Reject, with the reason", ""),
)
"""See :class:`~tagent_nb.notebook.widgets.decision_buttons.DecisionButtons`."""


class Field:
    """One value in a form.

    Args:
        name: What it is called; empty for a value without a name.
        value: As JSON.
        schema: Its JSON Schema; empty if it is unknown.
    """

    def __init__(self, name: str, value: Any, schema: Mapping[str, Any]) -> None:
        from ipywidgets import Checkbox, Dropdown, FloatText, IntText, Layout, Text, Textarea

        self.name = name
        self.value = value
        self._is_json = False
        kind, choices = schema.get("type"), schema.get("enum")
        common: dict[str, Any] = {
            "description": name,
            "style": {"description_width": "initial"},
            "layout": Layout(width="95%"),
            **tip(Text, one_line(str(schema.get("description", "")), 200)),
        }
        if choices and value in choices:
            self.widget = Dropdown(
                options=[(str(choice), choice) for choice in choices], value=value, **common
            )
        elif kind == "boolean" and isinstance(value, bool):
            self.widget = Checkbox(value=value, indent=False, **common)
        elif kind == "integer" and type(value) is int and abs(value) < MAX_INTEGER:
            self.widget = IntText(value=value, **common)
        elif kind == "number" and type(value) in (int, float):
            self.widget = FloatText(value=value, **common)
        elif isinstance(value, str) and kind in ("string", None):
            long = len(value) > LONG or "\n" in value
            more = {"rows": _rows(value)} if long else {}
            self.widget = (Textarea if long else Text)(value=value, **more, **common)
        else:
            self._is_json = True
            text = json.dumps(value, ensure_ascii=False, indent=2)
            self.widget = Textarea(value=text, rows=_rows(text), **common)
        self._before = self.widget.value

    def take(self, entered: Any) -> None:
        """Set what stands in the page: a value, or of a choice its index.

        Raises:
            ValueError: The field cannot hold it.
        """
        from traitlets import TraitError

        try:
            setattr(self.widget, "index" if hasattr(self.widget, "index") else "value", entered)
        except TraitError as error:
            raise ValueError(f"{self.name or 'the value'}: {error}") from None

    @property
    def changed(self) -> bool:
        """Whether it was edited."""
        return bool(self.widget.value != self._before)

    def read(self) -> Any:
        """The value as it is now.

        Raises:
            ValueError: It is no JSON.
        """
        if not self.changed:
            return self.value
        if not self._is_json:
            return self.widget.value
        try:
            return json.loads(self.widget.value)
        except ValueError as error:
            raise ValueError(f"{self.name or 'the value'} is no JSON: {error}") from None


def _rows(text: str) -> int:
    """Lines that a text takes in a form, and one to write on."""
    return min(MAX_ROWS, sum(1 + len(line) // LONG for line in text.split("\n")) + 1)


class ApprovalForm:
    """A form for one thing that waits.

    Args:
        request: What waits.
        decide: Takes the decision; raises what is wrong with it.

    Attributes:
        box: The widget.
        fields: The fields; none for a value that cannot be shown as JSON.
        error: What is wrong with what was entered, as HTML.
    """

    def __init__(self, request: ApprovalRequest, decide: Decide) -> None:
        from ipywidgets import HTML, Layout, Text, VBox

        from tagent_nb.notebook.widgets.decision_buttons import DecisionButtons

        self.request = request
        self._decide = decide
        self.error = HTML()
        self._is_record = False
        self.fields, shown = self._fields()
        self.reason = Text(
            placeholder="Reason (to reject or try again)", layout=Layout(width="95%"), **tip(Text, "Reason")
        )
        # The model learns that a call is not allowed, and goes on by itself.
        offers = [offer for offer in _OFFERS if offer[0] != "retry" or not request.tool]
        self.buttons = DecisionButtons([*(field.widget for field in self.fields), self.reason], offers)
        self.buttons.on_msg(lambda _, content, buffers: self._clicked(content))
        goal = f'<div style="{MUTED}">{escape(one_line(request.goal, 200))}</div>' if request.goal else ""
        head = f'<div style="{FONT}"><b>Approve {escape(request.title)}?</b>{goal}{shown}</div>'
        self.box = VBox(
            [
                HTML(value=head),
                *(field.widget for field in self.fields),
                self.error,
                self.reason,
                self.buttons,
            ],
            layout=Layout(border=f"1px solid {LINE}", padding="6px", margin="4px 0"),
        )

    def approve(self) -> None:
        """Approve the value as it stands in the form."""
        try:
            edited = any(field.changed for field in self.fields)
            self._send(Edited(self._read()) if edited else Approved())
        except ValueError as error:
            self._show_problem(str(error))

    def reject(self, *, retry: bool = False) -> None:
        """Reject the value for the reason in the form."""
        reason = self.reason.value.strip()
        if not reason:
            self._show_problem("Say why, in the line for the reason.")
            return
        self._send(Rejected(reason, retry))

    def _clicked(self, content: Mapping[str, Any]) -> None:
        """A button was pressed; with it come the values in the page."""
        if self.buttons.decided:
            return  # pressed twice
        *entered, self.reason.value = content["values"]
        try:
            for field, value in zip(self.fields, entered, strict=True):
                field.take(value)
        except ValueError as error:
            self._show_problem(str(error))
            return
        if content["decision"] == "approve":
            self.approve()
        else:
            self.reject(retry=content["decision"] == "retry")

    def _send(self, decision: Decision) -> None:
        try:
            self._decide(self.request, decision)
        except TagentError as error:
            self._show_problem(str(error))
            return
        self.error.value = ""
        self.buttons.decided = True

    def _show_problem(self, problem: str) -> None:
        tone = TONES[StepStatus.FAILED]
        self.error.value = (
            f'<div role="alert" style="{FONT};color:{tone};overflow-wrap:anywhere">'
            f"{escape(one_line(redact(problem), 1000))}</div>"
        )

    def _read(self) -> Any:
        if self._is_record:
            return {field.name: field.read() for field in self.fields}
        return self.fields[0].read()

    def _fields(self) -> tuple[list[Field], str]:
        """The fields, and what is shown in place of fields."""
        value = self.request.value
        if isinstance(value, str):
            return [Field("", value, {})], ""
        try:
            plain = _as_json(value)
        except Exception:  # foreign objects raise what they like: then they can be looked at only
            text = escape(one_line(safe_repr(value), 4000))
            return [], f'<pre style="overflow:auto;max-height:20em">{text}</pre>'
        schema = self.request.parameters
        properties = schema.get("properties", {})
        if not isinstance(plain, dict) or not plain or not properties:
            return [Field("", plain, {})], ""
        self._is_record = True
        fields = [
            Field(name, content, _resolved(properties.get(name, {}), schema))
            for name, content in plain.items()
        ]
        return fields, ""

    def close(self) -> None:
        """Take the form away."""
        close_tree(self.buttons)
        close_tree(self.box)


def _as_json(value: Any) -> Any:
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    plain = to_jsonable_python(value)
    json.dumps(plain, allow_nan=False)
    return plain


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field's schema with its reference looked up, such as that of an Enum."""
    name = str(field.get("$ref", "")).removeprefix("#/$defs/")
    definition: Mapping[str, Any] = schema.get("$defs", {}).get(name, field)
    return definition


class ApprovalForms:
    """The forms of a panel: one for each thing that its run waits for.

    Args:
        workspace: Whose runs.

    Attributes:
        widget: The forms, below each other.
        forms: Those that are shown.
    """

    def __init__(self, workspace: Workspace) -> None:
        from ipywidgets import HTML, Layout, VBox

        self.workspace = workspace
        self.forms: list[ApprovalForm] = []
        self._more = HTML()
        self.widget = VBox([self._more], layout=Layout(display="none"))

    def observe(self, event: Event, /) -> None:
        """Nothing to keep: what waits is asked for when it is drawn."""

    def draw(self) -> None:
        """Show what waits now."""
        executor = self.workspace.executor
        asks = executor is not None and executor.running and executor.memory and executor.approver == "wait"
        waiting = executor.pending_approvals() if executor is not None and asks else []
        earlier = {(form.request.unit, form.request.digest): form for form in self.forms}
        forms = []
        for request in waiting[:MAX_FORMS]:
            key = (request.unit, request.digest)
            forms.append(earlier.pop(key) if key in earlier else ApprovalForm(request, self._decide))
        more = len(waiting) - len(forms)
        text = f"and {more} more after these" if more else ""
        self._more.value = f'<div style="{FONT};{MUTED}">{text}</div>' if text else ""
        if forms != self.forms:
            self.forms = forms
            self.widget.children = [*(form.box for form in forms), self._more]
            self.widget.layout.display = None if forms else "none"
            for form in earlier.values():
                form.close()

    def _decide(self, request: ApprovalRequest, decision: Decision) -> None:
        executor = self.workspace.executor
        assert executor is not None, "it has asked"
        executor.decide(request, decision)
