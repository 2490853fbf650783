"""Forms for approval: fields by type, edits that are checked where they are made, and who learns of them."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import ipywidgets
import pytest
from html_safety import HOSTILE, assert_safe
from pydantic import BaseModel

from tagent_nb import (
    ApprovalRequest,
    Approved,
    Edited,
    Pipeline,
    PipelineStep,
    Rejected,
    StepWaiting,
)
from tagent_nb.errors import OutputValidationError
from tagent_nb.notebook.panel.approval_form import MAX_FORMS, ApprovalForm, ApprovalForms
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import Decision


class Tone(Enum):
    WARM = "warm"
    COLD = "cold"


class Mail(BaseModel):
    """A mail."""

    to: str
    body: str
    copies: int
    price: float
    urgent: bool
    tone: Tone
    kind: Literal["short", "long"]
    tags: list[str]
    note: str | None = None
    number: int


MAIL = Mail(
    to="Ada",
    body="Dear Ada,\nhello.",
    copies=1,
    price=0.5,
    urgent=False,
    tone=Tone.WARM,
    kind="short",
    tags=["a"],
    number=2**60,
)


def form(
    value: Any, schema: type[BaseModel] | None = None, **more: Any
) -> tuple[ApprovalForm, list[Decision]]:
    """A form, and what is decided with it."""
    decisions: list[Decision] = []
    step = PipelineStep("draft", "Write.", output_schema=schema)

    def decide(request: ApprovalRequest, decision: Decision) -> None:
        if isinstance(decision, Edited):
            decision = Edited(step.validate_output(decision.value))
        decisions.append(decision)

    parameters = {} if schema is None else schema.model_json_schema()
    request = ApprovalRequest(
        "run", "p", "draft", value=value, schema=schema, parameters=parameters, goal="Write.", **more
    )
    return ApprovalForm(request, decide), decisions


def field(shown: ApprovalForm, name: str) -> Any:
    return next(field.widget for field in shown.fields if field.name == name)


def press(shown: ApprovalForm, name: str, **page: Any) -> None:
    """Press a button as a front end does, whose fields may say more than has reached the kernel."""
    values = [
        page.get(field.name, field.widget.index if hasattr(field.widget, "index") else field.widget.value)
        for field in shown.fields
    ]
    content = {"decision": name, "values": [*values, shown.reason.value]}
    shown.buttons._handle_custom_msg(content, [])


def test_fields_are_of_the_types_of_the_schema_and_json_for_the_rest() -> None:
    shown, _ = form(MAIL, Mail)
    assert {field.name: type(field.widget).__name__ for field in shown.fields} == {
        "to": "Text",
        "body": "Textarea",
        "copies": "IntText",
        "price": "FloatText",
        "urgent": "Checkbox",
        "tone": "Dropdown",
        "kind": "Dropdown",
        "tags": "Textarea",
        "note": "Textarea",
        "number": "Textarea",
    }
    assert field(shown, "note").value == "null"
    assert field(shown, "body").rows == 3
    long = MAIL.model_copy(update={"body": "words " * 500})
    assert field(form(long, Mail)[0], "body").rows == 12
    assert field(shown, "tone").options == (("warm", "warm"), ("cold", "cold"))


def test_a_value_as_it_is_is_approved_and_the_form_is_done() -> None:
    shown, decisions = form(MAIL, Mail)
    press(shown, "approve")
    assert decisions == [Approved()]
    assert shown.buttons.decided


def test_an_edited_field_makes_an_edited_value_of_the_whole() -> None:
    shown, decisions = form(MAIL, Mail)
    field(shown, "tone").value = "cold"
    field(shown, "tags").value = '["b", "c"]'
    field(shown, "copies").value = 3
    press(shown, "approve")
    assert decisions == [Edited(MAIL.model_copy(update={"tone": Tone.COLD, "tags": ["b", "c"], "copies": 3}))]


def test_what_the_page_says_counts_even_if_the_click_comes_first() -> None:
    shown, decisions = form(MAIL, Mail)
    press(shown, "approve", to="Eve", copies=7, tone=1, urgent=True)
    changed = {"to": "Eve", "copies": 7, "tone": Tone.COLD, "urgent": True}
    assert decisions == [Edited(MAIL.model_copy(update=changed))]
    press(shown, "approve", to="Mallory")
    assert len(decisions) == 1


@pytest.mark.parametrize(("name", "entered"), [("copies", None), ("tone", 9)])
def test_what_a_field_cannot_hold_is_reported_in_the_form(name: str, entered: Any) -> None:
    shown, decisions = form(MAIL, Mail)
    press(shown, "approve", **{name: entered})
    assert f"{name}: " in shown.error.value
    assert decisions == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("tags", "[1", "tags is no JSON"),
        ("tags", '{"a": 1}', "tags: Input should be a valid list"),
        ("number", '"many"', "number: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_with_an_edit_stands_in_the_form_which_stays(name: str, text: str, says: str) -> None:
    shown, decisions = form(MAIL, Mail)
    field(shown, name).value = text
    press(shown, "approve")
    assert says in shown.error.value
    assert 'role="alert"' in shown.error.value
    assert decisions == []
    assert not shown.buttons.decided
    field(shown, name).value = '["ok"]' if name == "tags" else "7"
    press(shown, "approve")
    assert shown.error.value == ""
    assert len(decisions) == 1


def test_a_rejection_needs_a_reason() -> None:
    shown, decisions = form("text")
    press(shown, "reject")
    assert "Say why" in shown.error.value
    assert decisions == []
    shown.reason.value = " too rude "
    press(shown, "reject")
    assert decisions == [Rejected("too rude")]


def test_try_again_is_a_rejection_with_retry_and_not_there_for_tools() -> None:
    shown, decisions = form("text")
    shown.reason.value = "shorter"
    press(shown, "retry")
    assert decisions == [Rejected("shorter", retry=True)]
    called, _ = form({"x": 1}, tool="order")
    assert [offer[0] for offer in called.buttons.offers] == ["approve", "reject"]


def test_text_without_a_schema_is_edited_as_text_and_other_values_as_json() -> None:
    shown, decisions = form("Dear Ada")
    shown.fields[0].widget.value = "[1]"
    press(shown, "approve")
    assert decisions == [Edited("[1]")]
    shown, decisions = form({"a": [1, 2]})
    shown.fields[0].widget.value = '{"a": []}'
    press(shown, "approve")
    assert decisions == [Edited({"a": []})]
    shown, decisions = form([])
    shown.fields[0].widget.value = "["
    press(shown, "approve")
    assert "the value is no JSON" in shown.error.value


class Shy:
    """Something that cannot even be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


