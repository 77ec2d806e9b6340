"""The Docker engine that the container tests run in: one of their own, or the one that runs already.

An engine of their own has its data in a temporary folder, and is ended by its own id.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import bed

OURS = "portcullis.test"  # the label of images that these tests made
PLUGINS = bed.CACHE / "docker"  # where tests/containers/setup puts the compose plugin


class Docker:
    """The command line, spoken to one engine."""

    def __init__(self, environment):
        self.environment = environment

    def __call__(self, *words, good=True, timeout=120, cwd=None, given=None, **more):
        """What it prints on standard output and error, together."""
        done = subprocess.run(
            ["docker", *(str(word) for word in words)],
            env={**self.environment, **more}, cwd=cwd, input=given, text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            **({} if given is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip
        if good and done.returncode != 0:
            line = " ".join(str(word) for word in words)
            raise RuntimeError(f"`docker {line}` ended with {done.returncode}: {done.stdout[-1500:]}")
        return done.stdout if good else (done.returncode, done.stdout)

    def answers(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self("version", good=False, timeout=10)[0] == 0
        return False

    def has_image(self, name):
        return self("image", "inspect", name, good=False)[0] == 0


def with_compose(environment):
    """The person's own configuration if it has compose, otherwise ours."""
    docker = Docker(environment)
    if docker("compose", "version", good=False)[0] == 0:
        return docker
    docker = Docker({**environment, "DOCKER_CONFIG": str(PLUGINS)})
    return docker if docker("compose", "version", good=False)[0] == 0 else None


def plain_environment():
    """Nothing of the person's own settings changes what the compose files say."""
    home = os.environ.get("HOME", "/")
    environment = bed.plain_environment(home)
    for name in list(environment):
        if name in ("PUID", "PGID") or name.startswith("COMPOSE_"):
            del environment[name]
    return environment


def running():
    """The engine that runs already, or why it cannot be used."""
    if not shutil.which("docker"):
        return None, "no docker on this machine"
    docker = Docker(plain_environment())
    if not docker.answers():
        return None, "no Docker engine runs here; `./check --containers` starts one"
    docker = with_compose(docker.environment)
    if not docker:
        return None, "no docker compose; tests/containers/setup says why"
    for name in ("ollama", "portcullis"):
        if docker("container", "inspect", name, good=False)[0] == 0:
            return None, f"this engine has a container {name} already"
    shown = docker("image", "inspect", "ollama/ollama", "--format", "{{.Config.Labels}}", good=False)
    if shown[0] == 0 and OURS not in shown[1]:
        return None, "this engine has an ollama/ollama already; `./check --containers` starts another"
    return docker, None


class OwnEngine:
    """`dockerd`, started by hand; with it everything that was made in it goes."""

    def __init__(self):
        # A short path: the name of a Unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="portcullis-engine-"))
        self.process = None

    def __enter__(self):
        environment = {**plain_environment(), "DOCKER_HOST": f"unix://{self.folder}/sock"}
        docker = with_compose(environment)
        if not docker:
            raise RuntimeError("no docker compose; tests/containers/setup says why")
        said = ""
        for driver in ("overlay2", "vfs"):  # where one file system cannot lie over another
            if self.start(docker, driver):
                return docker
            said += self.process.tail(5)
            self.end()
        raise RuntimeError(f"dockerd does not start: {said}")

    def start(self, docker, driver):
        words = ["dockerd", "--storage-driver", driver, "--host", f"unix://{self.folder}/sock"]
        for name in ("data-root", "exec-root", "pidfile"):
            words += [f"--{name}", self.folder / driver / name]
        (self.folder / driver).mkdir()
        self.process = bed.Process(words, self.folder, plain_environment(), f"dockerd-{driver}")

        def look():
            return self.process.process.poll() is not None or docker.answers()

        with contextlib.suppress(TimeoutError):
            bed.wait_for(look, 60, "")
        return self.process.process.poll() is None and docker.answers()

    def end(self):
        process, self.process = self.process, None
        if not process:
            return
        process.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.process.wait(60)
        with contextlib.suppress(ProcessLookupError):  # what it has left behind, if anything
            os.killpg(process.process.pid, signal.SIGKILL)
        process.process.wait(10)

    def __exit__(self, *_):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)
