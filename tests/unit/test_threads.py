"""Cores are counted from the container's quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime import threads
from remix_runtime.threads import available_cores, share_cores

MACHINE = 8


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores_of_process", lambda: MACHINE)


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
    ("cores", "given", "expected"),
    [
        (3, {}, {"OMP_NUM_THREADS": "3"}),
        (3, {"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "5"}),
        (MACHINE, {}, {}),  # OpenMP counts by itself
    ],
)
def test_openmp_is_told_of_a_quota_unless_the_user_said_else(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    environment = dict(given)
    share_cores(environment)
    assert environment == expected
