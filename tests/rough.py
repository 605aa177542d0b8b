"""A server process for S3, and a proxy that makes it as unreliable as networks and clouds are. For tests of whatever talks HTTP."""
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex

import numpy as np
import requests

from health_predict.remote import remote_of
from health_predict.settings import load_settings

AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-central-1"}
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Moto:
    """moto's S3, a process of its own. Stopped, it forgets everything; so tests that want S3 away cut the proxy instead."""
    def __init__(self, folder: Path):
        self.port = free_port()
        self.log = open(folder / "moto.log", "w")
        self.process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(self.port)], stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{self.port}"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try: requests.get(self.url + "/moto-api/", timeout=5); return
            except requests.ConnectionError: time.sleep(.05)
        raise AssertionError((folder / "moto.log").read_text())

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class Rough:
    """A proxy in front of a server. `faults` maps a fault to its chance: slow, broken (500), slow_down (503), reset (before the server is asked),
    lost (the server did it, its answer is lost), torn (half an answer). `away` refuses everybody. Seeded; `seen` counts what was done."""
    def __init__(self, port: int, seed: int = 0, latency: float = .05, **faults: float):
        self.behind, self.faults, self.latency, self.random, self.away = port, faults, latency, np.random.default_rng(seed), False
        self.seen, self.asked, self.lock = {}, [], threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, timeout = "HTTP/1.1", 30
            def log_message(self, *_): pass
            def answer(self): proxy.handle(self)
            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128
            def handle_error(self, *_): pass
        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def drawn(self, method: str, path: str) -> str:
        """What befalls this request."""
        with self.lock:
            at, fault = self.random.random(), ""
            for name, chance in self.faults.items():
                if at < chance: fault = name; break
                at -= chance
            fault = "away" if self.away else fault
            self.seen[fault] = self.seen.get(fault, 0) + 1
            self.asked.append((method, path))
            return fault

    def handle(self, it: BaseHTTPRequestHandler) -> None:
        fault = self.drawn(it.command, it.path)
        if fault in ("away", "reset"): return cut(it)
        if it.headers.get("Expect", "").lower() == "100-continue": it.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = it.rfile.read(int(it.headers.get("Content-Length") or 0))
        if fault == "slow": time.sleep(self.latency)
        if fault in ("broken", "slow_down"): return send(it, *((500, BROKEN) if fault == "broken" else (503, SLOW_DOWN)), [("Content-Type", "application/xml")])
        asked = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        asked.request(it.command, it.path, body, {k: v for k, v in it.headers.items() if k.lower() not in ("connection", "expect")})
        said = asked.getresponse()
        content, headers = said.read(), [(k, v) for k, v in said.getheaders() if k.lower() not in HOP]
        length = said.getheader("Content-Length")
        asked.close()
        if fault == "lost": return cut(it)
        send(it, said.status, content, headers, length=length if it.command == "HEAD" else None, torn=fault == "torn")


def cut(it) -> None:
    """End a connection at once, with a reset."""
    it.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    it.close_connection = True
    it.connection.close()


def send(it, status: int, content: bytes, headers: list, length: str | None = None, torn: bool = False) -> None:
    it.send_response_only(status)
    for k, v in headers: it.send_header(k, v)
    if status not in (204, 304): it.send_header("Content-Length", length or str(len(content)))
    it.end_headers()
    if torn and len(content) > 1:
        it.wfile.write(content[:len(content) // 2])
        it.wfile.flush()
        return cut(it)
    if it.command != "HEAD": it.wfile.write(content)


class Place:
    """A bucket of one's own, and machines that share it."""
    def __init__(self, moto, folder, monkeypatch):
        self.moto, self.folder, self.monkeypatch, self.proxies = moto, folder, monkeypatch, []
        self.remote = f"s3://test-{os.getpid()}-{token_hex(5)}/ward"
        for k, v in AWS.items(): monkeypatch.setenv(k, v)
        self.through()
        client, where = remote_of(self.machine("first")).client, {"LocationConstraint": "eu-central-1"}
        client.create_bucket(Bucket=self.remote.split("/")[2], CreateBucketConfiguration=where)

    def through(self, **faults) -> Rough:
        """From now on, this weather."""
        self.proxies.append(Rough(self.moto.port, seed=7, **faults))
        self.monkeypatch.setenv("AWS_ENDPOINT_URL", self.proxies[-1].url)
        return self.proxies[-1]

    def machine(self, name: str, **storage):
        return load_settings(storage={"root": str(self.folder / name), "remote": self.remote, "timeout": 5} | storage)

    def end(self) -> None:
        for o in self.proxies: o.stop()
