"""What a run has spent and may still spend, while its steps spend it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tagent_nb.errors import BudgetExceededError
from tagent_nb.events import TokenUsage
from tagent_nb.pipeline import Budget, Share, amount_text, spent_amounts
from tagent_nb.runners.base import StepContext
from tagent_nb.runners.middleware.notify import Changes

TINY = 1e-9
"""Part of an amount that is no amount: sums of USD are never exact."""

Estimate = Mapping[str, tuple[float, float | None]]
"""Of a call, by measure: what it takes at least (its question), and at most where that is known."""


@dataclass
class Account:
    """One budget: the run's, or that of a step.

    Attributes:
        budget: Most that may be spent.
        step: The step; empty for the whole run.
        spent: What is spent, by measure.
        unpriced: Steps that spent an unknown amount of USD.
        assumed: Whether ``spent`` has tokens that no provider reported, and what they cost.
    """

    budget: Budget
    step: str = ""
    spent: dict[str, float] = field(default_factory=lambda: spent_amounts(TokenUsage(), 0.0))
    unpriced: list[str] = field(default_factory=list)
    assumed: bool = False
    _open: dict[int, Estimate] = field(default_factory=dict)
    # Of them, those that no call of this session gives back, and the sums of these.
    _kept: set[int] = field(default_factory=set)
    _kept_sums: dict[str, float] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)
    _open_ended: dict[str, int] = field(default_factory=dict)

    def spend(self, step: str, usage: TokenUsage, cost: float | None) -> None:
        """Count what was spent."""
        for measure, amount in spent_amounts(usage, cost).items():
            self.spent[measure] += amount
        self.assumed = self.assumed or usage.unmeasured
        if cost is None and step not in self.unpriced:
            self.unpriced.append(step)

    def reserved(self, measure: str) -> float:
        """What calls under way are expected to take."""
        return self._sums.get(measure, 0.0)

    def fits(self, step: str, estimate: Estimate) -> bool:
        """Whether a call may be made now; else it may be when a call under way has ended.

        A call that would be the only one may be made if its question fits: then nothing but its own
        answer can exceed the budget. Beside others it may be made if it fits with the most that all
        of them may take.

        Raises:
            BudgetExceededError: It does not fit, whatever the calls under way take, or not beside what
                batches may take that are answered in a later session.
        """
        if self.unpriced and self.budget.usd is not None:
            raise self._unknown(step)
        fits = True
        for measure, limit in self.budget.limits().items():
            least, most = estimate[measure]
            spent = self.spent[measure]
            if not _has_room(spent, limit, least, most):
                raise self._exceeded(step, measure, least)
            if not _has_room(spent + self._kept_sums.get(measure, 0.0), limit, least, most):
                raise self._held(step, measure)
            if len(self._open) > len(self._kept):
                all_known = most is not None and not self._open_ended.get(measure)
                fits = fits and all_known and spent + self.reserved(measure) + (most or 0.0) <= limit + TINY
        return fits

    def is_held(self, estimate: Estimate) -> bool:
        """Whether a call only does not fit beside what is kept for batches of a later session."""
        return any(
            _has_room(self.spent[measure], limit, *estimate[measure])
            and not _has_room(
                self.spent[measure] + self._kept_sums.get(measure, 0.0), limit, *estimate[measure]
            )
            for measure, limit in self.budget.limits().items()
        )

    def keep(self, estimate: Estimate) -> None:
        """Reserve it to the end of the session: its batch is out, and is answered in a later one."""
        self._kept.add(id(estimate))
        for measure, amounts in estimate.items():
            self._kept_sums[measure] = self._kept_sums.get(measure, 0.0) + _likely(amounts)

    def open(self, estimate: Estimate) -> None:
        """Reserve what a call may take."""
        self._open[id(estimate)] = estimate  # by identity: two calls may be expected to take the same
        self._count(estimate, 1)

    def close(self, estimate: Estimate) -> None:
        """Give back what was reserved; what the call took is spent by now."""
        del self._open[id(estimate)]
        self._count(estimate, -1)
        if not self._open:
            self._sums.clear()  # sums of floats that were added and taken away again are not quite 0

    def _count(self, estimate: Estimate, sign: int) -> None:
        # A batch of 10,000 requests asks for the sums as often.
        for measure, amounts in estimate.items():
            self._sums[measure] = self._sums.get(measure, 0.0) + sign * _likely(amounts)
            self._open_ended[measure] = self._open_ended.get(measure, 0) + sign * (amounts[1] is None)

    def shares(self) -> list[Share]:
        """How far each measure is used up."""
        exact = dict.fromkeys(("usd", "tokens"), "about") if self.assumed else {}
        return [
            Share(measure, self.spent[measure], self.reserved(measure), limit, exact.get(measure, ""))
            for measure, limit in self.budget.limits().items()
        ]

    def _whose(self, step: str) -> str:
        return f"the budget of step {self.step!r}" if self.step else f"step {step!r}: the run's budget"

    def _exceeded(self, step: str, measure: str, least: float) -> BudgetExceededError:
        limit = self.budget.limits()[measure]
        spent = self.spent[measure]
        says = self._whose(step)
        about = " (in part assumed: not every answer came with its tokens)" if self.assumed else ""
        more = f", and the question alone takes about {amount_text(measure, least)}" if least else ""
        return BudgetExceededError(
            f"{says[0].upper()}{says[1:]} is used up: {amount_text(measure, spent)} of "
            f"{amount_text(measure, limit)} spent{about}{more}. What is finished is kept. {self._remedy()}",
            step=step,
            spent=spent,
            limit=limit,
            measure=measure,
        )

    def _held(self, step: str, measure: str) -> BudgetExceededError:
        limit, spent = self.budget.limits()[measure], self.spent[measure]
        says = self._whose(step)
        return BudgetExceededError(
            f"{says[0].upper()}{says[1:]} has nothing left beside batches that their providers have: "
            f"{amount_text(measure, spent)} of {amount_text(measure, limit)} spent, and "
            f"{amount_text(measure, self._kept_sums[measure])} reserved for them. Resume the run when they "
            "are answered, or with a higher budget.",
            step=step,
            spent=spent,
            limit=limit,
            measure=measure,
        )

    def _remedy(self) -> str:
        if self.step:
            return f"Give step {self.step!r} a higher budget, and resume the run."
        return (
            "Resume with a higher budget: execute(resume=True, budget=...), "
            "or %tagent_run --resume --budget AMOUNT."
        )

    def _unknown(self, step: str) -> BudgetExceededError:
        says = self._whose(step)
        return BudgetExceededError(
            f"{says[0].upper()}{says[1:]} is {amount_text('usd', self.budget.usd or 0.0)}, but what step "
            f"{self.unpriced[0]!r} spent has no known price, so what is left is unknown. Give its "
            "model a price (prices={...}), or set a budget of tokens or requests.",
            step=step,
            spent=self.spent["usd"],
            limit=self.budget.usd or 0.0,
            measure="usd",
        )


def _likely(amounts: tuple[float, float | None]) -> float:
    """What is reserved of a measure: the most that is known."""
    least, most = amounts
    return least if most is None else most


def _has_room(spent: float, limit: float, least: float, most: float | None) -> bool:
    """Whether a call may be made by itself when so much is spent."""
    return spent + least <= limit + TINY and (spent <= limit - TINY or most == 0)


class Reservation:
    """What a call that is not made at once may take of the budgets of its run and step.

    Args:
        ledger: Has the budgets.
        step: The step.
        expected: What the call takes, as far as is known at the moment.
    """

    def __init__(self, ledger: Ledger, step: str, expected: Callable[[], Estimate]) -> None:
        self._ledger = ledger
        self._step = step
        self._expected = expected
        self._estimate: Estimate | None = None
        self._kept = False

    def open(self) -> bool:
        """Reserve it if it fits; whether it does.

        Raises:
            BudgetExceededError: It does not, whatever the calls under way take.
        """
        estimate = self._expected()
        if not self._ledger.fits(self._step, estimate):
            return False
        self._reserve(estimate)
        return True

    def open_anyway(self) -> None:
        """Reserve it for a call that has been made."""
        self._reserve(self._expected())

    def _reserve(self, estimate: Estimate) -> None:
        self.close()
        self._estimate = estimate
        self._ledger.reserve(self._step, estimate)

    def is_held(self) -> bool:
        """Whether it only does not fit beside what is kept for batches of a later session."""
        return self._ledger.is_held(self._step, self._expected())

    def keep(self) -> None:
        """Reserve it to the end of the session: its call has been made, and is answered in a later one."""
        assert self._estimate is not None
        self._kept = True
        self._ledger.keep(self._step, self._estimate)

    def close(self) -> None:
        """Give back what is reserved, unless it is kept."""
        if self._estimate is not None and not self._kept:
            self._ledger.give_back(self._step, self._estimate)
            self._estimate = None

    async def changed(self) -> None:
        """Wait until another call has ended."""
        await self._ledger.changes.wait()


class Ledger:
    """The accounts of one run.

    Args:
        run: The run's budget, if it has one.
        steps: Budgets by step.
        before: What earlier sessions of the run spent, by step; USD ``None`` when unknown.

    Attributes:
        changes: Tells when a call has ended, and others may be made.
    """

    def __init__(
        self,
        run: Budget | None = None,
        steps: Mapping[str, Budget] | None = None,
        before: Mapping[str, tuple[TokenUsage, float | None]] | None = None,
    ) -> None:
        self.run = None if run is None else Account(run)
        self.steps = {name: Account(budget, name) for name, budget in (steps or {}).items()}
        self.changes = Changes()
        for name, (usage, cost) in (before or {}).items():
            self.spend(name, usage, cost)

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return self.run is not None or bool(self.steps)

    def spend(self, step: str, usage: TokenUsage, cost: float | None) -> None:
        """Count what a step spent. On the run's loop only."""
        for account in self._accounts(step):
            account.spend(step, usage, cost)

    def shares(self) -> list[Share]:
        """How far the run's budget is used up; nothing without one."""
        return [] if self.run is None else self.run.shares()

    @asynccontextmanager
    async def reserved(self, context: StepContext, expected: Callable[[], Estimate]) -> AsyncIterator[None]:
        """Wait until a call fits into the budgets of its run and step; reserve what it may take meanwhile.

        Args:
            context: Of the attempt that makes the call.
            expected: What the call takes, as far as is known at the moment.

        Raises:
            BudgetExceededError: It does not fit.
        """
        estimate = expected()
        if not self.fits(context.step, estimate):
            with context.waiting("the rest of the budget, which calls under way may use up"):
                while not self.fits(context.step, estimate):
                    await self.changes.wait()
                    estimate = expected()
        self.reserve(context.step, estimate)
        try:
            yield
        finally:
            self.give_back(context.step, estimate)

    def reserve(self, step: str, estimate: Estimate) -> None:
        """Reserve what a call of a step may take."""
        for account in self._accounts(step):
            account.open(estimate)

    def give_back(self, step: str, estimate: Estimate) -> None:
        """Give back what was reserved for a call that has ended."""
        for account in self._accounts(step):
            account.close(estimate)
        self.changes.tell()

    def keep(self, step: str, estimate: Estimate) -> None:
        """Reserve to the end of the session what is reserved for a call of a step."""
        for account in self._accounts(step):
            account.keep(estimate)
        self.changes.tell()  # what waits for it to be given back waits in vain

    def is_held(self, step: str, estimate: Estimate) -> bool:
        """Whether a call only does not fit beside what is kept for batches of a later session."""
        return any(account.is_held(estimate) for account in self._accounts(step))

    def admission(self, context: StepContext, expected: Callable[[], Estimate]) -> Reservation:
        """What reserves a call's part of the budgets when it is sent, which is later; arguments as above."""
        return Reservation(self, context.step, expected)

    def _accounts(self, step: str) -> list[Account]:
        return [account for account in (self.run, self.steps.get(step)) if account is not None]

    def fits(self, step: str, estimate: Estimate) -> bool:
        """Whether a call of a step may be made now; see :meth:`Account.fits`.

        Raises:
            BudgetExceededError: It does not fit, whatever the calls under way take.
        """
        # All are asked, not only until one says no: one behind it may know that waiting is in vain.
        answers = [account.fits(step, estimate) for account in self._accounts(step)]
        return all(answers)
