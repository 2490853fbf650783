"""Files that a Python step reads count: a step runs again when one of them is another one."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tagent_nb import Pipeline, PipelineExecutor, PipelineStep, ResultCache
from tagent_nb.errors import ResumeConflictError
from tagent_nb.pipeline import step_hints
from tagent_nb.results import PipelineResult


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executor(pipeline: Pipeline, **options: Any) -> PipelineExecutor:
    """What it stores is where the files of its steps do not count."""
    return PipelineExecutor(
        pipeline, cache=ResultCache(Path(".tagent/cache")), storage=Path(".tagent/runs"), **options
    )


def run(pipeline: Pipeline, **options: Any) -> PipelineResult:
    return executor(pipeline).run(**options)


def cell(source: str, **options: Any) -> Pipeline:
    pipeline = Pipeline("files")
    pipeline.put(PipelineStep.from_cell("load", source, python=True, **options))
    return pipeline


def status(result: PipelineResult, step: str = "load") -> str:
    assert result.success, result.error_details
    return result.steps[step].status.value


READERS = {
    "open": "open('d.csv').read()",
    "pathlib": "__import__('pathlib').Path('d.csv').read_text()",
    "os": "import os\nfile = os.open('d.csv', os.O_RDONLY)\nos.read(file, 100)",
    "pandas": "import pandas as pd\npd.read_csv('d.csv')",
    "pandas, the Python engine": "import pandas as pd\npd.read_csv('d.csv', engine='python')",
    "numpy": "import numpy as np\nnp.loadtxt('d.csv', dtype=str)",
    "csv": "import csv\nlist(csv.reader(open('d.csv')))",
    "a subfunction in a generator": "''.join(line for line in open('d.csv'))",
}


@pytest.mark.parametrize("source", READERS.values(), ids=READERS)
def test_a_step_runs_again_when_a_file_that_it_reads_has_changed(folder: Path, source: str) -> None:
    """And not when it is only touched, or written again as it was."""
    (folder / "d.csv").write_text("a\n1\n")
    assert status(run(cell(source))) == "completed"
    assert status(run(cell(source))) == "cached"
    (folder / "d.csv").write_text("a\n1\n")
    os.utime(folder / "d.csv", (1, 1))
    assert status(run(cell(source))) == "cached"
    (folder / "d.csv").write_text("a\n2\n")
    os.utime(folder / "d.csv", (1, 1))
    result = run(cell(source))
    assert status(result) == "completed"
    assert result.steps["load"].reason == "file d.csv changed"
    assert status(run(cell(source))) == "cached"


@pytest.mark.parametrize("path", ["'d.parquet'", "PATH", "FOLDER / 'd.parquet'"])
def test_files_that_are_opened_in_c_count_where_the_text_says_which_they_are(folder: Path, path: str) -> None:
    """Arrow reads Parquet by itself: a text, or a name with the path, shows what it reads."""
    source = f"import pandas as pd\npd.read_parquet({path}).a.sum()"
    names = {"PATH": folder / "d.parquet", "FOLDER": folder}
    pd.DataFrame({"a": [1]}).to_parquet("d.parquet")
    assert executor(cell(source), namespace=names).run().step_outputs["load"] == 1
    pd.DataFrame({"a": [2]}).to_parquet("d.parquet")
    is_seen = "FOLDER" not in path
    assert executor(cell(source), namespace=names).run().step_outputs["load"] == (2 if is_seen else 1)
    assert ("file" in str(step_hints(cell(source), cell(source).get_step("load")))) is not is_seen


def test_what_a_thread_opens_in_the_context_of_a_step_counts(folder: Path) -> None:
    (folder / "d.csv").write_text("1")
    source = (
        "import contextvars, threading\n"
        "thread = threading.Thread(target=contextvars.copy_context().run, args=(open, 'd.csv'))\n"
        "thread.start()\nthread.join()\n1"
    )
    run(cell(source))
    (folder / "d.csv").write_text("2")
    assert status(run(cell(source))) == "completed"


def test_a_file_for_a_reader_in_c_that_is_not_there_does_not_count(folder: Path) -> None:
    source = "import pandas as pd\ntry:\n    pd.read_parquet('none.parquet')\nexcept OSError:\n    pass\n1"
    assert not run(cell(source)).step_metadata["load"].get("files")


def test_an_item_that_is_a_path_counts_as_the_file_that_it_names(folder: Path) -> None:
    def pipeline() -> Pipeline:
        flow = cell("['a.parquet', 'b.parquet']")

        @flow.task(map_over="load")
        async def total(item: str) -> int:
            return int(pd.read_parquet(item).a.sum())

        @flow.task(map_over="load")
        def size(item: str) -> int:
            return len(pd.read_parquet(item))

        return flow

    for name in "ab":
        pd.DataFrame({"a": [1]}).to_parquet(f"{name}.parquet")
    run(pipeline())
    pd.DataFrame({"a": [1, 2]}).to_parquet("b.parquet")
    result = run(pipeline())
    assert (result.step_outputs["total"], result.step_outputs["size"]) == ([1, 3], [1, 2])
    assert [item.status.value for item in (result.steps["size"].items or {}).values()] == [
        "cached",
        "completed",
    ]


CHANGES: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any], str]] = {
    "a file that is gone": (
        "try:\n    text = open('d.csv').read()\nexcept OSError:\n    text = ''\ntext",
        lambda folder: (folder / "d.csv").write_text("1"),
        lambda folder: (folder / "d.csv").unlink(),
        "file d.csv is gone",
    ),
    "a file that was not there": (
        "try:\n    text = open('d.csv').read()\nexcept OSError:\n    text = ''\ntext",
        lambda folder: None,
        lambda folder: (folder / "d.csv").write_text("1"),
        "file d.csv is new",
    ),
    "a folder with one file more": (
        "import os\nlen(os.listdir('.'))",
        lambda folder: None,
        lambda folder: (folder / "d.csv").write_text("1"),
        "folder ./ changed",
    ),
    "files by a pattern": (
        "import glob\nsorted(glob.glob('in/*.csv'))",
        lambda folder: (folder / "in").mkdir(),
        lambda folder: (folder / "in" / "d.csv").write_text("1"),
        "folder in/ changed",
    ),
    "a folder that is gone": (
        "from pathlib import Path\n[p.name for p in Path('in').glob('*')]",
        lambda folder: (folder / "in").mkdir(),
        lambda folder: (folder / "in").rmdir(),
        "folder in/ is gone",
    ),
    "a database": (
        "import sqlite3\ndb = sqlite3.connect('d.db')\nrows = db.execute('select * from t').fetchall()\n"
        "db.close()\nrows",
        lambda folder: table(folder, 1),
        lambda folder: table(folder, 2),
        "file d.db changed",
    ),
    "a database by its URI": (
        "import sqlite3\ndb = sqlite3.connect('file:d.db?mode=ro', uri=True)\n"
        "rows = db.execute('select * from t').fetchall()\ndb.close()\nrows",
        lambda folder: table(folder, 1),
        lambda folder: table(folder, 2),
        "file d.db changed",
    ),
    "a large file, in one of its pieces": (
        "with open('d.bin', 'rb') as file:\n    size = len(file.read())\nsize",
        lambda folder: (folder / "d.bin").write_bytes(bytes(9_000_000)),
        lambda folder: (folder / "d.bin").write_bytes(b"x" + bytes(8_999_999)),
        "file d.bin changed",
    ),
}


def table(folder: Path, value: int) -> None:
    with sqlite3.connect(folder / "d.db") as database:
        database.execute("create table if not exists t (a)")
        database.execute("insert into t values (?)", (value,))
    database.close()


@pytest.mark.parametrize(("source", "before", "change", "why"), CHANGES.values(), ids=CHANGES)
def test_a_step_says_which_file_made_it_run_again(
    folder: Path, source: str, before: Callable[[Path], Any], change: Callable[[Path], Any], why: str
) -> None:
    before(folder)
    run(cell(source))
    assert status(run(cell(source))) == "cached"
    change(folder)
    plan = asyncio.run(executor(cell(source)).plan())
    assert [(step.action, step.why) for step in plan.steps] == [("run", why)]
    result = run(cell(source))
    assert status(result) == "completed"
    assert result.steps["load"].reason == why


OWN = {
    "a file that it has written itself": "open('own.txt', 'w').write('1')\nopen('own.txt').read()",
    "a temporary file": (
        "import tempfile\nwith tempfile.TemporaryFile('w+') as file:\n    file.write('1')\n"
        "with tempfile.NamedTemporaryFile('w') as file:\n    open(file.name).read()\n1"
    ),
    "a file that is gone when it ends": (
        "import os, subprocess\nsubprocess.run(['touch', 'own.txt'])\nopen('own.txt').read()\n"
        "os.remove('own.txt')\n1"
    ),
    "a file that it has put in its place": (
        "import os, pathlib\npathlib.Path('new').write_text('1')\nos.replace('new', 'own.txt')\n"
        "open('own.txt').read()"
    ),
    "a file that was gone when it ended, as many": (
        "import os, tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    for n in range(300):\n"
        "        open(f'{folder}/{n}', 'w').close()\n1"
    ),
    "a module of a package": "import pandas, json.tool\n1",
    "what a package has with it": (
        "import pathlib, pandas\n(pathlib.Path(pandas.__file__).parent / '__init__.py').read_text()[:5]"
    ),
    "what the system has": "open('/proc/self/stat').read()\n1",
    "what the cache has": "open('.tagent/cache/cache.db', 'rb').read(10)\n1",
    "a source that an error shows": (
        "import traceback, fails\ntry:\n    fails.fail()\nexcept ValueError:\n    traceback.format_exc()\n1"
    ),
    "the number of an open file": "import os\nr, w = os.pipe()\nopen(r).close()\nos.close(w)\n1",
    "a database in memory": "import sqlite3\nsqlite3.connect(':memory:').close()\n1",
}


@pytest.mark.parametrize("source", OWN.values(), ids=OWN)
def test_what_is_no_input_of_a_step_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "fails.py").write_text("def fail():\n    raise ValueError\n")
    run(cell("1"))
    result = run(cell(source))
    assert status(result) == "completed"
    assert not result.step_metadata["load"].get("files")
    assert status(run(cell(source))) == "cached"


def test_a_file_that_a_step_changes_after_it_has_read_it_counts_as_it_left_it(folder: Path) -> None:
    """A counter is not read anew by a run in which nothing has changed since."""
    (folder / "n.txt").write_text("1")
    source = "n = int(open('n.txt').read())\nopen('n.txt', 'w').write(str(n + 1))\nn"
    assert status(run(cell(source))) == "completed"
    assert status(run(cell(source))) == "cached"
    (folder / "n.txt").write_text("7")
    assert run(cell(source)).step_outputs["load"] == 7


def test_many_files_count_as_all_that_is_in_their_folder(folder: Path) -> None:
    """The record of a value that was made from 3,000 files is not a list of 3,000 files."""
    (folder / "in").mkdir()
    for number in range(300):
        (folder / "in" / str(number)).write_text("1")
    (folder / "in" / "folder").mkdir()
    source = "from pathlib import Path\nsum(int(p.read_text()) for p in Path('in').glob('[0-9]*'))"
    result = run(cell(source))
    assert list(result.step_metadata["load"]["files"]) == ["in/*"]
    assert status(run(cell(source))) == "cached"
    (folder / "in" / "7").write_text("22")
    result = run(cell(source))
    assert (result["load"], result.steps["load"].reason) == (321, "files in/* changed")
    (folder / "in" / "300").write_text("1")
    assert run(cell(source))["load"] == 322


def test_many_files_beside_the_notebook_count_together(folder: Path) -> None:
    for number in range(300):
        (folder / str(number)).write_text("1")
    source = "sum(int(open(str(n)).read()) for n in range(300))"
    assert list(run(cell(source)).step_metadata["load"]["files"]) == ["./*"]
    assert status(run(cell(source))) == "cached"
    (folder / "7").write_text("22")
    assert run(cell(source))["load"] == 321


def test_a_module_of_the_user_with_the_name_of_a_reader_of_source_is_no_reader_of_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "my_inspect.py").write_text("def text():\n    return open('d.csv').read()\n")
    (folder / "d.csv").write_text("1")
    source = "import my_inspect\nmy_inspect.text()"
    run(cell(source))
    (folder / "d.csv").write_text("2")
    assert run(cell(source))["load"] == "2"


def test_a_disk_that_failed_once_does_not_make_a_file_change_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tagent_nb.runners.execution import files

    (folder / "d.csv").write_text("1")
    run(cell("open('d.csv').read()"))
    (folder / "d.csv").write_text("1")

    def away(*_: Any, **__: Any) -> Any:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", away, raising=False)
        assert asyncio.run(executor(cell("open('d.csv').read()")).plan())["load"].action == "run"
    assert status(run(cell("open('d.csv').read()"))) == "cached"


@pytest.mark.parametrize("change", ["mkdir()", "write_text('1')", "touch()", "symlink_to('in')"])
def test_a_folder_that_a_step_lists_and_writes_to_counts_as_it_left_it(folder: Path, change: str) -> None:
    (folder / "in").mkdir()
    source = f"import os, pathlib\nnames = os.listdir('in')\npathlib.Path('in/own').{change}\nnames"
    assert status(run(cell(source))) == "completed"
    assert status(run(cell(source))) == "cached"
    (folder / "in" / "d.csv").write_text("1")
    assert run(cell("import os\nsorted(os.listdir('in'))"))["load"] == ["d.csv", "own"]


def test_a_file_that_changes_while_it_is_read_is_read_again(folder: Path) -> None:
    (folder / "d.csv").write_text("1")
    source = (
        "import subprocess\ntext = open('d.csv').read()\nsubprocess.run('echo 2 > d.csv', shell=True)\ntext"
    )
    assert status(run(cell(source))) == "completed"
    result = run(cell(source))
    assert status(result) == "completed"
    assert result.steps["load"].reason == "file d.csv changed"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_from_what_a_function_remembers_of_a_file_is_not_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A warning says so, and the next process, or the next run, reads the file as it is."""
    (folder / "d.csv").write_text("old")

    def pipeline(table: Any) -> Pipeline:
        flow = Pipeline("files")
        source = "await load_table()" if kind == "async" else "table()"
        flow.put(PipelineStep.from_cell("load", source, python=True))
        return flow

    def in_new_process(change: str = "") -> PipelineResult:
        names: dict[str, Any] = {}
        exec(
            "import functools\nfrom pathlib import Path\n\n@functools.cache\ndef table():\n"
            "    return Path('d.csv').read_text()\n\nasync def load_table():\n    return table()\n",
            names,
        )
        result = executor(pipeline(None), namespace=names).run()
        if change:
            (folder / "d.csv").write_text(change)
            result = executor(pipeline(None), namespace=names).run()
        return result

    result = in_new_process("new")
    assert (result["load"], status(result)) == ("old", "completed")
    assert "did not read d.csv again, though it has changed" in " ".join(result.warnings)
    result = in_new_process()
    assert (result["load"], status(result), result.warnings) == ("new", "completed", [])
    assert status(in_new_process()) == "cached"


