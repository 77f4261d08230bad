"""Cores are counted from the container's quota; barriers spin briefly unless the user says else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remix_runtime import threads
from remix_runtime.threads import SPIN_COUNT, available_cores, share_cores

MACHINE = 8


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: MACHINE)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V1 = "5:cpuset:/\n4:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n"}, 2, id="quota"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, MACHINE, id="no quota"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "300000 100000\n"}, 3, id="of the group around it"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "100000 100000"},
            1,
            id="the least of both",
        ),
        pytest.param("0::/host/path\n", {"cpu.max": "50000 100000\n"}, 1, id="half a core is one"),
        pytest.param("0::/\n", {"cpu.max": "160000 100000\n"}, 2, id="rounded"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, MACHINE, id="above the machine"),
        pytest.param("0::/\n", {"cpu.max": "nonsense"}, MACHINE, id="unreadable"),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3,
            id="version 1",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            2,
            id="version 1 in a container",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            MACHINE,
            id="version 1 without a quota",
        ),
        pytest.param(
            "3:cpuset:/x\n", {"cpu.max": "100000 100000"}, MACHINE, id="other controllers"
        ),
    ],
)
def test_cores_are_the_quota_of_the_control_group(
    tmp_path: Path, groups: str, files: dict[str, str], cores: int
) -> None:
    write(tmp_path / "proc", {"self/cgroup": groups})
    write(tmp_path / "groups", files)
    assert available_cores(tmp_path / "proc", tmp_path / "groups") == cores


def test_without_control_groups_all_cores_are_used(tmp_path: Path) -> None:
    assert available_cores(tmp_path, tmp_path) == MACHINE


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT, "OMP_NUM_THREADS": "3"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}),
        (
            {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"},
            {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"},
        ),
    ],
)
def test_what_the_user_set_stands(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 3)
    environment = dict(given)
    share_cores(environment)
    assert environment == expected


def test_without_a_quota_openmp_counts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: MACHINE)
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {"GOMP_SPINCOUNT": SPIN_COUNT}


def test_the_command_line_says_it_before_openmp_is_loaded(tmp_path: Path) -> None:
    """libgomp answers to `OMP_DISPLAY_ENV` when it is loaded."""
    code = (
        "import sys; sys.argv = ['remix', '--version']\n"
        "from remix_runtime.cli import main\n"
        "try: main()\n"
        "except SystemExit: import torch; torch.ones(9)\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"
    } | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr
