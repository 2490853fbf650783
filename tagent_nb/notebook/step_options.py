"""From the options of ``%%tagent_step`` to a step."""

from __future__ import annotations

import argparse
from typing import Any

from tagent_nb.errors import DefinitionError
from tagent_nb.notebook.parsing import names
from tagent_nb.notebook.provider_options import read_settings
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.workspace import CellNames
from tagent_nb.pipeline.models import ExecutionMode, PipelineStep


def read_roles(session: Session, texts: list[str]) -> dict[str, Any]:
    """``["plan=openai:gpt-5", "judge=mine"]``: models by role, variables of the notebook among them.

    Raises:
        DefinitionError: One is not written so, or a role is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        role, sign, model = (part.strip() for part in text.partition("="))
        if not role or not sign or not model:
            raise DefinitionError(
                f"--model-for {text!r} cannot be read. Write: --model-for plan=openai:gpt-5"
            )
        if role in found:
            raise DefinitionError(f"--model-for: {role} is given twice. Keep one.")
        found[role] = session.model(model)
    return found


def build_step(
    session: Session, args: argparse.Namespace, cell: str, mode: ExecutionMode | None
) -> tuple[PipelineStep, CellNames]:
    """Make the step that the cell and its options describe. Options that are not given keep their default.

    Returns the step, and the names in its options, which a run looks up again.

    Raises:
        DefinitionError: Something is not written right; the message names the step and the remedy.
    """
    given: dict[str, Any] = {
        "constraints": args.constraint,
        "instructions": args.instructions,
        "output_mode": args.output_mode,
        "timeout": args.timeout,
        "max_retries": args.max_retries,
        "budget": args.budget,
        "min_success": args.min_success,
        "map_over": args.map_over,
        "agent": "plan" if args.plan else None,
        "max_replans": args.max_replans,
        "when": args.when,
        "model": session.model(args.model),
    }
    options = {name: value for name, value in given.items() if value is not None}
    if args.model_for:
        options["models"] = read_roles(session, args.model_for)
    options["depends_on"] = [name for text in args.depends_on or () for name in names(text)]
    options["execution_mode"] = mode or session.pipeline.default_mode
    objects: dict[tuple[str, str], Any] = {}
    if args.model:
        objects["--model", args.model] = options["model"]
    if args.output_schema:
        options["output_schema"] = objects["--output-schema", args.output_schema] = session.schema(
            args.output_schema
        )
    tools = names(args.tools)
    if args.tools is not None:
        own = session.tools(tools)
        options["tools_filter"], options["tools"] = tools, list(own.values())
        objects.update({("--tools", name): function for name, function in own.items()})
    checks = [name for text in args.check or () for name in names(text)]
    options["checks"] = [session.function(name) for name in checks]
    objects.update({("--check", name): check for name, check in zip(checks, options["checks"], strict=True)})
    if args.approve:
        options["approve"] = True
    if args.approve_tools:
        options["approve_tools"] = [name for text in args.approve_tools for name in names(text)]
    if args.remember:
        options["remember"] = True
    if args.final:
        options["final"] = True
    if args.setting:
        if args.python:
            raise DefinitionError(
                f"Step {args.name!r}: a Python step asks no model. Leave --setting out, or write a goal."
            )
        options["settings"] = read_settings(args.setting)
    if args.no_cache:
        options["cache"] = False
    step = PipelineStep.from_cell(args.name, cell, python=args.python, **options)
    return step, CellNames(step, args.output_schema or "", checks, tools, args.model or "", objects)
