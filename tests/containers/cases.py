"""What is asked of each compose file, while its containers run."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import bed
from guide import basic, bearer
from report import Skip, check, expect, says, tell

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
MODEL = "gemma3:1b"  # the guide's
ASK = {"model": MODEL, "prompt": "Why is the sky blue?", "stream": False}
STREAM = {"model": MODEL, "prompt": "Why?", "options": {"num_predict": 3000}}
USER = basic("myuser", "mypassword")
KEY, OTHER_KEY = "my-secret-api-key-1", "admin-key-abcdef"
SOMEBODY = 4242  # a user who is neither root nor the gate's
PATIENCE = 60


class World:
    def __init__(self, docker, binary, directory, image):
        self.docker, self.binary, self.directory, self.image = docker, binary, directory, image


def run(world):
    manifest()
    image(world)
    overlays(world)
    with_users(world)
    with_keys(world)
    with_everything(world)
    with_tls(world)


# ---- a project directory, as the guide's reader has it ------------------------------------------


class Project:
    """A folder with compose files and `nginx/`; inside its `with` block the containers run."""

    def __init__(self, world, name, *files, **environment):
        self.world, self.files = world, files
        self.folder = world.directory / name
        self.folder.mkdir(mode=0o755)
        self.environment = {
            "COMPOSE_PROJECT_NAME": f"portcullis-test-{name}",
            "PORTCULLIS_IMAGE": world.image,
            "PORTCULLIS_PORT": "0",  # whichever is free
            **environment,
        }
        for file in files:
            if (DEPLOY / file).exists():
                shutil.copy(DEPLOY / file, self.folder)

    def with_credentials(self):
        (self.folder / "nginx").mkdir(mode=0o755)
        self.keys = self.folder / "nginx" / "api_keys.txt"
        self.keys.write_text(f"{KEY}\n{OTHER_KEY}\n")
        self.users = self.folder / "nginx" / ".htpasswd"
        self.htpasswd("-cbB", self.users, "myuser", "mypassword")
        for file in (self.keys, self.users):
            file.chmod(0o644)
        return self

    def htpasswd(self, *words):
        subprocess.run(["htpasswd", *words], check=True, capture_output=True, timeout=30)

    def compose(self, *words, good=True, timeout=120):
        files = [word for file in self.files for word in ("-f", file)]
        return self.world.docker(
            "compose", *files, *words, cwd=self.folder, good=good, timeout=timeout, **self.environment
        )

    def __enter__(self):
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def up(self, **environment):
        self.environment.update(environment)
        self.compose("up", "--detach", "--no-build", "--pull", "never", timeout=180)
        # Everything may still be starting; the port is published from the first moment on.
        published = self.compose("port", "portcullis", "8880").strip()
        self.address = f"127.0.0.1:{published.rpartition(':')[2]}"
        self.url = f"http://{self.address}"

    def wait(self, login):
        """Until gate and Ollama both answer."""

        def look():
            with contextlib.suppress(OSError):
                return bed.ask(f"{self.url}/api/version", login)[0] == 200

        bed.wait_for(look, PATIENCE, f"no answer: {self.log()[-1500:]}")

    def __exit__(self, *_):
        self.down()

    def down(self):
        self.compose("down", "--volumes", "--timeout", "10", good=False)

    def log(self):
        return self.world.docker("logs", "portcullis", good=False)[1]

    def wait_for_log(self, *words):
        def look():
            return next((line for line in self.log().splitlines() if all(w in line for w in words)), None)

        return bed.wait_for(look, PATIENCE, f"{words} is not in the log: {self.log()[-1500:]}")

    def expect(self, login, wanted, when, path="/api/version", body=None):
        status, text = bed.ask(self.url + path, login, body)
        expect(status == wanted, f"{when}: {status} instead of {wanted}: {text:.300}")
        return text

    def save_as_editors_do(self, file, text):
        """A new file that takes the old one's name, with its mode."""
        beside = file.with_name(file.name + "~")
        beside.write_text(text)
        shutil.copymode(file, beside)
        os.replace(beside, file)

    def inspect(self, container="portcullis"):
        return json.loads(self.world.docker("inspect", container))[0]

    def touch(self, path):
        """Whether the gate's user may write there."""
        return self.compose("exec", "-T", "portcullis", "touch", path, good=False)


