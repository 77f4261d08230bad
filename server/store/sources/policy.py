"""Where adapters may be fetched from on the web: who may name a source must not reach what only
this machine reaches.

Object stores and the hub are not meant here: their addresses are the operator's, not the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

_INSIDE = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # some clouds' metadata
            "168.63.129.16/32",  # Azure's metadata, at an address of the internet
        ),
    )
)
"""What Python takes for addresses of the internet, and is none."""
_INTERNET_V6 = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """By default https, from addresses of the internet only."""

    http: bool = False
    """Whether http is fine too, which whoever is on the way can read and change."""
    networks: tuple[Network, ...] = ()
    """Addresses of these are fine too: loopback, private, link-local, shared, multicast and
    metadata addresses are not by themselves."""
    seconds: float = 3600.0
    """The most that one import may take, from any source."""

    def allows(self, address: str) -> bool:
        """Whether a connection to this IP address may be made."""
        found = ip_address(address.partition("%")[0])
        meant = _meant(found)
        if any(each in network for network in self.networks for each in {found, meant}):
            return True
        return _is_of_the_internet(meant)


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_of_the_internet(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _INTERNET_V6:
        return False
    inside = not address.is_global or address.is_multicast or address.is_reserved
    return not inside and not any(address in network for network in _INSIDE)
