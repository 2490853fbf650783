"""What the calls of a step are likely to take, before they are paid: tokens and USD, from and to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagent_nb.events import TokenUsage

if TYPE_CHECKING:
    from tagent_nb.engine.unit.prepared import PreparedStep
    from tagent_nb.engine.unit.work import WorkItem
    from tagent_nb.pipeline import Price

Range = tuple[float, float]
"""From and to."""

LEAST_SAMPLES = 3
"""Answers from which on a spread says something; of fewer it is taken to be half of their mean."""

TOKENIZERS = (0.6, 1.8)
"""How many tokens a model may count for one of our rule of thumb, where none of its answers has been seen."""

SEEN_TOKENIZERS = (0.75, 1.35)
"""The same around what earlier answers show, for rows that are longer or shorter."""

REPEATS = 1.2
"""Requests a unit may take where none has been seen: some answers do not fit the schema at once."""

DRIFT = 0.1
"""Part by which models answer longer or shorter from one day to the next."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What the calls of a step are likely to take.

    Attributes:
        units: Rows, or the step itself, that ask.
        calls: Requests to the model.
        input_tokens: From and to.
        output_tokens: From and to.
        cost: USD, from and to; ``None`` where the model's price is unknown.
    """

    units: int
    calls: int
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    cost: Range | None


def prompt_size(work: WorkItem, shared: Mapping[str, Any], run_id: str) -> tuple[int, str]:
    """About how many tokens the first request of a unit sends, and in words if that is too many.

    Raises:
        TemplateError: Its goal reads something that is not there.
    """
    from tagent_nb.runners import StepContext, request_size

    prepared = work.prepared
    names = prepared.read_names
    inputs = {
        name: None if output is None else output.value
        for name, output in work.outputs.items()
        if name in names
    }
    context = StepContext(
        run_id,
        "",
        prepared.name,
        work.item,
        inputs=inputs,
        shared=shared,
        constraints=prepared.constraints,
        instructions=prepared.instructions,
        facts=work.facts,
        memories=work.memories,
        model=prepared.model,
    )
    return request_size(prepared.step, context)


def quote(
    prepared: PreparedStep,
    tokens: Sequence[int],
    units: int,
    seen: Sequence[TokenUsage],
    prices: Mapping[str, Price],
) -> Quote | None:
    """What ``units`` of an agent step are likely to take; ``None`` where nothing is known to go by.

    Args:
        prepared: The step.
        tokens: Input tokens of the prompts that are known; see :func:`prompt_size`.
        units: How many units ask, those whose prompt is not known yet included.
        seen: What earlier answers of the step took, a unit each.
        prices: The user's own, by model.
    """
    from tagent_nb.runners import answer_range, price

    step = prepared.step
    if not seen and (step.agent != "single" or len(tokens) < units):
        return None  # how often a planner asks, and what an unknown prompt holds, nothing tells
    sent = sum(tokens)
    if seen:
        calls = units * statistics.fmean(usage.requests for usage in seen)
        into = _summed([usage.input_tokens for usage in seen], units)
        if len(tokens) == units:
            each = statistics.fmean(usage.input_tokens for usage in seen)
            factor = each * units / sent if sent else 1.0
            # Prompts that have grown or shrunk since count, too.
            lengths = [sent * min(max(factor, end / 2), end * 2) * end for end in SEEN_TOKENIZERS]
            into = (min(into[0], lengths[0]), max(into[1], lengths[1]))
        out = _summed([usage.output_tokens for usage in seen], units)
    else:
        calls = float(units)
        into = (sent * TOKENIZERS[0], sent * TOKENIZERS[1] * REPEATS)
        least, most = answer_range(step)
        out = (float(units * least), units * most * REPEATS)
    ends = [TokenUsage(round(sent), round(answered)) for sent, answered in zip(into, out, strict=True)]
    costs = [price(prepared.model, usage, prices) for usage in ends]
    low, high = ends
    return Quote(
        units,
        max(units, round(calls)),
        (low.input_tokens, high.input_tokens),
        (low.output_tokens, high.output_tokens),
        None if costs[0] is None or costs[1] is None else (costs[0], costs[1]),
    )


def _summed(samples: Sequence[int], units: int) -> Range:
    """The sum of as many units as are to run, from and to, where each is like the samples."""
    mean = statistics.fmean(samples)
    spread = statistics.stdev(samples) if len(samples) >= LEAST_SAMPLES else mean / 2
    # Two standard errors of a sum of independent units; that of the mean itself counts as well.
    error = 2 * spread * (math.sqrt(units) + units / math.sqrt(len(samples))) + DRIFT * mean * units
    return max(0.0, mean * units - error), mean * units + error
