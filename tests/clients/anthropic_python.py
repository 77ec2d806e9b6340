"""anthropic-python: messages with `api_key` (x-api-key) and with `auth_token` (Bearer)."""

import os

import anthropic
import ledger
from report import check, expect, expect_refusal

GATE, MODEL, KEY = os.environ["GATE"], os.environ["MODEL"], os.environ["KEY"]
HELLO = {"model": MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}
CALM = {**HELLO, "extra_body": {"temperature": 0}}


def both_ways(client):
    whole = client.messages.create(**CALM)
    expect(whole.usage.output_tokens > 0, f"usage {whole.usage}")
    with client.messages.stream(**CALM) as stream:
        parts = list(stream.text_stream)
    expect(len(parts) > 2, f"a stream of {len(parts)} parts")
    expect("".join(parts) == whole.content[0].text, "streamed, it reads otherwise")


@check("anthropic-python: messages, x-api-key by api_key=")
def _():
    both_ways(anthropic.Anthropic(base_url=GATE, api_key=KEY))


@check("anthropic-python: messages, Bearer by auth_token=")
def _():
    both_ways(anthropic.Anthropic(base_url=GATE, auth_token=KEY))


@check("anthropic-python: the ledger has what it was told")
def _():
    client = anthropic.Anthropic(base_url=GATE, api_key=KEY)

    def counts(usage):
        return usage.input_tokens, usage.output_tokens

    def streamed():
        with client.messages.stream(**CALM) as stream:
            return counts(stream.get_final_message().usage)

    ledger.told("messages", lambda: counts(client.messages.create(**CALM).usage))
    ledger.told("messages, streaming", streamed)


def refused(name, client):
    @check(name)
    def _():
        try:
            client.messages.create(**HELLO)
        except anthropic.AuthenticationError as error:
            kind = error.body["error"]["type"]
            expect(kind == "authentication_error", f"its type is {kind!r}")
            expect_refusal(name, error, os.environ["SAYS_WRONG_KEY_MESSAGES"])
        else:
            raise AssertionError("no error")


WRONG = os.environ["WRONG_KEY"]
refused("anthropic-python: wrong api_key", anthropic.Anthropic(base_url=GATE, api_key=WRONG))
refused("anthropic-python: wrong auth_token", anthropic.Anthropic(base_url=GATE, auth_token=WRONG))
