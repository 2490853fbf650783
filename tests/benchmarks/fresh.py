"""Programs in a process of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def printed_by(*arguments: str) -> float:
    """The number that ``python ARGUMENTS`` prints last."""
    return float(_run(arguments).split()[-1])


def cpu_of(*arguments: str) -> float:
    """Seconds of the processor that ``python ARGUMENTS`` takes from its start to its end."""
    began = cpu_with_children()
    _run(arguments)
    return cpu_with_children() - began


def cpu_with_children() -> float:
    """Seconds of the processor that this process and its children that have ended took so far."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in (own, children))


def program(name: str) -> str:
    """The path of one of the programs here."""
    return str(HERE / "programs" / f"{name}.py")


def _run(arguments: tuple[str, ...]) -> str:
    # As an installed package is: compiled, by the round that warms up.
    compiled = str(Path(tempfile.gettempdir()) / "tagent-nb-benchmarks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def peak() -> float:
    """Most memory that this process has had so far, in MB."""
    if sys.platform == "linux":
        # ru_maxrss would count the parent as it was at the fork.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024**2 if sys.platform == "darwin" else 1024
    )


def written() -> int:
    """Bytes that this process has written so far; 0 where the system does not count them."""
    try:
        counts = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(counts.split("wchar:")[1].split()[0])