# ---- the Kubernetes manifest --------------------------------------------------------------------


def manifest():
    @check("kubernetes.yaml: Kubernetes' own schemas, strictly")
    def _():
        program = bed.CACHE / "containers" / "python" / "bin" / "kubernetes-validate"
        if not program.exists():
            raise Skip("no kubernetes-validate; tests/containers/setup says why")
        resources = (DEPLOY / "kubernetes.yaml").read_text().count("\nkind: ")
        for version in ("1.37", "1.30"):
            done = subprocess.run(
                [program, "--strict", "-k", version, DEPLOY / "kubernetes.yaml"],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            said = done.stdout + done.stderr
            expect(done.returncode == 0, said)
            expect(said.count(" passed for resource ") == resources > 3, f"{resources} resources: {said}")


# ---- the image ----------------------------------------------------------------------------------


def image(world):
    @check("image: its user, its port, its signal, its health check")
    def _():
        seen = json.loads(world.docker("image", "inspect", world.image))[0]
        config = seen["Config"]
        expect(config["User"] == "1000:1000", f"it runs as {config['User']!r}")
        expect(list(config["ExposedPorts"]) == ["8880/tcp"], f"it exposes {config['ExposedPorts']}")
        expect(config["StopSignal"] == "SIGTERM", "it is not stopped by SIGTERM")
        expect(config["Healthcheck"]["Test"] == ["CMD", "portcullis", "health"], "no health check")
        says("image: its size", f"{seen['Size'] / 1e6:.0f} MB")

    @check("image: without a login it ends and says what to do")
    def _():
        status, text = world.docker("run", "--rm", "--read-only", world.image, good=False)
        expect(status == 1 and "--htpasswd" in text, f"{status}: {text}")


def overlays(world):
    bases = ("docker-compose.basic.yml", "docker-compose.bearer.yml", "docker-compose.yml")
    for number, base in enumerate(bases):

        @check(f"{base}: what `docker compose config` makes of it, and of each overlay over it")
        def _():
            for over, (name, look) in enumerate(OVERLAYS.items()):
                files = [base] if name is None else [base, name]
                # Empty is as good as not given.
                project = Project(world, f"config-{number}-{over}", *files, PORTCULLIS_PORT="")
                project.with_credentials()
                seen = json.loads(project.compose("config", "--format", "json"))
                only_the_gate_is_published(seen)
                look(seen["services"])


def only_the_gate_is_published(seen):
    for name, service in seen["services"].items():
        ports = [(port["target"], port["published"]) for port in service.get("ports", [])]
        expect(ports == ([(8880, "8880")] if name == "portcullis" else []), f"{name} publishes {ports}")
    gate = seen["services"]["portcullis"]
    expect(gate["user"] == "1000:1000" and gate["read_only"], f"user {gate['user']}")
    expect(gate["cap_drop"] == ["ALL"], f"cap_drop {gate['cap_drop']}")
    expect(gate["security_opt"] == ["no-new-privileges:true"], "new privileges")
    expect(gate["stop_grace_period"] == "40s", f"grace {gate['stop_grace_period']}")
    expect("healthcheck" in gate and gate["image"] and gate["build"], "health check, image or build")
    expect("portcullis_data" in seen["volumes"] and "ollama_data" in seen["volumes"], "volumes")
    inside = gate["environment"]
    expect(inside["PORTCULLIS_ADMIN"] == "0.0.0.0:8881", f"environment {inside}")
    kept = [it["target"] for it in gate["volumes"] if it["source"] == "portcullis_data"]
    expect([f"{it}/1000" for it in kept] == [inside["PORTCULLIS_DATA_DIR"]], f"{kept}, {inside}")


def nvidia(services):
    devices = services["ollama"]["deploy"]["resources"]["reservations"]["devices"]
    wanted = [("nvidia", -1, ["gpu"])]
    found = [(it["driver"], it["count"], it["capabilities"]) for it in devices]
    expect(found == wanted, f"devices {devices}")
    the_model_alone_has_them(services)


def amd(services):
    ollama = services["ollama"]
    expect(ollama["image"] == "ollama/ollama:rocm", f"image {ollama['image']}")
    sources = [it["source"] for it in ollama["devices"]]
    expect(sources == ["/dev/kfd", "/dev/dri"], f"devices {ollama['devices']}")
    the_model_alone_has_them(services)


def the_model_alone_has_them(services):
    """What the gate answers to strangers with is not to touch a driver; and the models stay."""
    others = [service for name, service in services.items() if name != "ollama"]
    expect(not any(it.get("devices") or it.get("deploy") for it in others), f"{services}")
    kept = [it["source"] for it in services["ollama"]["volumes"]]
    expect(kept == ["ollama_data"], f"volumes {kept}")


def tls(services):
    gate = services["portcullis"]
    targets = [it["target"] for it in gate["volumes"]]
    for key in ("PORTCULLIS_TLS_CERT", "PORTCULLIS_TLS_KEY"):
        expect(os.path.dirname(gate["environment"][key]) in targets, f"{key} is not mounted")


OVERLAYS = {
    None: lambda _: None,
    "docker-compose.gpu.yml": nvidia,
    "docker-compose.gpu-amd.yml": amd,
    "docker-compose.tls.yml": tls,
}


# ---- docker-compose.basic.yml -------------------------------------------------------------------


def with_users(world):
    name = "docker-compose.basic.yml"
    project = Project(world, "basic", name).with_credentials()
    with running(name, project, USER):
        check(f"{name}: the guide's request, with a right password and a wrong one")(
            lambda: guides_request(project, USER, basic("myuser", "wrong"))
        )
        check(f"{name}: a user added by htpasswd counts at once")(lambda: user_added(project))
        check(f"{name}: a user removed by an editor's rename-save is out at once")(
            lambda: user_removed(project)
        )
        files_of_all_kinds(name, project, project.users, USER, lambda user: new_user(project, user))
        check(f"{name}: `ollama` beside the gate works as before")(lambda: beside(world))
        check(f"{name}: an Ollama that is made anew and gets another address is found again")(
            lambda: moved(project)
        )
        check(f"{name}: nothing but the volume may be written")(lambda: read_only(project))
        check(f"{name}: `docker stop` lets a running stream end, and the gate ends with 0")(
            lambda: drained(project)
        )
        check(f"{name}: another PUID reads its own file and writes the volume")(
            lambda: another_user(project)
        )
        check(f"{name}: Docker calls it healthy")(lambda: healthy(project))


@contextlib.contextmanager
def running(name, project, login):
    """A compose file that does not come up fails by itself, and the next one is tried."""
    try:
        with project:
            project.wait(login)
            tell("ok", f"{name}: up, and Ollama answers through the gate")
            yield
    except Exception as why:
        tell("FAILED", f"{name}: up", why)
        return
    left = project.compose("ps", "--all", "--quiet").split()
    tell("FAILED" if left else "ok", f"{name}: down, nothing is left", left or None)


def guides_request(project, right, wrong):
    text = project.expect(right, 200, "the right one", "/api/generate", ASK)
    expect(json.loads(text)["done"] is True, f"no whole answer: {text:.300}")
    project.expect(wrong, 401, "a wrong one", "/api/generate", ASK)
    project.expect({}, 401, "none", "/api/generate", ASK)


def user_added(project):
    second = basic("second", "her-password")
    project.expect(second, 401, "before she was added")
    project.htpasswd("-bB", project.users, "second", "her-password")
    project.expect(second, 200, "after she was added")


def user_removed(project):
    second = basic("second", "her-password")
    project.expect(second, 200, "before")
    lines = project.users.read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if not line.startswith("second:"))
    project.save_as_editors_do(project.users, kept)
    project.expect(second, 401, "after her line was deleted")
    project.expect(USER, 200, "the other user")


