"""An S3 server on loopback, and a proxy before it that is as slow, or as unreliable, as a network.

The server, in a process of its own, is moto's (https://docs.getmoto.org/en/latest/docs/server_mode.html), which gives
out some 80 MB/s, or npm's s3rver (https://github.com/jamhall/s3rver), which gives out 800 MB/s on the same machine.

    python -m benchmarks.harness.bucket HOST:PORT LATENCY RATE

is the proxy as a program of its own, so that it shares no interpreter's lock with what is measured.
"""

import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from pipelines import DataError
from pipelines.remote.store import Store

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
sys.stdin.read()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_REGION": "us-east-1"}
PIECE = 1 << 18  # bytes that the proxy passes on at a time
ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
Fault = Callable[[str, str], str]


@contextmanager
def s3_server(bucket: str = "bucket", s3rver: Path | None = None) -> Iterator[str]:
    """Yield the address, HOST:PORT, of a server with one empty bucket; ``s3rver`` is the program to use, not moto's.

    Raises DataError if it cannot be started.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command: Sequence[str | Path] = [sys.executable, "-c", SERVER]
        if s3rver:
            command = ["node", s3rver, "--directory", folder, "--address", "127.0.0.1", "--port", "0", "--silent"]
        hint = "npm install --prefix build/s3rver s3rver@3.7.1" if s3rver else "pip install 'moto[s3]' flask flask-cors"
        with _listening(command, hint) as address:
            make_bucket(address, bucket)
            yield address


@contextmanager
def slow_network(address: str, latency: float, rate: float) -> Iterator[str]:
    """Yield the address of a ``Proxy`` in a process of its own."""
    with _listening([sys.executable, "-m", __name__, address, str(latency), str(rate)], "") as own:
        yield own


@contextmanager
def _listening(command: Sequence[str | Path], hint: str) -> Iterator[str]:
    """Run a program until the context ends. Yield the address, HOST:PORT, that it prints first.

    It stands for other machines, so it gives way to everything that is measured.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["nice", "-n", "19", *command], text=True, **pipes) as process:
        try:
            assert process.stdout and process.stderr
            found = next((part for line in process.stdout for part in ADDRESS.findall(line)), None)
            if not found:
                raise DataError(f"the S3 server did not start: {hint}\n{process.stderr.read()}")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a line per request
            yield found
        finally:
            process.kill()


def make_bucket(address: str, bucket: str) -> None:
    with socket.create_connection(split(address)) as connection:
        connection.sendall(f"PUT /{bucket} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n".encode())
        if b" 200 " not in connection.recv(PIECE).partition(b"\r\n")[0]:
            raise DataError("the S3 server makes no bucket")


def split(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)


def environment(address: str, signed: bool = True) -> dict[str, str]:
    """Return the variables with which obstore finds the server; s3rver knows none of these keys."""
    found = {"AWS_ENDPOINT_URL": f"http://{address}", "NO_PROXY": "127.0.0.1"}
    return KEYS | found | ({} if signed else {"AWS_SKIP_SIGNATURE": "true"})


def upload(folder: Any, url: str) -> None:
    """Copy a shard folder into the bucket, as it is."""
    store = Store(url)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            store.write(path.name, path.read_bytes())


class Proxy:
    """A proxy that delays each request by ``latency`` seconds and passes on ``rate`` bytes/s of each connection.

    ``fault`` is called with the method and the path of each request, and returns what to do instead of passing it on:
    "" nothing, "cut" end the connection in the middle of the answer (before its body, if a range was asked for), "503",
    "403" or "404" answer so, "silent" never answer, "wrong" change a byte of the answer. ``requests`` lists method and
    path of all.
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
            for side in (client, server):  # else the body of a short answer waits for the acknowledgement of its head
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
                if not (answer := _head(server)):
                    return  # it had closed a connection that was idle: so does the proxy, and the client tries again
                self._pass_on(server, client, answer, fault, empty=method == b"HEAD")

    def _pass_on(self, source: socket.socket, to: socket.socket, head: bytes, fault: str, empty: bool = False) -> None:
        """Pass on a request or an answer, of which ``head`` was read. Raises OSError if it is to be cut."""
        to.sendall(head)
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = size = 0 if empty or not found else int(found[1])
        began = time.perf_counter()
        rest = size if b" 206 " in head.partition(b"\r\n")[0] else size // 2
        end = rest if fault == "cut" else 0  # bytes that are not passed on
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


def main(address: str, latency: str, rate: str) -> None:
    with Proxy(address, latency=float(latency), rate=float(rate)) as proxy:
        print(proxy.address, flush=True)
        sys.stdin.read()  # until the process that started it ends


if __name__ == "__main__":
    main(*sys.argv[1:])
