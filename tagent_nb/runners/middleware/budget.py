"""The middleware that keeps calls within a budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tagent_nb.runners.base import CallMiddleware, ModelCall
from tagent_nb.runners.middleware.ledger import Estimate, Ledger
from tagent_nb.runners.models.accounting import counted, estimate, input_tokens
from tagent_nb.runners.models.resolve import model_name

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse


class BudgetMiddleware(CallMiddleware):
    """Lets a request to a model pass when it fits into the budgets of its run and its step.

    While a request is under way, what it may take is reserved: its question, by the rule of
    :func:`~tagent_nb.runners.models.accounting.input_tokens`, and the longest answer that its ``max_tokens``
    allow or, without these, that the model has given so far. The first request of such a
    model is made alone. Where questions have taken more than the rule says, as in
    a language of other letters, more is reserved from then on. Those of a batch are reserved together, when
    it is sent, at the price of a batch.

    Args:
        ledger: Knows the budgets and what is spent.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._longest: dict[str, int] = {}
        self._factors: dict[str, float] = {}

    async def model_call(
        self, call: ModelCall, proceed: Callable[[ModelCall], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Ask when the budget allows it.

        Raises:
            BudgetExceededError: It does not.
        """
        name = model_name(call.context.model)
        sent = input_tokens(call)
        if call.context.batch is not None:
            response = await self._in_batch(call, proceed, name, sent)
        else:

            def expected() -> Estimate:
                return estimate(call, sent, self._longest.get(name), self._factors.get(name, 1.0))

            async with self.ledger.reserved(call.context, expected):
                response = await proceed(call)
        used = counted(response)
        self._longest[name] = max(self._longest.get(name, 0), used.output_tokens)
        self._factors[name] = max(self._factors.get(name, 1.0), used.input_tokens / max(1, sent))
        return response

    async def _in_batch(
        self,
        call: ModelCall,
        proceed: Callable[[ModelCall], Awaitable[ModelResponse]],
        name: str,
        sent: int,
    ) -> ModelResponse:
        """Let a request wait for its batch, whose requests are all reserved when it is sent.

        An answer of a length that is not known is taken to be as long as its schema allows: a first request
        by itself, to see one, would take a day.
        """
        from tagent_nb.runners.agent.estimate import longest_answer

        assumed = longest_answer(call.parameters)

        def expected() -> Estimate:
            seen = self._longest.get(name, assumed)
            return estimate(call, sent, seen, self._factors.get(name, 1.0), batch=True)

        admission = self.ledger.admission(call.context, expected)
        try:
            return await proceed(replace(call, admission=admission))
        finally:
            admission.close()
