"""Two replicas on a real Ray: one dies, adapters are found where they are, replicas come and go, a
server drains, tenants swap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from remix_runtime.contracts import FinishReason
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.engine import RayEngine
from remix_runtime.engines.ray.placement import Placement
from remix_runtime.errors import ConfigError, ReplicaLostError
from tests.engines import complete, request
from tests.ray_engines import ray_engine
from tests.unit.server.tenants import ADMIN_KEY, make_tenant_apps
from tests.unit.store.conftest import write_adapter

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("ray_instance"),
]

STREAMS = 50
TOKENS = 150
LONG = FakeConfig(max_running=40, max_waiting=40, token_seconds=0.03)
"""Streams of some seconds."""
TWO = {"engine_of": "fake", "replicas": 2, "replica_cpus": 0.1}


async def until_replicas(engine: RayEngine, count: int, seconds: float = 240) -> None:
    async with asyncio.timeout(seconds):
        while engine.stats().replicas != count:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.2)


def folder_of_adapter(root: Path, name: str) -> Path:
    (root / name).mkdir()
    (root / name / "adapter_config.json").write_text(json.dumps(name))
    return root / name


async def test_a_killed_replica_takes_only_its_own_streams_with_it() -> None:
    engine = await ray_engine(LONG, **TWO, ray_app="killed")
    alone = FakeEngine()
    await alone.start()
    expected = await complete(alone, request([5, 6, 7], max_tokens=TOKENS, ignore_eos=True))
    items = [request([5, 6, 7], max_tokens=TOKENS, ignore_eos=True) for _ in range(STREAMS)]
    begun = [asyncio.Event() for _ in items]

    async def follow(at: int) -> list[int]:
        tokens: list[int] = []
        async for event in engine.generate(items[at]):
            tokens += event.token_ids
            begun[at].set()
        return tokens

    streams = [asyncio.create_task(follow(at)) for at in range(STREAMS)]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60)
    homes = [engine._streams[item.request_id].replica for item in items]
    victim = engine._fleet.heard[0]
    assert 10 < homes.count(victim.replica) < STREAMS - 10
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    done = await complete(engine, request([1], max_tokens=3, ignore_eos=True))
    waited = time.monotonic() - killed
    outcomes = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 120)

    assert len(done.token_ids) == 3
    print(f"a new request was served {waited:.2f} s after the kill")
    assert waited < 5
    for home, outcome in zip(homes, outcomes, strict=True):
        if home == victim.replica:
            assert isinstance(outcome, ReplicaLostError)
        else:
            assert outcome == expected.token_ids
    assert engine.health().ready
    await until_replicas(engine, 2)  # Ray has made a new one
    assert victim.replica not in {report.replica for report in engine._fleet.heard}
    assert (await complete(engine, request([1], max_tokens=3))).token_ids
    await engine.stop()


async def test_a_request_that_has_told_nothing_goes_to_another_replica() -> None:
    slow = FakeConfig(max_running=4, prefill_seconds=4.0)
    engine = await ray_engine(slow, **TWO, ray_app="retried")
    items = [request([5, 6, 7], max_tokens=3, ignore_eos=True) for _ in range(4)]
    tasks = [asyncio.create_task(complete(engine, item)) for item in items]
    async with asyncio.timeout(60):
        while {job.replica for job in engine._running} < {r.replica for r in engine._fleet.heard}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    os.kill(engine._fleet.heard[0].pid, signal.SIGKILL)
    done = await asyncio.wait_for(asyncio.gather(*tasks), 120)
    assert {len(each.token_ids) for each in done} == {3}
    await engine.stop()


async def found_share(engine: RayEngine, digests: Sequence[str], num_requests: int) -> float:
    """The share of requests that found their adapter at their replica, after as many others."""
    chooser, at_once = random.Random(3), asyncio.Semaphore(6)

    async def ask() -> None:
        async with at_once:
            await complete(engine, request([5, 6], chooser.choice(digests), max_tokens=4))

    await asyncio.gather(*(ask() for _ in range(num_requests)))
    before = engine.stats()
    await asyncio.gather(*(ask() for _ in range(num_requests)))
    after = engine.stats()
    placed = after.placed_requests - before.placed_requests
    assert placed == num_requests
    return (after.placed_requests_found - before.placed_requests_found) / placed


async def test_requests_find_their_adapter_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 adapters, 4 places for adapters in each of 2 replicas."""
    config = FakeConfig(max_running=8, max_waiting=8, token_seconds=0.005)
    engine = await ray_engine(config, **TWO, replica_adapters=4, ray_app="found")
    folders = [folder_of_adapter(tmp_path, f"a{i}") for i in range(8)]
    digests = [(await engine.load_adapter(folder)).digest for folder in folders]
    placed = await found_share(engine, digests, 200)

    def anywhere(self: Placement, replicas: Sequence[str], **asked: Any) -> list[str]:
        self.set_replicas(replicas)
        return random.sample(list(replicas), len(replicas))

    monkeypatch.setattr(Placement, "choose", anywhere)
    by_chance = await found_share(engine, digests, 200)
    await engine.stop()
    print(f"found where loaded: {placed:.1%}, with random routing {by_chance:.1%}")
    assert placed >= 0.9
    assert 0.3 < by_chance < 0.7


