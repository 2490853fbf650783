"""Errors: one tree, drawn where it is defined, messages that read as sentences."""

from __future__ import annotations

import inspect
import re

import pytest

import tagent_nb.errors as errors
from tagent_nb.errors import (
    CycleError,
    EncodeError,
    NotStoredError,
    PipelineValidationError,
    ResumeConflictError,
    RetryableError,
    TagentError,
    UnknownStepError,
    did_you_mean,
)

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
]


def drawn() -> dict[str, tuple[str, set[str]]]:
    """The tree of the module's docstring: name to parent and built-in bases."""
    classes: dict[str, tuple[str, set[str]]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error)( : (\w+))?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            classes[match[2]] = (
                above[depth - 1] if depth else "Exception",
                {match[4]} if match[4] else set(),
            )
    return classes


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = drawn()
    assert set(tree) == {kind.__name__ for kind in KINDS}
    for kind in KINDS:
        bases = [base.__name__ for base in kind.__bases__]
        parent, built_in = tree[kind.__name__]
        assert bases[0] == parent
        assert set(bases[1:]) == built_in


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_says_what_it_is(kind: type[Exception]) -> None:
    assert issubclass(kind, TagentError)
    assert kind.__doc__


def test_messages_read_as_sentences_even_where_a_built_in_would_quote_them() -> None:
    assert str(UnknownStepError("there is no step 'x'")) == "there is no step 'x'"
    assert str(NotStoredError("gone")) == "gone"
    assert str(TagentError()) == "TagentError"


def test_a_cycle_shows_its_path_and_the_remedy() -> None:
    error = CycleError(["a", "b", "a"])
    assert error.path == ["a", "b", "a"]
    assert str(error).startswith("Circular dependency: a -> b -> a. Remove one")


def test_all_problems_of_a_pipeline_are_listed() -> None:
    error = PipelineValidationError("reviews", ["one", "two"])
    assert error.errors == ["one", "two"]
    assert str(error) == "Pipeline 'reviews' cannot run: 2 problems\n  - one\n  - two"
    assert "1 problem\n" in str(PipelineValidationError("p", ["one"]))


def test_errors_carry_what_code_needs() -> None:
    assert EncodeError("output.x", "a function cannot be stored").path == "output.x"
    assert (
        str(EncodeError("output.x", "a function cannot be stored")) == "output.x: a function cannot be stored"
    )
    assert RetryableError("busy", retry_after=2.5).retry_after == 2.5
    assert RetryableError("busy").retry_after is None
    assert ResumeConflictError("changed", {"a": ["goal changed"]}).changed == {"a": ["goal changed"]}


def test_built_in_bases_let_code_catch_what_it_knows() -> None:
    for kind, base in (
        (errors.DefinitionError, ValueError),
        (errors.UnknownStepError, KeyError),
        (errors.StepTimeoutError, TimeoutError),
        (errors.MissingExtraError, ImportError),
        (errors.EncodeError, TypeError),
    ):
        assert issubclass(kind, base)


def test_did_you_mean_suggests_only_what_is_close() -> None:
    assert did_you_mean("lod", ["load", "report"]) == " Did you mean 'load'?"
    assert did_you_mean("xyz", ["load"]) == ""
    assert did_you_mean("load", []) == ""
    assert did_you_mean(7, [77, "load"]) in ("", " Did you mean '77'?")  # type: ignore[arg-type, list-item]
