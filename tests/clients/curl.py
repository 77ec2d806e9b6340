"""curl, word for word as the guide has it; only the port is another."""

import json
import shlex
import subprocess

import bed
from report import Skip, check, expect, says


def curl(directory, words):
    """The command as written there, with the status after the body."""
    words = shlex.split(words)
    if subprocess.run(["which", words[0]], capture_output=True).returncode != 0:
        raise Skip("no curl")
    done = subprocess.run(
        [*words, "--noproxy", "*", "-s", "-w", "\n%{http_code}"],
        cwd=directory, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    expect(done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr}")
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def leave_a_stream(world):
    """Ends curl after the first token; the gate and Ollama both tell soon that the request is over."""
    ask = {"model": "gemma3:1b", "prompt": "go on", "options": {"num_predict": 100_000}}
    words = ["curl", "--noproxy", "*", "-sN", "-u", f"{world.name}:{world.password}"]
    words += [f"{world.gate.url}/api/generate", "-d", json.dumps(ask)]
    served = world.server.said().count(b'"/api/generate"')  # Ollama tells when a request is over
    with subprocess.Popen(words, stdout=subprocess.PIPE) as leaving:
        first = leaving.stdout.readline()
        leaving.kill()
    expect(b"response" in first, f"the first line is {first}")
    bed.wait_for(
        lambda: b" client_gone " in world.gate.said(), 5, "the gate does not tell `client_gone`"
    )
    bed.wait_for(
        lambda: world.server.said().count(b'"/api/generate"') > served, 5, "Ollama is still at it"
    )


def run(world):
    url = world.gate.url
    ask = '{"model":"gemma3:1b","prompt":"Why is the sky blue?","stream":%s}'
    logins = {
        "user and password": f"-u {world.name}:{world.password}",
        "Bearer": f'-H "Authorization: Bearer {world.key}"',
        "x-api-key": f'-H "x-api-key: {world.key}"',
        "api-key": f'-H "api-key: {world.key}"',
    }
    for name, login in logins.items():

        @check(f"curl: {name}")
        def _():
            words = f"curl {login} {url}/api/generate -d '{ask % 'false'}'"
            status, body = curl(world.directory, words)
            expect(status == 200 and json.loads(body)["done"], f"{status} {body}")

        @check(f"curl: {name}, streaming")
        def _():
            words = f"curl -N {login} {url}/api/generate -d '{ask % 'true'}'"
            status, body = curl(world.directory, words)
            lines = [json.loads(line) for line in body.splitlines()]
            expect(status == 200 and len(lines) > 2 and lines[-1]["done"], f"{status} {body}")

    @check("curl: who leaves in the middle of a stream stops the model")
    def _():
        leave_a_stream(world)

    bed.unload(world.ollama)

    wrong = {
        "wrong password": (f"-u {world.name}:nonsense", world.says_wrong_password),
        "wrong key": (f'-H "Authorization: Bearer {world.wrong_key}"', world.says_wrong_key),
        "no credential": ("", world.says_nothing),
    }
    for name, (login, gate_says) in wrong.items():

        @check(f"curl: {name}")
        def _():
            status, body = curl(world.directory, f"curl {login} {url}/api/generate -d '{ask % 'false'}'")
            says(f"curl: {name}", body)
            expect(status == 401 and json.loads(body)["error"] == gate_says, f"{status} {body}")
