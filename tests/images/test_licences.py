"""Which licences may be shipped."""

from __future__ import annotations

import pytest

from tests.images import report
from tests.images.contents import Package

pytestmark = pytest.mark.images


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("LGPL-3.0-only", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-2.0-or-later", False),
        ("AGPL-3.0-or-later", False),
        ("its own words", False),
        ("", False),
    ],
)
def test_strong_copyleft_and_what_is_unknown_are_not_allowed(licence: str, allowed: bool) -> None:
    package = Package("pypi", "some", "1.0", licence)
    assert report.not_allowed([package]) == ([] if allowed else [f"some 1.0: {licence!r}"])


def test_nvidia_s_packages_are_the_gpu_image_s_only() -> None:
    package = Package("pypi", "nvidia-cublas", "13.1", "LicenseRef-NVIDIA-Proprietary")
    assert report.not_allowed([package])
    assert not report.not_allowed([package], with_nvidia=True)
    other = Package("pypi", "other", "1.0", "LicenseRef-NVIDIA-Proprietary")
    assert report.not_allowed([other])
