"""What crosses between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from tests.engines import complete, request
from tests.models import save_tiny_base


async def test_a_command_whose_caller_left_does_not_end_the_engine(tmp_path: Path) -> None:
    save_tiny_base(tmp_path, "llama")
    engine = EmbeddedEngine(EmbeddedConfig(model=str(tmp_path), kv_cache_bytes=1 << 20))
    await engine.start()
    try:
        hold = threading.Event()
        holding = asyncio.create_task(engine._thread.call(hold.wait))
        leaving = asyncio.create_task(engine._thread.call(lambda: 1))
        await asyncio.sleep(0.05)
        leaving.cancel()
        hold.set()
        assert await holding
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await engine._thread.call(lambda: 2) == 2
        assert engine.health().ready
        assert len((await complete(engine, request([1, 2], max_tokens=3))).token_ids) == 3
    finally:
        await engine.stop()