def test_only_the_items_whose_file_has_changed_run_again(folder: Path) -> None:
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    (folder / "all.json").write_text("{}")

    def pipeline() -> Pipeline:
        reading = Pipeline("files")

        @reading.task()
        def names() -> list[str]:
            return ["a", "b", "c"]

        @reading.task(map_over="names")
        async def text(item: str) -> str:
            json.loads(Path("all.json").read_text())
            return Path(f"{item}.txt").read_text()

        return reading

    assert run(pipeline()).step_outputs["text"] == ["a", "b", "c"]
    assert status(run(pipeline()), "text") == "cached"
    (folder / "b.txt").write_text("B")
    result = run(pipeline())
    assert result.step_outputs["text"] == ["a", "B", "c"]
    assert [item.status.value for item in (result.steps["text"].items or {}).values()] == [
        "cached",
        "completed",
        "cached",
    ]
    assert result.steps["text"].reason == "file b.txt changed"
    assert status(run(pipeline()), "text") == "cached"


def test_steps_below_run_again_only_if_the_value_is_another_one(folder: Path) -> None:
    (folder / "d.csv").write_text("1")

    def pipeline() -> Pipeline:
        flow = cell("open('d.csv').read().strip()")
        flow.put(PipelineStep.from_cell("report", "'read ' + load", python=True))
        return flow

    run(pipeline())
    (folder / "d.csv").write_text("1 ")
    result = run(pipeline())
    assert (status(result), status(result, "report")) == ("completed", "cached")
    (folder / "d.csv").write_text("2")
    assert run(pipeline()).step_outputs["report"] == "read 2"


