"""IPython kernels for tests: of this environment's ipykernel, and of older ones where they are installed."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

PATIENCE = 60.0
"""Seconds after which a test gives up. The steps that are stopped here would go on for ever."""
OLDER = ("6.31", "7.3")
"""Series of ipykernel that the Makefile installs beside the newest one, by themselves, in folders."""


def kernel_folder(version: str) -> Path:
    """Where an older ipykernel is; put first on a kernel's path, it is the one that runs."""
    return Path(sys.prefix) / "kernels" / version


class Kernel:
    """An IPython kernel in a folder of its own, with the magics loaded.

    Args:
        folder: Where it works.
        version: Series of an older ipykernel; without one, that of this environment.
        loaded: Whether the magics are loaded.
    """

    def __init__(self, folder: Path, version: str | None = None, loaded: bool = True) -> None:
        self.folder = folder
        self.manager = KernelManager()
        # The kernel of this environment, whatever kernels the machine has installed.
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=command, display_name="test", language="python")
        environment = os.environ | {"IPYTHONDIR": str(folder / "ipython")}
        if version is not None:
            paths = [str(kernel_folder(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        self.outputs: dict[str, list[dict[str, Any]]] = {}
        self.idle: set[str] = set()
        self.replied: set[str] = set()
        self.subshell = self._made_subshell()
        if loaded:
            self.run("%load_ext tagent_nb")

    def send(self, code: str) -> str:
        """Queue a cell; returns its id."""
        return str(self.client.execute(code))

    def receive(self) -> None:
        """Take in one message, or none if none comes soon, and all replies that are there."""
        try:
            message = self.client.get_iopub_msg(timeout=0.05)
        except queue.Empty:
            assert self.manager.is_alive(), "the kernel died"
            message = None
        while self.client.shell_channel.msg_ready():
            self.replied.add(self.client.get_shell_msg(timeout=PATIENCE)["parent_header"].get("msg_id", ""))
        if message is None:
            return
        parent = message["parent_header"].get("msg_id", "")
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            self.idle.add(parent)
        self.outputs.setdefault(parent, []).append(message)

    def until(self, condition: Callable[[], bool]) -> None:
        """Take messages in until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen: {self.story()}"
            self.receive()

    def until_recorded(self, ends: int) -> None:
        """Take messages in until so many steps and items are recorded to have ended.

        Items that have ended are recorded together, a moment later.
        """
        runs = self.folder / ".tagent" / "runs"
        self.until(
            lambda: (
                sum(file.read_bytes().count(b'"StepFinished"') for file in runs.rglob("*.journal")) >= ends
            )
        )

    def wait(self, cell: str) -> str:
        """Wait for a cell to end; returns all its text.

        Waits for its reply too, as front ends do: ipykernel 7.1 to 7.3 may lose a request that comes
        in while a reply goes out.
        """
        self.until(lambda: cell in self.idle and cell in self.replied)
        return self.text(cell)

    def run(self, code: str) -> str:
        """Run a cell to its end; returns all its text."""
        return self.wait(self.send(code))

    def text(self, cell: str) -> str:
        """What a cell printed, displayed and raised so far."""
        outputs = []
        for message in self.outputs.get(cell, []):
            content = message["content"]
            outputs.append(content.get("text") or content.get("data", {}).get("text/plain") or "")
            outputs.extend(content.get("traceback", []))
        return "\n".join(outputs)

    def story(self) -> str:
        """What all cells said."""
        return "\n".join(f"[{cell[-6:]}] {self.text(cell)[-1000:]}" for cell in self.outputs)

    def define(self, name: str, code: str, options: str = "") -> None:
        """Define a Python step that notes each of its runs in a file."""
        note = f"with open('effects', 'a') as file:\n    file.write('{name}\\n')\n"
        self.run(f"%%tagent_step {name} --python {options}\n{note}{code}")

    def effects(self) -> Counter[str]:
        """How often each step ran, over all kernels of this folder."""
        path = self.folder / "effects"
        return Counter(path.read_text().split() if path.exists() else [])

    def click(self, comm: str) -> None:
        """Press a button, as JupyterLab does: through a subshell where the kernel has these."""
        content = {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}}
        self.tell("comm_msg", content)

    def tell(self, kind: str, content: dict[str, Any]) -> str:
        """Send a message on the shell channel, without waiting for an answer; returns its id."""
        message = self.client.session.msg(kind, content)
        message["header"]["subshell_id"] = self.subshell
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def _made_subshell(self) -> str | None:
        """A subshell of the kernel, where it has these."""
        self.client.kernel_info()
        info = self.client.get_shell_msg(timeout=PATIENCE)
        if "kernel subshells" not in info["content"].get("supported_features", ()):
            return None
        self.client.control_channel.send(self.client.session.msg("create_subshell_request"))
        return str(self.client.get_control_msg(timeout=PATIENCE)["content"]["subshell_id"])

    def interrupt(self) -> None:
        """What the interrupt button does."""
        self.manager.interrupt_kernel()

    def kill(self) -> None:
        """What the machine does when it has no memory left."""
        assert self.manager.provisioner is not None
        os.kill(self.manager.provisioner.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        self.close()

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
