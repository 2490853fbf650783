"""Faults that come from what a run handles: objects whose methods raise, secrets in all forms, and places to
write to that take nothing or not all letters. On every storage.

With `make test-faults` in full; each test prints its seed, and what was lost or went by in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

import tagent_nb
from tagent_nb import Pipeline, PipelineExecutor, PipelineResult, PipelineStep, StepContext
from tagent_nb.cli import main
from tagent_nb.errors import NotStoredError
from tagent_nb.events import RunFinished, StepFinished
from tagent_nb.storage import RecordStoreBackend, open_storage
from tests.engine.test_user_objects import METHODS, MORE, Stop, odd_class, pipeline_with_others
from tests.redis_server import RedisServer
from tests.storage.test_storage_faults import BACKENDS, Repetitions, kind_of
from tests.test_redaction import forms

pytestmark = pytest.mark.faults

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that no test here breaks."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    yield server
    server.kill()


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of the kind that the test asks for."""
    if request.param == "redis":
        from redis import Redis

        server: RedisServer = request.getfixturevalue("server")
        with Redis.from_url(server.url) as client:
            client.flushall()
        return server.url
    return f"sqlite:///{tmp_path}/runs.db" if request.param == "sqlite" else str(tmp_path / "runs")


on_all = pytest.mark.parametrize("url", BACKENDS, indirect=True)


