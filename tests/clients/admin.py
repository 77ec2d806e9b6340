"""The admin API of the real gate, asked by schemathesis whatever its own description allows, and more."""

import json
import re
import subprocess

import bed
import report
from report import check, expect

CASES = 60
PROGRAM = bed.CACHE / "clients" / "python" / "bin" / "schemathesis"


def run(world):
    if not PROGRAM.exists():
        report.tell("skip", "admin", "no schemathesis; tests/clients/setup says why")
        return
    keys = world.directory / "admin_keys.txt"
    keys.write_text("an-admins-key # boss\n")
    configuration = world.directory / "admin.toml"
    configuration.write_text(
        f"""
        upstream = "{world.ollama}"
        admin = "127.0.0.1:0"
        data_dir = "admin-data"
        api_keys = "admin_keys.txt"
        failed_attempts_per_minute = 0
        [roles]
        admin = ["boss"]
        """
    )
    with bed.Gate(world.binary, world.directory, "--config", "admin.toml", name="admin") as gate:
        admin = address(gate)
        bearer = {"Authorization": "Bearer an-admins-key"}
        url = f"http://{admin}/api/v1"

        @check("admin: every answer is as the description has it, whatever is asked")
        def _():
            words = [
                PROGRAM, "run", f"{url}/openapi.json", "--url", f"http://{admin}",
                "-H", "Authorization: Bearer an-admins-key", "--checks", "all",
                "--max-examples", str(CASES), "--seed", "1", "--no-color", "--workers", "1",
            ]  # fmt: skip
            done = subprocess.run(
                words, cwd=world.directory, env=bed.plain_environment(world.directory),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            expect(done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:])

        @check("admin: after all of that it still answers, and the trail has what was changed")
        def _():
            status, text = bed.ask(f"{url}/audit?limit=999", bearer)
            expect(status == 200, f"{status} {text}")
            actions = {entry["action"] for entry in json.loads(text)["entries"]}
            expect("create" in actions, f"{actions}")
            expect("pc_" not in text, "a key stands in the trail")


def address(gate):
    def look():
        found = re.search(rb"the admin API listens address=(\S+)", gate.said())
        return found and found[1].decode()

    return bed.wait_for(look, 10, f"no admin API: {gate.tail()}")
