"""What the benchmarks call worse or slower, by ratios that are made up: no time is measured here."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import measure, page
from tests.benchmarks.measure import Benchmark, Result, Sides, checked, complaint
from tests.benchmarks.peers import __main__ as peers_command
from tests.benchmarks.report import Saved, save, table


@pytest.fixture(autouse=True)
def no_rubbish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: there is nothing to tidy up before, and that takes long beside other tests."""
    monkeypatch.setattr(measure.gc, "collect", lambda: 0)


def a_row(sides: Callable[[], Sides], promised: float = 2.0, name: str = "row") -> Benchmark:
    return Benchmark(name, "what", "limit", promised, 1.5, sides)


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


def test_a_quick_row_gets_more_rounds_while_there_is_time() -> None:
    """Up to the most; a slow one gets the fewest."""
    numbers = itertools.count(1)
    row = a_row(lambda: Sides(lambda: float(next(numbers)), lambda: 1.0))
    assert len(measure.measure(row, 3, 7, seconds=1000).rounds) == 7
    assert len(measure.measure(row, 3, 7, seconds=0).rounds) == 3
    assert len(measure.measure(row, 3).rounds) == 3


def test_a_large_row_is_not_warmed_up() -> None:
    """Its first measurement counts."""
    rounds = measure.measure(replace(a_row(lambda: sides_of([2.0])), large=True), 2).rounds
    assert rounds == (1.0, 2.0)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Benchmark]:
    """The rows of the command in place of ours: one that holds, one that is worse, one that is noise."""
    shown = {"good": [1.0] * 3, "worse": [3.0] * 3, "noisy": [0.1, 3.0, 9.0]}
    made = [a_row(lambda name=name: sides_of(shown[name] * 2), name=name) for name in shown]  # type: ignore[misc]
    monkeypatch.setattr(command, "find_rows", lambda: made)
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


def test_a_run_is_kept_and_compared_with_the_next(
    rows: list[Benchmark], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slower is what is more than a tenth above the earlier ratio, and above the noise of both."""
    kept = tmp_path / "kept.json"
    assert command.main(["--rounds", "3", "--only", "good", "--only", "worse", "--json", str(kept)]) == 0
    capsys.readouterr()
    assert command.main(["--rounds", "3", "--against", str(kept)]) == 0
    printed = capsys.readouterr().out
    assert "good: 1.00x -> 1.00x\n" in printed
    assert "noisy: 3.00x, not measured so before\n" in printed
    rows[0] = a_row(lambda: sides_of([1.2] * 6), name="good")
    assert command.main(["--rounds", "3", "--against", str(kept), "--only", "good"]) == 1
    assert "good: 1.00x -> 1.20x, slower than before\n" in capsys.readouterr().out


def saved(tmp_path: Path, *results: Result) -> Saved:
    save(tmp_path / "run.json", results, {"made": "2026-11-30T12:00:00+00:00", "cores": 2})
    return Saved.read(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [
        ([2.0] * 5, [2.2] * 5, False),
        ([2.0] * 5, [2.4] * 5, True),
        ([2.0] * 5, [1.0] * 5, False),
        # The earlier run may have been quick by chance.
        ([1.2, 1.6, 2.0, 2.4, 2.8], [2.4] * 5, False),
        ([2.0] * 5, [1.5, 2.0, 2.4, 3.0, 3.5], False),
    ],
)
def test_slower_is_beyond_a_tenth_and_the_noise_of_both_runs(
    tmp_path: Path, before: list[float], after: list[float], slower: bool
) -> None:
    """What either run's spread explains is not slower."""
    assert saved(tmp_path, of(before)).slower(of(after)) is slower


def test_another_workload_is_not_compared(tmp_path: Path) -> None:
    """A row that measures something else than it did has no earlier ratio."""
    earlier = saved(tmp_path, of([1.0] * 5))
    now = of([9.0] * 5)
    for changes in ({"what": "more"}, {"limit": "other"}, {"clock": "wall"}, {"each": 7}):
        other = replace(now, benchmark=replace(now.benchmark, **changes))
        assert not earlier.slower(other)
        assert list(earlier.compare([other])) == ["row: 9.00x, not measured so before"]
    assert earlier.slower(now)
    with pytest.raises(NotImplementedError, match="cannot be measured"):
        earlier.results["row"].benchmark.setup()


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [1]}', '{"rows": [{"name": "row"}]}'])
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    """It says how to make one; so does a file that is not there."""
    file = tmp_path / "run.json"
    file.write_text(text)
    for path in (file, tmp_path / "absent.json"):
        with pytest.raises(SystemExit, match=r"is no run of benchmarks .* Make one with --json"):
            Saved.read(path)


def test_the_table_says_what_is_measured_and_how_far_it_came() -> None:
    """CPU or wall time or a size, per piece of work, and whether the reach is met."""
    row = replace(a_row(lambda: sides_of([])), dream=0.5, each=1000, clock="wall")
    shown = table(
        [
            Result(row, 2.0, 1.0, "a note", (2.0,)),
            Result(replace(row, unit="MB", each=1), 1.2, 1.0, "", (1.2,)),
            Result(replace(row, each=10**9), 0.05, 1.0, "", (0.05,)),
        ]
    ).splitlines()
    assert shown[0].split() == ["name", "what", "limit", "ours", "limit", "ratio", "+-", "promised", "reach"]
    assert shown[2].split()[3:] == ["wall", "2", "ms", "1", "ms", "2.00x", "0.04", "2x", "1.5x", "-"]
    assert shown[3].split()[3:8] == ["MB", "1.2", "MB", "1", "MB"]
    assert shown[3].endswith("reached")
    assert shown[4].split()[3:9] == ["wall", "5e-05", "us", "0.001", "us", "0.050x"]
    assert shown[4].endswith("dream")
    assert shown[5] == "row: a note"


@pytest.mark.parametrize(
    "words", [["--check", "--quick"], ["--check", "--rounds", "2"], ["--against", "x", "--rounds", "2"]]
)
def test_a_check_needs_rounds_that_have_a_spread(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One round cannot tell noise from a step back."""
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert "at least 3 rounds" in capsys.readouterr().err


def test_rounds_are_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    """None at all has no median."""
    with pytest.raises(SystemExit, match="2"):
        command.main(["--rounds", "0"])
    assert "--rounds must be at least 1" in capsys.readouterr().err


def test_every_row_promises_something() -> None:
    """Rows are found by themselves, ordered by module; a dream is no worse than the reach."""
    rows = command.find_rows()
    assert len({row.name for row in rows}) == len(rows) > 10
    modules = [row.setup.__module__ for row in rows]
    assert modules == sorted(modules)
    for row in rows:
        assert row.reach > 0, row.name
        assert row.dream is None or 0 < row.dream <= row.reach, row.name
        assert 0 < row.promised < 100, row.name


def a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> Path:
    """A page with a table that is replaced, in place of ours."""
    file = tmp_path / "page.md"
    file.write_text(f"before\n<!-- {table} -->\nold\n<!-- end of {table} -->\nafter\n")
    monkeypatch.setattr(page, "PAGE", file)
    return file


def test_the_page_has_the_rows_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is around the table stays, and to write it again changes nothing."""
    file = a_page(tmp_path, monkeypatch, "rows")
    row = replace(a_row(lambda: sides_of([])), each=1000, clock="wall")
    made = {"made": "2026-11-30T12:00:00+00:00", "cores": 2, "load": 0.1, "system": "Linux", "python": "3.11"}
    save(tmp_path / "run.json", [Result(row, 2.0, 1.0, "", (2.0,))], made)
    assert command.main(["--docs", str(tmp_path / "run.json")]) == 0
    text = file.read_text()
    assert text.startswith("before\n<!-- rows -->\n\nMeasured on 2026-11-30 on 2 cores (Linux, load 0.1")
    assert "| `row` | what | limit | wall | 2 ms | 1 ms | **2.00x** | 2x | 1.5x |\n" in text
    assert text.endswith("\n<!-- end of rows -->\nafter\n")
    assert "old" not in text
    assert command.main(["--docs", str(tmp_path / "run.json")]) == 0
    assert file.read_text() == text
    file.write_text("nothing")
    with pytest.raises(SystemExit, match="has no table rows: it needs the lines <!-- rows -->"):
        command.main(["--docs", str(tmp_path / "run.json")])


def test_the_page_says_which_peers_are_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond our noise; a peer that failed says with what."""
    file = a_page(tmp_path, monkeypatch, "peers")
    made = {"made": "2026-11-30T12:00:00+00:00", "cores": 2, "load": 0.1, "system": "Linux", "python": "3.11"}
    save(tmp_path / "ours.json", [of([2.0] * 5)], made)
    rows = [
        {"peer": "quick", "row": "row", "rounds": [1.0] * 5, "note": "a note"},
        {"peer": "slow", "row": "row", "rounds": [9.0] * 5, "note": ""},
        {"peer": "even", "row": "row", "rounds": [1.99] * 5, "note": ""},
        {"peer": "absent", "row": "-", "error": "cannot be installed: no"},
        {"peer": "new", "row": "other", "rounds": [3.0], "note": ""},
    ]
    (tmp_path / "peers.json").write_text(json.dumps({**made, "versions": ["quick==1"], "rows": rows}))
    arguments = ["--docs", str(tmp_path / "peers.json"), "--ours", str(tmp_path / "ours.json")]
    assert peers_command.main(arguments) == 0
    text = file.read_text()
    assert "Python 3.11. `quick==1`.\n" in text
    assert "| quick | `row` | 1.00x | 2.00x | a note; we are behind |\n" in text
    assert "| slow | `row` | 9.00x | 2.00x |  |\n" in text
    assert "| even | `row` | 1.99x | 2.00x |  |\n" in text
    assert "| absent | `-` | - |  | cannot be installed: no |\n" in text
    assert "| new | `other` | 3.00x |  |  |\n" in text


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists of requirements and environments of the peers, in place of ours; two libraries are named."""
    (tmp_path / "first.txt").write_text("first==1\n")
    (tmp_path / "second.txt").write_text("second==2\n")
    monkeypatch.setattr(peers_command, "HERE", tmp_path)
    monkeypatch.setattr(peers_command, "HOME", tmp_path / "environments")
    return tmp_path


def test_a_peer_that_cannot_be_installed_is_passed_over(
    peers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured, and the file has both."""

    def install(name: str) -> Path:
        if name == "first":
            raise RuntimeError("no such version")
        return Path(sys.executable)

    monkeypatch.setattr(peers_command, "install", install)
    # The program that stands for a peer's rows prints one, and something of its own.
    row = {"peer": "second", "row": "chain", "rounds": [2.0], "note": "quick"}
    monkeypatch.setattr(peers_command, "ROWS", ("-c", f"print('hello'); print({json.dumps(row)!r})"))
    assert peers_command.main(["--json", str(peers / "run.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["first", "-", "-", "cannot", "be", "installed:", "no", "such", "version"] in lines
    assert ["second", "chain", "2.00x", "quick"] in lines
    kept = json.loads((peers / "run.json").read_text())
    assert kept["versions"] == ["first==1", "second==2"]
    assert [kept_row["peer"] for kept_row in kept["rows"]] == ["first", "second"]
    monkeypatch.setattr(peers_command, "ROWS", ("-c", "raise SystemExit(3)"))
    assert peers_command.main(["--only", "second"]) == 0
    assert "ended with code 3" in capsys.readouterr().out


def test_an_environment_is_made_once_for_a_list(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again when its list has changed, and when pip had failed."""
    ran: list[str] = []
    monkeypatch.setattr(peers_command, "run_quietly", lambda *command: ran.append(command[2]))
    (peers / "environments" / "first").mkdir(parents=True)
    monkeypatch.setattr(peers_command.shutil, "rmtree", lambda *_, **__: None)
    assert peers_command.install("first") == peers / "environments" / "first" / "bin" / "python"
    assert ran == ["venv", "pip"]
    peers_command.install("first")
    assert ran == ["venv", "pip"]
    (peers / "first.txt").write_text("first==2\n")
    peers_command.install("first")
    assert ran == ["venv", "pip"] * 2


def test_what_pip_said_last_is_the_reason() -> None:
    """The last line of its errors; a command that works says nothing."""
    peers_command.run_quietly(sys.executable, "-c", "pass")
    with pytest.raises(RuntimeError, match="^no such version$"):
        peers_command.run_quietly(sys.executable, "-c", "raise SystemExit('a warning\\nno such version')")
    with pytest.raises(RuntimeError, match="it says nothing"):
        peers_command.run_quietly(sys.executable, "-c", "raise SystemExit(1)")