async def test_replicas_come_and_go_with_the_load_and_no_request_fails() -> None:
    config = FakeConfig(max_running=4, max_waiting=20, token_seconds=0.02)
    engine = await ray_engine(
        config,
        engine_of="fake",
        replicas=1,
        max_replicas=2,
        target_requests=2.0,
        scale_up_seconds=1.0,
        scale_down_seconds=3.0,
        replica_cpus=0.1,
        ray_app="scaled",
    )
    wanted = 8
    sizes: list[int] = []

    async def ask(at: int) -> None:
        while wanted:
            if at < wanted:
                item = request([at, 7], max_tokens=50, ignore_eos=True)
                sizes.append(len((await complete(engine, item)).token_ids))
            else:
                await asyncio.sleep(0.1)

    clients = [asyncio.create_task(ask(at)) for at in range(wanted)]
    await until_replicas(engine, 1)
    await until_replicas(engine, 2)
    wanted = 1
    await until_replicas(engine, 1)
    wanted = 0
    await asyncio.gather(*clients)
    print(f"{len(sizes)} requests while replicas went from 1 to 2 to 1")
    assert set(sizes) == {50}
    await engine.stop()


async def test_a_server_with_other_settings_is_refused_and_one_with_the_same_joins() -> None:
    first = await ray_engine(LONG, **TWO, ray_app="killed")
    second = RayEngine(RayConfig(**TWO, ray_app="killed"), LONG)
    await second.start()
    done = [await complete(each, request([1, 2], max_tokens=5)) for each in (first, second)]
    assert done[0].token_ids == done[1].token_ids
    other = RayEngine(RayConfig(**TWO, ray_app="killed"), FakeConfig(token_seconds=1.0))
    with pytest.raises(ConfigError, match=r"ray_app: killed runs with other settings \(.*token_s"):
        await other.start()
    await first.stop()
    assert (await complete(second, request([1, 2], max_tokens=5))).token_ids
    await second.stop()


async def test_replicas_that_cannot_start_are_one_clear_error() -> None:
    config = FakeConfig(served_model_name="x")
    engine = RayEngine(RayConfig(engine_of="fake", replica_cpus=0.1, ray_app="broken"), config)
    engine._cluster._settings.options["no_such_option"] = 1  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"the replicas do not start: .*no_such_option"):
        await engine.start()


