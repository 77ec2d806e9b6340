"""A gate with `heartbeat` set, in front of a relay that brings each answer of the real Ollama late."""

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

import bed
from report import check, expect

DATA = "beats-data"
LATE = 0.35  # seconds from the end of a request to the first byte of its answer
BEATS = {
    "/api/chat": (b" ", b"{"),
    "/v1/chat/completions": (b":\n\n", b"data: {"),
    "/v1/messages": (b":\n\n", b"event: "),
}  # what means nothing there, and what an answer begins with


class Relay:
    """Passes bytes both ways; the first ones of an answer wait."""

    def __init__(self, url):
        self.to = urlsplit(url)

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.listener.accept()
                server = socket.create_connection((self.to.hostname, self.to.port))
                asked_at = [0.0]
                for work in (self.ask, self.answer):
                    threading.Thread(target=work, args=(caller, server, asked_at), daemon=True).start()

    def ask(self, caller, server, asked_at):
        with contextlib.suppress(OSError):
            while piece := caller.recv(65536):
                asked_at[0] = time.monotonic()
                server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def answer(self, caller, server, asked_at):
        with caller, server, contextlib.suppress(OSError):
            while piece := server.recv(65536):
                time.sleep(max(0.0, asked_at[0] + LATE - time.monotonic()))
                caller.sendall(piece)


@contextlib.contextmanager
def gate(world):
    with Relay(world.ollama) as relay:
        text = (world.directory / "portcullis.toml").read_text()
        text = text.replace(world.ollama, relay.url).replace(f'"{world.data}"', f'"{DATA}"')
        (world.directory / "beats.toml").write_text(f'heartbeat = "50ms"\n{text}')
        with bed.Gate(world.binary, world.directory, "--config", "beats.toml", name="beats") as gate:
            yield gate


def come_first(world, gate):
    """Without this the SDKs might read over nothing."""
    bearer = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": bed.MODEL, "stream": True, "max_tokens": 4, "messages": messages}
    for path, (beat, first) in BEATS.items():

        @check(f"beats: {path} begins with some, then comes the answer")
        def _(path=path, beat=beat, first=first):
            status, text = bed.ask(gate.url + path, bearer, body)
            before, found, _ = text.encode().partition(first)
            expect(status == 200 and found, f"{status} {text:.300}")
            expect(before.count(beat) > 2, f"before the answer came {before!r:.200}")
            expect(not before.replace(beat, b""), f"more than beats before the answer: {before!r:.200}")