def files_of_all_kinds(name, project, file, known, another):
    """`another` puts somebody into the file, and gives the login."""
    check(f"{name}: a file with mode 0777 serves")(lambda: open_to_all(project, file, another))
    check(f"{name}: a file of another owner with mode 0600 is told with its cure")(
        lambda: of_another_owner(project, file, known, another)
    )


def new_user(project, user):
    project.htpasswd("-bB", project.users, user, "password")
    return basic(user, "password")


def new_key(project, key):
    project.keys.write_text(f"{project.keys.read_text()}{key}\n")
    return bearer(key)


def open_to_all(project, file, another):
    file.chmod(0o777)
    project.expect(another("my-third"), 200, "with mode 0777")
    file.chmod(0o644)


def of_another_owner(project, file, known, another):
    if os.geteuid() != 0:
        raise Skip("only root can give a file to another user")
    os.chown(file, SOMEBODY, SOMEBODY)
    file.chmod(0o600)
    project.expect(known, 200, "its last good content")
    told = f"nginx/{file.name}", f"belongs to user {SOMEBODY}", "0600", "`chown 1000 "
    says("compose: a file that the gate may not read", project.wait_for_log(*told))
    fourth = another("my-fourth")
    project.expect(fourth, 401, "what it cannot read")
    os.chown(file, 1000, -1)  # the cure
    project.expect(fourth, 200, "after the cure")


