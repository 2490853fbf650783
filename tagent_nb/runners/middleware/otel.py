"""Whether a run is traced: only where OpenTelemetry is set up, so that others pay nothing for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tagent_nb.events import Observer

if TYPE_CHECKING:
    from tagent_nb.runners.middleware.tracing import Tracing


@contextmanager
def traced(observers: list[Observer], pipeline: str, content: bool = False) -> Iterator[Tracing | None]:
    """Trace a run inside this block, where OpenTelemetry is set up.

    Args:
        observers: Of the run; the tracing is one of them meanwhile.
        pipeline: The pipeline's name.
        content: Whether spans hold what is sent and answered.

    Yields:
        The middleware that traces calls, or ``None``.
    """
    tracing = telemetry(pipeline, content)
    if tracing is None:
        yield None
        return
    observers.append(tracing)
    try:
        yield tracing
    finally:
        if tracing in observers:  # one that failed has been left out already
            observers.remove(tracing)


def telemetry(pipeline: str, content: bool = False) -> Tracing | None:
    """A tracing of one run by the OpenTelemetry that this process is set up with; ``None`` without one.

    Args:
        pipeline: The pipeline's name.
        content: Whether spans hold what is sent and answered.
    """
    # Who has set up a tracer has loaded OpenTelemetry, or asks for it to be set up by the environment.
    if "opentelemetry" not in sys.modules and not os.environ.get("OTEL_PYTHON_TRACER_PROVIDER"):
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    from tagent_nb.runners.middleware.tracing import Tracing

    return Tracing(pipeline, provider.get_tracer("tagent_nb"), content=content)
