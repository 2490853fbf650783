"""The console script ``tagent-nb``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from tagent_nb.errors import TagentError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the words name; ``sys.argv`` without any. Returns the exit status."""
    command = _parser().parse_args(arguments).command
    try:
        return 0 if command() else 1
    except TagentError as error:
        print(f"tagent-nb: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tagent-nb", description="Agent pipelines that live in a notebook: %load_ext tagent_nb"
    )
    parser.add_argument("--version", action="version", version=f"tagent-nb {version('tagent-nb')}")
    rooms = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    model = rooms.add_parser("model", help="the small local model, to try things without a key")
    what = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    what.add_parser(
        "install", help="install its runtime and its weights (about 110 MB), and check them"
    ).set_defaults(command=_install)
    what.add_parser(
        "status", help="say what of it is installed; exit status 1 if it cannot be used"
    ).set_defaults(command=_status)
    return parser


def _install() -> bool:
    from tagent_nb.steps.local import install_model

    return install_model().ready


def _status() -> bool:
    from tagent_nb.steps.local import ABOUT, model_status

    status = model_status()
    print(ABOUT)
    print(f"runtime: {status.runtime or 'not installed'}")
    print(f"weights: {status.weights or 'not installed'}{'' if status.intact is not False else ' (damaged)'}")
    print("ready: model='local'" if status.ready else "not ready: run tagent-nb model install")
    return status.ready
