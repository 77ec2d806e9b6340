"""ollama-python: key by header, key by environment, password by `auth=`."""

import asyncio
import os

import ledger
import ollama
from report import check, expect, expect_refusal

GATE, MODEL, KEY = os.environ["GATE"], os.environ["MODEL"], os.environ["KEY"]
LOGIN = (os.environ["NAME"], os.environ["PASSWORD"])
CALM = {"temperature": 0, "num_predict": 16}
HELLO = [{"role": "user", "content": "hello"}]

by_header = ollama.Client(GATE, headers={"Authorization": f"Bearer {KEY}"})
by_password = ollama.Client(GATE, auth=LOGIN)
os.environ["OLLAMA_API_KEY"] = KEY
by_environment = ollama.Client(GATE)
del os.environ["OLLAMA_API_KEY"]


def everything(client):
    names = [model.model for model in client.list().models]
    expect(f"{MODEL}:latest" in names, f"the list is {names}")
    expect(client.show(MODEL).details.family == "llama", "show tells another family")

    whole = client.generate(MODEL, "hello", options=CALM)
    parts = list(client.generate(MODEL, "hello", options=CALM, stream=True))
    expect(whole.response, "an empty answer")
    expect(len(parts) > 2, f"a stream of {len(parts)} parts")
    expect("".join(part.response for part in parts) == whole.response, "streamed, it reads otherwise")

    whole = client.chat(MODEL, HELLO, options=CALM)
    parts = list(client.chat(MODEL, HELLO, options=CALM, stream=True))
    expect("".join(part.message.content for part in parts) == whole.message.content, "chat differs")
    expect(parts[-1].eval_count == 16, f"{parts[-1].eval_count} tokens counted")

    vectors = client.embed(MODEL, ["one", "two"]).embeddings
    expect(len(vectors) == 2 and len(vectors[0]) == 64, "other vectors than two of 64")
    running = [model.model for model in client.ps().models]
    expect(f"{MODEL}:latest" in running, f"ps names {running}")


check("ollama-python: everything, Bearer by headers=")(lambda: everything(by_header))
check("ollama-python: everything, Bearer by OLLAMA_API_KEY")(lambda: everything(by_environment))
check("ollama-python: everything, Basic by auth=")(lambda: everything(by_password))


@check("ollama-python: AsyncClient, streaming")
def _():
    async def stream():
        client = ollama.AsyncClient(GATE, headers={"Authorization": f"Bearer {KEY}"})
        return [part async for part in await client.generate(MODEL, "hello", options=CALM, stream=True)]

    expect(len(asyncio.run(stream())) > 2, "hardly a stream")


@check("ollama-python: the ledger has what it was told")
def _():
    def counts(answer):
        return answer.prompt_eval_count, answer.eval_count

    def last(stream):
        return counts(list(stream)[-1])

    client = by_header
    for what, ask in {
        "generate": lambda: counts(client.generate(MODEL, "hello", options=CALM)),
        "generate, streaming": lambda: last(client.generate(MODEL, "hello", options=CALM, stream=True)),
        "chat": lambda: counts(client.chat(MODEL, HELLO, options=CALM)),
        "chat, streaming": lambda: last(client.chat(MODEL, HELLO, options=CALM, stream=True)),
        "embed": lambda: (client.embed(MODEL, ["one", "two"]).prompt_eval_count, 0),
    }.items():
        ledger.told(what, ask)


@check("ollama-python: a model that is not there is Ollama's own 404")
def _():
    try:
        by_header.generate("nothing-of-this-name", "hello")
    except ollama.ResponseError as error:
        expect(error.status_code == 404 and "not found" in error.error, str(error))
    else:
        raise AssertionError("no error")


def refused(name, client, gate_says):
    @check(name)
    def _():
        for ask in (client.list, lambda: list(client.generate(MODEL, "hello", stream=True))):
            try:
                ask()
            except ollama.ResponseError as error:
                expect(error.status_code == 401, f"status {error.status_code}")
            else:
                raise AssertionError("no error")
        try:
            client.chat(MODEL, HELLO)
        except ollama.ResponseError as error:
            expect_refusal(name, error, gate_says)


WRONG = {"Authorization": f"Bearer {os.environ['WRONG_KEY']}"}
refused("ollama-python: wrong key", ollama.Client(GATE, headers=WRONG), os.environ["SAYS_WRONG_KEY"])
refused(
    "ollama-python: wrong password",
    ollama.Client(GATE, auth=(LOGIN[0], "not the password")),
    os.environ["SAYS_WRONG_PASSWORD"],
)
refused("ollama-python: no credential", ollama.Client(GATE), os.environ["SAYS_NOTHING"])
