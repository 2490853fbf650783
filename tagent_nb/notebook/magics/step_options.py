"""From the options of ``%%tagent_step`` to a step."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from IPython.core.error import UsageError

from tagent_nb.errors import DefinitionError, did_you_mean
from tagent_nb.notebook.magics.parsing import names
from tagent_nb.notebook.session import Session
from tagent_nb.notebook.workspace import CellNames
from tagent_nb.pipeline import ExecutionMode, Limit, PipelineStep, Price, chosen_kind, error_classes


def read_roles(session: Session, texts: list[str]) -> dict[str, Any]:
    """``["plan=openai:gpt-5", "judge=mine"]``: models by role, variables of the notebook among them.

    Raises:
        DefinitionError: One is not written so, or a role is given twice.
    """
    models: dict[str, Any] = {}
    for text in texts:
        role, sign, model = (part.strip() for part in text.partition("="))
        if not role or not sign or not model:
            raise DefinitionError(
                f"--model-for {text!r} cannot be read. Write: --model-for plan=openai:gpt-5"
            )
        if role in models:
            raise DefinitionError(f"--model-for: {role} is given twice. Keep one.")
        models[role] = session.model(model)
    return models


def build_step(
    session: Session, args: argparse.Namespace, cell: str, mode: ExecutionMode | None
) -> tuple[PipelineStep, CellNames]:
    """Make the step that the cell and its options describe. Options that are not given keep their default.

    Returns the step, and the names in its options, which a run looks up again.

    Raises:
        DefinitionError: Something is not written right; the message names the step and the remedy.
    """
    values: dict[str, Any] = {
        "constraints": args.constraint,
        "instructions": args.instructions,
        "output_mode": args.output_mode,
        "timeout": args.timeout,
        "max_retries": args.max_retries,
        "budget": args.budget,
        "min_success": args.min_success,
        "max_failures": args.max_failures,
        "batch": args.batch,
        "rows_per_call": args.rows_per_call,
        "fresh_for": args.fresh_for,
        "map_over": args.map_over,
        "reduce_over": args.reduce_over,
        "group_by": args.group_by,
        "combine": args.combine,
        "reduce_tokens": args.reduce_tokens,
        "samples": args.samples,
        "agent": chosen_kind(args),
        "max_replans": args.max_replans,
        "when": args.when,
        "model": session.model(args.model),
    }
    options = {name: value for name, value in values.items() if value is not None}
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
    if args.retry_on:
        options["retry_on"] = [name for text in args.retry_on for name in names(text)]
    if args.approve:
        options["approve"] = True
    if args.approve_tools:
        options["approve_tools"] = [name for text in args.approve_tools for name in names(text)]
    if args.flatten:
        options["flatten"] = True
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
    error_classes(step.name, step.retry_on, session.namespace)
    return step, CellNames(step, args.output_schema or "", checks, tools, args.model or "", objects)


_PRICE = {
    "input": "input_per_million",
    "output": "output_per_million",
    "cached_input": "cached_input_per_million",
}
_LIMIT = {
    "concurrency": "concurrency",
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
}


def read_price(text: str) -> tuple[str, Price]:
    """``"openai:my-model input=0.5 output=1.5 cached_input=0.05"``: a model, and USD a million tokens.

    Raises:
        UsageError: It is not written so.
        DefinitionError: A price is not allowed.
    """
    model, prices = _read("--price", text, _PRICE, float, "openai:my-model input=0.5 output=1.5")
    for name in ("input", "output"):
        if _PRICE[name] not in prices:
            raise UsageError(f"--price {text!r}: {name}=... is missing, in USD for a million tokens.")
    return model, Price(**prices)


def read_limit(text: str) -> tuple[str, Limit]:
    """``"openai concurrency=8 requests=500 tokens=90000"``: a provider, and what it is asked at most.

    Raises:
        UsageError: It is not written so.
        DefinitionError: A limit is not allowed.
    """
    provider, limits = _read("--limit", text, _LIMIT, int, "openai concurrency=8 requests=500")
    return provider, Limit(**limits)


def read_settings(texts: Iterable[str]) -> dict[str, Any]:
    """``["max_tokens=200", "stream=false"]``: names and values in Python's notation, or else texts.

    ``true`` and ``false`` are truth values, however they are written.

    Raises:
        UsageError: One is not written so, or a name is given twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not name.isidentifier() or not sign or not value:
            raise UsageError(f"--setting {text!r} cannot be read. Write: --setting max_tokens=200")
        if name in settings:
            raise UsageError(f"--setting: {name} is given twice. Keep one.")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = {"true": True, "false": False}.get(value.lower(), value)
    return settings


def _read(
    option: str, text: str, fields: Mapping[str, str], kind: Callable[[str], Any], example: str
) -> tuple[str, dict[str, Any]]:
    how = f'Write: {option} "{example}"'
    name, *parts = text.split() or [""]
    if not name or "=" in name or not parts:
        raise UsageError(f"{option} {text!r} cannot be read. {how}")
    numbers: dict[str, Any] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in fields:
            keys = ", ".join(f"{name}=" for name in fields)
            raise UsageError(
                f"{option} {text!r}: there is no {key!r}.{did_you_mean(key, fields)} Known: {keys}."
            )
        try:
            numbers[fields[key]] = kind(value)
        except ValueError:
            raise UsageError(f"{option} {text!r}: {value!r} is no number. {how}") from None
    return name, numbers
