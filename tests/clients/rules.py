"""Rules before a real Ollama with five models: lists, refusals, copies, and what a person sees.

A second gate with rules of its own stands before the same Ollama; what a caller may not use is hidden by
a third, and has to look exactly as what the Ollama does not have.
"""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import bed
import cli
from report import check, expect, says

MODELS = ("small", "small:two", "large", "other")
ALLOWED = {"small:latest", "small:two"}
KEY, ADMIN = "key-of-the-class", "key-of-the-owner"
RULES = """
htpasswd = ""
api_keys = "rule_keys.txt"
path_keys = true
hide_models = {hidden}
[roles]
operator = ["class"]
admin = ["owner"]
[[rule]]
names = ["class"]
models = ["small*"]
policy = {{ num_ctx = {{ max = 512 }}, num_predict = {{ max = 4 }} }}
"""


def run(world):
    directory = Path(world.directory)
    (directory / "rule_keys.txt").write_text(f"{KEY} # class\n{ADMIN} # owner\n")
    for name in MODELS:
        bed.create_model(directory, world.ollama, name)
    try:
        with gate(world, "open", hidden="false") as shown, gate(world, "hidden", hidden="true") as hidden:
            lists(shown.url)
            refusals(shown.url)
            policy(shown.url)
            terminal(world, shown.url)
            looks_missing(world, hidden.url)
    finally:
        bed.unload(world.ollama)  # one that is deleted could not be named any more
        for name in (*MODELS, "small-copy"):
            delete(world.ollama, name)


def gate(world, name, hidden):
    settings = Path(world.directory) / f"rules-{name}.toml"
    settings.write_text(f'upstream = "{world.ollama}"\n' + RULES.format(hidden=hidden))
    return bed.Gate(world.binary, world.directory, "--config", settings.name, name=f"gate-{name}")


def bearer(key=KEY):
    return {"Authorization": f"Bearer {key}"}


def lists(url):
    @check("rules: each list shows what may be used, and the owner sees all")
    def _():
        bed.ask(f"{url}/api/generate", bearer(ADMIN), {"model": "large", "prompt": "a", "stream": False})
        bed.ask(f"{url}/api/generate", bearer(), {"model": "small", "prompt": "a", "stream": False})
        for path, where, name in (
            ("/api/tags", "models", "name"),
            ("/api/ps", "models", "name"),
            ("/v1/models", "data", "id"),
        ):
            mine = {it[name] for it in json.loads(bed.ask(url + path, bearer())[1])[where]}
            every = {it[name] for it in json.loads(bed.ask(url + path, bearer(ADMIN))[1])[where]}
            expect(mine <= ALLOWED and mine, f"{path} shows {mine}")
            expect("large:latest" in every, f"{path} shows the owner {every}")


def refusals(url):
    @check("rules: a forbidden model is refused on every surface, however it is spelt")
    def _():
        for model in ("large", "LARGE", "library/large:latest", " large", "registry.ollama.ai/library/large"):
            for path in ("/api/chat", "/api/generate", "/api/show", "/v1/chat/completions", "/v1/messages"):
                status, text = bed.ask(url + path, bearer(), {"model": model})
                expect(status == 403 and "model_forbidden" in text, f"{path} {model}: {status} {text}")
        for body in ('{"model":"small","Model":"large"}', '{"model":"small","model":"large"}'):
            status, text = raw(url, "POST", "/api/chat", body)[:2]
            expect(status == 400 and b"ambiguous_body" in text, f"{body}: {status} {text}")

    @check("rules: a copy needs both ends")
    def _():
        for source, destination, expected in (
            ("large", "small-copy", 403),
            ("small", "large-copy", 403),
            ("small", "small-copy", 200),
        ):
            body = {"source": source, "destination": destination}
            status, text = bed.ask(f"{url}/api/copy", bearer(), body)
            expect(status == expected, f"{source} to {destination}: {status} {text}")


def policy(url):
    @check("rules: a policy is obeyed by the real Ollama, and told")
    def _():
        body = {"model": "small", "prompt": "hello", "stream": False, "options": {"num_predict": 24, "num_ctx": 4096}}
        status, text, head = raw(url, "POST", "/api/generate", json.dumps(body))
        expect(status == 200, f"{status} {text}")
        expect(json.loads(text)["eval_count"] <= 5, text)
        told = head.get("x-portcullis-policy", "")
        expect("num_ctx: 4096 -> 512" in told and "num_predict: 24 -> 4" in told, told)


def terminal(world, url):
    home = Path(world.directory) / "rules-home"
    home.mkdir()
    person = cli.Terminal(home, f"{url}/k/{KEY}")

    @check("rules: ollama run of an allowed model")
    def _():
        expect(person.ollama("run", "small", "hello").strip(), "no answer")

    shown, status = person.shows("run", "large", "hello")
    says("rules: ollama run of a forbidden model", shown)

    @check("rules: ollama run of a forbidden model says what is allowed")
    def _():
        expect(status != 0 and "allowed are small*" in shown, shown)

    @check("rules: ollama list shows what may be used")
    def _():
        listed = person.ollama("list")
        expect("small:two" in listed and "large" not in listed, listed)


def looks_missing(world, url):
    """Byte for byte, but for the name in it; the id of a request and the date are its own."""
    own = {"date", "x-request-id"}
    for path, body in (
        ("/api/chat", {"model": "NAME", "messages": [{"role": "user", "content": "a"}]}),
        ("/api/generate", {"model": "NAME", "prompt": "a"}),
        ("/api/show", {"model": "NAME"}),
        ("/api/embed", {"model": "NAME", "input": "a"}),
        ("/api/embeddings", {"model": "NAME", "prompt": "a"}),
        ("/v1/chat/completions", {"model": "NAME", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": "NAME", "prompt": "a"}),
        ("/v1/embeddings", {"model": "NAME", "input": "a"}),
        ("/v1/responses", {"model": "NAME", "input": "a"}),
        ("/v1/messages", {"model": "NAME", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/models/NAME", None),
    ):

        @check(f"rules: {path} tells of a hidden model as of a missing one")
        def _():
            # The missing one is asked by the owner, so that the Ollama itself answers.
            answers = []
            for name, key in (("large", KEY), ("nosuch", ADMIN)):
                text = None if body is None else json.dumps(body).replace("NAME", name)
                method = "GET" if body is None else "POST"
                status, said, head = raw(url, method, path.replace("NAME", name), text, key)
                said = said.replace(name.encode(), b"NAME")
                head = {it: value for it, value in head.items() if it not in own and it != "content-length"}
                if path == "/v1/messages":
                    said = normal(said)
                answers.append((status, said, head))
            expect(answers[0] == answers[1], f"hidden {answers[0]}, missing {answers[1]}")


def normal(said):
    """An Anthropic error names its request."""
    error = json.loads(said)
    error.pop("request_id", None)
    return error


def raw(url, method, path, body, key=KEY):
    """Status, body and head, with header names in small letters."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        headers = {"Content-Type": "application/json", **bearer(key)}
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def delete(ollama, name):
    connection = http.client.HTTPConnection(urlsplit(ollama).netloc, timeout=30)
    try:
        connection.request("DELETE", "/api/delete", body=json.dumps({"model": name}))
        connection.getresponse().read()
    finally:
        connection.close()
