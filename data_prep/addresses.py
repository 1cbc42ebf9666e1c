"""Which addresses a list of URLs may lead to: those of the public internet, whatever name or redirect hides the others.

A list that somebody else wrote must not make this machine ask its own network. The check is made where the connection
is: the addresses that a name has are looked up once, looked at, and connected to. Only what goes through a proxy of the
environment is checked by its name alone, since it is the proxy that looks the name up.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpcore2

from vlbeit.http import httpx

from .deadline import TimedBackend

_NAME = re.compile(r"[a-z0-9._-]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that IANA has given to the public internet
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """An address that is not asked: the text says why."""


def is_public(address: Address) -> bool:
    """False for private, loopback, link-local and other special addresses.

    One of IPv6 that wraps one of IPv4 in a known way (mapped, 6to4, Teredo, NAT64) is what that is; all others lie in
    the block for public ones, 2000::/3.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast


def check_host(host: str) -> None:
    """Raise `Refused` for a host that is no public one by what stands in the URL.

    So is 127.1, 0x7f000001, 2130706433: numbers in which resolvers read an address, though none is written like one.
    """
    name = host.lower().rstrip(".")
    try:
        public = is_public(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
            raise Refused("no plain name or address") from None
        public = name != "localhost" and not name.endswith(".localhost")
    if not public:
        raise Refused("private or loopback address")


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


class _Guarded(TimedBackend):
    """Connects to public addresses alone."""

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
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class Transport(httpx.BaseTransport):
    """For `httpx.Client(transport=...)`: straight to public addresses, or by the proxy that the environment names.

    It is decided here, by request, whether there is a proxy for it: what does not go through one is checked. Raises
    `Refused` for what would leave the public internet, errors of the network are those of httpcore2.
    """

    def __init__(self, connections: int, allow_local: bool = False) -> None:
        """`allow_local`: ask any address, without a proxy. ValueError, ImportError for a proxy that cannot be used."""
        self._allow_local = allow_local
        self._straight = _pool(connections, TimedBackend() if allow_local else _Guarded())
        proxies = {} if allow_local else _proxies()
        self._by_proxy = {scheme: _pool(connections, TimedBackend(), proxy) for scheme, proxy in proxies.items()}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if not self._allow_local:
            check_host(url.raw_host.decode())
        found = self._pool_for(url).handle_request(
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
        for pool in (self._straight, *self._by_proxy.values()):
            pool.close()

    def _pool_for(self, url: httpx.URL) -> httpcore2.ConnectionPool:
        pool = self._by_proxy.get(url.scheme)
        return self._straight if pool is None or proxy_bypass(url.netloc.decode()) else pool


def _pool(
    connections: int, backend: httpcore2.NetworkBackend, proxy: httpcore2.Proxy | None = None
) -> httpcore2.ConnectionPool:
    return httpcore2.ConnectionPool(
        ssl_context=httpx.create_ssl_context(), proxy=proxy, max_connections=connections, network_backend=backend
    )


def _proxies() -> dict[str, httpcore2.Proxy]:
    """Those of the environment, by the scheme of the URLs that are for them."""
    named = getproxies()
    addresses = {scheme: named.get(scheme) or named.get("all") for scheme in ("http", "https")}
    return {scheme: _proxy(address) for scheme, address in addresses.items() if address}


def _proxy(address: str) -> httpcore2.Proxy:
    read = httpx.Proxy(address if "://" in address else f"http://{address}")
    if read.url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ImportError("a SOCKS proxy needs the package socksio")
    url = httpcore2.URL(scheme=read.url.raw_scheme, host=read.url.raw_host, port=read.url.port, target=b"/")
    return httpcore2.Proxy(url, auth=read.raw_auth)
