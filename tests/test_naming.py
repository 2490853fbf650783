"""Names of steps are identifiers, names of pipelines are free text, and ids are safe anywhere."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagent_nb.errors import DefinitionError
from tagent_nb.naming import MAX_NAME, RESERVED, pipeline_name, safe_id, step_name, storage_id

HOSTILE = [
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\x00b",
    ".",
    "..",
    "",
    " ",
    "   ",
    "a" * 256,
    "ü" * 200,
    "nul.json",
    "a:b",
    "trailing ",
    "trailing.",
    "\u202eevil",
    "ｆｕｌｌ",  # noqa: RUF001 - full-width letters
    "-rf",
    "~",
    "%2e%2e",
    "*",
    "new\nline",
    "\ud800",
    "__proto__",
    "x'; DROP TABLE runs; --",
    "h[a-z]llo",
    "h?llo",
    7,
    None,
    True,
    b"load",
    ["load"],
]
"""The bad names of the project's reliability rules."""

LEGAL = [
    "load",
    "load_reviews",
    "_private",
    "x1",
    "größe",
    "загрузка",
    "データ",
    "CON",
    "A",
    "a",
    "a" * MAX_NAME,
]


@pytest.mark.parametrize("name", LEGAL)
def test_identifiers_of_any_script_are_step_names(name: str) -> None:
    assert step_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_a_bad_step_name_gets_one_clear_message(name: object) -> None:
    with pytest.raises(DefinitionError) as caught:
        step_name(name)
    message = str(caught.value)
    assert message.startswith("Step name ")
    assert len(message) < 400
    message.encode()


@pytest.mark.parametrize("name", [*sorted(RESERVED), "class", "None", "lambda", "await"])
def test_names_that_mean_something_else_are_reserved(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"{name!r} is reserved. Choose another, such as '{name}_step'"):
        step_name(name)


def test_letters_that_python_reads_as_others_are_named_with_what_to_write() -> None:
    with pytest.raises(DefinitionError, match="Write 'file'"):
        step_name("ﬁle")


def test_two_ways_to_write_a_letter_are_one_name() -> None:
    composed, decomposed = "gr\u00f6sse", "gro\u0308sse"
    assert step_name(composed) == step_name(decomposed)
    assert pipeline_name(composed) == pipeline_name(decomposed)
    assert storage_id(composed) == storage_id(decomposed)


def test_the_length_is_counted_after_composing() -> None:
    assert len(step_name("o\u0308" * MAX_NAME)) == MAX_NAME


TEXTS = [name for name in HOSTILE if isinstance(name, str)]


@pytest.mark.parametrize("name", TEXTS, ids=lambda name: ascii(name)[:30])
def test_any_one_line_of_text_names_a_pipeline_and_its_id_is_safe(name: str) -> None:
    if not name.strip() or len(name) > 200 or re.search(r"[\x00\n\ud800]", name):
        with pytest.raises(DefinitionError, match="^Pipeline name "):
            storage_id(name)
    else:
        assert safe_id(storage_id(pipeline_name(name))) == storage_id(name)


@pytest.mark.parametrize("name", [7, None, True, b"x"])
def test_a_pipeline_name_must_be_text(name: object) -> None:
    with pytest.raises(DefinitionError, match="Pipeline name must be text, not"):
        pipeline_name(name)


def test_bad_pipeline_names_say_why() -> None:
    for name, why in (("", "cannot be empty"), (" \t", "cannot be empty"), ("x" * 201, "has 201 characters")):
        with pytest.raises(DefinitionError, match=why):
            pipeline_name(name)
    for name in ("a\nb", "a\x00", "\x1b[31m", "\udfff"):
        with pytest.raises(DefinitionError, match="control character or half a surrogate pair"):
            pipeline_name(name)


def test_ids_are_readable_and_never_shared() -> None:
    assert storage_id("My reviews!").startswith("My-reviews-")
    assert storage_id("自然").startswith("pipeline-")
    names = ["A", "a", "a b", "a-b", "a/b", "../a", "a.", "a ", "CON", "x" * 100, "x" * 101, "自", "然"]
    assert len({storage_id(name) for name in names}) == len(names)


@given(st.text())
def test_an_id_is_always_safe_and_always_the_same(name: str) -> None:
    try:
        identifier = storage_id(name)
    except DefinitionError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", identifier)
    assert storage_id(pipeline_name(name)) == identifier


@given(st.text())
def test_a_step_name_that_is_taken_can_be_written_in_python(name: str) -> None:
    try:
        checked = step_name(name)
    except DefinitionError:
        return
    namespace: dict[str, int] = {}
    exec(f"{checked} = 1", namespace)
    assert namespace[checked] == 1


@pytest.mark.parametrize("value", ["a", "A-1_b", "x" * 64, storage_id("any name")])
def test_safe_ids_pass(value: str) -> None:
    assert safe_id(value) == value


@pytest.mark.parametrize("value", [*HOSTILE, "a" * 65, "a\n"], ids=lambda name: ascii(name)[:30])
def test_other_ids_are_refused_and_the_message_names_what_they_are(value: object) -> None:
    if value in ("__proto__", "-rf"):
        # Harmless where they go: never a bare word of a command, never a key of an object.
        assert safe_id(value) == value
        return
    with pytest.raises(DefinitionError, match="^run id ") as caught:
        safe_id(value, "run id")
    str(caught.value).encode()