@pytest.fixture
def chance() -> random.Random:
    """What draws; its seed is printed, so that what fails can be done again."""
    seed = int(os.environ.get("TAGENT_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"\nTAGENT_SEED={seed}")
    return random.Random(seed)


class Report:
    """What a fault test counts."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.injected = self.lost = self.silent = 0

    def lose(self, *, where: str, when: bool = True) -> None:
        """Count what is not there as it should be."""
        self.lost += when
        if when:
            print(f"lost: {where}")

    def silence(self, *, where: str, when: bool = True) -> None:
        """Count what no one was reported, or what was shown or written and must not be."""
        self.silent += when
        if when:
            print(f"silent: {where}")

    def end(self) -> None:
        """One line for `make test-faults`, and a failure if anything was lost or silent."""
        print(f"{self.fault}: {self.injected} injected, {self.lost} lost, {self.silent} silent")
        assert (self.lost, self.silent) == (0, 0), self.fault


# -- objects whose methods raise ---------------------------------------------------------------


@pytest.fixture
def odd() -> Iterator[Any]:
    """A module for what a step hands out, without the step's code referring to the object itself."""
    module = ModuleType("odd_things")
    sys.modules["odd_things"] = module
    yield module
    del sys.modules["odd_things"]


def hand_out() -> Any:
    """The object of this repetition."""
    return sys.modules["odd_things"].value  # type: ignore[attr-defined]


def raise_it() -> Any:
    """Raise the object of this repetition."""
    raise hand_out()


def hand_out_tool() -> Any:
    """Give something."""
    return hand_out()


def raising_tool() -> Any:
    """Fail."""
    raise hand_out()


ODD_PLACES: dict[str, Callable[[Pipeline, Any], object]] = {
    "value": lambda pipeline, value: pipeline.task(name="odd", max_retries=0)(hand_out),
    "value in a list": lambda pipeline, value: pipeline.task(name="odd", max_retries=0)(
        lambda: [1, hand_out()]
    ),
    "value in a dict": lambda pipeline, value: pipeline.task(name="odd", max_retries=0)(
        lambda: {"a": {"b": hand_out()}}
    ),
    "error": lambda pipeline, value: pipeline.task(name="odd", max_retries=0)(raise_it),
    "global": lambda pipeline, value: pipeline.task(name="odd", max_retries=0)(refers_to(value)),
    "shared": lambda pipeline, value: pipeline.share(thing=value).put(
        PipelineStep.from_cell("odd", "str(type(thing))", python=True, max_retries=0)
    ),
    "result of a tool": lambda pipeline, value: pipeline.step(
        "odd", "Call it.", tools=[hand_out_tool], model=TestModel(), max_retries=0
    ),
    "error of a tool": lambda pipeline, value: pipeline.step(
        "odd", "Call it.", tools=[raising_tool], model=TestModel(), max_retries=0
    ),
}


def refers_to(value: Any) -> Any:
    """A function with a global of the user's."""
    namespace = {"value": value}
    exec("def refers():\n    return str(type(value))\n", namespace)
    return namespace["refers"]


@on_all
def test_objects_that_raise(url: str, odd: Any, chance: random.Random, repetitions: Repetitions) -> None:
    """Any method, any place, what is no Exception, too: only the steps that meet it may fail, they say why,
    and all the others are recorded."""
    report = Report(f"objects that raise ({kind_of(url)})")
    for number in range(repetitions(3, 60)):
        place, method = chance.choice(list(ODD_PLACES)), chance.choice(METHODS + MORE)
        error = chance.choice([ValueError, RecursionError, MemoryError, Stop, GeneratorExit])
        base = Exception if "error" in place else chance.choice([object, list, dict, str])
        what = f"{place}: {base.__name__}.{method} raises {error.__name__}"
        odd.value = odd_class(base, method, error)()
        pipeline = pipeline_with_others(f"odd-{number}")
        ODD_PLACES[place](pipeline, odd.value)
        reading: dict[str, str] = chance.choice([{}, {"map_over": "odd"}, {"when": "odd == 3"}])
        pipeline.put(PipelineStep.from_cell("after", "str(odd)\n1", python=True, max_retries=0, **reading))
        result = PipelineExecutor(pipeline, storage=url, retry_delay=0).run()
        report.injected += 1
        for step, value in (("before", 1), ("beside", 2)):
            report.lose(when=result.step_outputs.get(step) != value, where=f"{what}: value of {step}")
        for step in result.failed_steps:
            message = result.error_details[step]
            # Where the object is the error itself, or a step uses it in vain, there is another reason.
            is_said = f"Odd.{method} raised" in message or f"raised {error.__name__}" not in message
            report.silence(when=not message or not is_said, where=f"{what}: {message}")
        report.silence(
            when=not (repr(result) and result._repr_html_() and str(result.events_frame())), where=what
        )
        again = open_storage(url)
        events = asyncio.run(again.read_run(pipeline.id, result.run_id))
        finished = {event.step for event in events if isinstance(event, StepFinished)}
        report.lose(when=not {"before", "beside"} <= finished, where=f"{what}: records")
        report.lose(when=not isinstance(events[-1], RunFinished), where=f"{what}: the end of the run")
    report.end()


# -- secrets -----------------------------------------------------------------------------------

LETTERS = "abcdefghkmnpqrstuvwxyzABCDEFGHKLMNPQRSTUVWXYZ23456789" * 3 + "+/_-~@&'\"<>%=: \\ü€"


def pass_on(where: str) -> str:
    """Look something up."""
    return "seen"


def fail_with(where: str) -> str:
    """Look something up."""
    raise ValueError(f"refused {where}")


def give_back(where: str) -> str:
    """Look something up."""
    return f"found {where}"


def asks(text: str, tool: Callable[..., Any], goal: str = "Look.") -> Callable[[Pipeline], object]:
    """A step whose model calls a tool with a text."""

    def call(messages: list[Any], info: Any) -> Any:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart(tool.__name__, {"where": text})])
        return ModelResponse(parts=[TextPart("done")])

    return lambda pipeline: pipeline.step(
        "asks", goal, tools=[tool], model=FunctionModel(call), max_retries=0
    )


def does(action: Callable[[StepContext], Any]) -> Callable[[Pipeline], object]:
    """A step that does something with the secret."""

    def acts(context: StepContext) -> Any:
        return action(context)

    return lambda pipeline: pipeline.task(name="acts", max_retries=0)(acts)


def _raise(error: Exception) -> Any:
    raise error


SECRET_PLACES: dict[str, Callable[[str], Callable[[Pipeline], object]]] = {
    "argument of a tool": lambda text: asks(text, pass_on),
    "error of a tool": lambda text: asks(text, fail_with),
    "result of a tool": lambda text: asks(text, give_back),
    "goal": lambda text: asks("x", pass_on, "Look at {% raw %}" + text + "{% endraw %}"),
    "printed": lambda text: does(lambda context: print("using", text)),
    "printed to standard error": lambda text: does(lambda context: print("using", text, file=sys.stderr)),
    "error": lambda text: does(lambda context: _raise(PermissionError(f"refused {text}"))),
    "cause of an error": lambda text: does(lambda context: _raise(ValueError(KeyError(text)))),
    "written": lambda text: does(lambda context: context.write(f"using {text}")),
    "progress": lambda text: does(lambda context: context.progress("login", header=[text])),
    "value": lambda text: does(lambda context: {"header": [text]}),
    "learned": lambda text: does(lambda context: context.learn("token", text)),
}
OWN = ("value", "learned")
"""What is the user's: stored as it is, with a warning."""


async def written(url: str, folder: Path, result: PipelineResult, executor: PipelineExecutor) -> str:
    """All that is stored, backed up, exported or shown of a run."""
    storage = open_storage(url)
    assert isinstance(storage, RecordStoreBackend)
    await storage.backup(folder / "backups", keep=1)
    # Only a step that asks a model has what can be replayed.
    with contextlib.suppress(NotStoredError):
        await executor.export_recording(folder / "recording.json")
    records = await storage._read(executor.pipeline.id, result.run_id) or b""
    await storage.close()
    files = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    views = [
        repr(result), result._repr_html_(), result.events_frame().to_string(), result.to_frame().to_string()
    ]  # fmt: skip
    return (records + files).decode(errors="replace") + "".join(views)


@on_all
def test_secrets_in_all_forms(
    url: str,
    tmp_path: Path,
    chance: random.Random,
    repetitions: Repetitions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any key, in any form, at any place: neither store, backup, recording nor page holds it. A value that is
    the user's own is kept as it is, and a warning names the variable."""
    report = Report(f"secrets ({kind_of(url)})")
    for number in range(repetitions(4, 80)):
        key = "".join(chance.choices(LETTERS, k=chance.randrange(12, 40))).strip().ljust(12, "x")
        monkeypatch.setenv("SVC_API_KEY", key)
        form, place = chance.choice(list(forms(key))), chance.choice(list(SECRET_PLACES))
        text, what = forms(key)[form], f"{form} as {place}: {key!r}"
        pipeline = Pipeline(f"secrets-{number}")
        SECRET_PLACES[place](text)(pipeline)
        executor = PipelineExecutor(pipeline, storage=url, retry_delay=0)
        result = executor.run()
        report.injected += 1
        if place in OWN:
            warned = [warning for warning in result.warnings if "SVC_API_KEY" in warning]
            report.silence(when=len(warned) != 1 or key in str(warned), where=f"{what}: no warning")
            learned = place == "learned"
            kept = result.learned_facts.get("token") if learned else result["acts"]["header"][0]
            report.lose(when=kept != text, where=f"{what}: {kept!r}")
            # The next ones look for their own key in all that is stored.
            continue
        everything = asyncio.run(written(url, tmp_path, result, executor))
        for name, shown in forms(key).items():
            report.silence(when=shown in everything, where=f"{what}: found as {name}")
        report.lose(when="asks" in result.failed_steps and "error" not in place, where=what)
    report.end()


# -- terminals and pipes -----------------------------------------------------------------------

SCRIPT = """
from tagent_nb import Pipeline

pipeline = Pipeline("answers")

@pipeline.task(max_retries=0)
def first():
    print("gr\\u00fc\\u00df \\u6f22\\u2713")
    return TEXT

@pipeline.task(max_retries=0)
def second():
    raise ValueError(TEXT)
"""
HOSTILE = [
    *("\x1b]0;owned\x07", "\x1b[31mred\x1b[0m", "\x1b]8;;http://example.org\x1b\\text\x1b]8;;\x1b\\"),
    *("\x1b[2J\x1b[H", "\x9b31m\x85", "\u202egnp.exe\u2066", "\x07\x08\x7f", "\r", "\x00"),
    *("漢字", "grüß", "✓", "🙂", "e\u0301", "plain"),
]
SINKS = ["full", "closed", "none", "left", "ascii", "latin-1", "cp1252", "utf-8", "utf-16"]


def sink_of(kind: str) -> Any:
    """A standard output."""
    if kind == "none":
        return None
    if kind in ("full", "closed"):
        stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
        if kind == "closed":
            stream.close()
        return stream
    if kind == "left":
        read, write = os.pipe()
        os.close(read)
        return os.fdopen(write, "w", encoding="utf-8")
    return io.TextIOWrapper(io.BytesIO(), encoding=kind, write_through=True)


def script_of(chance: random.Random, folder: Path) -> tuple[Path, str, bool]:
    """A pipeline with hostile answers, the text in them, and whether it succeeds."""
    text = "".join(chance.choices(HOSTILE, k=chance.randrange(1, 5)))
    good = chance.random() < 0.5
    source = SCRIPT if not good else SCRIPT.partition("@pipeline.task(max_retries=0)\ndef second")[0]
    path = folder / "answers.py"
    path.write_text(source.replace("TEXT", ascii(text)), encoding="utf-8")
    return path, text, good


def recorded(url: str) -> tuple[str, bool]:
    """Id of the newest run, and whether its end is recorded."""

    async def look() -> tuple[str, bool]:
        storage = open_storage(url)
        (pipeline_id,) = await storage.list_pipelines()
        run_id = await storage.newest_run(pipeline_id) or ""
        events = await storage.read_run(pipeline_id, run_id)
        await storage.close()
        return run_id, isinstance(events[-1], RunFinished)

    return asyncio.run(look())


@on_all
def test_terminals_and_pipes(
    url: str,
    tmp_path: Path,
    chance: random.Random,
    repetitions: Repetitions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever standard output is, and whatever the answers hold: the run is recorded, the exit status is
    right, what cannot be shown goes to standard error, and no control character reaches the terminal."""
    report = Report(f"terminals and pipes ({kind_of(url)})")
    for _ in range(repetitions(3, 60)):
        path, text, good = script_of(chance, tmp_path)
        kind = chance.choice(SINKS)
        what = f"{kind}, {text!a}"
        output, errors = (
            sink_of(kind),
            io.TextIOWrapper(io.BytesIO(), encoding=chance.choice(["ascii", "utf-8"])),
        )
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", errors)
            status = main(["run", str(path), "--storage", url])
        report.injected += 1
        errors.flush()
        assert isinstance(errors.buffer, io.BytesIO)
        reported = errors.buffer.getvalue().decode(errors.encoding)
        run_id, whole = recorded(url)
        report.lose(when=not whole, where=f"{what}: the end of the run")
        broken = kind in ("full", "closed", "none")
        report.silence(when=status != (1 if broken or not good else 0), where=f"{what}: status {status}")
        report.silence(when=broken and run_id not in reported, where=f"{what}: no hint to the run")
        shown = reported
        if (
            output is not None
            and isinstance(output, io.TextIOWrapper)
            and isinstance(output.buffer, io.BytesIO)
        ):
            output.flush()
            shown += output.buffer.getvalue().decode(kind)
            report.lose(when="first" not in shown, where=f"{what}: no table")
        report.silence(when=CONTROL.search(shown) is not None, where=f"{what}: control characters")
        if output is not None:
            output.close()
    report.end()


def test_the_command_in_a_shell(tmp_path: Path, chance: random.Random, repetitions: Repetitions) -> None:
    """As a program of its own, in locales that lack letters, with outputs that are full, closed or left."""
    report = Report("the command in a shell")
    redirects = ["", ">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&-", "| true", "| head -c 20"]
    locales: list[dict[str, str]] = [
        {},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
    ]
    for number in range(repetitions(1, 60)):
        path, text, good = script_of(chance, tmp_path)
        redirect, locale = chance.choice(redirects), chance.choice(locales)
        what = f"{redirect!r}, {locale}, {text!a}"
        store = str(tmp_path / f"runs{number}")
        done = subprocess.run(
            [
                "bash",
                "-o",
                "pipefail",
                "-c",
                f"{sys.executable} -m tagent_nb run {path} --storage {store} {redirect}",
            ],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(tagent_nb.__file__).parents[1]), **locale},
        )
        report.injected += 1
        broken = redirect in (">/dev/full", ">&-", ">&- 2>&-")
        run_id, whole = recorded(store)
        shown = (done.stdout + done.stderr).decode(errors="backslashreplace")
        report.lose(when=not whole, where=f"{what}: the end of the run")
        report.silence(
            when=done.returncode != (1 if broken or not good else 0),
            where=f"{what}: status {done.returncode}",
        )
        report.silence(
            when=broken and "2>&-" not in redirect and run_id not in shown,
            where=f"{what}: no hint to the run",
        )
        report.silence(
            when="tagent_nb/cli.py" in shown or "Exception ignored" in shown, where=f"{what}: {shown[-500:]}"
        )
        report.silence(when=CONTROL.search(shown) is not None, where=f"{what}: control characters")
    report.end()
