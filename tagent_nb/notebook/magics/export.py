"""Magics about what is kept: recorded runs, cached answers, exported pipelines; and asyncio's switch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from tagent_nb.display import count
from tagent_nb.engine import submit, taken_names
from tagent_nb.errors import did_you_mean
from tagent_nb.export import export_module, is_own
from tagent_nb.notebook.display import Picture, show
from tagent_nb.notebook.magics.parsing import arguments, help_option, no_leftovers, option, parse
from tagent_nb.notebook.magics.tables import cache_table
from tagent_nb.notebook.run_control import RunControl
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.shell.cells import Cells
from tagent_nb.pipeline import outside_names
from tagent_nb.results import runs_frame

DAY = 86_400.0
"""Seconds."""


@magics_class
class KeptMagics(Magics):
    """The part of the magics that is about what is kept."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.session = session
        self.control = RunControl(session, shell)
        self.cells = Cells(shell)

    @line_magic
    @arguments()
    @option(
        "run", nargs="?", help="Give this run's result: its id, or so much of one end of it as is enough."
    )
    @help_option
    def tagent_history(self, line: str) -> Any:
        """Give the recorded runs of the current pipeline as a DataFrame, the newest first.

        With a run, give its result as it was recorded, which becomes the variable 'result'.
        """
        args = parse(KeptMagics.tagent_history, line)
        if args is None:
            return None
        executor = self.session.executor()
        runs = submit(executor.history()).result()
        if not args.run:
            lost = "" if runs else submit(executor.storage.emptied()).result()
            if lost:
                print(lost)
            return runs_frame(reversed(runs))
        no_leftovers("%tagent_history", RUN=args.run)
        run_id = self._run_id(args.run, [run.run_id for run in runs])
        result = submit(executor.load_result(run_id)).result()
        self.control.keep(result)
        return result

    def _run_id(self, text: str, known: list[str]) -> str:
        if text in known:
            return text
        found = [one for one in known if one.startswith(text) or one.endswith(text)]
        if len(found) == 1:
            return found[0]
        name = self.session.pipeline.name
        if found:
            raise UsageError(
                f"%tagent_history: {text!r} may be any of {count(len(found), 'run')} of pipeline {name!r}: "
                f"{', '.join(found[-5:])}. Write more of it."
            )
        newest = f"The newest is {known[-1]}." if known else "It has none yet."
        raise UsageError(
            f"%tagent_history: pipeline {name!r} has no recorded run {text!r}."
            f"{did_you_mean(text, known)} {newest}"
        )

    @line_magic
    @arguments()
    @option(
        "--clear",
        nargs="?",
        const="all",
        metavar="STEP",
        help="Forget the answers of this step, in all pipelines of this folder; of every step with 'all'.",
    )
    @option("--older-than", type=float, metavar="DAYS", help="With --clear: only answers older than this.")
    @help_option
    def tagent_cache(self, line: str) -> None:
        """Show what the cache holds, or forget some of it. That may cost money, never correctness."""
        args = parse(KeptMagics.tagent_cache, line)
        if args is None:
            return
        cache = self.session.cache
        if args.older_than is not None:
            if args.clear is None:
                raise UsageError(
                    "%tagent_cache: --older-than needs --clear. "
                    f"Write: %tagent_cache --clear all --older-than {args.older_than:g}"
                )
            if not args.older_than >= 0:
                raise UsageError(f"%tagent_cache: --older-than is {args.older_than:g}; write 0 or more days.")
        if args.clear is not None:
            step = None if args.clear == "all" else args.clear
            if step is not None:
                self._check_answered(step)
            age = None if args.older_than is None else args.older_than * DAY
            print(f"Forgot {count(cache.clear(step, age), 'answer')}.")
        show(cache_table(cache.stats()))

    def _check_answered(self, step: str) -> None:
        """Refuse a step that has no answers, unless the pipeline has it."""
        answered = sorted({one.step for one in self.session.cache.stats().steps})
        defined = self.session.pipeline.steps if self.session.workspaces else []
        known = [*answered, *(one.name for one in defined)]
        if step not in known:
            raise UsageError(
                f"%tagent_cache: there is no cached answer of a step {step!r}.{did_you_mean(step, known)} "
                f"Steps with answers: {', '.join(answered) or 'none'}."
            )

    @line_magic
    @arguments()
    @option(
        "file",
        nargs="?",
        help="Where to write: FILE.py (a module that runs by itself), FILE.json or FILE.yaml (the "
        "definition), FILE.svg (its picture).",
    )
    @option(
        "--recording",
        action="store_true",
        help="Write the calls to models and tools behind the last run: FILE.json replays them offline.",
    )
    @option("--overwrite", action="store_true", help="Also in place of a module that was changed by hand.")
    @help_option
    def tagent_export(self, line: str) -> None:
        """Write the current pipeline to a file: as a Python module, as JSON, as a picture or a recording.

        The module runs with 'python FILE.py'; 'python FILE.py --help' lists its options.
        """
        args = parse(KeptMagics.tagent_export, line)
        if args is None:
            return
        no_leftovers("%tagent_export", FILE=args.file)
        pipeline = self.session.pipeline
        if args.recording:
            self._record(args.file)
            return
        writers: dict[str, Callable[[], str]] = {
            ".py": lambda: export_module(pipeline, self.session.namespace),
            ".json": pipeline.to_json,
            ".yaml": pipeline.to_yaml,
            ".svg": lambda: Picture(pipeline, None).svg,
        }
        path = Path(args.file or "")
        if path.suffix not in writers:
            raise UsageError(
                f"%tagent_export: write a file name that ends in {', '.join(writers)}, not {args.file!r}."
            )
        text = writers[path.suffix]()
        try:
            if path.suffix == ".py" and not args.overwrite and path.exists() and not _is_ours(path):
                raise UsageError(
                    f"%tagent_export: {path} exists, and was not written like this by %tagent_export. "
                    "Write another name, or add --overwrite."
                )
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"%tagent_export: {path} cannot be written: {error.strerror}.") from None
        print(f"Wrote {path}: {count(len(pipeline.steps), 'step')}.")
        names = [one for one in taken_names(pipeline) if one not in pipeline.inputs]
        if path.suffix in (".json", ".yaml") and names:
            print(
                f"It does not hold these inputs, which are variables of the notebook: {', '.join(names)}. "
                f"Give them: tagent-nb run {path} --input {names[0]}=FILE"
            )
        if path.suffix in (".json", ".yaml") and (needs := outside_names(pipeline)):
            told = ", ".join(f"{name} ({', '.join(steps)})" for name, steps in _users(needs).items())
            print(
                f"It does not hold these names of the notebook, which its Python uses: {told}. "
                f"Put them into a Python file: tagent-nb run {path} --schemas FILE.py"
            )

    def _record(self, file: str | None) -> None:
        if not file or Path(file).suffix != ".json":
            raise UsageError(
                f"%tagent_export --recording: write a file name that ends in .json, not {file!r}."
            )
        calls = submit(self.session.executor().export_recording(file)).result()
        print(f"Wrote {file}: {count(calls, 'call')}. To replay: %tagent_pipeline NAME --recording {file}")

    @line_magic
    @arguments()
    @option("switch", nargs="?", metavar="on", help="Apply it. Without this, say whether it is applied.")
    @help_option
    def tagent_nest(self, line: str) -> None:
        """Let code in cells call asyncio.run() although the notebook's loop runs. Pipelines do not need it.

        It patches asyncio for the whole kernel with nest-asyncio2. There is no way back: only a restart
        of the kernel takes it off again.
        """
        args = parse(KeptMagics.tagent_nest, line)
        if args is None:
            return
        if args.switch == "off" and _nested():
            raise UsageError(
                "%tagent_nest: nest-asyncio2 cannot be taken off a running kernel. Restart the kernel."
            )
        if args.switch not in (None, "on", "off"):
            raise UsageError(f"%tagent_nest: there is only 'on', not {args.switch!r}.")
        if args.switch == "on":
            _nest()
        print(f"asyncio.run() inside cells is {'on' if _nested() else 'off'}.")


def _is_ours(path: Path) -> bool:
    try:
        return is_own(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return False


def _nested() -> bool:
    return bool(getattr(asyncio, "_nest_patched", False))


def _nest() -> None:
    import nest_asyncio2

    try:
        nest_asyncio2.apply(error_on_mispatched=True)
    except RuntimeError as error:
        # nest-asyncio, its predecessor, loses queued cells without a word.
        raise UsageError(
            f"%tagent_nest: {error}. Take nest_asyncio.apply() out of the notebook, and restart the kernel."
        ) from None


def _users(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The steps that use a name, by name."""
    found: dict[str, list[str]] = {}
    for step, names in needs.items():
        for name in names:
            found.setdefault(name, []).append(step)
    return dict(sorted(found.items()))
