"""`portcullis try`: every line that it prints for copying is copied and run."""

import os
import re
import socket
import subprocess

import bed
from report import Skip, check, expect


def run(world):
    with socket.socket() as nobody:  # bound and not listening: whoever asks there is refused
        nobody.bind(("127.0.0.1", 0))
        nothing = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for what, upstream in (("a real Ollama", world.ollama), ("the stand-in", nothing)):
            copy_every_line(world, f"try, in front of {what}", upstream)


def copy_every_line(world, name, upstream):
    command = [world.binary, "try", "--listen", "127.0.0.1:0", "--upstream", upstream]
    environment = bed.plain_environment(world.directory)
    with bed.Process(command, world.directory, environment, "try") as trial:
        trial.port(10)
        bed.wait_for(lambda: b"Ctrl-C" in trial.said(), 10, f"it prints no end:\n{trial.tail()}")
        lines = commands(trial.said_out.read_text())

        @check(f"{name}: it prints a line for each client")
        def _():
            for word in ("curl", "-u ", "Bearer", "ollama.generate", "openai.", "ollama run"):
                expect(any(word in line for _, line in lines), f"no line with {word}")

        for title, line in lines:

            @check(f"{name}: {title}")
            def _():
                paste(world, title, line)

        @check(f"{name}: it shows each request as it passes")
        def _():
            def shown():
                return trial.said_out.read_bytes().count(b"/api/generate")

            bed.wait_for(lambda: shown() >= 4, 5, f"{shown()} lines name /api/generate")


def commands(text):
    """The commands between blank lines, each under its `# title`."""
    blocks = re.findall(r"^ *# (.+)\n((?: *\S.*\n)+)", text, re.MULTILINE)
    return [(title, body.strip()) for title, body in blocks]


def paste(world, title, line):
    """Runs what a person would have pasted, and looks for an answer, or for the refusal announced."""
    python = bed.CACHE / "clients" / "python" / "bin"
    if "python3" in line and not python.exists():
        raise Skip("no Python packages; tests/clients/setup says why")
    folders = [str(python), os.path.dirname(bed.ollama_binary()), os.environ["PATH"]]
    done = subprocess.run(
        line,
        shell=True,
        cwd=world.directory,
        env=bed.plain_environment(world.directory, PATH=os.pathsep.join(folders)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    expect(done.returncode == 0, f"`{line}` ended with {done.returncode}: {done.stderr}")
    refused = '"error"' in done.stdout
    expect(refused == ("refused" in title), f"`{line}` shows {done.stdout:.300}")
    expect(done.stdout.strip(), f"`{line}` shows nothing")