async def test_tenants_swap_their_sets_under_traffic_on_ray(tmp_path: Path) -> None:
    engine = RayEngine(RayConfig(**TWO, ray_app="tenants"), FakeConfig(max_running=8))
    apps, _ = make_tenant_apps(engine, tmp_path, tmp_path / "adapters")  # type: ignore[arg-type]
    (tmp_path / "adapters").mkdir(exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(apps.data.router.lifespan_context(apps.data))

        async def client(app: Any, key: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {key}"}
            return await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=transport, base_url="http://test", headers=headers, timeout=120
                )
            )

        admin = await client(apps.admin, ADMIN_KEY)

        async def ask(method: str, path: str, **body: Any) -> Any:
            answer = await admin.request(method, f"/admin/v1{path}", json=body or None)
            assert answer.is_success, answer.text
            return answer.json()

        digests = []
        for name in ("one", "two"):
            write_adapter(tmp_path / "adapters" / name, seed=len(digests))
            digests.append((await ask("POST", "/adapters", source=name))["digest"])
        users = {}
        for tenant in ("acme", "zeta"):
            await ask("POST", "/tenants", id=tenant)
            await ask("PUT", f"/tenants/{tenant}/set", adapters={"m": digests[0]})
            users[tenant] = await client(
                apps.data, (await ask("POST", f"/tenants/{tenant}/keys"))["secret"]
            )
        seen: set[tuple[str, str]] = set()
        stop = asyncio.Event()

        async def use(tenant: str) -> None:
            while not stop.is_set():
                body = {"model": "m", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
                answer = await users[tenant].post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                seen.add((found["system_fingerprint"], found["choices"][0]["text"]))

        traffic = [asyncio.create_task(use(tenant)) for tenant in users for _ in range(3)]
        for turn in range(10):
            await ask("PUT", "/tenants/acme/set", adapters={"m": digests[(turn + 1) % 2]})
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*traffic)
        other = await users["zeta"].post(
            "/v1/completions", json={"model": "none", "prompt": "x", "max_tokens": 1}
        )
        metrics = (await admin.get("/metrics")).text
    # Each version has one answer, and both were served.
    assert len(seen) == len({fingerprint for fingerprint, _ in seen}) == 2
    assert other.status_code == 404
    assert "remix_replicas 2.0" in metrics
    assert "remix_replicas_wanted 2.0" in metrics
    assert float(metrics.partition("\nremix_placed_requests_found_total ")[2].split()[0]) > 10


async def code_without_token(port: int) -> str:
    """How a port answers somebody who calls a replica and has no token."""
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=10)  # not all of them speak gRPC
    return str(caught.value.code().name)


async def test_sigterm_under_streams_drops_none() -> None:
    """A server with a Ray of its own, which writes nothing into its home as in a container with a
    read-only root, and nothing of either is left."""
    temp = tempfile.mkdtemp(prefix="remix-ray-", dir="/tmp")  # sockets need short paths
    (home := Path(temp) / "home").touch()  # no folder, so nothing can be written there
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve"),
        *("--engine", "ray", "--engine-of", "fake", "--replicas", "2", "--port", "0"),
        *("--token-seconds", "0.03", "--max-running", "40", "--drain-seconds", "60"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        | {"RAY_TMPDIR": temp, "HOME": str(home)},
    )
    try:
        assert process.stdout is not None
        first = (await asyncio.wait_for(process.stdout.readline(), 300)).decode()
        assert first.startswith("Serving fake-base at http://127.0.0.1:"), first
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 3
        listening = {
            (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
            for child in children
            for each in child.net_connections(kind="inet")
            if each.status == psutil.CONN_LISTEN
        }
        assert {host for host, _ in listening} == {"127.0.0.1"}
        codes = await asyncio.gather(*(code_without_token(port) for _, port in listening))
        assert codes.count("UNAUTHENTICATED") >= 2, "the replicas"
        limits = httpx.Limits(max_connections=STREAMS + 5)
        async with httpx.AsyncClient(
            base_url=first.split()[-1], timeout=120, limits=limits
        ) as client:
            begun = [asyncio.Event() for _ in range(STREAMS)]

            async def follow(at: int) -> list[str]:
                body = {"model": "fake-base", "prompt": "a", "max_tokens": TOKENS}
                options = {"stream": True, "ignore_eos": True}
                async with client.stream("POST", "/v1/completions", json=body | options) as answer:
                    events = []
                    async for line in answer.aiter_lines():
                        if line:
                            events.append(line)
                            begun[at].set()
                    return events

            streams = [asyncio.create_task(follow(at)) for at in range(STREAMS)]
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60)
            process.send_signal(signal.SIGTERM)
            answers = await asyncio.wait_for(asyncio.gather(*streams), 120)
        _, errors = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
        _, left = psutil.wait_procs(children, timeout=30)
        shutil.rmtree(temp, ignore_errors=True)
    assert [events[-1] for events in answers] == ["data: [DONE]"] * STREAMS
    reasons = [json.loads(events[-2][6:])["choices"][0]["finish_reason"] for events in answers]
    assert reasons == [FinishReason.LENGTH] * STREAMS
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    assert left == []
