"""What is in an image: Python's and Debian's packages with their licences, as CycloneDX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom

SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
"""SPDX's names for what packages write in words."""


@dataclass(frozen=True)
class Package:
    kind: str
    """`pypi` or `deb`."""
    name: str
    version: str
    licence: str
    """An SPDX expression, or the package's own words; empty if it says nothing."""
    qualifiers: str = ""
    """Of its address."""


def python_packages(root: Path) -> list[Package]:
    """Those of the environment /opt/remix in an image's files."""
    (folder,) = root.glob("opt/remix/lib/python3.*/site-packages")
    found = [
        Package("pypi", item.metadata["Name"], item.version, licence_of(item))
        for item in distributions(path=[str(folder)])
    ]
    return sorted(found, key=lambda package: package.name.lower())


def licence_of(package: Distribution) -> str:
    """An expression where there is one, then the classifiers, then the words."""
    metadata = package.metadata
    assert isinstance(metadata, Message)
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    classified = [
        value.rpartition(" :: ")[2]
        for value in metadata.get_all("Classifier", [])
        if value.startswith("License :: ") and not value.endswith("OSI Approved")
    ]
    if classified:
        return " OR ".join(SPDX.get(name, name) for name in classified)
    text = str(metadata.get("License", "")).strip()
    first = text.splitlines()[0].strip() if text else ""
    return SPDX.get(first, first)


def debian_packages(root: Path) -> list[Package]:
    """Those that dpkg has installed in an image's files."""
    found = []
    for entry in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", entry, re.M))
        if fields.get("Status") == "install ok installed":
            copyright_file = root / "usr/share/doc" / fields["Package"] / "copyright"
            found.append(
                Package(
                    "deb",
                    fields["Package"],
                    fields["Version"],
                    _debian_licence(copyright_file),
                    f"arch={fields['Architecture']}",
                )
            )
    return sorted(found, key=lambda package: package.name)


def _debian_licence(file: Path) -> str:
    """The names that the file has, where it has Debian's machine-readable form."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return ", ".join(sorted(set(re.findall(r"^License: *(\S.*?) *$", text, re.M))))


def document(image: str, packages: Iterable[Package]) -> Bom:
    """The bill of materials of an image."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    licences = LicenseFactory()
    bom = Bom()
    bom.metadata.component = Component(name=image, type=ComponentType.CONTAINER, bom_ref="image")
    for package in packages:
        debian = package.kind == "deb"
        address = PackageURL(
            package.kind,
            "debian" if debian else None,
            package.name.lower(),
            package.version,
            package.qualifiers or None,
        )
        bom.components.add(
            Component(
                name=package.name,
                version=package.version,
                type=ComponentType.APPLICATION if debian else ComponentType.LIBRARY,
                purl=address,
                bom_ref=str(address),
                licenses=[licences.make_from_string(package.licence)] if package.licence else [],
            )
        )
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def written(bom: Bom) -> str:
    """As JSON, which the schema of CycloneDX 1.6 has been held to."""
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    version = SchemaVersion.V1_6
    text = make_outputter(bom, OutputFormat.JSON, version).output_as_string(indent=2)
    error = JsonStrictValidator(version).validate_str(text)
    assert error is None, error
    return text
