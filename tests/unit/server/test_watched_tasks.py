"""Every watched task, found in the code, has its stated times in the decision and a trial in which
it is killed, fails and hangs; and whoever asks hears of it by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from remix_runtime.watch import TELL_SECONDS, Watched
from tests.clocks import FakeClock
from tests.unit.server.harness import Server

ROOT = Path(__file__).parents[3]
DECISION = ROOT / "docs" / "decisions" / "0015-one-watch-over-long-lived-tasks.md"
TROUBLES = {"killed", "failing", "hanging"}
TRIALS = {
    "directory": ("live/test_watched.py", "test_the_follower_comes_back"),
    "sets": ("live/test_watched.py", "test_a_set_is_tried_again_whatever_it_meets"),
    "garbage": ("live/test_watched.py", "test_the_collector_comes_back"),
    "routing": ("live/test_routing.py", "test_the_watch_over_routing_comes_back"),
    "quotas": ("live/test_leasing.py", "test_sharing_comes_back"),
    "canaries": ("live/canary/test_keeper.py", "test_the_keeper_comes_back"),
    "canary loads": ("live/canary/test_keeper.py", "test_a_load_comes_back"),
    "replicas": ("engines/ray/test_watched.py", "test_the_replicas_are_asked_again"),
    "admin": ("server/test_ready.py", "test_the_admin_api_comes_back"),
    "expert load": (
        "engines/vllm/test_watched.py",
        "test_the_load_of_experts_is_asked_again",
    ),
}
"""By the name of the task."""


def watched() -> Iterator[str]:
    """The names of the tasks that are started by a watch, wherever that is."""
    for room in ("server", "remix_runtime", "training"):
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            texts = {
                target.id: node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr != "start" or not {"what", "due_seconds"} <= {
                    keyword.arg for keyword in node.keywords
                }:
                    continue
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    yield str(name.value)
                else:
                    assert isinstance(name, ast.Name), f"{path}: no name that can be found"
                    yield str(texts[name.id])


def test_each_has_its_times_in_the_decision_and_a_trial() -> None:
    rows = re.findall(r"^\| `([\w ]+)` \|.* \| (.+) \| (.+) \|$", DECISION.read_text(), re.M)
    found = sorted(watched())
    assert len(found) > 3
    assert found == sorted(name for name, _, _ in rows) == sorted(TRIALS)
    assert all(re.match(rf"{TELL_SECONDS:g} s|\d+ s", failing) for _, failing, _ in rows)
    assert all(re.search(r"\d+ s", hanging) for _, _, hanging in rows)


@pytest.mark.parametrize("name", TRIALS)
def test_each_trial_has_all_troubles(name: str) -> None:
    file, function = TRIALS[name]
    tree = ast.parse((ROOT / "tests" / "unit" / file).read_text())
    lists = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (trial,) = (node for node in tree.body if getattr(node, "name", None) == function)
    assert isinstance(trial, ast.AsyncFunctionDef)
    troubles: set[str] = set()
    for decorator in trial.decorator_list:
        assert isinstance(decorator, ast.Call)
        named, values = decorator.args
        if ast.literal_eval(named) == "trouble":
            values = lists[values.id] if isinstance(values, ast.Name) else values
            troubles = set(ast.literal_eval(values))
    assert troubles >= TROUBLES


@pytest.mark.parametrize("name", TRIALS)
async def test_each_is_told_by_its_name_and_no_more_when_it_works(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, watch = FakeClock(), server.services.watch
    monkeypatch.setattr(watch, "_clock", clock)
    is_well = False

    async def work(task: Watched) -> None:
        if not is_well:
            raise OSError("/secret")
        await task.rest(3600)

    async def told() -> list[object]:
        answers = [await server.client.get(path) for path in ("/health", "/ready")]
        assert all("secret" not in answer.text for answer in answers)
        return [answer.json().get("failing", []) for answer in answers]

    task = watch.start(name, work, what="a trial", due_seconds=60)
    await clock.advance(TELL_SECONDS - 1)
    assert await told() == [[], []]
    await clock.advance(1)
    assert await told() == [[name], [name]]
    is_well = True
    await clock.advance(60)
    assert await told() == [[], []]
    await task.stop()