def test_what_is_no_json_can_be_looked_at_approved_and_rejected() -> None:
    shown, decisions = form(object())
    assert shown.fields == []
    assert "object object at" in shown.box.children[0].value
    press(shown, "approve")
    assert decisions == [Approved()]
    assert "Shy.__repr__ raised ZeroDivisionError" in form(Shy())[0].box.children[0].value


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_form_is_taken_for_html(text: str) -> None:
    shown, _ = form(MAIL, Mail, tool=text)
    field(shown, "tags").value = text
    press(shown, "approve")
    for widget in [*shown.box.children, *form(_Named(text))[0].box.children]:
        if isinstance(widget, ipywidgets.HTML):
            assert_safe(widget.value)


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# -- the forms of a panel ------------------------------------------------------------------------------


def waiting(session: Session, rows: int) -> ApprovalForms:
    """The forms of a run whose items wait."""
    session.use("mails", storage="memory:")
    session.put(PipelineStep.from_cell("load", f"list(range({rows}))", python=True))
    session.put(PipelineStep.from_cell("each", "load * 10", python=True, map_over="load", approve=True))
    seen: list[StepWaiting] = []

    def observe(event: Any) -> None:
        if isinstance(event, StepWaiting):
            seen.append(event)

    forms = ApprovalForms(session.workspace)
    forms.draw()
    assert forms.widget.layout.display == "none"
    session.start(observers=[observe, forms.observe], approver="wait")
    _until(lambda: len(seen) == rows)
    return forms


def _until(condition: Any) -> None:
    import time

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_each_thing_that_waits_has_a_form_until_it_is_decided(tmp_path: Any) -> None:
    session = Session({}, tmp_path)
    forms = waiting(session, MAX_FORMS + 2)
    forms.draw()
    assert len(forms.forms) == MAX_FORMS
    assert "and 2 more after these" in forms.widget.children[-1].value
    first = forms.forms[0]
    forms.draw()
    assert forms.forms[0] is first
    first.fields[0].widget.value = "7"
    press(first, "approve")
    executor = session.workspace.executor
    assert executor is not None
    _until(lambda: len(executor.pending_approvals()) == MAX_FORMS + 1)
    forms.draw()
    assert first not in forms.forms
    assert len(forms.forms) == MAX_FORMS
    while forms.forms:
        for form in forms.forms:
            press(form, "approve")
        left = len(forms.forms)
        _until(lambda: session.workspace.running is False or len(executor.pending_approvals()) < left)  # noqa: B023
        forms.draw()
    handle = session.workspace.handle
    assert handle is not None
    assert handle.result(30)["each"] == [7, 10, 20, 30, 40, 50, 60]
    forms.draw()
    assert forms.widget.layout.display == "none"


def test_an_edit_that_the_step_does_not_take_is_reported_in_its_form(tmp_path: Any) -> None:
    class Answer(BaseModel):
        label: str

    session = Session({}, tmp_path)
    session.adopt(Pipeline("one"))
    body = PipelineStep.from_cell("say", "{'label': 'x'}", python=True, output_schema=Answer, approve=True)
    session.put(body)
    seen: list[Any] = []
    session.start(observers=[seen.append], approver="wait")
    _until(lambda: any(isinstance(event, StepWaiting) for event in seen))
    forms = ApprovalForms(session.workspace)
    forms.draw()
    [shown] = forms.forms
    assert [field.name for field in shown.fields] == ["label"]
    executor, handle = session.workspace.executor, session.workspace.handle
    assert executor is not None
    assert handle is not None
    with pytest.raises(OutputValidationError):
        forms._decide(shown.request, Edited({"label": 1}))
    shown.fields[0].widget.value = "y"
    press(shown, "approve")
    assert handle.result(30)["say"] == Answer(label="y")