def test_a_resumed_run_does_not_go_on_with_what_a_file_was(folder: Path) -> None:
    """It says which step read which file, and with on_change="rerun" reads it again."""
    (folder / "d.csv").write_text("1")

    def pipeline() -> Pipeline:
        flow = cell("open('d.csv').read()")
        flow.put(
            PipelineStep.from_cell(
                "report", "if load == '1':\n    raise ValueError\nload", python=True, max_retries=0
            )
        )
        return flow

    without_cache = PipelineExecutor(pipeline(), cache=False, storage=Path(".tagent/runs"))
    assert not without_cache.run().success
    (folder / "d.csv").write_text("2")
    again = PipelineExecutor(pipeline(), cache=False, storage=Path(".tagent/runs"))
    with pytest.raises(ResumeConflictError, match=r"load: file d\.csv changed"):
        again.run(resume=True)
    assert again.run(resume=True, on_change="rerun").step_outputs["report"] == "2"


def test_items_of_a_stopped_map_whose_file_has_changed_run_again(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.txt").write_text(name)
    ran: list[str] = []

    def pipeline() -> Pipeline:
        reading = Pipeline("files")

        @reading.task()
        def names() -> list[str]:
            return ["a", "b", "c"]

        @reading.task(map_over="names", max_retries=0)
        def text(item: str) -> str:
            ran.append(item)
            return Path(f"{item}.txt").read_text()

        return reading

    def session(**options: Any) -> PipelineResult:
        return PipelineExecutor(pipeline(), cache=False, storage=Path(".tagent/runs")).run(**options)

    assert not session().success
    (folder / "b.txt").write_text("B")
    (folder / "c.txt").write_text("c")
    ran.clear()
    assert session(resume=True).step_outputs["text"] == ["a", "B", "c"]
    assert sorted(ran) == ["b", "c"]


def test_a_step_that_failed_and_was_tried_again_has_the_files_of_its_last_attempt(folder: Path) -> None:
    (folder / "d.csv").write_text("1")
    (folder / "other.csv").write_text("1")
    source = (
        "from pathlib import Path\nif not Path('was').exists():\n    Path('was').touch()\n"
        "    open('other.csv').read()\n    raise ConnectionError\n"
    )
    result = executor(cell(source + "open('d.csv').read()"), retry_delay=0.0).run()
    assert list(result.step_metadata["load"]["files"]) == ["d.csv"]


# -- time ---------------------------------------------------------------------------------------


def test_an_answer_is_made_again_when_it_is_no_longer_fresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a step reads where nothing can see it, the time since is all that there is to go by."""

    def pipeline(fresh_for: Any) -> Pipeline:
        page = Pipeline("page")

        @page.task(fresh_for=fresh_for)
        def load() -> int:
            with Path("log").open("a") as log:
                log.write("ran ")
            return 7

        return page

    now = time.time()
    assert status(run(pipeline("1h"))) == "completed"
    assert status(run(pipeline("1h"))) == "cached"
    assert status(run(pipeline(None))) == "cached"
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert status(run(pipeline(None))) == "cached"
    assert status(run(pipeline("2h"))) == "cached"
    assert status(run(pipeline("1h"))) == "completed"
    assert status(run(pipeline("1h"))) == "cached"
    assert (folder / "log").read_text() == "ran ran "


def test_the_reason_is_the_age_of_an_answer_that_is_no_longer_fresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pages(rows: list[Any]) -> Pipeline:
        made = Pipeline("pages").share(rows=rows)
        made.inputs["rows"] = rows

        @made.task(fresh_for="1h")
        def load() -> int:
            return 7

        @made.task(map_over="rows", fresh_for="1h", name="each")
        def each(item: Any) -> str:
            return str(item)

        return made

    async def plan(rows: list[Any]) -> dict[str, str]:
        return {step.step: step.why for step in (await executor(pages(rows)).plan()).steps}

    old = "older than fresh_for (1 h 00 min)"
    now = time.time()
    assert run(pages([1])).success
    monkeypatch.setattr(time, "time", lambda: now + 1900)
    result = run(pages([1, 2]))
    assert "fresh_for" not in result.steps["each"].reason
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert asyncio.run(plan([1, 2]))["each"] == f"answers of other items are {old}"
    monkeypatch.setattr(time, "time", lambda: now + 9000)
    assert asyncio.run(plan([1, 2])) == {
        "load": f"its answer is {old}",
        "each": f"answers of its items are {old}",
    }
    result = run(pages([1, 2]))
    assert result.steps["load"].reason == f"its answer is {old}"
    assert result.steps["each"].reason == f"answers of its items are {old}"


def test_an_answer_of_unknown_age_is_not_fresh(folder: Path) -> None:
    run(cell("1"))
    assert status(run(cell("1", fresh_for=60))) == "completed"
    assert status(run(cell("1", fresh_for=60))) == "cached"


@pytest.mark.parametrize(
    ("text", "seconds"), [(90, 90.0), ("45s", 45.0), ("30m", 1800.0), (" 1.5 h", 5400.0), ("7d", 604800.0)]
)
def test_fresh_for_is_seconds_or_a_text(text: Any, seconds: float) -> None:
    assert cell("1", fresh_for=text).get_step("load").fresh_for == seconds


@pytest.mark.parametrize("value", [0, -1, "soon", "1w", True, float("nan"), [], "0h"])
def test_fresh_for_is_refused_where_it_is_no_time(value: Any) -> None:
    from tagent_nb import DefinitionError

    with pytest.raises(DefinitionError, match=r"'load'.*fresh_for.*'30m'"):
        cell("1", fresh_for=value)


def test_a_file_that_cannot_be_read_any_more_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk of the network that is away: the step itself says what is wrong."""
    from tagent_nb.runners.execution import files

    (folder / "d.csv").write_text("1")
    run(cell("open('d.csv').read()"))
    os.utime(folder / "d.csv", (1, 1))

    def away(*_: Any, **__: Any) -> Any:
        raise OSError("stale file handle")

    monkeypatch.setattr(files, "open", away, raising=False)
    result = run(cell("open('d.csv').read()"))
    assert status(result) == "completed"
    assert result.steps["load"].reason == "file d.csv changed"
