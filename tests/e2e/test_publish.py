"""Train, then serve, as one command, under traffic of which no request may fail: a better adapter
is published, a worse one is refused with its figures, a broken one is rolled back by itself."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from remix_runtime import cli
from remix_runtime.contracts import GenerationRequest, TokenEvent
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from server.app import create_tenant_apps
from server.live import canary_keeper
from server.runner import bind, url_of
from server.settings import ServerSettings
from tests.models import save_tiny_base
from tests.unit.server.harness import listen
from training.publish import place
from training.publish.publication import PUBLISHED, REFUSED, ROLLED_BACK

KEY = "the-key-of-the-operator"
PLACE = "acme/words"
WORDS = [a + b for a, b in itertools.product("abcdefgh", ("nt", "ee", "ow", "ix"))]


class FragileEngine(EmbeddedEngine):
    """Fails for the adapters that are not in `sound`, once that is set."""

    sound: set[str] | None = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        if self.sound is not None and request.digest not in self.sound:
            raise RuntimeError("the device has lost this adapter")
        async for event in super().generate(request):
            yield event


@dataclass
class Traffic:
    """Requests for the name, as long as there is one, streamed and not."""

    client: httpx.AsyncClient
    failed: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """By the digest that they tell."""
    goes_on: bool = True

    async def run(self, stream: bool) -> None:
        for number in itertools.count():
            if not self.goes_on:
                return
            body = {"model": "words", "prompt": f"ant {number} ->", "max_tokens": 4}
            answer = await self.client.post("/v1/completions", json={**body, "stream": stream})
            if answer.status_code != 200 or '"error"' in answer.text:
                self.failed.append(answer.text)
            else:
                first = answer.text.partition("\n")[0].removeprefix("data: ")
                self.answers[json.loads(first)["system_fingerprint"]] += 1
            await asyncio.sleep(0.01)


@dataclass
class World:
    folder: Path
    base: Path
    engine: FragileEngine
    admin_url: str
    admin: httpx.AsyncClient
    traffic: Traffic

    async def call(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = await self.admin.request(method, f"/admin/v1{path}", **kwargs)
        assert answer.is_success, answer.text
        return answer.json()

    async def live(self) -> str:
        return str((await self.call("GET", "/tenants/acme/set"))["adapters"]["words"])

    async def train(self, name: str, *options: str, **settings: Any) -> int:
        """`remix train … --publish`."""
        recipe = {
            **{"base": str(self.base), "data": "rows.jsonl", "eval_data": "held-out.jsonl"},
            **{"output": name, "num_experts": 2, "top_k": 1, "r": 2, "selections": 2},
            **{"batch_size": 4, "warmup_steps": 1, "threads": 1, "device": "cpu"},
            **{"checkpoint_every": 1000, "eval_every": 1000, **settings},
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        command = ["train", str(self.folder / f"{name}.yaml"), "--publish", PLACE]
        return await self.remix(*command, *self.rules("--publish-"), *options)

    async def publish(self, name: str) -> int:
        folder, rows = self.folder / name / "adapter", self.folder / "held-out.jsonl"
        return await self.remix("publish", str(folder), PLACE, str(rows), *self.rules("--"))

    def rules(self, prefix: str) -> list[str]:
        given = {"bake-seconds": 0, "bake-requests": 25, "share": 0.5}
        options = [f"{prefix}{name}={value}" for name, value in given.items()]
        return [*options, f"--admin-url={self.admin_url}"]

    async def remix(self, *command: str) -> int:
        """Beside the server's event loop."""
        return await asyncio.to_thread(cli.run, command)

    async def canary(self) -> Any:
        (canary,) = (await self.call("GET", "/tenants/acme/canary"))["data"]
        return canary


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    base = save_tiny_base(folder / "base")
    engine = FragileEngine(EmbeddedConfig(model=str(base), max_running=8, kv_cache_bytes=1 << 26))
    settings = ServerSettings(
        port=0, log_level="critical", admin_key=KEY, import_root=folder, poll_seconds=0.05
    )
    apps = create_tenant_apps(engine, settings, folder / "data")
    for name, words in (("rows", WORDS[::2]), ("held-out", WORDS[1::2])):
        rows = [{"prompt": f"{word} ->", "completion": f" {word[::-1]}!"} for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with bind("127.0.0.1", 0) as listener:
        async with (
            listen(apps.data, settings, admin=(apps.admin, listener)) as url,
            httpx.AsyncClient(
                base_url=url_of(listener), headers={"Authorization": f"Bearer {KEY}"}, timeout=60
            ) as admin,
            httpx.AsyncClient(base_url=url, timeout=60) as client,
        ):
            made = World(folder, base, engine, url_of(listener), admin, Traffic(client))
            await made.call("POST", "/tenants", json={"id": "acme"})
            key = (await made.call("POST", "/tenants/acme/keys"))["secret"]
            client.headers["Authorization"] = f"Bearer {key}"
            yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIX_ADMIN_KEY", KEY)
    monkeypatch.setattr(canary_keeper, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(place, "_POLL_SECONDS", 0.05)
    for plot in ("plot_learning_curve", "plot_expert_load"):
        monkeypatch.setattr(f"training.run.{plot}", lambda *_: None)


@pytest.mark.usefixtures("quick")
async def test_trained_adapters_are_published_refused_and_rolled_back_under_traffic(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path) as made:
        # The first of the name has nothing to share requests with.
        assert await made.train("first", steps=8) == PUBLISHED
        first = await made.live()
        traffic = made.traffic
        running = [asyncio.create_task(traffic.run(stream)) for stream in (False, True)]
        capfd.readouterr()

        # A better one, which the engine cannot compute: the live one answers its requests.
        made.engine.sound = {first}
        assert await made.train("better", steps=30) == ROLLED_BACK
        assert await made.live() == first
        canary = await made.canary()
        assert canary["state"] == "rolled_back"
        assert canary["figures"]["canary"]["failures"] >= 2
        assert set(traffic.answers) == {first}
        rows = (await made.call("GET", "/audit", params={"tenant": "acme"}))["data"]
        row = next(row for row in rows if row["action"] == "canary.rolled_back")
        assert row["actor"] == canary_keeper.ACTOR
        assert "requests failed" in row["detail"]["reason"]
        assert "rolled back" in capfd.readouterr().out

        # The same where it can.
        made.engine.sound = None
        assert await made.publish("better") == PUBLISHED
        better = await made.live()
        canary = await made.canary()
        assert (canary["state"], canary["digest"]) == ("promoted", better)
        assert canary["figures"]["canary"]["requests"] >= 25
        assert canary["figures"]["canary"]["failures"] == 0
        said = capfd.readouterr().out
        assert "passes" in said
        assert "promoted" in said

        # A worse one changes nothing, and says by how much it is worse.
        revisions = await made.call("GET", "/tenants/acme/set/revisions")
        assert await made.train("worse", steps=2, expert_learning_rate=1e-5) == REFUSED
        said = capfd.readouterr().out
        assert "refused" in said
        assert "better by" in said
        assert await made.call("GET", "/tenants/acme/set/revisions") == revisions
        assert await made.canary() == canary

        assert not any(task.done() for task in running)
        traffic.goes_on = False
        await asyncio.gather(*running)
        assert traffic.failed == []
        assert set(traffic.answers) == {first, better}
        assert made.engine.stats().running == made.engine.stats().waiting == 0


@pytest.mark.usefixtures("quick")
async def test_what_cannot_be_published_is_known_before_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> str:
        return capfd.readouterr().err

    async with world(tmp_path) as made:
        assert await made.train("a", "--publish", "nobody/words") == 1
        assert "no tenant 'nobody'" in refused()
        assert await made.train("a", "--publish", "acme") == 1
        assert "TENANT/NAME" in refused()
        assert await made.train("a", eval_data=None) == 1
        assert "held-out" in refused()
        other = save_tiny_base(tmp_path / "other", seed=1)
        assert await made.train("a", base=str(other)) == 1
        assert "weights differ" in refused()
        monkeypatch.setenv("REMIX_ADMIN_KEY", "another-key")
        assert await made.train("a") == 1
        assert not (tmp_path / "a").exists()
