"""What `make bench-check` calls worse than promised, by ratios that are made up: no time is measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import measure
from tests.benchmarks.measure import BENCHMARKS, Benchmark, Result, Sides, checked, complaint


@pytest.fixture(autouse=True)
def no_rubbish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: there is nothing to tidy up before, and that takes long beside other tests."""
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)


def a_row(sides: Callable[[], Sides], promised: float = 2.0, name: str = "row") -> Benchmark:
    return Benchmark(name, "what", "limit", promised, 1.5, 1.0, sides)


def of(ratios: Sequence[float], promised: float = 2.0) -> Result:
    """A result of rounds with these ratios."""
    return Result(a_row(lambda: sides_of(ratios), promised), 1.0, 1.0, rounds=tuple(ratios))


def sides_of(ratios: Sequence[float]) -> Sides:
    """Sides that take what these ratios say, one after the other, after the round that warms up."""
    taken: Iterator[float] = iter([1.0, *ratios])
    return Sides(lambda: next(taken), lambda: 1.0)


@pytest.mark.parametrize(
    ("ratios", "check"),
    [
        ([1.9, 2.0, 2.0, 2.0, 1.9], "holds"),
        ([2.0, 2.01, 2.02, 2.03, 2.02], "holds"),
        ([2.2, 2.2, 2.21, 2.19, 2.2], "worse"),
        # The same median: by its spread it may be noise.
        ([1.7, 2.0, 2.2, 2.5, 2.6], "holds"),
        # One disturbed round says nothing, whatever it was.
        ([1.9, 1.9, 1.9, 1.9, 60.0], "holds"),
        ([2.5, 2.5, 2.5, 2.5, 0.1], "worse"),
        ([0.5, 3.0, 6.0, 1.0, 9.0], "unsure"),
        ([0.01, 0.01, 0.01], "holds"),
    ],
)
def test_worse_is_what_noise_does_not_explain(ratios: list[float], check: str) -> None:
    """The median of the rounds against what is promised, and their spread as its noise."""
    result = of(ratios)
    assert result.check == check
    assert bool(complaint(result)) == (check != "holds")


def test_more_rounds_make_surer() -> None:
    """The same spread is less noise the more often it was measured."""
    ratios = [1.9, 2.1, 2.3, 2.1, 2.2]
    assert of(ratios).check == "holds"
    assert of(ratios * 8).check == "worse"
    assert of(ratios * 8).noise < of(ratios).noise


def test_what_is_worse_is_measured_again() -> None:
    """With twice the rounds; only if it is worse again it counts."""
    made: list[list[float]] = []
    answers = iter([[3.0] * 5, [2.0] * 10, [3.0] * 5, [3.0] * 10, [1.0] * 5])

    def sides() -> Sides:
        made.append(next(answers))
        return sides_of(made[-1])

    assert checked(a_row(sides), 5).check == "holds"
    again = checked(a_row(sides), 5)
    assert (again.check, len(again.rounds)) == ("worse", 10)
    assert complaint(again) == "row: 3.00x, give or take 0.06, and 2x is promised: worse than before"
    assert len(checked(a_row(sides), 5).rounds) == 5
    assert len(made) == 5


def test_rounds_are_compared_side_by_side() -> None:
    """Each round's ratio is of its own two sides: a machine that slows down slows both."""
    ours, limits = iter([1.0, 2.0, 4.0, 8.0]), iter([1.0, 1.0, 2.0, 4.0])
    result = measure.measure(a_row(lambda: Sides(lambda: next(ours), lambda: next(limits))), 3)
    assert result.rounds == (2.0, 2.0, 2.0)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Benchmark]:
    """The rows of the command in place of ours: one that holds, one that is worse, one that is noise."""
    shown = {"good": [1.0] * 3, "worse": [3.0] * 3, "noisy": [0.1, 3.0, 9.0]}
    made = [a_row(lambda name=name: sides_of(shown[name] * 2), name=name) for name in shown]  # type: ignore[misc]
    monkeypatch.setattr(command, "BENCHMARKS", made)
    monkeypatch.setattr(command, "MODULES", [measure])
    for row in made:
        row.setup.__module__ = measure.__name__
    return made


def test_the_command_fails_where_a_ratio_is_worse(
    rows: list[Benchmark], capsys: pytest.CaptureFixture[str]
) -> None:
    """It names them, and what is too noisy to tell; without --check it only prints."""
    assert command.main(["--check", "--rounds", "3"]) == 1
    printed = capsys.readouterr().out
    assert "worse: 3.00x, give or take 0.06, and 2x is promised: worse than before" in printed
    assert "noisy: 3.00x, give or take" in printed
    assert "too noisy to tell" in printed
    assert "good:" not in printed
    assert printed.endswith("1 of 3 ratios are worse than promised.\n")
    assert command.main(["--check", "--rounds", "3", "--only", "good", "--only", "noisy"]) == 0
    assert command.main(["--rounds", "1"]) == 0
    assert command.main(["--list"]) == 0
    with pytest.raises(SystemExit, match="No benchmark is named so. Names: good, worse, noisy"):
        command.main(["--only", "none"])


@pytest.mark.parametrize("words", [["--check", "--quick"], ["--check", "--rounds", "2"]])
def test_a_check_needs_rounds_that_have_a_spread(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One round cannot tell noise from a step back."""
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert "at least 3 rounds" in capsys.readouterr().err


def test_every_row_promises_something_and_what_is_reached_is_not_less() -> None:
    """A promise is what holds today: no better than the dream, and finite."""
    assert len({row.name for row in BENCHMARKS}) == len(BENCHMARKS) > 10
    for row in BENCHMARKS:
        assert 0 < row.dream <= row.reach, row.name
        assert 0 < row.promised < 100, row.name
