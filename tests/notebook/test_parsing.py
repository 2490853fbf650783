"""Lines of magics: what they mean, and that each mistake is one clear sentence."""

from __future__ import annotations

from argparse import Namespace

import pytest
from IPython.core.error import UsageError

from tagent_nb.errors import DefinitionError
from tagent_nb.notebook.magics.parsing import (
    arguments,
    continued,
    names,
    no_leftovers,
    option,
    parse,
    split,
)
from tagent_nb.notebook.shell.step_cell import StepBelowComments, refuse_second_step


@arguments()
@option("name", nargs="?")
@option("--model", help="A model.")
@option("--resume", action="store_true")
@option("--timeout", type=float)
@option("--constraint", action="append")
def tagent_thing(self: object, args: Namespace) -> None:
    """Do a thing."""
    raise DefinitionError(f"no {args.name}")


def test_words_quotes_and_a_comment() -> None:
    args = parse(
        tagent_thing, """load --model "a b" --constraint 'x # y' --constraint c#  # a comment 'here"""
    )
    assert args is not None
    assert (args.name, args.model, args.constraint) == ("load", "a b", ["x # y", "c#"])
    assert split("# only a comment", "%m") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r"--save out\graph.svg", ["--save", r"out\graph.svg"]),
        (r"--storage C:\data\runs", ["--storage", r"C:\data\runs"]),
        ("--storage C:\\data\\runs\\ --keep-last 3", ["--storage", "C:\\data\\runs\\", "--keep-last", "3"]),
        (r"\\server\share\runs", [r"\\server\share\runs"]),
        (r'"C:\my data\new" x', [r"C:\my data\new", "x"]),
        (r'"C:\my data\\" x', ["C:\\my data\\", "x"]),
        (r"'C:\my data\' x", ["C:\\my data\\", "x"]),
        (r'--when "a.label == \"good\""', ["--when", 'a.label == "good"']),
        (r"don\'t \"so\"", ["don't", '"so"']),
        (r"--constraint '\d+ \"digits\"'", ["--constraint", r"\d+ \"digits\""]),
        (r"a\#b # c", [r"a\#b"]),
        ("a'b c'\"\"d ''", ["ab cd", ""]),
        ("  \u3000 a\tb ", ["a", "b"]),
    ],
)
def test_backslashes_stay_as_they_were_typed(line: str, words: list[str]) -> None:
    """On every platform; only one before a quote keeps that quote in the text, as it always did."""
    assert split(line, "%m") == words


def test_a_path_whose_last_backslash_takes_the_quote_says_so() -> None:
    with pytest.raises(UsageError, match=r'A backslash before " makes it a part of the text: write two'):
        split('--storage "C:\\data\\"', "%m")


@pytest.mark.parametrize(
    ("line", "cell", "expected"),
    [
        ("load --python", "1\n", ("load --python", "1\n")),
        ("load --python \\", "  --timeout 5\n1", ("load --python    --timeout 5", "1")),
        ("load \\  ", "--python \\\n--timeout 5\n1", ("load  --python  --timeout 5", "1")),
        ("load \\", "", ("load  ", "")),
    ],
)
def test_a_cell_magic_goes_on_in_the_next_line(line: str, cell: str, expected: tuple[str, str]) -> None:
    assert continued(line, cell) == expected


STEP = ["%%tagent_step load\n", "Say {{ this }}, please\n"]


@pytest.mark.parametrize(
    "above",
    [
        ["# A comment\n"],
        ["#| echo: false\n", "\n", "   # more\n"],
        ["\n", "# %% [cell]\n", "\n"],
    ],
)
def test_comments_above_a_step_are_left_out(above: list[str]) -> None:
    step = StepBelowComments(None)
    assert step([*above, *STEP]) == STEP
    assert step([*above, "%%capture\n", *STEP]) == ["%%capture\n", *STEP]
    assert step(["%%capture\n", *above, *STEP]) == ["%%capture\n", *above, *STEP]


@pytest.mark.parametrize(
    "above",
    [["import os\n"], ["%load_ext tagent_nb\n"], ["# so\n", "x = {\n", "}\n"], ["!ls\n", "'text'\n"]],
)
def test_code_above_a_step_is_refused_before_anything_of_the_cell_runs(above: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^%%tagent_step load\n%%tagent_step must be the first line"):
        StepBelowComments(None)([*above, *STEP])


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["\n"],
        STEP,
        ["\n", *STEP],
        ["x = 1\n", "# %%tagent_step\n"],
        ["cell = '''\n", *STEP, "'''\n"],
        ['run("""  # below\n', *STEP, '""")\n'],
        ["%%writefile other.ipy\n", "import os\n", *STEP],
        ["# a\n", "x = 1\n"],
        ["%%tagent_steps\n"],
    ],
)
def test_other_cells_are_left_as_they_are(lines: list[str]) -> None:
    assert StepBelowComments(None)(lines) == lines


def test_a_cell_defines_one_step() -> None:
    refuse_second_step("Write on %%tagent_step, and\n%tagent_run\n")
    with pytest.raises(UsageError, match="one step. Put '%%tagent_step b --python' into a cell of its own"):
        refuse_second_step("Say this\n\n  %%tagent_step b --python\n1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--resme", "there is no option --resme. Did you mean '--resume'?"),
        ("-resume", "there is no option -resume. Did you mean '--resume'?"),
        ("--xyz", "there is no option --xyz. Options: "),
        ("--mod x", "there is no option --mod. Did you mean '--model'?"),
        ("'' --unknown", "there is no option --unknown"),
        ("load \u2013\u2013resume", "dash that is not ASCII. Write '--resume'."),
        ("\u2014resume", "Write '--resume'."),
        ("--model \u201clocal\u201d", "begins with a curly quote"),
        ("Bob's reviews", "a quote is not closed in: Bob's reviews"),
        ('--model "local', "a quote is not closed"),
        ("load more", "there is nothing to do with 'more'"),
        ("load | less", "'|' means nothing here: a magic is no shell command"),
        ("load > file", "'>' means nothing here"),
        ("load && ls", "'&&' means nothing here"),
        ("--resume --resume", "option --resume is given 2 times"),
        ("--model a --model=b", "option --model is given 2 times"),
        ("--timeout soon", "invalid float value: 'soon'. See %tagent_thing --help"),
        ("--model", "expected one argument"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_the_magic(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(tagent_thing, line)
    text = str(caught.value)
    assert text.startswith("%tagent_thing: ")
    assert message in text


def test_help_is_printed_and_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(tagent_thing, "--help") is None
    printed = capsys.readouterr().out
    assert "%tagent_thing" in printed
    assert "Do a thing." in printed
    assert "--model MODEL" in printed


def test_errors_of_the_library_become_usage_errors_without_a_traceback() -> None:
    with pytest.raises(UsageError, match="no load") as caught:
        tagent_thing(None, "load")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_names_are_split_at_commas() -> None:
    assert names(" a, b:weak ,, ") == ["a", "b:weak"]
    assert names(None) == []


@pytest.mark.parametrize(
    ("value", "name"), [("$model", "model"), ("${model}", "model"), ("{model}", "model")]
)
def test_a_variable_that_ipython_could_not_fill_in_is_named(value: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no variable '{name}'"):
        no_leftovers("%m", NAME=value)


def test_dollars_and_braces_that_name_no_variable_are_text() -> None:
    no_leftovers("%m", NAME="reviews for $5 {a} b", MODEL=None)
