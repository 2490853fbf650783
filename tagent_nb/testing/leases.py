"""Of a run, one process at a time: what every backend promises, as tests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tagent_nb.errors import CorruptRecordError, LeaseLostError, StorageError
from tagent_nb.events import Warned
from tagent_nb.storage import LEASES, DocumentStore, RunStorage, StorageBackend, open_storage
from tagent_nb.testing.samples import DEAD_PID, holder, plain, require, sample_run

ELSEWHERE: dict[str, Any] = {"host": "elsewhere", "machine": "another"}


class LeaseContract:
    """The promises about leases and tokens. A part of :class:`tagent_nb.testing.StorageContract`."""

    @pytest.fixture
    def store(self, storage: StorageBackend) -> RunStorage:
        """The backend under test as a run uses it."""
        return open_storage(storage)  # type: ignore[return-value]

    def another(self, storage: StorageBackend) -> StorageBackend:
        """The same store as another process would open it; the same object if only one process can."""
        return storage

    def _again(self, store: RunStorage) -> RunStorage:
        backend = store.backend if isinstance(store, DocumentStore) else store
        return open_storage(self.another(backend))  # type: ignore[return-value]

    async def test_one_at_a_time_carries_a_run_on(self, store: RunStorage) -> None:
        """A second claim is refused with host and process; after the release it is granted."""
        lease = await store.acquire("p", "r")
        again = self._again(store)
        with pytest.raises(LeaseLostError, match=f"process {lease.pid} on {lease.host}"):
            await again.acquire("p", "r")
        await store.renew(lease)
        await store.acquire("p", "another-run")
        await store.release(lease)
        assert (await again.acquire("p", "r")).token > lease.token

    async def test_of_many_claims_at_once_one_wins(self, store: RunStorage) -> None:
        """Twenty claims of an interrupted run: one lease, nineteen clear errors."""
        require(store, LEASES)
        await store.append("p", "r", sample_run("r")[:5])
        handles = [self._again(store) for _ in range(20)]
        claims = await asyncio.gather(
            *(handle.acquire("p", "r") for handle in handles), return_exceptions=True
        )
        assert sum(not isinstance(claim, LeaseLostError) for claim in claims) == 1
        assert all(str(lost).startswith("Run r of") for lost in claims if isinstance(lost, LeaseLostError))

    async def test_a_dead_process_loses_its_claim_at_once(self, store: RunStorage) -> None:
        """A holder of this machine whose process is gone does not keep others waiting."""
        assert await store._swap_lease("p", "r", 0, 5, holder(DEAD_PID))
        await store.append("p", "r", sample_run("r")[:5])
        assert [info.status for info in await store.runs("p")] == ["interrupted"]
        assert (await store.acquire("p", "r")).token > 5

    async def test_a_reused_process_id_is_not_the_holder(self, store: RunStorage) -> None:
        """The same pid with another start time is another process."""
        lease = await store.acquire("p", "r")
        await store.release(lease)
        assert await store._swap_lease(
            "p", "r", lease.token, lease.token, holder(lease.pid, started="long ago")
        )
        assert (await store.acquire("p", "r")).token > lease.token

    async def test_another_machine_keeps_its_claim_until_it_expires(self, store: RunStorage) -> None:
        """Whether a process elsewhere lives cannot be seen here; its heartbeat decides."""
        beat = await store._now()
        assert await store._swap_lease("p", "r", 0, 1, holder(7, **ELSEWHERE, beat=beat))
        with pytest.raises(LeaseLostError, match="process 7 on elsewhere"):
            await store.acquire("p", "r")
        assert await store._swap_lease("p", "r", 1, 1, holder(7, **ELSEWHERE, beat=beat - 31, ttl=0.2))
        assert (await store.acquire("p", "r")).token > 1

    @pytest.mark.parametrize("skew", [-86_400.0, 40.0])
    async def test_a_claim_from_elsewhere_whose_clock_differs_is_watched(
        self, store: RunStorage, skew: float
    ) -> None:
        """Heartbeats that come count, whatever time they say; without any the claim ends."""
        beat = await store._now() + (abs(skew) if store.shared_clock else skew)

        async def beats() -> None:
            for n in range(10):
                await asyncio.sleep(0.02)
                changed = holder(7, **ELSEWHERE, beat=beat + n / 100, ttl=0.4)
                assert await another._swap_lease("p", "r", 1, 1, changed)

        another = self._again(store)
        assert await store._swap_lease("p", "r", 0, 1, holder(7, **ELSEWHERE, beat=beat, ttl=0.4))
        beating = asyncio.ensure_future(beats())
        with pytest.raises(LeaseLostError, match=r"its claim ends in 0 s\."):
            await store.acquire("p", "r")
        await beating
        assert (await store.acquire("p", "r")).token > 1

    @pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
    async def test_a_clock_that_jumps_takes_no_run_from_its_process(
        self, store: RunStorage, jump: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is neither taken over, deleted, pruned nor shown as interrupted; given back it is free."""
        await store.append("p", "older", sample_run("older"))
        lease = await store.acquire("p", "r")
        await store.append("p", "r", sample_run("r")[:5], token=lease.token)
        again = self._again(store)
        jumped = await store._now() + jump

        async def now() -> float:
            return jumped

        for storage in (store, again):
            monkeypatch.setattr(storage, "_now", now)
        with pytest.raises(LeaseLostError, match=r"its claim ends in (2\d|30) s\."):
            await again.acquire("p", "r")
        with pytest.raises(StorageError, match="carries it on"):
            await again.delete_run("p", "r")
        await again.prune("p", keep_last=0, older_than=0, max_bytes=0)
        assert [(info.run_id, info.status) for info in await again.runs("p")][-1] == ("r", "running")
        await store.renew(lease)
        await store.append("p", "r", sample_run("r")[5:], token=lease.token)
        await store.release(lease)
        assert (await again.acquire("p", "r")).token > lease.token

    async def test_a_silent_process_that_lives_keeps_its_run_from_being_deleted(
        self, store: RunStorage
    ) -> None:
        """A step that holds the loop for long is no reason to delete what it works for."""
        lease = await store.acquire("p", "r")
        await store.append("p", "r", sample_run("r")[:5], token=lease.token)
        again = self._again(store)
        assert await again._swap_lease("p", "r", lease.token, lease.token, holder(lease.pid, beat=0.0))
        with pytest.raises(StorageError, match=f"process {lease.pid}"):
            await again.delete_run("p", "r")
        assert await again.prune("p", keep_last=0) == []
        assert await again.has_run("p", "r")

    async def test_a_run_that_is_claimed_meanwhile_is_not_deleted(self, store: RunStorage) -> None:
        """Between a look at the lease and the deletion another process may begin to carry the run on."""
        await store.append("p", "r", sample_run("r"))
        again = self._again(store)
        ((_, token, _),) = await store._described("p", ["r"])
        lease = await again.acquire("p", "r")
        assert not await store._remove_run("p", "r", token)
        await again.append("p", "r", [Warned(run_id="r", message="on")], token=lease.token)
        await again.release(lease)
        assert not await store._remove_run("p", "r", token)
        assert await store._remove_run("p", "r", lease.token)
        assert await store._remove_run("p", "r", lease.token)
        assert await again.runs("p") == []

    async def test_the_loser_writes_nothing_more(self, store: RunStorage) -> None:
        """Who lost its lease can neither record, nor renew, nor release; the error names the winner."""
        loser = await store.acquire("p", "r")
        await store.append("p", "r", [Warned(run_id="r", message="before")], token=loser.token)
        again = self._again(store)
        # The loser hangs: its heartbeat is old.
        assert await again._swap_lease("p", "r", loser.token, loser.token, holder(loser.pid, beat=0.0))
        winner = await again.acquire("p", "r")
        await again.append("p", "r", [Warned(run_id="r", message="winner")], token=winner.token)
        named = f"process {winner.pid} on {winner.host}"
        with pytest.raises(LeaseLostError, match=named):
            await store.append("p", "r", [Warned(run_id="r", message="late")], token=loser.token)
        with pytest.raises(LeaseLostError, match=named):
            await store.renew(loser)
        await store.release(loser)
        await again.append("p", "r", [Warned(run_id="r", message="still")], token=winner.token)
        messages = [event["message"] for event in plain(await again.read_run("p", "r"))]
        assert messages == ["before", "winner", "still"]

    async def test_a_deleted_run_is_not_written_by_its_last_holder(self, store: RunStorage) -> None:
        """After a run was deleted, a token of before is no good, and a new one is higher."""
        lease = await store.acquire("p", "r")
        await store.append("p", "r", sample_run("r")[:5], token=lease.token)
        again = self._again(store)
        assert await again._swap_lease("p", "r", lease.token, lease.token, holder(DEAD_PID))
        await again.delete_run("p", "r")
        with pytest.raises(LeaseLostError):
            await store.append("p", "r", sample_run("r"), token=lease.token)
        assert await again.runs("p") == []
        assert (await store.acquire("p", "r")).token > lease.token

    async def test_a_lease_that_cannot_be_read_keeps_no_process_out(self, store: RunStorage) -> None:
        """Garbage in place of a holder counts as none, and the token still grows."""
        assert await store._swap_lease("p", "r", 0, 5, b"\xff{not json")
        assert (await store.acquire("p", "r")).token > 5

    async def test_a_token_beyond_all_is_damage(self, store: RunStorage) -> None:
        """It could not grow any more; the error names the run."""
        assert await store._swap_lease("p", "r", 0, 2**62, b"")
        with pytest.raises(CorruptRecordError, match="lease of run r"):
            await store.acquire("p", "r")
