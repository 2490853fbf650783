"""What a storage backend must do, as tests that your own backend can run.

Subclass :class:`StorageContract` and give it a fixture named ``storage``::

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)

        def another(self, storage):
            return MyStorage(storage.path)

A backend of four methods passes it, and so does one with all primitives: what a backend does not promise
by its ``capabilities`` is skipped.

The fixture :func:`replay` lets your own tests replay the calls of agent steps.

Needs pytest and pytest-asyncio.
"""

from __future__ import annotations

from tagent_nb.testing.cassette import replay
from tagent_nb.testing.contract import StorageContract
from tagent_nb.testing.samples import plain, sample_run

__all__ = ["StorageContract", "plain", "replay", "sample_run"]
