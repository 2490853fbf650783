"""What a run would do, and why, before it costs anything: no runner is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tagent_nb.errors import UnknownStepError, did_you_mean
from tagent_nb.formatting import cost_text, count, seconds_text, tokens_text
from tagent_nb.results import plan_frame

if TYPE_CHECKING:
    import pandas as pd

    from tagent_nb.engine.dry_run.quote import Quote
    from tagent_nb.pipeline import Budget

RUNS = ("run", "may run")
"""Actions for which a runner is called, or may be."""

_WORDS = {
    "run": ("runs", "run"),
    "may run": ("may run", "may run"),
    "cached": ("is cached", "are cached"),
    "recorded": ("is recorded", "are recorded"),
    "skip": ("is skipped", "are skipped"),
    "fail": ("fails", "fail"),
}


@dataclass(frozen=True)
class StepPlan:
    """What a run would do with one step.

    Attributes:
        step: Its name.
        action: ``"recorded"`` or ``"cached"``: it is not run, the record of the resumed run or the
            cache answers. ``"run"``: it runs. ``"may run"``: it reads a step that runs before it, and
            is answered if that step's value turns out as before, or the run is offline, and recorded
            calls may answer. ``"skip"``: it is not run, and has no
            value. ``"fail"``: it would fail at once, such as one whose condition cannot be decided.
        why: In words.
        items: Items of a mapped step; ``None`` for others, and while its source is yet to run.
        items_done: Items that record or cache answer for.
        seconds: Expected seconds, from the last recorded run in which the step ran; ``None`` when
            there is none, and 0 only for a step that calls no runner.
        tokens: Expected input and output tokens, as ``seconds``.
        cost: Expected USD, as ``seconds``; ``None`` as well when the price was unknown.
        quote: What its calls of a model are likely to take, by its prompts and earlier answers; ``None`` for
            a step that asks no model, or where nothing is known to go by.
        seconds_range: Seconds that it is likely to take, from and to, going by the seconds of its units in
            earlier runs, by how many run at once, and by the limits of its provider; ``None`` where none of
            them has been seen, or its requests are sent in batches.
    """

    step: str
    action: str
    why: str = ""
    items: int | None = None
    items_done: int | None = None
    seconds: float | None = 0.0
    tokens: int | None = 0
    cost: float | None = 0.0
    quote: Quote | None = None
    seconds_range: tuple[float, float] | None = (0.0, 0.0)

    @property
    def state(self) -> str:
        """The action, and for a mapped step how many of its items are answered without a run."""
        if self.items is None:
            return self.action
        return f"{self.action} ({self.items_done:,} of {self.items:,} items cached)"


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run would do: one :class:`StepPlan` a step, in the order in which they would start.

    Attributes:
        pipeline: Name of the pipeline.
        steps: The steps.
        run_id: The recorded run that would be carried on; ``None`` for a new one.
        conflicts: Recorded steps that have changed, with what changed: the run would be refused
            unless ``on_change="rerun"``.
        inputs: What no step makes and the run would take, by name, in a few words.
        budget: Most that the run may spend; ``None`` limits nothing.
        warnings: What is probably not meant, such as a mapped step that asks the same for every item.
        at_once: How much of it may be under way at the same time, in words.
        seconds_range: Seconds that the run is likely to take, from and to, along the longest way through its
            steps; ``None`` if those of a step that runs or may run are unknown.
    """

    pipeline: str
    steps: Sequence[StepPlan]
    run_id: str | None = None
    conflicts: Mapping[str, list[str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None
    at_once: str = ""
    seconds_range: tuple[float, float] | None = None

    def __iter__(self) -> Iterator[StepPlan]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: str) -> StepPlan:
        """The plan of one step.

        Raises:
            UnknownStepError: The plan has no such step.
        """
        for plan in self.steps:
            if plan.step == step:
                return plan
        names = [plan.step for plan in self.steps]
        raise UnknownStepError(
            f"The plan has no step {step!r}.{did_you_mean(step, names)} Steps: {', '.join(names)}."
        )

    @property
    def running(self) -> list[StepPlan]:
        """The steps that run or may run."""
        return [plan for plan in self.steps if plan.action in RUNS]

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps that run or may run, one after the other; ``None`` if one is unknown."""
        reported = [plan.seconds for plan in self.running if plan.seconds is not None]
        return sum(reported) if len(reported) == len(self.running) else None

    @property
    def tokens(self) -> int | None:
        """Tokens of all steps that run or may run; ``None`` if one is unknown."""
        reported = [plan.tokens for plan in self.running if plan.tokens is not None]
        return sum(reported) if len(reported) == len(self.running) else None

    @property
    def cost(self) -> float | None:
        """USD of all steps that run or may run; ``None`` if one is unknown."""
        reported = [plan.cost for plan in self.running if plan.cost is not None]
        return sum(reported) if len(reported) == len(self.running) else None

    @property
    def calls(self) -> int:
        """Requests to models, as far as they can be counted: those of the steps that certainly run, and of
        those that combine answers the least."""
        return sum(
            plan.quote.calls + plan.quote.later_calls[0]
            for plan in self.running
            if plan.quote and plan.action == "run"
        )

    @property
    def most_calls(self) -> int:
        """As :attr:`calls`, with those of steps that may run, and the most of those that combine answers."""
        return sum(plan.quote.calls + plan.quote.later_calls[1] for plan in self.running if plan.quote)

    @property
    def _uncounted(self) -> list[str]:
        """Steps that will ask a model, and nothing says how often."""
        return [
            plan.step
            for plan in self.running
            if plan.quote is None and plan.tokens != 0 and plan.action == "run"
        ]

    @property
    def cost_range(self) -> tuple[float, float] | None:
        """USD of all steps that run or may run, from and to; ``None`` if nothing is known of one of them.

        The least is that of the steps that certainly run.
        """
        low = high = 0.0
        for plan in self.running:
            if plan.quote is None or plan.quote.cost is None:
                if plan.cost != 0.0:
                    return None
                continue
            low += plan.quote.cost[0] if plan.action == "run" else 0.0
            high += plan.quote.cost[1]
        return low, high

    @property
    def over_budget(self) -> str:
        """In words, if the budget may stop the run; empty if it will not, or where nothing is known."""
        if self.budget is None:
            return ""
        quotes = [plan.quote for plan in self.running if plan.quote is not None]
        costs = self.cost_range
        tokens = sum(quote.input_tokens[1] + quote.output_tokens[1] for quote in quotes)
        most = {
            "usd": (self.budget.usd, None if costs is None else costs[1]),
            "tokens": (self.budget.tokens, tokens),
            "requests": (self.budget.requests, self.most_calls + len(self._uncounted)),
        }
        if any(limit is not None and need is not None and need > limit for limit, need in most.values()):
            return (
                f"The budget of {self.budget} may stop it; what is done is kept, and a resumed run goes on."
            )
        return ""

    @property
    def total(self) -> str:
        """All of it in one line."""
        counts = {action: sum(plan.action == action for plan in self.steps) for action in _WORDS}
        counted = ", ".join(
            f"{number} {_WORDS[action][number != 1]}" for action, number in counts.items() if number
        )
        head = f"{len(self.steps)} step{'' if len(self.steps) == 1 else 's'}: {counted or 'nothing to do'}"
        return f"{head}. {self._expected()}" if self.running else f"{head}. It costs nothing."

    def _expected(self) -> str:
        """What is known of time, tokens and cost, and for which steps nothing is."""
        running = self.running
        bound = "At most" if any(plan.action == "may run" for plan in running) else "About"
        estimated = [plan for plan in running if plan.seconds is not None]
        costs = [plan.cost for plan in estimated if plan.cost is not None]
        parts = [seconds_text(sum(plan.seconds or 0.0 for plan in estimated))]
        parts += [f"{tokens_text(sum(plan.tokens or 0 for plan in estimated))} tokens"]
        parts += [cost_text(sum(costs))] if costs else []
        unknown = [plan.step for plan in running if plan.seconds is None]
        unpriced = [plan.step for plan in estimated if plan.cost is None]
        estimate = f"{bound} {', '.join(parts)}, going by earlier runs" if estimated else ""
        gaps = []
        if unknown:
            gaps.append(f"no run of {_listed(unknown)} is recorded to go by")
        if unpriced:
            gaps.append(f"the price of {_listed(unpriced)} is unknown")
        text = "; ".join([*([estimate] if estimate else []), *gaps])
        parts = [f"{text[0].upper()}{text[1:]}.", self._takes(), self._quoted(), self.over_budget]
        return " ".join(part for part in parts if part)

    def _takes(self) -> str:
        """How long the run takes, from and to; empty where that is unknown, or no time at all."""
        if self.seconds_range is None or self.seconds_range[1] < 1:
            return ""
        return f"It is likely to take {span_text(self.seconds_range)}."

    def _quoted(self) -> str:
        """The calls, and their cost from and to."""
        if not self.most_calls:
            return ""
        costs = self.cost_range
        about = f"About {count(self.calls, 'call')} of models"
        if self.most_calls > self.calls:
            about = f"About {self.calls:,} to {count(self.most_calls, 'call')} of models"
        quotes = [plan.quote for plan in self.running if plan.quote is not None and plan.quote.saved_calls]
        if quotes:
            saved_calls = sum(quote.saved_calls for quote in quotes)
            saved = [quote.saved_tokens for quote in quotes if quote.saved_tokens is not None]
            tokens = f" and {tokens_text(sum(saved))} input tokens" if len(saved) == len(quotes) else ""
            about = f"{about} (rows that share calls save {saved_calls:,}{tokens})"
        if self._uncounted:
            about = f"{about}, besides those of {_listed(self._uncounted)}, which nothing tells yet"
        return f"{about}, {range_text(costs)}." if costs is not None else f"{about}."

    @property
    def reads(self) -> str:
        """The inputs in one line: ``reads input:df (DataFrame, 3 rows)``; empty without any."""
        shapes = ", ".join(f"input:{name} ({words})" for name, words in self.inputs.items())
        return f"reads {shapes}" if shapes else ""

    @property
    def refusal(self) -> str:
        """Why the run would be refused; empty if it would not."""
        if not self.conflicts:
            return ""
        lines = "\n".join(f"  - {step}: {'; '.join(why)}" for step, why in self.conflicts.items())
        return (
            f"Run {self.run_id} would not be resumed as it is: these recorded steps have changed since\n"
            f"{lines}\nWith on_change='rerun' (--on-change rerun) the run goes as planned here."
        )

    def __repr__(self) -> str:
        about = f"resuming {self.run_id}" if self.run_id else "a new run"
        lines = [f"Plan of {self.pipeline} ({about})", *([f"  {self.reads}"] if self.inputs else [])]
        for plan in self.steps:
            lines.append(f"  {plan.step}: {plan.state}" + (f"; {plan.why}" if plan.why else ""))
        lines.append(self.total)
        if self.at_once:
            lines.append(f"{self.at_once[0].upper()}{self.at_once[1:]}.")
        lines += [self.refusal] if self.refusal else []
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])

    def to_frame(self) -> pd.DataFrame:
        """One row a step, indexed by step name, with the fields of :class:`StepPlan` as columns.

        What is unknown is missing (``NaN`` or ``<NA>``), never 0.
        """
        return plan_frame(self.steps)


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def calls_text(quote: Quote) -> str:
    """Requests to a model; from and to, where what combines answers is not known yet."""
    low, high = (quote.calls + later for later in quote.later_calls)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def quote_text(quote: Quote) -> str:
    """USD of a quote in words; beside it what it would be in batches, or live."""
    if quote.cost is None:
        return "$?"
    text, other, how = range_text(quote.cost), quote.batch_cost, "in batches"
    if quote.batch_cost == quote.cost:
        text, other, how = f"{text} in batches", quote.live_cost, "live"
    if other is None or other == quote.cost:
        return text
    return f"{text} ({range_text(other)} {how})"


def span_text(seconds: tuple[float, float]) -> str:
    """Seconds from and to, in words."""
    low, high = map(seconds_text, seconds)
    return low if low == high else f"{low} to {high}"


def range_text(costs: tuple[float, float]) -> str:
    """USD from and to, in words."""
    low, high = map(cost_text, costs)
    return low if low == high else f"{low} to {high}"
