"""A real Prometheus that scrapes the real gate, with the alarms and the board that are in deploy/."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse

import bed
import report
from report import check, expect

DEPLOY = bed.HERE.parent.parent / "deploy"
ALARMS = DEPLOY / "prometheus-alerts.yml"
ADDRESS = re.compile(rb"the admin API listens address=(\S+)")


def run(world):
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        report.tell("skip", "metrics", "no prometheus; tests/clients/setup says why")
        return

    @check("metrics: promtool finds nothing wrong with the alarms")
    def _():
        promtool("check", "rules", "--lint=all", "--lint-fatal", ALARMS)

    (world.directory / "metrics_keys.txt").write_text("a-scrapers-key # prometheus\nanother # anna\n")
    (world.directory / "metrics.toml").write_text(
        f"""
        upstream = "{world.ollama}"
        admin = "127.0.0.1:0"
        data_dir = "metrics-data"
        api_keys = "metrics_keys.txt"
        [roles]
        viewer = ["prometheus"]
        """
    )
    with bed.Gate(world.binary, world.directory, "--config", "metrics.toml", name="metrics") as gate:
        found = bed.wait_for(lambda: ADDRESS.search(gate.said()), 10, f"no admin API: {gate.tail()}")
        scrape(world, gate, found[1].decode())


def scrape(world, gate, admin):
    login = {"Authorization": "Bearer another"}
    chat = {"model": bed.MODEL, "messages": [{"role": "user", "content": "a word"}], "stream": False}
    for _ in range(3):
        status, text = bed.ask(f"{gate.url}/api/chat", login, chat)
        if status != 200:
            raise RuntimeError(f"{status} {text:.300}")
    bed.ask(f"{gate.url}/api/tags", {"Authorization": "Bearer wrong"})

    @check("metrics: promtool has nothing to say against the names")
    def _():
        status, text = bed.ask(f"http://{admin}/metrics", {"Authorization": "Bearer a-scrapers-key"})
        expect(status == 200, f"{status} {text:.300}")
        promtool("check", "metrics", text=as_prometheus_text(text))

    with prometheus(world.directory, admin) as url:

        @check("metrics: Prometheus scrapes them")
        def _():
            up = one(url, 'up{job="portcullis"}')
            expect(up == 1, f"up is {up}")
            targets = asked(url, "targets")["activeTargets"]
            expect(all(not it["lastError"] for it in targets), f"{targets}")

        @check("metrics: Prometheus has what the clients did")
        def _():
            chats = 'portcullis_requests_total{operation="chat",outcome="done",status="2xx"}'
            expect(one(url, chats) == 3, f"{one(url, chats)} chats")
            refused = one(url, 'portcullis_refusals_total{code="bad_credentials"}')
            expect(refused == 1, f"{refused} bad credentials")
            whole = one(url, 'portcullis_request_duration_seconds_bucket{class="inference",le="+Inf"}')
            expect(whole == 3, f"{whole} in the histogram")
            expect(one(url, "portcullis_backend_up") == 1, "the backend is told to be down")
            expect(one(url, 'portcullis_file_entries{file="api_keys"}') == 2, "not two keys")
            expect(one(url, "process_resident_memory_bytes{job='portcullis'}") > 1e6, "no memory")
            began = one(url, "time() - process_start_time_seconds{job='portcullis'}")
            expect(0 <= began < 600, f"began {began} s ago")

        @check("metrics: Prometheus can work out every alarm, and none goes off")
        def _():
            def rules():
                rules = [rule for group in asked(url, "rules")["groups"] for rule in group["rules"]]
                return rules if rules and all(rule["health"] != "unknown" for rule in rules) else None

            seen = bed.wait_for(rules, 30, "the alarms were never worked out")
            for rule in seen:
                expect(rule["health"] == "ok", f"{rule}")
                expect(rule["state"] == "inactive", f"{rule['name']} goes off: {rule['alerts']}")

        @check("metrics: every query of the Grafana board is answered")
        def _():
            board = json.loads((DEPLOY / "grafana.json").read_text())
            queries = [it["expr"] for panel in board["panels"] for it in panel.get("targets", [])]
            expect(len(queries) > 20, f"only {len(queries)}")
            for query in queries:
                query = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
                asked(url, "query", query=query)  # an error is raised


@contextlib.contextmanager
def prometheus(directory, admin):
    """A Prometheus that knows the gate; its address, once it has scraped it twice."""
    (directory / "scraper.key").write_text("a-scrapers-key\n")
    (directory / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}
rule_files: [{json.dumps(str(ALARMS))}]
scrape_configs:
  - job_name: portcullis
    authorization: {{credentials_file: scraper.key}}
    static_configs: [{{targets: ["{admin}"]}}]
"""
    )
    promtool("check", "config", directory / "prometheus.yml")
    # It does not say which port it got, so that it cannot choose one itself.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        shutil.which("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    server = bed.Process(words, directory, bed.plain_environment(directory), "prometheus")
    url = f"http://127.0.0.1:{port}"

    def scraped():
        if server.process.poll() is not None:
            raise RuntimeError(f"prometheus ended by itself:\n{server.tail()}")
        with contextlib.suppress(OSError, ValueError):
            # Twice, because a rate takes two samples.
            return one(url, 'count_over_time(up{job="portcullis"}[1m])') >= 2
        return False

    with server:
        bed.wait_for(scraped, 60, f"prometheus never scraped the gate:\n{server.tail()}")
        yield url


def asked(url, what, **parameters):
    status, text = bed.ask(f"{url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}")
    if status != 200:
        raise ValueError(f"{what} {parameters}: {status} {text:.300}")
    return json.loads(text)["data"]


def one(url, query):
    """The one value of a query; 0 where there is none."""
    found = asked(url, "query", query=query)["result"]
    expect(len(found) <= 1, f"{query}: {found}")
    return float(found[0]["value"][1]) if found else 0


def promtool(*words, text=None):
    done = subprocess.run(
        ["promtool", *map(str, words)], input=text, capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL if text is None else None,
    )  # fmt: skip
    expect(done.returncode == 0, f"{done.stdout} {done.stderr}")


def as_prometheus_text(text):
    """The older format, which is the only one that `promtool check metrics` reads: there a counter is
    described by its whole name, an info is a gauge, and there are no units."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    suffix = {"counter": "_total", "info": "_info"}
    lines = []
    for line in text.splitlines():
        words = line.split(" ", 3)
        if words[0] == "#" and words[1] in ("HELP", "TYPE"):
            kind = kinds[words[2]]
            words[2] += suffix.get(kind, "")
            if words[1] == "TYPE" and kind == "info":
                words[3] = "gauge"
            lines.append(" ".join(words))
        elif words[0] != "#":
            lines.append(line)
    return "\n".join(lines) + "\n"
