"""`portcullis doctor` before a real Ollama: it sees what there is to see, and loads nothing by itself."""

import json
import socket
import subprocess
import threading

import bed
import report
from report import check, expect


def run(world):
    # Each of them leaves in the middle of an answer, so `doctor` begins with no model.
    @check("doctor: no model is loaded without being named")
    def _():
        found = ask(world)
        expect(found["streaming"]["verdict"] == "skip", found["streaming"])
        expect("--model" in found["streaming"]["advice"], found["streaming"])
        expect(not bed.loaded(world.ollama), f"{bed.loaded(world.ollama)} is loaded")

    @check("doctor: a real Ollama streams, lets go, and checks the Host")
    def _():
        found = ask(world, "--model", bed.MODEL)
        for what in ("connection", "version", "streaming", "cancelling", "health", "login", "clock"):
            expect(found[what]["verdict"] == "ok", found[what])
        expect("one by one" in found["streaming"]["found"], found["streaming"])
        expect("let go" in found["cancelling"]["found"], found["cancelling"])
        expect("403" in found["Host check"]["found"], found["Host check"])

    @check("doctor: a model that is loaded is asked without being named, and stays as long as it did")
    def _():
        def load():
            bed.ask(f"{world.ollama}/api/generate", body={"model": bed.MODEL, "keep_alive": -1})

        found = ask(world, first=load)
        _, text = bed.ask(f"{world.ollama}/api/ps")
        expires = json.loads(text)["models"][0]["expires_at"]
        expect(expires > "2100", f"it was to stay for ever, and now stays until {expires}")
        expect(bed.MODEL in found["streaming"]["found"], found["streaming"])
        expect(found["cancelling"]["verdict"] == "ok", found["cancelling"])

    @check("doctor: a model that works on for nobody is told")
    def _():
        with Keeper(world.ollama) as keeper:
            found = ask(world, "--model", bed.MODEL, "--upstream", keeper.url)
            expect(found["streaming"]["verdict"] == "ok", found["streaming"])
            expect(found["cancelling"]["verdict"] == "warn", found["cancelling"])

    report.says("doctor: to a person", doctor(world, "--model", bed.MODEL).stdout)


def doctor(world, *more, first=lambda: None):
    bed.unload(world.ollama)
    first()
    address = world.gate.url.removeprefix("http://")
    words = ["doctor", "--config", "portcullis.toml", "--listen", address, *more]
    return subprocess.run(
        [world.binary, *words],
        cwd=world.directory, env=bed.plain_environment(world.directory),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def ask(world, *more, **first):
    """The findings by what was looked at, from a run in which nothing failed."""
    done = doctor(world, "--json", *more, **first)
    expect(done.returncode == 0, f"it ended with {done.returncode}: {done.stdout} {done.stderr}")
    return {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}


class Keeper:
    """Stands in front of Ollama and does not tell it when a caller has left."""

    def __init__(self, ollama):
        self.ollama = ("127.0.0.1", int(ollama.rsplit(":", 1)[1]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        while True:
            try:
                caller, _ = self.listener.accept()
            except OSError:  # closed: nobody comes any more
                return
            ollama = socket.create_connection(self.ollama)
            for end in (self.pass_requests, self.pass_answers):
                threading.Thread(target=end, args=(caller, ollama), daemon=True).start()

    def pass_requests(self, caller, ollama):
        """To Ollama, and that they have ended is kept back."""
        while data := tried(caller.recv, 65536):
            tried(ollama.sendall, data)

    def pass_answers(self, caller, ollama):
        """To the caller, and on to their end when the caller has left."""
        while data := tried(ollama.recv, 65536):
            tried(caller.sendall, data)
        tried(caller.shutdown, socket.SHUT_WR)


def tried(what, argument):
    try:
        return what(argument)
    except OSError:
        return None
