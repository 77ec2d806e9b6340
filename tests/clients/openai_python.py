"""openai-python: chat, completions, responses, embeddings, models."""

import os

import ledger
import openai
from report import check, expect, expect_refusal

GATE, MODEL, KEY = os.environ["GATE"], os.environ["MODEL"], os.environ["KEY"]
HELLO = [{"role": "user", "content": "hello"}]
CALM = {"model": MODEL, "temperature": 0, "max_tokens": 16}

client = openai.OpenAI(base_url=f"{GATE}/v1", api_key=KEY)


@check("openai-python: chat, whole and streaming")
def _():
    whole = client.chat.completions.create(messages=HELLO, **CALM)
    expect(whole.usage.completion_tokens == 16, f"usage {whole.usage}")
    parts = list(client.chat.completions.create(messages=HELLO, stream=True, **CALM))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    expect(text == whole.choices[0].message.content, "streamed, it reads otherwise")
    expect(len(parts) > 2, f"a stream of {len(parts)} parts")


@check("openai-python: usage at the end of a stream when asked for")
def _():
    stream = client.chat.completions.create(
        messages=HELLO, stream=True, stream_options={"include_usage": True}, **CALM
    )
    last = list(stream)[-1]
    expect(last.usage and last.usage.completion_tokens == 16, f"the last part is {last}")


@check("openai-python: completions, whole and streaming")
def _():
    whole = client.completions.create(prompt="hello", **CALM)
    parts = list(client.completions.create(prompt="hello", stream=True, **CALM))
    text = "".join(part.choices[0].text for part in parts if part.choices)
    expect(text == whole.choices[0].text, "streamed, it reads otherwise")


@check("openai-python: responses, whole and streaming")
def _():
    calm = {"model": MODEL, "input": "hello", "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**calm)
    events = list(client.responses.create(stream=True, **calm))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    expect(text == whole.output_text, "streamed, it reads otherwise")


@check("openai-python: embeddings")
def _():
    vectors = client.embeddings.create(model=MODEL, input=["one", "two"]).data
    expect(len(vectors) == 2 and len(vectors[0].embedding) == 64, "other vectors than two of 64")


@check("openai-python: the ledger has what it was told")
def _():
    def chat(**more):
        return client.chat.completions.create(messages=HELLO, **more, **CALM)

    def completion(**more):
        return client.completions.create(prompt="hello", **more, **CALM)

    def response(**more):
        return client.responses.create(
            model=MODEL, input="hello", temperature=0, max_output_tokens=16, **more
        )

    def counts(usage):
        return usage.prompt_tokens, usage.completion_tokens

    def counts_of_response(usage):
        return usage.input_tokens, usage.output_tokens

    def last_of_response():
        return list(response(stream=True))[-1].response.usage

    def unasked():
        """The gate asks for it, and the caller does not see it."""
        parts = list(chat(stream=True))
        expect(not any(part.usage for part in parts), f"a usage that nobody asked for: {parts}")
        return whole

    wish = {"stream": True, "stream_options": {"include_usage": True}}
    whole = counts(chat().usage)
    for what, ask in {
        "chat": lambda: counts(chat().usage),
        "chat, streaming": lambda: counts(list(chat(**wish))[-1].usage),
        "chat, streaming, not asked for": unasked,
        "completions": lambda: counts(completion().usage),
        "completions, streaming": lambda: counts(list(completion(**wish))[-1].usage),
        "responses": lambda: counts_of_response(response().usage),
        "responses, streaming": lambda: counts_of_response(last_of_response()),
        "embeddings": lambda: (
            client.embeddings.create(model=MODEL, input=["one", "two"]).usage.prompt_tokens, 0
        ),
    }.items():  # fmt: skip
        ledger.told(what, ask)


@check("openai-python: models")
def _():
    names = [model.id for model in client.models.list()]
    expect(f"{MODEL}:latest" in names, f"the list is {names}")


@check("openai-python: wrong key")
def _():
    wrong = openai.OpenAI(base_url=f"{GATE}/v1", api_key=os.environ["WRONG_KEY"])
    for stream in (True, False):
        try:
            wrong.chat.completions.create(messages=HELLO, stream=stream, **CALM)
        except openai.AuthenticationError as error:
            caught = error
        else:
            raise AssertionError("no error")
    expect(caught.code == "bad_credentials", f"its code is {caught.code!r}")
    expect_refusal("openai-python: wrong key", caught, os.environ["SAYS_WRONG_KEY_V1"])
