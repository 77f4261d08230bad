"""The adapters that a vLLM engine serves, and which of them its workers hold in memory.

vLLM would read an adapter in the middle of a step, where a failure ends the whole server. So it
never gets a request for an adapter that its workers do not hold: they are told to load and to
drop, between steps, and never hold more than fit. A LoRA's number and name stand for one load of
one digest, and so do the prefix cache's keys; nothing is reloaded in place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remix_runtime.adapter.checkpoint import BaseShapes, Checkpoint, read_checkpoint, read_parity
from remix_runtime.adapter.layers import base_shapes
from remix_runtime.base.weights import without_weights
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engine_state import AdapterState, AdapterTier
from remix_runtime.engines.served import (
    ServedAdapter,
    ServedAdapters,
    adapter_info,
    require_digest,
)
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.host import require_fit
from remix_runtime.engines.vllm.replay import replay_on
from remix_runtime.errors import AdapterUnavailableError, CheckpointError, RemixError

if TYPE_CHECKING:
    from remix_runtime.engines.vllm.backend import Backend  # needs vLLM

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Served(ServedAdapter):
    number: int = 0
    """The adapter's LoRA id while workers hold it."""
    slot_pins: int = 0
    """Requests in vLLM that use its slot."""

    @property
    def is_pinned(self) -> bool:
        """Whether a request uses it. vLLM may have one a little longer than its caller."""
        return bool(self.pins or self.slot_pins)


class VllmAdapters(ServedAdapters[Served]):
    """Adapters by digest. `changed` is called when more requests might be admitted: a digest, and
    the error of a read that failed."""

    def __init__(
        self, config: VllmConfig, changed: Callable[[str, RemixError | None], None]
    ) -> None:
        super().__init__(log)
        self._config = config
        self._changed = changed
        self._held: OrderedDict[str, None] = OrderedDict()
        """What the workers hold, least recently used first."""
        self._active: set[str] = set()
        """Digests that vLLM has requests for."""
        self._needs_victim = self._is_replaying = False
        self._next_number = 1
        self._reading: set[str] = set()
        self._turn = asyncio.Lock()
        """Held while something changes in what the workers hold: one change at a time."""

    def start(self, backend: Backend) -> None:
        """Before anything else. The adapters must fit the model that `backend` serves."""
        self._backend = backend
        self._base: BaseShapes = base_shapes(without_weights(backend.hf_config))

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def digests(self) -> Collection[str]:
        return self._served.keys()

    @property
    def numbers(self) -> dict[int, str]:
        """LoRA id to digest of the adapters that workers hold."""
        return {self._served[digest].number: digest for digest in self._held}

    @property
    def needs_room(self) -> bool:
        """Whether a read or a replay waits for requests of other adapters to end. No new ones are
        admitted meanwhile, or it would wait for ever."""
        no_slot = len(self._active) >= self._config.adapter_slots
        return self._needs_victim or (self._is_replaying and no_slot)

    @property
    def has_room(self) -> bool:
        """Whether one more can be read without dropping another."""
        return len(self._held) + len(self._reading) < self._config.host_adapters

    # -- for requests ---------------------------------------------------------------------------

    def is_held(self, digest: str) -> bool:
        return digest in self._held

    def has_slot(self, digest: str) -> bool:
        """Whether vLLM can run the adapter beside those that it runs. One too many would wait
        inside vLLM, and for ever if requests that came later never ended."""
        slots = self._config.adapter_slots - self._is_replaying
        return digest in self._active or len(self._active) < slots

    def pin_slot(self, digest: str) -> tuple[str, int, Path]:
        """The name, number and folder by which vLLM knows an adapter that is held; it stays held
        until `unpin_slot`."""
        served = self._served[digest]
        served.slot_pins += 1
        self._active.add(digest)
        self._held.move_to_end(digest)
        return digest, served.number, served.folder

    def unpin_slot(self, digest: str) -> None:
        served = self._served[digest]
        served.slot_pins -= 1
        if not served.slot_pins:
            self._active.discard(digest)
        self._tell_unpinned()

    def read(self, digest: str) -> None:
        """Makes the workers load an adapter that they do not hold. Repeated calls load it once."""
        if digest not in self._reading:
            self._reading.add(digest)
            self._tasks.start(self._read(digest))

    # -- loading --------------------------------------------------------------------------------

    async def states(self) -> list[AdapterState]:
        on_device = set(list(self._held)[-self._config.adapter_slots :])

        def tier(digest: str) -> AdapterTier:
            if digest in on_device:
                return AdapterTier.DEVICE
            return AdapterTier.HOST if digest in self._held else AdapterTier.DISK

        # A slot is vLLM's own, and another one with every activation.
        return [s.state(tier(digest), slot=None) for digest, s in self._served.items() if s.is_open]

    async def _load(self, folder: Path, digest: str | None) -> AdapterInfo:
        async with self._turn:
            checkpoint = await self._checked(folder, digest)
            digest = checkpoint.digest
            if (known := self._open_again(digest, folder)) is not None:
                return known
            self._served[digest] = served = Served(folder, adapter_info(checkpoint))
            try:
                await self._hold(digest, served)
                self._is_replaying = True
                await self._replay(served)
            except BaseException:
                try:
                    await self._drop(digest)
                finally:
                    del self._served[digest]
                raise
            finally:
                self._is_replaying = False
                self._changed(digest, None)
            served.is_open = True
            return served.info

    async def _unload(self, digest: str, served: Served) -> None:
        while True:
            async with self._unpinned:
                await self._unpinned.wait_for(lambda: not served.is_pinned)
            async with self._turn:
                # Loaded again while the last requests ended: then it stays.
                if served.is_open:
                    return
                if not served.is_pinned:
                    await self._drop(digest)
                    del self._served[digest]
                    return

    async def _read(self, digest: str) -> None:
        error: RemixError | None = None
        try:
            async with self._turn:
                served = self._served.get(digest)
                if served is None or digest in self._held:
                    return
                await self._checked(served.folder, digest)
                await self._hold(digest, served)
        except CheckpointError as failure:
            error = AdapterUnavailableError(
                f"adapter {digest} could not be read again: {failure}", digest=digest
            )
        except RemixError as failure:
            error = failure
        except Exception:
            # Its requests must hear of it, or they would have it read again and again.
            log.exception("adapter %s could not be read again", digest)
            error = AdapterUnavailableError(
                f"adapter {digest} could not be read again", digest=digest
            )
        finally:
            self._reading.discard(digest)
            self._changed(digest, error)

    async def _replay(self, served: Served) -> None:
        """Raises `ParityError` for an adapter that computes something else than its training
        did."""
        backend = self._backend
        parity = await asyncio.to_thread(
            read_parity,
            served.folder,
            vocab_size=backend.vocab_size,
            max_tokens=backend.max_model_len - 1,
        )
        if parity is not None:
            lora = (served.info.digest, served.number, served.folder)
            await replay_on(backend, parity, lora, slack=backend.parity_slack)

    async def _checked(self, folder: Path, digest: str | None) -> Checkpoint:
        """Reads the folder and refuses what a worker would refuse, before a worker hears of it."""
        checkpoint = await asyncio.to_thread(read_checkpoint, folder, base=self._base)
        require_digest(checkpoint.digest, digest, folder)
        require_fit(checkpoint.num_experts, checkpoint.r, max_rows=self._config.adapter_rows)
        return checkpoint

    async def _hold(self, digest: str, served: Served) -> None:
        started = time.monotonic()
        if len(self._held) >= self._config.host_adapters:
            await self._make_room()
        served.number = self._next_number
        self._next_number += 1
        await self._backend.add_lora(digest, served.number, served.folder)
        self._held[digest] = None
        self._count_read(served, started)

    async def _make_room(self) -> None:
        self._needs_victim = True
        try:
            async with self._unpinned:
                await self._unpinned.wait_for(lambda: self._victim() is not None)
            victim = self._victim()
            assert victim is not None
        finally:
            self._needs_victim = False
        del self._held[victim]
        self._changed(victim, None)  # those that had to let this pass
        await self._backend.remove_lora(self._served[victim].number)

    def _victim(self) -> str | None:
        return next((digest for digest in self._held if digest not in self._active), None)

    async def _drop(self, digest: str) -> None:
        if digest in self._held:
            del self._held[digest]
            await self._backend.remove_lora(self._served[digest].number)