def beside(world):
    shown = world.docker("exec", "ollama", "/bin/ollama", "list")
    expect(MODEL in shown, f"`ollama list` in the container shows {shown}")


def moved(project):
    """The name stays, the address does not; the gate runs on."""
    docker, began = project.world.docker, project.inspect()["State"]["StartedAt"]
    [(network, before)] = addresses(project)
    docker("rm", "--force", "ollama")
    squatter = ("--name", "portcullis-test-squatter", "--network", network, "--entrypoint", "sleep")
    try:
        docker("run", "--detach", *squatter, "ollama/ollama", "300")
        project.up()
        project.wait(USER)
        after = addresses(project)
        expect(after[0][1] != before, f"it has the same address: {after}")
        project.expect(USER, 200, "after it moved", "/api/generate", ASK)
        expect(project.inspect()["State"]["StartedAt"] == began, "the gate was started anew")
    finally:
        docker("rm", "--force", "portcullis-test-squatter", good=False)


def addresses(project):
    networks = project.inspect("ollama")["NetworkSettings"]["Networks"]
    return [(name, network["IPAddress"]) for name, network in networks.items()]


def read_only(project):
    seen = project.inspect()
    host = seen["HostConfig"]
    expect(host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], "a root that can be written")
    expect(host["RestartPolicy"]["Name"] == "unless-stopped", "no restart")
    expect(not project.inspect("ollama")["HostConfig"]["PortBindings"], "Ollama is published")
    for path in ("/x", "/etc/portcullis/x", "/etc/portcullis/nginx/x", "/usr/local/bin/x"):
        status, text = project.touch(path)
        expect(status != 0 and "Read-only file system" in text, f"{path}: {status} {text}")
    status, text = project.touch("/var/lib/portcullis/x")
    expect(status == 0, f"the volume: {text}")


def drained(project):
    """Ollama breaks off a text that repeats itself, so its last line is not always `done`."""
    request = bed.request(f"{project.url}/api/generate", USER, STREAM)
    stop = threading.Thread(target=lambda: project.world.docker("stop", "portcullis", timeout=90))
    with bed.DIRECT.open(request, timeout=90) as answer:
        first = answer.readline()
        expect(json.loads(first)["done"] is False, f"the stream begins with {first}")
        stop.start()
        project.wait_for_log("stopping", "in_flight=1")
        rest = answer.read()  # raises if it is cut
    stop.join(90)
    last = rest.splitlines()[-1]
    expect("error" not in json.loads(last), f"the stream ends with {last}")
    project.wait_for_log(" POST /api/generate ", " 200 - done ", f" out={len(first) + len(rest)} ")
    state = project.inspect()["State"]
    expect((state["Status"], state["ExitCode"]) == ("exited", 0), f"it is {state}")


def another_user(project):
    if os.geteuid() != 0:
        raise Skip("only root can give a file to another user")
    os.chown(project.users, SOMEBODY, SOMEBODY)
    project.users.chmod(0o600)
    project.up(PUID=str(SOMEBODY), PGID=str(SOMEBODY))
    project.wait(USER)
    project.expect(USER, 200, f"as user {SOMEBODY}")
    status, text = project.touch("/var/lib/portcullis/y")
    expect(status == 0, f"the volume as user {SOMEBODY}: {text}")


def healthy(project):
    def look():
        return project.inspect()["State"]["Health"]["Status"] == "healthy"

    bed.wait_for(look, PATIENCE, f"it is {project.inspect()['State']['Health']}")


# ---- docker-compose.bearer.yml ------------------------------------------------------------------


