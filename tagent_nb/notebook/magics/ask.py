"""%%tagent_ask: one question, without a pipeline of one's own."""

from __future__ import annotations

from argparse import Namespace
from keyword import iskeyword
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, magics_class

from tagent_nb.display import MUTED, Bundle, escape
from tagent_nb.engine import STEP, AgentResult, answered, question
from tagent_nb.errors import DefinitionError
from tagent_nb.formatting import value_text
from tagent_nb.notebook.display import show
from tagent_nb.notebook.magics.base import NotebookMagics
from tagent_nb.notebook.magics.parsing import agent_options, arguments, names, no_leftovers, option
from tagent_nb.notebook.magics.step_options import read_settings
from tagent_nb.notebook.session import Session
from tagent_nb.pipeline import chosen_kind
from tagent_nb.redaction import redact

MAX_SHOWN = 20_000
"""Characters of an answer that a cell shows."""

VARIABLE = "answer"


@magics_class
class AskMagics(NotebookMagics):
    """Ask one question."""

    @cell_magic
    @arguments(cell=True, as_written=("--constraint", "--instructions"))
    @option("name", nargs="?", help="Variable that gets the answer; 'answer' without it.")
    @option("--model", help="Who is asked; the current pipeline's model without it.")
    @option("--output-schema", metavar="SCHEMA", help="Pydantic model of the answer, from the notebook.")
    @option("--tools", metavar="NAMES", help="Tools it may use: names, globs, functions of the notebook.")
    @option("--instructions", metavar="TEXT", help="System prompt of one's own.")
    @option("--constraint", action="append", metavar="TEXT", help="A rule for the answer. May be repeated.")
    @option(
        "--setting", action="append", metavar="NAME=VALUE", help="A setting of the model: max_tokens=200."
    )
    @agent_options
    @option("--timeout", type=float, metavar="SECONDS", help="Most seconds of one attempt.")
    @option("--budget", metavar="AMOUNT", help="Most that the answer may cost: 0.10 (USD), '5000 tokens'.")
    @option("--offline", action="store_true", help="Answer from the cache only.")
    @option("--no-cache", action="store_true", help="Ask again what was asked before.")
    def tagent_ask(self, args: Namespace, cell: str) -> None:
        """Ask one question: the cell is the goal. The same question is not paid twice.

        It is a step of its own, in no pipeline.
        """
        no_leftovers("%%tagent_ask", NAME=args.name, **{"--model": args.model})
        name = args.name or VARIABLE
        if not name.isidentifier() or iskeyword(name):
            raise UsageError(f"%%tagent_ask: {name!r} is no name of a variable.")
        if not cell.strip():
            raise DefinitionError("%%tagent_ask: the cell is empty. Write the question below the first line.")
        try:
            answer = ask(self.session, cell.strip(), args)
        except KeyboardInterrupt:
            raise UsageError("%%tagent_ask: the question was stopped.") from None
        self.shell.user_ns[name] = answer.output
        show(_card(answer, name))


def ask(session: Session, goal: str, args: Namespace) -> AgentResult[Any]:
    """Ask in a notebook: with its prices, limits, cache and storage.

    Args:
        session: The notebook's.
        goal: The question, a template as in all cells.
        args: The options of ``%%tagent_ask``.

    Raises: What :func:`~tagent_nb.run_agent` raises.
    """
    fields: dict[str, Any] = {
        "constraints": args.constraint,
        "instructions": args.instructions,
        "timeout": args.timeout,
        "agent": chosen_kind(args),
        "settings": None if args.setting is None else read_settings(args.setting),
        "output_schema": None if args.output_schema is None else session.schema(args.output_schema),
    }
    if args.tools is not None:
        wanted = names(args.tools)
        fields.update(tools_filter=wanted, tools=list(session.tools(wanted).values()))
    pipeline = question(goal, **{name: value for name, value in fields.items() if value is not None})
    current = session.pipeline.model if session.workspaces else None
    pipeline.model = current if args.model is None else session.model(args.model)
    executor = session.executor(session.apart(pipeline))
    cache = {"use_cache": False} if args.no_cache else {}
    return answered(executor, budget=args.budget, offline=args.offline or None, **cache)


def _card(answer: AgentResult[Any], name: str) -> Bundle:
    output = answer.output
    # Before the text is cut: half of a secret is not found any more.
    text = redact(output) if isinstance(output, str) else value_text(answer.result.steps[STEP].output, 5000)
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"
    cached = answer.result.step_metadata[STEP]["cached"]
    cost = "from the cache" if cached else f"{answer.usage.total_tokens:,} tokens, {answer.cost_text}"
    warnings = [f"Warning: {warning}" for warning in answer.result.warnings]
    below = "\n".join([f"{name}: {cost}", *warnings])
    html = (
        f'<div style="white-space:pre-wrap">{escape(text)}</div>'
        f'<div style="{MUTED};white-space:pre-wrap">{escape(below)}</div>'
    )
    return Bundle(html, f"{text}\n\n{below}")
