"""A secret of the environment gets nowhere: no store, cache, log, notebook, page or traceback has it.

One run meets the secret wherever user code can: in variables, errors, tools, prints, settings. Then every
place that a run writes to is searched for it. A new place is a function with ``@place``: it gets the
:class:`Lab` after the run, and gives all the bytes that are there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tagent_nb import (
    EncodeError,
    Pipeline,
    PipelineExecutor,
    PipelineResult,
    PipelineStep,
    PipelineValidationError,
    cli,
    export_module,
)
from tagent_nb.cache import ResultCache
from tagent_nb.display import definition_table
from tagent_nb.errors import DefinitionError, TagentError
from tagent_nb.events import Event
from tagent_nb.redaction import held_secret, redact
from tagent_nb.results import result_view, run_html, run_text
from tagent_nb.storage import RecordStoreBackend, StorageBackend, open_storage
from tests.fake_openai import Act, error, fake_openai
from tests.redis_server import RedisServer

CANARY = "sk-canary-7Qm2xVb9Lr4TzN"
OTHER = "ghp-canary-Wd83kLpQ0s"
KINDS = ["memory", "file", "sqlite", pytest.param("redis", marks=pytest.mark.requires("redis-server"))]

Place = Callable[["Lab"], Awaitable[bytes]]
PLACES: dict[str, Place] = {}


def place(function: Place) -> Place:
    """Search what this function returns, too."""
    PLACES[function.__name__] = function
    return function


@dataclass
class Lab:
    """Where a run has written to.

    Attributes:
        folder: Everything that is on the disk is below it.
        seen: Events as observers got them, passing ones too.
        printed: What was written to standard output and error.
    """

    folder: Path
    pipeline: Pipeline
    storage: StorageBackend
    cache: ResultCache
    executor: PipelineExecutor
    result: PipelineResult
    namespace: dict[str, Any]
    seen: list[Event] = field(default_factory=list)
    logs: str = ""
    printed: str = ""
    spans: str = ""


def leaky(namespace: dict[str, Any]) -> Pipeline:
    """Steps that meet the secret; most of them fail of it."""
    pipeline = Pipeline("leaky", model="openai-chat:gpt-4o")
    pipeline.shared_context = {"headers": {"Authorization": f"Bearer {CANARY}"}, "plain": 1}

    def cell(name: str, code: str, **options: Any) -> None:
        options = {"max_retries": 0, **options}
        pipeline.put(PipelineStep.from_cell(name, code, python=True, **options))

    cell("quiet", "import os\nlen(os.environ['OPENAI_API_KEY']) + len(SECRET) + len(shared['headers'])")
    cell("printed", "import os\nprint(os.environ['OPENAI_API_KEY'], SECRET)\n1")
    cell("logged", "import logging\nlogging.getLogger('mine').debug('asking')\n2")
    cell("raised", "import os\nraise RuntimeError('401 for ' + os.environ['OPENAI_API_KEY'])", max_retries=1)
    cell(
        "chained",
        "try:\n    raise KeyError(SECRET)\nexcept KeyError as e:\n    raise ValueError('wrong') from e",
    )
    cell("rows", "[1, 2, 3]")
    cell("mapped", "raise RuntimeError(SECRET + str(item))", map_over="rows")
    cell("unmappable", "item", map_over="quiet")
    pipeline.step("asked", "Say hello.", max_retries=0)
    pipeline.step("helped", "Look it up.", tools=[look_up], max_retries=0,
                  settings={"extra_headers": {"X-Key": CANARY}})  # fmt: skip
    return pipeline


def look_up(word: str) -> str:
    """A tool that says too much when it fails."""
    raise RuntimeError(f"no access with {os.environ['OPENAI_API_KEY']}")


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("SERVICE_TOKEN", OTHER)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store; a server keeps its file below the folder that is searched."""
    kind = request.param
    if kind != "redis":
        yield {"memory": "memory:", "file": "runs", "sqlite": "sqlite:///runs.db"}[kind]
        return
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always")
    yield server.url
    server.kill()


