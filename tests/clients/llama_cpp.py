"""llama.cpp's server as a backend of the kind `openai`, beside the real Ollama."""

import json
import re
import urllib.error
import urllib.request

import bed
import report
from report import check, expect

PYTHON = bed.CACHE / "clients" / "llama_cpp" / "bin" / "python"
MODEL = "tiny-cpp"
ADDRESS = re.compile(rb"running on http://127\.0\.0\.1:(\d+)")


def run(world):
    if not PYTHON.exists():
        report.tell("skip", "llama_cpp", "not installed; tests/clients/setup llama_cpp gets it")
        return
    words = [
        PYTHON, "-m", "llama_cpp.server", "--model", bed.CACHE / "clients" / "model" / "tiny.gguf",
        "--model_alias", MODEL, "--host", "127.0.0.1", "--port", "0", "--n_ctx", "512", "--n_threads", "1",
    ]  # fmt: skip
    environment = bed.plain_environment(world.directory)
    with bed.Process(words, world.directory, environment, "llama-cpp") as server:
        port = bed.wait_for(lambda: address(server), 60, f"llama.cpp says no address:\n{server.tail()}")
        through_the_gate(world, port)


def address(server):
    if server.process.poll() is not None:
        raise RuntimeError(f"llama.cpp's server ended by itself:\n{server.tail()}")
    found = ADDRESS.search(server.said())
    return found and int(found[1])


def through_the_gate(world, port):
    (world.directory / "llama_cpp.toml").write_text(
        f"""
        api_keys = "api_keys.txt"
        [[backend]]
        name = "ollama"
        url = "{world.ollama}"
        [[backend]]
        name = "cpp"
        url = "http://127.0.0.1:{port}"
        kind = "openai"
        ask_usage = true
        [[alias]]
        name = "gpt-4o"
        model = "{MODEL}"
        """
    )
    with bed.Gate(world.binary, world.directory, "--config", "llama_cpp.toml", name="cpp-gate") as gate:

        @check("llama.cpp: a chat and a stream, by its name and by an alias")
        def _():
            for name in (MODEL, "gpt-4o"):
                answer = json.loads(chat(gate, world, name, stream=False))
                expect(answer["choices"][0]["message"]["content"], f"{answer}")
                expect(answer["model"] == MODEL, f"{answer}")
                events = chat(gate, world, name, stream=True)
                expect(events.rstrip().endswith("data: [DONE]"), events[-300:])

        @check("llama.cpp: beside it Ollama's models go on")
        def _():
            answer = json.loads(chat(gate, world, bed.MODEL, stream=False))
            expect(answer["choices"][0]["message"]["content"], f"{answer}")

        @check("llama.cpp: under /api its model is unknown, and so is a model that nobody has")
        def _():
            bearer = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
            for name in (MODEL, "nobody-has-it"):
                body = json.dumps({"model": name, "messages": []}).encode()
                request = urllib.request.Request(f"{gate.url}/api/chat", body, bearer)
                try:
                    urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as told:
                    text = told.read().decode()
                    expect(told.code == 404 and "not found" in text, f"{told.code} {text}")
                else:
                    expect(False, f"{name} was answered")

        @check("llama.cpp: the log names the backend and the model")
        def _():
            lines = gate.said().decode(errors="replace")
            expect(f" {MODEL} " in lines and " cpp " in lines, lines[-600:])


def chat(gate, world, model, stream):
    body = {"model": model, "stream": stream, "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{gate.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()
