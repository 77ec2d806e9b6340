"""The promises of the guide that people followed so far, one by one, with the gate in place of its proxy.

The gate is started as the guide's reader would start it: the two files in `nginx/`, the address of
Ollama, and nothing else.
"""

import base64
import json
import os
import subprocess
from pathlib import Path

import bed
from report import check, expect, says, tell

ROUNDS = 20  # of editing a file and asking at once
KEY_ROUNDS = 7  # fewer: the eleventh wrong key of a minute is told to go slower, which is no 401
SLOW = 310 if os.environ.get("PORTCULLIS_SLOW") else 5
ASK = {"model": "gemma3:1b", "prompt": "Why is the sky blue?", "stream": False}


class Project:
    """The reader's project directory: `nginx/.htpasswd` and `nginx/api_keys.txt`."""

    def __init__(self, directory, name):
        self.directory = Path(directory) / name
        (self.directory / "nginx").mkdir(parents=True)
        self.htpasswd_file = self.directory / "nginx" / ".htpasswd"
        self.key_file = self.directory / "nginx" / "api_keys.txt"
        self.key_file.write_text("my-secret-api-key-1\nmy-secret-api-key-2\n")

    def gate(self, binary, upstream):
        files = ["--htpasswd", "nginx/.htpasswd", "--api-keys", "nginx/api_keys.txt"]
        return bed.Gate(binary, self.directory, *files, "--upstream", upstream, name="guide-gate")

    def shell(self, command):
        """A line that the guide has its reader type."""
        done = subprocess.run(
            command, shell=True, cwd=self.directory, capture_output=True, text=True, timeout=60
        )
        expect(done.returncode == 0, f"`{command}` ended with {done.returncode}: {done.stderr}")
        return done.stdout


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def expect_status(gate, login, wanted, when, path="/api/version", body=None):
    status, text = bed.ask(gate.url + path, login, body)
    expect(status == wanted, f"{when}: {status} instead of {wanted}: {text:.200}")
    return text


def run(world):
    project = Project(world.directory, "guide")
    if not world.htpasswd:
        tell("skip", "guide", "no htpasswd on this machine")
        return
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    with project.gate(world.binary, world.ollama) as gate:

        @check("guide 1: nginx/.htpasswd and nginx/api_keys.txt serve unchanged")
        def _():
            expect_status(gate, basic("myuser", "mypassword"), 200, "the user of the guide")
            expect_status(gate, bearer("my-secret-api-key-1"), 200, "the key of the guide")

        check("guide 2: port 8880 unless told otherwise")(lambda: default_port(world))
        check("guide 3: `ollama` beside the gate works as before")(lambda: beside(world, gate))
        check("guide 4: users added by htpasswd while it runs")(lambda: users_added(project, gate))
        check("guide 4: users removed by deleting their line")(lambda: users_removed(project, gate))
        check("guide 4: a password changed by htpasswd")(lambda: password_changed(project, gate))
        check("guide 5: keys added to and removed from the text file")(lambda: keys(project, gate))
        check("guide 6: the four answers of its curl lines")(lambda: answers(gate))

    check("guide 4: a file from Windows (CRLF)")(lambda: windows_file(world, "crlf"))
    check("guide 4: a file with a byte-order mark")(lambda: windows_file(world, "bom"))
    check("guide 4: a file in UTF-16 is refused in clear words")(lambda: utf16(world))
    check("guide 7: X-Real-IP and X-Forwarded-For")(lambda: addresses(world))
    check("guide, its faults: each token is passed on at once")(lambda: token_by_token(world))
    check("guide, its faults: a request of 20 MB passes")(lambda: large_body(world))
    check(f"guide 7: an answer that takes {SLOW} s is no 504")(lambda: slow(world))
    if SLOW < 300:
        tell("skip", "guide 7: an answer that takes 310 s", "set PORTCULLIS_SLOW=1 to run it")


def default_port(world):
    help_text = subprocess.run(
        [world.binary, "serve", "--help"], capture_output=True, text=True, timeout=30
    ).stdout
    expect("8880" in help_text, "`portcullis serve --help` does not name it")


def beside(world, gate):
    bed.create_model(world.directory, world.ollama, "pulled-beside")
    shown = expect_status(gate, bearer("my-secret-api-key-1"), 200, "the list", "/api/tags")
    expect("pulled-beside" in shown, "the gate's list does not have the new model")


def users_added(project, gate):
    for number in range(ROUNDS):
        name, password = f"user{number}", f"word{number}"
        expect_status(gate, basic(name, password), 401, f"before {name} was added")
        add = "htpasswd -bB" if number % 2 else "htpasswd -b"  # bcrypt, and what it does by itself
        project.shell(f"{add} nginx/.htpasswd {name} {password}")
        expect_status(gate, basic(name, password), 200, f"after {name} was added")
    project.shell("htpasswd -nbB piped secret >> nginx/.htpasswd")
    expect_status(gate, basic("piped", "secret"), 200, "after a line was piped to the end")
    expect_status(gate, basic("myuser", "mypassword"), 200, "the first user")


def users_removed(project, gate):
    for number in range(ROUNDS):
        login = basic(f"user{number}", f"word{number}")
        expect_status(gate, login, 200, f"before user{number} was removed")
        project.shell(f"sed -i '/^user{number}:/d' nginx/.htpasswd")
        expect_status(gate, login, 401, f"after user{number} was removed")
    expect_status(gate, basic("myuser", "mypassword"), 200, "the first user")


