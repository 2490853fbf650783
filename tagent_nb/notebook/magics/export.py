"""The magic that writes the current pipeline to a file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.engine import submit, taken_names
from tagent_nb.export import export_module, is_own
from tagent_nb.formatting import count
from tagent_nb.notebook.display import Picture
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import arguments, no_leftovers, option, writing
from tagent_nb.pipeline import outside_names


@magics_class
class ExportMagics(NotebookMagics):
    """Write the current pipeline to a file."""

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
    def tagent_export(self, args: Namespace) -> None:
        """Write the current pipeline to a file: as a Python module, as JSON, as a picture or a recording.

        The module runs with 'python FILE.py'; 'python FILE.py --help' lists its options.
        """
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
        with writing("%tagent_export", str(path)):
            if path.suffix == ".py" and not args.overwrite and path.exists() and not _is_ours(path):
                raise UsageError(
                    f"%tagent_export: {path} exists, and was not written like this by %tagent_export. "
                    "Write another name, or add --overwrite."
                )
            path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}: {count(len(pipeline.steps), 'step')}.")
        names = [name for name in taken_names(pipeline) if name not in pipeline.inputs]
        if path.suffix in (".json", ".yaml") and names:
            print(
                f"It does not hold these inputs, which are variables of the notebook: {', '.join(names)}. "
                f"Give them: tagent-nb run {path} --input {names[0]}=FILE"
            )
        if path.suffix in (".json", ".yaml") and (needs := outside_names(pipeline)):
            uses = ", ".join(f"{name} ({', '.join(steps)})" for name, steps in _users(needs).items())
            print(
                f"It does not hold these names of the notebook, which its Python uses: {uses}. "
                f"Put them into a Python file: tagent-nb run {path} --schemas FILE.py"
            )

    def _record(self, file: str | None) -> None:
        if not file or Path(file).suffix != ".json":
            raise UsageError(
                f"%tagent_export --recording: write a file name that ends in .json, not {file!r}."
            )
        calls = submit(self.session.executor().export_recording(file)).result()
        print(f"Wrote {file}: {count(calls, 'call')}. To replay: %tagent_pipeline NAME --recording {file}")


def _is_ours(path: Path) -> bool:
    try:
        return is_own(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return False


def _users(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The steps that use a name, by name."""
    users: dict[str, list[str]] = {}
    for step, names in needs.items():
        for name in names:
            users.setdefault(name, []).append(step)
    return dict(sorted(users.items()))
