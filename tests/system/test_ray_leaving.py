"""A worker's pod ends: its node is drained, as the chart's preStop does it, on a real Ray."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chart import objects
from tests.system.leaving import CPUS, SECONDS
from tests.system.processes import eventually, free_port

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
"""Without what Ray in this process, of other tests, has set for itself alone."""
ENVIRONMENT |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex()}
PORTS = ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
"""The system's choice."""
START_SECONDS = 240.0


class Cluster(NamedTuple):
    address: str
    newest_node: str
    """Id of a worker's node."""


def answer(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def nodes(address: str) -> list[str]:
    """The ids of a cluster's nodes with CPUs, in the order in which they came."""
    code = (
        f"import ray; ray.init('{address}', log_to_driver=False); nodes = ray.nodes(); "
        "print(*[n['NodeID'] for n in nodes if n['Alive'] and n['Resources'].get('CPU')])"
    )
    return answer(sys.executable, "-c", code).stdout.split()


def has_nodes(address: str, count: int) -> bool:
    return len(nodes(address)) == count


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two workers, each as a pod has it."""
    folder = tempfile.mkdtemp(prefix="remix-ray-", dir="/tmp")  # sockets need short paths
    port = free_port()
    head = [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"]
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(*arguments: str) -> None:
            command = [RAY, "start", "--block", *arguments, *PORTS]
            process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
            )
            stack.callback(process.wait, SECONDS)
            stack.callback(process.terminate)

        start("--head", *head)
        health = (RAY, "health-check", f"--address={address}")
        eventually(lambda: answer(*health).returncode == 0, START_SECONDS)
        for count in (1, 2):  # two that start at once on one machine get in each other's way
            start(f"--address={address}", f"--num-cpus={CPUS}")
            eventually(partial(has_nodes, address, count), START_SECONDS)
        yield Cluster(address, nodes(address)[-1])


def drain_of_the_chart() -> list[str]:
    """The command with which a worker's pod leaves, without the sleep after it."""
    spec = objects("ray", "Deployment")["remix-serve-ray"]["spec"]["template"]["spec"]
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    return shlex.split(command[2].partition(";")[0])


def test_a_worker_that_leaves_gets_no_requests_and_ends_its_own(cluster: Cluster) -> None:
    name, *drain = drain_of_the_chart()
    assert name == "ray"
    # In a pod there is one node, whose own id and address are what Ray takes.
    where = [f"--address={cluster.address}", f"--node-id={cluster.newest_node}"]
    module = (sys.executable, "-m", "tests.system.leaving")
    done = answer(*module, cluster.address, RAY, *drain, *where)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
