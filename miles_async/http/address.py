"""Where a server of ours is, as others address it."""

from __future__ import annotations


def url_of(host: str, port: int) -> str:
    """``http://host:port``, with the brackets that an IPv6 address needs."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
