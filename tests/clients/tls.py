"""sslyze, which looks for what is weak in TLS and compares it with Mozilla's "intermediate" configuration."""

import json
import subprocess

import bed
import report
from report import check, expect

PYTHON = bed.CACHE / "clients" / "python" / "bin" / "python"
OLD = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
# The pair is a development one, for whose name nobody vouches.
EXPECTED = "certificate_path_validation"


def run(world):
    if not PYTHON.exists():
        report.tell("skip", "tls", "no sslyze; tests/clients/setup says why")
        return
    made = [world.binary, "init", "tls", "--self-signed", "localhost", "127.0.0.1"]
    subprocess.run(made, cwd=world.directory, check=True, capture_output=True, timeout=60)
    (world.directory / "tls.toml").write_text(
        f"""
        upstream = "{world.ollama}"
        api_keys = "api_keys.txt"
        tls_cert = "tls/cert.pem"
        tls_key = "tls/key.pem"
        """
    )
    with bed.Gate(world.binary, world.directory, "--config", "tls.toml", name="tls") as gate:
        judge(world, gate.url.removeprefix("http://"))


def judge(world, address):
    told = world.directory / "sslyze.json"
    words = [PYTHON, "-m", "sslyze", "--mozilla_config", "intermediate", "--json_out", told, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180)
    if not told.exists():
        raise RuntimeError(f"sslyze ended with {done.returncode}: {done.stderr[-600:]}")
    found = json.loads(told.read_text())["server_scan_results"][0]["scan_result"]

    def result(name):
        expect(found[name]["status"] == "COMPLETED", f"{name}: {found[name]}")
        return found[name]["result"]

    @check("tls: 1.2 and 1.3 and nothing older, forward secret and authenticated")
    def _():
        for version in OLD:
            accepted = result(f"{version}_cipher_suites")["accepted_cipher_suites"]
            expect(not accepted, f"{version} with {accepted}")
        for version in ("tls_1_2", "tls_1_3"):
            suites = result(f"{version}_cipher_suites")["accepted_cipher_suites"]
            names = [suite["cipher_suite"]["name"] for suite in suites]
            expect(names, f"no suite of {version}")
            weak = [name for name in names if "CBC" in name or not ("GCM" in name or "POLY1305" in name)]
            weak += [name for name in names if version == "tls_1_2" and "ECDHE" not in name]
            expect(not weak, f"{version} with {weak}")

    @check("tls: no compression, no renegotiation, none of the known holes")
    def _():
        expect(not result("tls_compression")["supports_compression"], "it compresses")
        renegotiation = result("session_renegotiation")
        expect(renegotiation["client_renegotiations_success_count"] == 0, f"{renegotiation}")
        expect(not renegotiation["is_vulnerable_to_client_renegotiation_dos"], f"{renegotiation}")
        expect(not result("heartbleed")["is_vulnerable_to_heartbleed"], "heartbleed")
        expect(not result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"], "CCS injection")
        expect(result("robot")["robot_result"].startswith("NOT_VULNERABLE"), f"{result('robot')}")

    @check("tls: as Mozilla's intermediate configuration, but for who vouches for a development pair")
    def _():
        _, said, rest = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
        against = [line.strip() for line in rest.splitlines() if line.strip().startswith("* ")]
        expect(said, done.stdout[-600:])
        expect([line for line in against if EXPECTED not in line] == [], f"{against}")