def password_changed(project, gate):
    project.shell("htpasswd -bB nginx/.htpasswd myuser another")
    expect_status(gate, basic("myuser", "another"), 200, "the new password")
    expect_status(gate, basic("myuser", "mypassword"), 401, "the old password")
    project.shell("htpasswd -bB nginx/.htpasswd myuser mypassword")
    expect_status(gate, basic("myuser", "mypassword"), 200, "the old password, set again")


def keys(project, gate):
    for number in range(KEY_ROUNDS):
        key = f"my-new-api-key-{number}"
        project.shell(f"echo {key} >> nginx/api_keys.txt")
        expect_status(gate, bearer(key), 200, f"after {key} was added")
        project.shell(f"sed -i '/^{key}$/d' nginx/api_keys.txt")
        expect_status(gate, bearer(key), 401, f"after {key} was removed")
    with open(project.key_file, "r+") as file:  # as editors do that write into the file itself
        lines = file.read().replace("my-secret-api-key-2", "my-changed-api-key-2")
        file.seek(0)
        file.write(lines)
        file.truncate()
    expect_status(gate, bearer("my-changed-api-key-2"), 200, "after a key was changed in place")
    expect_status(gate, bearer("my-secret-api-key-1"), 200, "the first key")


def answers(gate):
    generate = "/api/generate"
    expect_status(gate, basic("myuser", "mypassword"), 200, "the password", generate, ASK)
    expect_status(gate, basic("myuser", "wrong"), 401, "a wrong password", generate, ASK)
    expect_status(gate, bearer("my-secret-api-key-1"), 200, "the key", generate, ASK)
    expect_status(gate, bearer("my-secret-api-key-9"), 401, "a wrong key", generate, ASK)


def windows_file(world, kind):
    project = Project(world.directory, f"guide-{kind}")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    lines = project.htpasswd_file.read_bytes().replace(b"\n", b"\r\n")
    project.htpasswd_file.write_bytes((b"\xef\xbb\xbf" if kind == "bom" else b"") + lines)
    project.key_file.write_bytes(b"my-secret-api-key-1\r\nmy-secret-api-key-2\r\n")
    with project.gate(world.binary, world.ollama) as gate:
        expect_status(gate, basic("myuser", "mypassword"), 200, "the user")
        expect_status(gate, bearer("my-secret-api-key-1"), 200, "the key")


def utf16(world):
    """What Windows PowerShell's `>` makes of the file."""
    project = Project(world.directory, "guide-utf16")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    text = project.htpasswd_file.read_text().replace("\n", "\r\n")
    project.htpasswd_file.write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    done = subprocess.run(
        [world.binary, "check", "--htpasswd", "nginx/.htpasswd", "--upstream", world.ollama],
        cwd=project.directory, capture_output=True, text=True, timeout=30,
        env=bed.plain_environment(project.directory),
    )  # fmt: skip
    said = done.stdout + done.stderr
    says("guide 4: `portcullis check` on a file in UTF-16", said)
    expect(done.returncode == 1, f"`portcullis check` ended with {done.returncode}")
    expect("UTF-16" in said and ".htpasswd" in said, "it does not name the file and the cause")


def addresses(world):
    project = Project(world.directory, "guide-addresses")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    with bed.Backend() as backend, project.gate(world.binary, backend.url) as gate:
        forged = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
        for login in (basic("myuser", "mypassword"), bearer("my-secret-api-key-1")):
            expect_status(gate, {**login, **forged}, 200, "asked", "/api/generate", ASK)
            method, path, head = backend.heads[-1]
            head = {name.lower(): value for name, value in head.items()}
            expect((method, path) == ("POST", "/api/generate"), f"the backend saw {method} {path}")
            for name in ("x-real-ip", "x-forwarded-for"):
                expect(head.get(name) == "127.0.0.1", f"{name} is {head.get(name)!r}")
            expect("authorization" not in head, "the backend saw the credential")


def token_by_token(world):
    """Each line is passed on before the backend has the next one; the guide's proxy gathered 4 KB."""
    project = Project(world.directory, "guide-tokens")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    with bed.Backend(lines=3) as backend, project.gate(world.binary, backend.url) as gate:
        request = bed.request(f"{gate.url}/api/generate", bearer("my-secret-api-key-1"), ASK)
        with bed.DIRECT.open(request, timeout=10) as answer:
            for number in range(3):
                expect(answer.readline() == b'{"line":%d}\n' % number, f"line {number} reads otherwise")
                backend.next_line.release()
            expect(answer.read() == b"", "there is more than three lines")


def large_body(world):
    project = Project(world.directory, "guide-large")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    with bed.Backend() as backend, project.gate(world.binary, backend.url) as gate:
        ask = {**ASK, "prompt": "x" * 20_000_000}
        expect_status(gate, basic("myuser", "mypassword"), 200, "asked", "/api/generate", ask)
        expect(backend.bodies[-1] == len(json.dumps(ask)), f"the backend got {backend.bodies[-1]} bytes")


def slow(world):
    project = Project(world.directory, "guide-slow")
    project.shell("htpasswd -cbB nginx/.htpasswd myuser mypassword")
    with bed.Backend(silent_for=SLOW) as backend, project.gate(world.binary, backend.url) as gate:
        status, text = bed.ask(
            f"{gate.url}/api/generate", bearer("my-secret-api-key-1"), ASK, timeout=SLOW + 30
        )
        expect(status == 200 and "slow but sure" in text, f"{status}: {text:.200}")
