"""What the client tests stand on: a real Ollama, the gate, and the files with the credentials.

Every process started here is ended by its own id when its `with` block ends, however it ends.
"""

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(
    os.environ.get("PORTCULLIS_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portcullis"
)
MODEL = "tiny"
ADDRESS = re.compile(rb"127\.0\.0\.1:(\d+)")


class Process:
    """A program that runs in the background, with what it says in files."""

    def __init__(self, command, directory, environment, name):
        self.name = name
        self.said_out = Path(directory) / f"{name}.out"
        self.said_err = Path(directory) / f"{name}.err"
        with open(self.said_out, "wb") as out, open(self.said_err, "wb") as err:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a group of its own, so that its children end with it
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Asks it to stop, and after ten seconds makes it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # what it has left behind, if anything
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(10)

    def said(self):
        return self.said_out.read_bytes() + self.said_err.read_bytes()

    def tail(self, lines=15):
        return b"\n".join(self.said().splitlines()[-lines:]).decode(errors="replace")

    def port(self, seconds=30):
        """The port that it says it listens on."""

        def look():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended by itself:\n{self.tail()}")
            listening = [line for line in self.said().splitlines() if b"isten" in line]
            return next((int(m[1]) for line in listening for m in [ADDRESS.search(line)] if m), None)

        return wait_for(look, seconds, f"{self.name} says no address:\n{self.tail()}")


def wait_for(look, seconds, complaint):
    """Looks again and again until there is something to see."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.02)
    raise TimeoutError(complaint)


# ---- the real Ollama ----------------------------------------------------------------------------


def ollama_binary():
    """The stock `ollama`: on the PATH, or kept by `setup`; None when there is none."""
    for folder in [*os.environ["PATH"].split(os.pathsep), str(CACHE / "bin")]:
        if os.access(candidate := Path(folder) / "ollama", os.X_OK):
            return str(candidate)
    return None


def plain_environment(home, **more):
    """An environment in which nothing of the person's own settings changes what a client does."""
    ours = re.compile(r"(OLLAMA|OPENAI|ANTHROPIC|PORTCULLIS)_|(https?|all|no)_proxy$", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {**kept, "HOME": str(home), **more}


def ollama_server(directory):
    """A real Ollama with nothing in it."""
    home = Path(directory) / "ollama-home"
    home.mkdir()
    environment = plain_environment(
        home, OLLAMA_HOST="127.0.0.1:0", OLLAMA_MODELS=str(home / "models"), OLLAMA_NOPRUNE="1"
    )
    return Process([ollama_binary(), "serve"], directory, environment, "ollama")


def create_model(directory, ollama, name=MODEL):
    """Gives the Ollama a model, straight, without the gate."""
    write_gguf(Path(directory) / "model.gguf", name)
    modelfile = Path(directory) / "Modelfile"
    modelfile.write_text(
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        "PARAMETER num_predict 24\n"
        "PARAMETER num_thread 1\n"  # more of them spin for each other where others work too
    )
    subprocess.run(
        [ollama_binary(), "create", name, "-f", modelfile],
        env=plain_environment(directory, OLLAMA_HOST=ollama),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
    )


def loaded(ollama):
    _, text = ask(f"{ollama}/api/ps")
    return [model["name"] for model in json.loads(text)["models"]]


def unload(ollama):
    """Frees each model, and with it a place that nobody has.

    A caller who leaves while the model says more than is read can leave Ollama v0.20 with a word that it
    waits to pass on for ever (`ch <- res` in server/routes.go), and the model's only place stays taken.
    """
    for name in loaded(ollama):
        ask(f"{ollama}/api/generate", body={"model": name, "keep_alive": 0})
    wait_for(lambda: not loaded(ollama), 60, "a model stays loaded")


def write_gguf(path, salt):
    """The tiny model in a file of its own: Ollama takes models with the same bytes for one."""
    tiny = (CACHE / "clients" / "model" / "tiny.gguf").read_bytes()
    path.write_bytes(tiny + salt.encode().ljust(64, b"."))


# ---- a backend that tells what it got -----------------------------------------------------------


class Backend:
    """A small backend that remembers each request and answers after a while, or line by line.

    With `lines` it sends a line, and the next one only when `next_line` was released for it. What the
    gate asks of its own accord, the list of models, has its answer at once: it would take a release.
    """

    def __init__(self, silent_for=0.0, lines=0):
        outer = self
        self.heads, self.bodies = [], []
        self.next_line = threading.Semaphore(0)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                outer.bodies.append(len(self.rfile.read(int(self.headers.get("content-length") or 0))))
                outer.heads.append((self.command, self.path, dict(self.headers.items())))
                self.send_response(200)
                if self.command == "GET":
                    self.whole({"models": []})
                elif lines:
                    self.stream()
                else:
                    time.sleep(silent_for)  # the slowness that is being tested
                    self.whole({"model": MODEL, "response": "slow but sure", "done": True})

            def whole(self, said):
                body = json.dumps(said).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def stream(self):
                self.send_header("Content-Type", "application/x-ndjson")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for number in range(lines):
                    line = b'{"line":%d}\n' % number
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    if not outer.next_line.acquire(timeout=10):
                        return  # nobody has seen it: the reader will complain
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


# ---- the gate -----------------------------------------------------------------------------------


class Gate(Process):
    """The binary under test, on a port of its own choosing."""

    def __init__(self, binary, directory, *flags, name="gate"):
        super().__init__(
            [binary, "serve", "--listen", "127.0.0.1:0", *flags],
            directory,
            plain_environment(directory),
            name,
        )

    def __enter__(self):
        try:
            self.url = f"http://127.0.0.1:{self.port(10)}"
        except BaseException:
            self.end()
            raise
        return self


# ---- plain HTTP ---------------------------------------------------------------------------------

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(url, headers=None, body=None):
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(url, data=data, headers=headers or {})


def ask(url, headers=None, body=None, timeout=60):
    """One request; the status and the text, whether the status is good or not."""
    try:
        with DIRECT.open(request(url, headers, body), timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def temporary_directory():
    return tempfile.TemporaryDirectory(prefix="portcullis-clients-", ignore_cleanup_errors=True)
