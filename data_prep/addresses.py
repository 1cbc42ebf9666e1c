"""Which addresses a list of URLs may lead to: those of the public internet, whatever name or redirect hides the others.

A list that somebody else wrote must not make this machine ask its own network. The check is made where the connection
is: the addresses that a name has are looked up once, looked at, and connected to.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore2

from vlbeit.http import httpx

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """An address that is not asked: the text says why."""


def is_public(address: Address) -> bool:
    """False for private, loopback, link-local and other special addresses, also where IPv6 wraps one of IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises `Refused` unless all are public, OSError where the name is not known."""
    found = _look_up(host, port)
    for address in found:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise Refused("private or loopback address")
    return found


def _look_up(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class _Guarded(httpcore2.NetworkBackend):
    """Connects to public addresses alone."""

    def __init__(self) -> None:
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            addresses = public_addresses(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"no such host: {error}") from error
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses[:3]:
            try:
                return self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def sleep(self, seconds: float) -> None:
        self._plain.sleep(seconds)


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class PublicTransport(httpx.BaseTransport):
    """For `httpx.Client(transport=...)`: `Refused` where a connection would leave the public internet.

    Errors of the network are those of httpcore2.
    """

    def __init__(self, connections: int) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx.create_ssl_context(), max_connections=connections, network_backend=_Guarded()
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        found = self._pool.handle_request(
            httpcore2.Request(
                request.method,
                httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(found.status, headers=found.headers, stream=_Stream(found), extensions=found.extensions)

    def close(self) -> None:
        self._pool.close()
