"""The magic that lets cells call asyncio.run()."""

from __future__ import annotations

import asyncio
from argparse import Namespace

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import arguments, option


@magics_class
class NestMagics(NotebookMagics):
    """Switch nested event loops on."""

    @line_magic
    @arguments()
    @option("switch", nargs="?", metavar="on", help="Apply it. Without this, say whether it is applied.")
    def tagent_nest(self, args: Namespace) -> None:
        """Let code in cells call asyncio.run() although the notebook's loop runs. Pipelines do not need it.

        It patches asyncio for the whole kernel with nest-asyncio2. There is no way back: only a restart
        of the kernel takes it off again.
        """
        if args.switch == "off" and _nested():
            raise UsageError(
                "%tagent_nest: nest-asyncio2 cannot be taken off a running kernel. Restart the kernel."
            )
        if args.switch not in (None, "on", "off"):
            raise UsageError(f"%tagent_nest: there is only 'on', not {args.switch!r}.")
        if args.switch == "on":
            _nest()
        print(f"asyncio.run() inside cells is {'on' if _nested() else 'off'}.")


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