def with_keys(world):
    name = "docker-compose.bearer.yml"
    project = Project(world, "bearer", name).with_credentials()
    with running(name, project, bearer(KEY)):
        check(f"{name}: the guide's request, with a right key and a wrong one")(
            lambda: guides_request(project, bearer(KEY), bearer("my-secret-api-key-9"))
        )
        check(f"{name}: a key added and a key removed count at once")(lambda: keys(project))
        new_login = bearer("my-new-key")
        files_of_all_kinds(name, project, project.keys, new_login, lambda key: new_key(project, key))
        check(f"{name}: a file mounted by itself, then replaced, is told with its cure")(
            lambda: mounted_by_itself(project)
        )


def keys(project):
    project.keys.write_text(project.keys.read_text() + "my-new-key\n")
    project.expect(bearer("my-new-key"), 200, "a key that was added")
    project.save_as_editors_do(project.keys, "my-new-key\n")
    project.expect(bearer(KEY), 401, "a key that was removed")
    project.expect(bearer("my-new-key"), 200, "the key that was kept")


def mounted_by_itself(project):
    """As the guide had it, and as it goes stale."""
    (project.folder / "single.yml").write_text(
        "services:\n  portcullis:\n"
        "    environment:\n      PORTCULLIS_API_KEYS: single.txt\n"
        '    volumes: ["./nginx/api_keys.txt:/etc/portcullis/single.txt:ro"]\n'
    )
    project.files = (*project.files, "single.yml")
    project.up()
    project.wait(bearer("my-new-key"))
    project.save_as_editors_do(project.keys, f"{KEY}\n")
    project.expect(bearer("my-new-key"), 200, "what it still sees")
    cure = project.wait_for_log("single.txt", "link count is 0", "mount the folder")
    says("compose: a file mounted by itself and replaced", cure)
    ready = json.loads(project.expect({}, 200, "ready", "/_portcullis/ready"))
    expect(ready["alarms"] == 1, f"{ready}")


# ---- docker-compose.yml, from `portcullis init` -------------------------------------------------


def with_everything(world):
    name = "docker-compose.yml"
    project = Project(world, "everything", name)
    (project.folder / name).unlink()
    written = subprocess.run(
        [world.binary, "init", project.folder, "--with", "compose"],
        capture_output=True, text=True, timeout=30, env=bed.plain_environment(project.folder),
    )  # fmt: skip
    if written.returncode != 0:
        tell("FAILED", f"{name}: `portcullis init --with compose`", written.stderr)
        return
    says("portcullis init --with compose", written.stdout)
    with open(project.folder / "api_keys.txt", "a") as file:
        file.write(f"{KEY} # laptop\n")
    login = bearer(KEY)
    with running(f"{name}, written by init", project, login):

        @check(f"{name}: the guide's request, with a right key and a wrong one")
        def _():
            guides_request(project, login, bearer("wrong"))

        @check(f"{name}: it gives what `init` gives, and no more")
        def _():
            me = json.loads(project.expect(login, 200, "me", "/_portcullis/me"))
            expect((me["name"], me["role"]) == ("laptop", "user"), f"{me}")


# ---- docker-compose.tls.yml ---------------------------------------------------------------------


def with_tls(world):
    name = "docker-compose.tls.yml"
    help_text = subprocess.run(
        [world.binary, "serve", "--help"], capture_output=True, text=True, timeout=30
    ).stdout
    if "--tls-cert" not in help_text:
        tell("skip", f"{name}: up", "this gate has no TLS yet")
        return
    project = Project(world, "tls", "docker-compose.basic.yml", name).with_credentials()
    os.environ["SSL_CERT_FILE"] = self_signed(project.folder / "tls")
    with running(name, HttpsProject.of(project), USER):
        check(f"{name}: the guide's request over HTTPS")(
            lambda: guides_request(project, USER, basic("myuser", "wrong"))
        )
        check(f"{name}: Docker calls it healthy")(lambda: healthy(project))


class HttpsProject(Project):
    """The same, asked with the certificate that it shows."""

    @classmethod
    def of(cls, project):
        project.__class__ = cls
        return project

    def up(self, **environment):
        super().up(**environment)
        self.url = f"https://localhost:{self.address.rpartition(':')[2]}"


def self_signed(folder):
    folder.mkdir(mode=0o755)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    (folder / "key.pem").chmod(0o644)
    return str(folder / "cert.pem")
