"""The stock `ollama` command line: key in the path, signature, and without a credential."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bed
from report import check, expect, expect_refusal, says


class Terminal:
    """A person with a home directory at a terminal, whose `ollama` talks to one address."""

    def __init__(self, home, host, **more):
        self.environment = bed.plain_environment(home, OLLAMA_HOST=host, **more)
        self.home = Path(home)

    def shows(self, *words):
        """What `ollama WORDS` shows, and how it ended."""
        done = subprocess.run(
            [bed.ollama_binary(), *map(str, words)],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        return (done.stdout + done.stderr).decode(), done.returncode

    def ollama(self, *words):
        shown, status = self.shows(*words)
        expect(status == 0, f"`ollama {' '.join(map(str, words))}` ended with {status}: {shown}")
        return shown


def home_with_key(directory, name):
    """A home directory with a key that `ssh-keygen` made, and the key's public line."""
    home = Path(directory) / name
    (home / ".ollama").mkdir(parents=True)
    key = home / ".ollama" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return home, key.with_suffix(".pub").read_text()


def every_command(how, terminal):
    """list, ps, show, run, create, cp, rm, stop: each does what it does without a gate."""
    ollama, home, mine = terminal.ollama, terminal.home, how.replace(" ", "-")

    @check(f"stock CLI, {how}: list")
    def _():
        expect(f"{bed.MODEL}:latest" in ollama("list"), "the model is not in the list")

    @check(f"stock CLI, {how}: show")
    def _():
        expect("llama" in ollama("show", bed.MODEL), "no architecture shown")

    @check(f"stock CLI, {how}: run")
    def _():
        expect(len(ollama("run", bed.MODEL, "hello").split()) > 5, "hardly an answer")

    @check(f"stock CLI, {how}: ps")
    def _():
        expect(f"{bed.MODEL}:latest" in ollama("ps"), "the running model is not shown")

    @check(f"stock CLI, {how}: create, from a file that is sent as a blob")
    def _():
        bed.write_gguf(home / "own.gguf", how)  # the server has not seen it, so it is sent
        (home / "Modelfile").write_text("FROM ./own.gguf\n")
        expect("success" in ollama("create", mine, "-f", home / "Modelfile"), "no success")
        expect(mine in ollama("list"), "the new model is not in the list")

    @check(f"stock CLI, {how}: cp")
    def _():
        expect("copied" in ollama("cp", mine, f"{mine}-2"), "not copied")

    @check(f"stock CLI, {how}: stop")
    def _():
        ollama("stop", bed.MODEL)

    @check(f"stock CLI, {how}: rm, two at once")
    def _():
        ollama("rm", mine, f"{mine}-2")
        expect(mine not in ollama("list"), "still in the list")

    @check(f"stock CLI, {how}: six lists within a second")
    def _():
        with ThreadPoolExecutor(6) as together:
            for shown in together.map(lambda _: ollama("list"), range(6)):
                expect(bed.MODEL in shown, shown)


def refused(name, terminal, gate_says):
    """What a person sees whose credential does not do; most commands show the gate's own words."""
    for words in (["list"], ["show", bed.MODEL], ["cp", bed.MODEL, "x"], ["pull", bed.MODEL]):
        shown, status = terminal.shows(*words)
        label = f"{name}: {' '.join(words)}"

        @check(label)
        def _():
            expect(status != 0, "it ended as if all were well")
            expect_refusal(label, shown, "401" if words[0] == "pull" else gate_says)

    label = f"{name}: create, whose file is refused while it is being sent"

    @check(label)
    def _():
        bed.write_gguf(terminal.home / "refused.gguf", name)
        (terminal.home / "Modelfile").write_text("FROM ./refused.gguf\n")
        create = ["create", "refused", "-f", terminal.home / "Modelfile"]
        for _ in range(10):  # a gate that closes too early breaks off some of them, not all
            shown, status = terminal.shows(*create)
            expect(status != 0, "it ended as if all were well")
            expect(gate_says in shown, f"the gate said {gate_says!r}, the client shows {shown:.300}")
        says(label, shown)

    @check(f"{name}: run names the help page, and the page is there")
    def _():
        shown, _ = terminal.shows("run", bed.MODEL, "hello")
        says(f"{name}: run", shown)
        address = re.search(r"http://127\.0\.0\.1:\d+/_portcullis/help", shown)
        expect(address, "no address in it")
        status, page = bed.ask(address[0])
        expect(status == 200 and "ollama.com cannot help" in page, f"{status} {page:.200}")


def run(world):
    directory, gate = world.directory, world.gate.url
    path_home = Path(directory) / "path-home"
    path_home.mkdir()
    every_command("path key", Terminal(path_home, f"{gate}/k/{world.key}"))

    signing_home, public = home_with_key(directory, "signing-home")
    kind, key = public.split()[:2]
    world.authorized_keys.write_text(f"{kind} {key} sigrid\n")
    every_command("signature", Terminal(signing_home, gate, OLLAMA_AUTH="1"))

    @check("stock CLI, signature: the key that `ollama serve` made for itself")
    def _():
        own = world.ollama_home / ".ollama" / "id_ed25519.pub"
        with open(world.authorized_keys, "a") as file:
            file.write(own.read_text().strip() + "\n")
        Terminal(world.ollama_home, gate, OLLAMA_AUTH="1").ollama("list")

    stranger, _ = home_with_key(directory, "stranger-home")
    wrong_path = Terminal(path_home, f"{gate}/k/{world.wrong_key}")
    refused("stock CLI, no credential", Terminal(path_home, gate), world.says_nothing)
    refused("stock CLI, wrong path key", wrong_path, world.says_wrong_key)
    refused("stock CLI, unlisted signing key", Terminal(stranger, gate, OLLAMA_AUTH="1"), "key")