@pytest.fixture
async def lab(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> AsyncIterator[Lab]:
    """A run that has met the secret, with all loggers at their most talkative."""
    caplog.set_level(logging.DEBUG)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    refusal = error(401, f"Incorrect API key provided: {CANARY}", "invalid_api_key")
    acts = [refusal, Act(tool="look_up", arguments={"word": "x"}), refusal]
    namespace = {"SECRET": OTHER}
    pipeline = leaky(namespace)
    with fake_openai(*acts) as server:
        monkeypatch.setattr("tests.fake_openai.KEY", CANARY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        seen: list[Event] = []
        cache = ResultCache(tmp_path / "cache")
        executor = PipelineExecutor(
            pipeline, storage=url, cache=cache, observers=[seen.append], namespace=namespace, retry_delay=0.0
        )
        result = await executor.execute()
        await executor.execute(resume=True)
    await executor.export_recording(tmp_path / "recording.json", result.run_id)
    if isinstance(executor.storage, RecordStoreBackend):
        await executor.storage.backup(tmp_path / "backups")
    await executor.storage.close()
    cache.close()
    read = capfd.readouterr()
    logs = "\n".join(
        f"{log_record.getMessage()} {log_record.args} {log_record.exc_text}" for log_record in caplog.records
    )
    logs += caplog.text
    yield Lab(
        tmp_path,
        pipeline,
        executor.storage,
        cache,
        executor,
        result,
        namespace,
        seen,
        logs,
        read.out + read.err,
        "\n".join(span.to_json() for span in exporter.get_finished_spans()),
    )
    provider.shutdown()
    await executor.storage.close()


# -- places ------------------------------------------------------------------------------------


@place
async def files(lab: Lab) -> bytes:
    """All files: store, log of the database or server, backups, cache."""
    stored = [path for path in sorted(lab.folder.rglob("*")) if path.is_file()]
    return b"\n".join(path.read_bytes() for path in stored)


@place
async def stored_events(lab: Lab) -> bytes:
    """What is read back, also from a store in memory."""
    events = await lab.storage.read_run(lab.pipeline.id, lab.result.run_id)
    return repr(events).encode()


@place
async def observed_events(lab: Lab) -> bytes:
    """What views and exporters are given while the run goes on."""
    return repr(lab.seen).encode()


@place
async def logs(lab: Lab) -> bytes:
    """Records of all loggers, ours, pydantic-ai's and the HTTP client's, at DEBUG."""
    assert "asking" in lab.logs
    return lab.logs.encode()


@place
async def recordings(lab: Lab) -> bytes:
    """The calls of models and tools, as exported for replay."""
    text = (lab.folder / "recording.json").read_bytes()
    assert b"look_up" in text
    return text


@place
async def spans(lab: Lab) -> bytes:
    """What OpenTelemetry received."""
    assert "look_up" in lab.spans
    return lab.spans.encode()


@place
async def printed(lab: Lab) -> bytes:
    """Standard output and error. (What steps print goes to observers.)"""
    return b"-" + lab.printed.encode()


@place
async def results(lab: Lab) -> bytes:
    """The result in all its forms."""
    result = lab.result
    frames = [result.to_frame(), result.events_frame(), result.usage_frame()]
    texts = [repr(result), result._repr_html_(), result.to_json(), *(frame.to_csv() for frame in frames)]
    return "\n".join([*texts, *result.error_details.values(), *result.warnings]).encode()


@place
async def views(lab: Lab) -> bytes:
    """Panel and tables, as HTML and as text."""
    view = result_view(lab.result)
    return "\n".join(
        [
            run_html(view),
            run_text(view),
            repr(
                definition_table(lab.pipeline, {name: step.status for name, step in lab.result.steps.items()})
            ),
        ]
    ).encode()


@place
async def definitions(lab: Lab) -> bytes:
    """The pipeline as JSON, or the refusal to write it."""
    with pytest.raises(EncodeError, match=r"OPENAI_API_KEY.*os\.environ") as caught:
        lab.pipeline.to_json()
    return str(caught.value).encode()


@place
async def modules(lab: Lab) -> bytes:
    """The pipeline as a module, or the refusal to write it."""
    with pytest.raises((DefinitionError, PipelineValidationError), match="SERVICE_TOKEN") as caught:
        export_module(lab.pipeline, lab.namespace)
    return str(caught.value).encode()


@place
async def plans(lab: Lab) -> bytes:
    """What would run, and why."""
    plan = await lab.executor.plan(resume=lab.result.run_id, on_change="rerun")
    return (repr(plan) + plan.to_frame().to_csv()).encode()


# -- searching ---------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.parametrize("url", KINDS, indirect=True)
async def test_the_secret_is_nowhere(lab: Lab) -> None:
    """And the places are not empty: they say what failed, with the secret hidden."""
    failed = {"raised", "chained", "mapped", "unmappable", "asked", "helped"}
    assert set(lab.result.failed_steps) == failed
    assert lab.result["quiet"] == len(CANARY) + len(OTHER) + 1
    places = {name: await look(lab) for name, look in PLACES.items()}
    for name in ("stored_events", "observed_events", "results", "views"):
        assert b"401 for ***" in places[name], name
    assert all(places.values())
    leaks = {
        name: [text[max(0, text.index(secret) - 200) : text.index(secret) + 40]]
        for name, text in places.items()
        for secret in (CANARY.encode(), OTHER.encode())
        if secret in text
    }
    assert leaks == {}


def test_the_search_would_find_it(tmp_path: Path) -> None:
    """A step that returns the secret as its value stores it: values are the user's own."""

    async def run() -> bytes:
        pipeline = Pipeline("tells")
        pipeline.put(PipelineStep.from_cell("tells", "import os\nos.environ['OPENAI_API_KEY']", python=True))
        executor = PipelineExecutor(pipeline, storage=tmp_path / "runs")
        await executor.execute()
        await executor.storage.close()
        return b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*.journal"))

    assert CANARY.encode() in asyncio.run(run())


CELLS = [
    "%load_ext tagent_nb",
    "%tagent_pipeline leaky --model openai-chat:gpt-4o",
    "%%tagent_step quiet --python\nimport os\nlen(os.environ['OPENAI_API_KEY'])",
    "%%tagent_step raised --python --max-retries 0\nimport os\n"
    "print(os.environ['OPENAI_API_KEY'])\nraise RuntimeError('401 for ' + os.environ['OPENAI_API_KEY'])",
    "%%tagent_step asked --max-retries 0\nSay hello {{ quiet }}",
    "%tagent_run",
    "%tagent_status",
    "%tagent_results",
    "%tagent_history",
    "%tagent_explain raised",
    "%tagent_plan",
    "import os\nsecret = os.environ['OPENAI_API_KEY']",
    "%%tagent_step reads --python\nlen(secret)",
    "%tagent_export leaky.py",
    "import tagent_nb\ntagent_nb.current().result",
    "%tagent_run --background",
]


def test_a_saved_notebook_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed by a real kernel, with its HTML page and all that it leaves in its folder."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    refusal = error(401, f"Incorrect API key provided: {CANARY}", "invalid_api_key")
    with fake_openai(refusal) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        NotebookClient(
            notebook,
            timeout=120,
            allow_errors=True,
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    (tmp_path / "saved.ipynb").write_text(nbformat.writes(notebook))
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (tmp_path / "saved.html").write_text(page)
    saved = (tmp_path / "saved.ipynb").read_text()
    assert "401 for ***" in saved
    assert "environment variable OPENAI_API_KEY" in saved
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_the_command_line_shows_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither of a step that fails nor of a file that does not run."""
    Path("fails.py").write_text(
        "import os\nfrom tagent_nb import Pipeline\npipeline = Pipeline('fails')\n"
        "@pipeline.task(max_retries=0)\ndef one():\n    raise RuntimeError(os.environ['OPENAI_API_KEY'])\n"
    )
    Path("broken.py").write_text("import os\nraise RuntimeError('401 ' + os.environ['OPENAI_API_KEY'])\n")
    assert cli.main(["run", "fails.py", "--json", "result.json"]) == 1
    assert cli.main(["run", "broken.py"]) == 1
    read = capfd.readouterr()
    assert "401 ***" in read.err
    assert CANARY not in read.out + read.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


# -- what hides it -----------------------------------------------------------------------------


def test_what_counts_as_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of its variable, unless it is short. The longest is hidden first."""
    for name in (
        "A_KEY",
        "AWS_ACCESS_KEY_ID",
        "a_token",
        "A_SECRET",
        "DB_PASSWORD",
        "PGPASSWD",
        "X_PASSPHRASE",
    ):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert redact(f"<value-of-{name}>") == "<***>"
        assert held_secret(f"<value-of-{name}>") == name
    monkeypatch.setenv("SHORT_KEY", "1234567")
    monkeypatch.setenv("KEYBOARD", "a long layout")
    assert redact("1234567, a long layout") == "1234567, a long layout"
    monkeypatch.setenv("B_KEY", "value-of-A_KEY-and-more")
    assert redact("value-of-A_KEY-and-more") == "***"
    assert held_secret("nothing") is None


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ({"description": f"with {CANARY}"}, "description"),
        ({"shared_context": {"a": [1, {"b": CANARY}]}}, r"shared_context\.a\[1\]\.b"),
        ({"shared_context": {CANARY: 1}}, "shared_context"),
        ({"goal": f"Use {CANARY}."}, r"steps\[0\]\.goal"),
    ],
    ids=["description", "value", "key", "goal"],
)
def test_a_definition_that_holds_it_is_not_written(where: dict[str, Any], path: str) -> None:
    """The error names the place; a record of the run has the rest."""
    from tagent_nb.pipeline import pipeline_to_dict

    pipeline = Pipeline("p", description=where.get("description", ""))
    pipeline.shared_context = where.get("shared_context", {})
    pipeline.step("s", where.get("goal", "Say hello."))
    with pytest.raises(EncodeError, match=path) as caught:
        pipeline_to_dict(pipeline)
    assert CANARY not in str(caught.value)
    lenient = pipeline_to_dict(pipeline, strict=False)
    assert CANARY not in str(lenient)
    assert "OPENAI_API_KEY" in str(lenient["not_stored"])


@pytest.mark.parametrize(
    "url",
    [
        f"reds://me:{CANARY}@host:6379/0",
        f"redis://me:{CANARY}@host:6379/0?keep_last=1&keep_last=2",
        f"redis://me:{CANARY}@host:6379/0?socket_timeout=x",
        f"redis://me:a/{CANARY}@host:6379/0",
        f"redis://me:{CANARY}@host:port/0",
    ],
)
def test_an_error_about_a_url_does_not_show_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when no variable of the environment has it."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TagentError) as caught:
        open_storage(url)
    assert CANARY not in str(caught.value)


def test_a_store_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its repr, which messages use."""
    monkeypatch.delenv("OPENAI_API_KEY")
    pytest.importorskip("redis")
    assert CANARY not in repr(open_storage(f"redis://me:{CANARY}@host:6379/0"))


@pytest.mark.models
async def test_a_recording_leaves_out_what_a_tool_reported_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording is made to be shared; what the run itself stores is the user's own."""

    def connect() -> str:
        """Open a connection."""
        return f"connected with {os.environ['OPENAI_API_KEY']}"

    with fake_openai(Act(tool="connect", arguments={}), Act(text=f"It is {CANARY}.")) as server:
        monkeypatch.setattr("tests.fake_openai.KEY", CANARY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        pipeline = Pipeline("tells", model="openai-chat:gpt-4o")
        pipeline.step("asked", f"Connect with {CANARY}.", tools=[connect])
        executor = PipelineExecutor(pipeline, storage="memory:")
        result = await executor.execute()
    assert result["asked"] == f"It is {CANARY}."
    assert await executor.export_recording(tmp_path / "recording.json") == 3
    text = (tmp_path / "recording.json").read_text()
    assert "connected with" in text
    assert CANARY not in text
