"""An S3 server on loopback, and a proxy before it that is as slow, or as unreliable, as a network.

The server is moto's (https://docs.getmoto.org/en/latest/docs/server_mode.html), in a process of its own.
"""

import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from pipelines import DataError
from pipelines.remote.store import Store

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_REGION": "us-east-1"}
PIECE = 1 << 16  # bytes that the proxy passes on at a time
Fault = Callable[[str, str], str]


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """Yield the address, HOST:PORT, of a server with one empty bucket. Raises DataError if it cannot be started."""
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], **quiet) as process:  # type: ignore[call-overload]
        line = process.stdout.readline().split()
        if len(line) != 2:
            raise DataError(
                f"the S3 server did not start: pip install 'moto[s3]' flask flask-cors\n{process.stderr.read()}"
            )
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a line per request
        try:
            make_bucket(":".join(line), bucket)
            yield ":".join(line)
        finally:
            process.stdin.close()
            process.kill()


def make_bucket(address: str, bucket: str) -> None:
    with socket.create_connection(split(address)) as connection:
        connection.sendall(f"PUT /{bucket} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n".encode())
        if b" 200 " not in connection.recv(PIECE).partition(b"\r\n")[0]:
            raise DataError("the S3 server makes no bucket")


def split(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)


def environment(address: str) -> dict[str, str]:
    """Return the variables with which obstore finds the server."""
    return KEYS | {"AWS_ENDPOINT_URL": f"http://{address}", "NO_PROXY": "127.0.0.1"}


def upload(folder: Any, url: str) -> None:
    """Copy a shard folder into the bucket, as it is."""
    store = Store(url)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            store.write(path.name, path.read_bytes())


class Proxy:
    """A proxy that delays each request by ``latency`` seconds and passes on ``rate`` bytes/s of each connection.

    ``fault`` is called with the method and the path of each request, and returns what to do instead of passing it on:
    "" nothing, "cut" end the connection in the middle of the answer, "503", "403" or "404" answer so, "silent" never
    answer, "wrong" change a byte of the answer. ``requests`` lists method and path of all.
    """

    def __init__(self, address: str, *, latency: float = 0, rate: float = 0, fault: Fault = lambda *_: "") -> None:
        self.latency, self.rate, self.fault = latency, rate, fault
        self.requests: list[tuple[str, str]] = []
        self._to, self._server = split(address), _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self
        self._ended = threading.Event()
        self.address = "{}:{}".format(*self._server.server_address)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, client: socket.socket) -> None:
        """Answer the requests of a connection."""
        with socket.create_connection(self._to) as server, suppress(OSError):
            while request := _head(client):
                method, path = request.split(b" ", 2)[:2]
                self.requests.append((method.decode(), path.decode()))
                fault = self.fault(*self.requests[-1])
                time.sleep(self.latency)
                if fault == "silent":
                    self._ended.wait()
                    return
                if fault.isdecimal():
                    client.sendall(f"HTTP/1.1 {fault} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                    return
                self._pass_on(client, server, request, "")
                self._pass_on(server, client, _head(server), fault, empty=method == b"HEAD")

    def _pass_on(self, source: socket.socket, to: socket.socket, head: bytes, fault: str, empty: bool = False) -> None:
        """Pass on a request or an answer, of which ``head`` was read. Raises OSError if it is to be cut."""
        to.sendall(head)
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = size = 0 if empty or not found else int(found[1])
        began = time.perf_counter()
        end = size // 2 if fault == "cut" else 0  # bytes that are not passed on
        while left > end and (piece := source.recv(min(left - end, PIECE))):
            to.sendall(bytes([piece[0] ^ 1]) + piece[1:] if fault == "wrong" and left == size else piece)
            left -= len(piece)
            if self.rate:
                time.sleep(max(0.0, (size - left) / self.rate - (time.perf_counter() - began)))
        if end:
            raise OSError("cut")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    proxy: Proxy


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        with suppress(OSError):
            self.server.proxy.serve(self.request)


def _head(connection: socket.socket) -> bytes:
    """Return the head of a request or an answer, with the empty line at its end; nothing at the end."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head
