"""What the calls of a step are likely to take, before they are paid: tokens and USD, from and to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tagent_nb.events import TokenUsage
from tagent_nb.formatting import whole_text

if TYPE_CHECKING:
    from tagent_nb.engine.unit.prepared import PreparedStep
    from tagent_nb.engine.unit.work import WorkItem
    from tagent_nb.pipeline import Price
    from tagent_nb.runners import StepContext

Range = tuple[float, float]
"""From and to."""

LEAST_SAMPLES = 3
"""Answers from which on a spread says something; of fewer it is taken to be half of their mean."""

TOKENIZERS = (0.6, 1.8)
"""How many tokens a model may count for one of our rule of thumb, where none of its answers has been seen."""

SEEN_TOKENIZERS = (0.75, 1.35)
"""The same beside earlier answers, whose own counts hold for prompts that have not changed."""

REPEATS = 1.2
"""Requests a unit may take where none has been seen: some answers do not fit the schema at once."""

DRIFT = 0.1
"""Part by which models answer longer or shorter from one day to the next."""


class Answer(NamedTuple):
    """What the answer to one unit took.

    Attributes:
        usage: Its tokens and requests; its part of them where it shared its call.
        alone: Whether it shared a call, and was asked for by itself after that.
    """

    usage: TokenUsage
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    """What the calls of a step are likely to take.

    Attributes:
        units: Rows, or the step itself, that ask.
        calls: Requests to the model.
        input_tokens: From and to.
        output_tokens: From and to.
        cost: USD, from and to; ``None`` where the model's price is unknown.
        later_calls: Requests besides, from and to, which combine the answers of a step with ``reduce_over``:
            how many there are depends on how long those answers are. Their tokens and USD are in the others.
        live_cost: The same if each request is sent at once.
        batch_cost: The same if they are sent in batches; ``None`` as well where they cannot be.
        saved_calls: Requests that are not made because rows share calls; 0 where none do.
        saved_tokens: Input tokens that this saves, by the rule of thumb of four bytes each; ``None`` where
            the prompts are not known yet.
    """

    units: int
    calls: int
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    cost: Range | None
    later_calls: tuple[int, int] = (0, 0)
    live_cost: Range | None = None
    batch_cost: Range | None = None
    saved_calls: int = 0
    saved_tokens: int | None = 0


class SharedPrompts:
    """The prompts of calls that several rows of a step share, as the run would send them.

    Args:
        prepared: The step.
    """

    def __init__(self, prepared: PreparedStep) -> None:
        self._prepared = prepared
        self._open: list[list[str]] = []
        self._calls: list[int] = []

    def add(self, pieces: list[str]) -> None:
        """Take the next row that asks."""
        self._open.append(pieces)
        if len(self._open) == self._prepared.step.rows_per_call:
            self._close()

    def tokens(self) -> Sequence[int]:
        """Input tokens of each call, without what is the same for all."""
        if self._open:
            self._close()
        return self._calls

    def _close(self) -> None:
        from tagent_nb.runners import fitting, rows_prompt, tokens_of

        for rows in fitting(self._prepared.model, self._open):
            self._calls.append(tokens_of(rows_prompt(rows).text))
        self._open = []


def prompt_pieces_of(work: WorkItem, shared: Mapping[str, Any]) -> list[str]:
    """The task of a unit of an agent step in pieces, as its first request has it.

    Raises:
        TemplateError: Its goal reads something that is not there.
    """
    from tagent_nb.runners import prompt_pieces

    prepared = work.prepared
    inputs = {
        name: None if output is None else output.value
        for name, output in work.outputs.items()
        if name in prepared.read_names
    }
    context = _context(prepared, inputs=inputs, shared=shared, facts=work.facts, memories=work.memories)
    return [str(whole_text(piece)) for piece in prompt_pieces(prepared.step, context)]


def _context(prepared: PreparedStep, **more: Any) -> StepContext:
    from tagent_nb.runners import StepContext

    instructions, constraints = prepared.instructions, prepared.constraints
    return StepContext("", "", prepared.name, constraints=constraints, instructions=instructions, **more)


def quote(
    prepared: PreparedStep,
    prompts: Sequence[int],
    units: int,
    seen: Sequence[Answer],
    prices: Mapping[str, Price],
    shared: SharedPrompts | None = None,
) -> Quote | None:
    """What ``units`` of an agent step are likely to take; ``None`` where nothing is known to go by.

    Args:
        prepared: The step.
        prompts: Tokens of the prompts that are known, by the rule of thumb for usage that is not reported.
        units: How many units ask, those whose prompt is not known yet included.
        seen: What earlier answers of the step took, a unit each.
        prices: The user's own, by model.
        shared: The prompts of calls that several of these units share.
    """
    from tagent_nb.runners import answer_range, frame_tokens, named_tools, price, shared_frame_tokens

    step = prepared.step
    if not seen and (step.agent != "single" or named_tools(step) or len(prompts) < units):
        return None  # how often a planner, or one with tools, asks, and what an unknown prompt holds
    sent = by_itself = sum(prompts) + len(prompts) * frame_tokens(step, _context(prepared))
    requests, is_whole = units, len(prompts) == units
    if prepared.shares_calls:
        calls_known = [] if shared is None else shared.tokens()
        requests = len(calls_known) if is_whole else math.ceil(units / step.rows_per_call)
        sent = sum(calls_known) + len(calls_known) * shared_frame_tokens(step, _context(prepared))
    if seen:
        calls = _calls(prepared, requests, units, seen)
        into = sum_range([answer.usage.input_tokens for answer in seen], units)
        if is_whole:
            # Prompts may have grown or shrunk since.
            low, high = (sent * end for end in SEEN_TOKENIZERS)
            into = (min(into[0], low), max(into[1], high))
        out = sum_range([answer.usage.output_tokens for answer in seen], units)
    else:
        calls = float(requests)
        repeated = (REPEATS - 1) * by_itself
        into = (sent * TOKENIZERS[0], (sent + repeated) * TOKENIZERS[1])
        least, most = answer_range(step, shared=prepared.shares_calls)
        out = (float(units * least), units * most * REPEATS)
    least_usage, most_usage = (TokenUsage(round(into[end]), round(out[end])) for end in (0, 1))

    def costs(*, batch: bool) -> Range | None:
        ends = [price(prepared.model, usage, prices, batch=batch) for usage in (least_usage, most_usage)]
        return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])

    live, together = costs(batch=False), costs(batch=True) if _may_be_batched(prepared) else None
    return Quote(
        units,
        max(requests, round(calls)),
        (least_usage.input_tokens, most_usage.input_tokens),
        (least_usage.output_tokens, most_usage.output_tokens),
        together if step.batch else live,
        live_cost=live,
        batch_cost=together,
        saved_calls=units - requests,
        saved_tokens=None if prepared.shares_calls and not is_whole else by_itself - sent,
    )


def answer_tokens(prepared: PreparedStep, seen: Sequence[Answer]) -> Range:
    """Tokens of one answer of a step, at least and at most, as text in a later prompt."""
    from tagent_nb.runners import answer_range

    if not seen:
        least, most = answer_range(prepared.step)
        return float(least), float(most)
    sizes = [answer.usage.output_tokens / answer.usage.requests for answer in seen]
    return min(sizes) * SEEN_TOKENIZERS[0], max(sizes) * SEEN_TOKENIZERS[1]


def with_later(
    quote: Quote,
    prepared: PreparedStep,
    calls: tuple[int, int],
    tokens: tuple[float, float],
    answer: Range,
    prices: Mapping[str, Price],
) -> Quote:
    """A quote and what combines the answers that it is about.

    Args:
        quote: Of the calls that are known.
        prepared: The step.
        calls: Those that come later, from and to.
        tokens: Tokens of their prompts by the rule of thumb, from and to.
        answer: Tokens of one answer, from and to.
        prices: The user's own, by model.
    """
    from tagent_nb.runners import price

    low, high = (
        TokenUsage(
            quote.input_tokens[end] + round(tokens[end] * TOKENIZERS[end] * (1.0, REPEATS)[end]),
            quote.output_tokens[end] + round(calls[end] * answer[end] * (1.0, REPEATS)[end]),
        )
        for end in (0, 1)
    )
    costs = [price(prepared.model, usage, prices) for usage in (low, high)]
    cost = None if costs[0] is None or costs[1] is None else (costs[0], costs[1])
    return replace(
        quote,
        input_tokens=(low.input_tokens, high.input_tokens),
        output_tokens=(low.output_tokens, high.output_tokens),
        cost=cost,
        live_cost=cost,
        later_calls=calls,
    )


def _may_be_batched(prepared: PreparedStep) -> bool:
    """Whether the requests of a step are, or could be, sent in batches."""
    from tagent_nb.runners import batch_problem, named_tools

    step = prepared.step
    if step.map_over is None or step.agent != "single" or step.rows_per_call > 1 or named_tools(step):
        return False
    return bool(step.batch) or not batch_problem(prepared.model)


def _calls(prepared: PreparedStep, requests: int, units: int, seen: Sequence[Answer]) -> float:
    """Requests for so many units, going by earlier answers."""
    if prepared.shares_calls:
        return requests + units * statistics.fmean(answer.alone for answer in seen)
    return units * statistics.fmean(answer.usage.requests for answer in seen)


def sum_range(samples: Sequence[float], units: int) -> Range:
    """The sum of as many units as are to run, from and to, where each is like the samples."""
    mean = statistics.fmean(samples)
    spread = statistics.stdev(samples) if len(samples) >= LEAST_SAMPLES else mean / 2
    # Two standard errors of a sum of independent units; that of the mean itself counts as well.
    error = 2 * spread * (math.sqrt(units) + units / math.sqrt(len(samples))) + DRIFT * mean * units
    return max(0.0, mean * units - error), mean * units + error
