"""How much one client may ask for: a bucket of tokens for each, filled at a steady rate."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["RateLimit", "client_key"]

_MOST_CLIENTS = 10_000


class RateLimit:
    """Token buckets by client; each holds up to twice what comes in a second.

    Args:
        rate: requests a second; 0 sets no limit.
        clock: seconds; tests put their own in its place.

    >>> now = 0.0
    >>> limit = RateLimit(1, clock=lambda: now)
    >>> limit.wait_for("a"), limit.wait_for("a"), limit.wait_for("a"), limit.wait_for("b")
    (0, 0, 1, 0)
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def wait_for(self, client: str) -> int:
        """0 if a request may pass, else the whole seconds until one may."""
        if not self._rate:
            return 0
        now, full = self._clock(), max(1.0, 2 * self._rate)
        tokens, since = self._buckets.pop(client, (full, now))
        tokens = min(full, tokens + (now - since) * self._rate)
        may_pass = tokens >= 1
        self._buckets[client] = (tokens - may_pass, now)
        if len(self._buckets) > _MOST_CLIENTS:  # the one that has been quiet for longest has a full bucket, or nearly
            self._buckets.popitem(last=False)
        return 0 if may_pass else math.ceil((1 - tokens) / self._rate)


def client_key(host: str) -> str:
    """What counts as one client: an IPv4 address, or the 64 bits of an IPv6 address that a provider gives out.

    >>> client_key("192.0.2.7"), client_key("2001:db8::1:2")
    ('192.0.2.7', '2001:db8::/64')
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
