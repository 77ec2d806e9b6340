// @anthropic-ai/sdk: messages with `apiKey` (x-api-key) and with `authToken` (Bearer).

const { Anthropic, AuthenticationError } = require("@anthropic-ai/sdk");
const { check, expect, error, expectRefusal, collect } = require("./report.cjs");
const { GATE, MODEL, KEY, WRONG_KEY, SAYS_WRONG_KEY_MESSAGES } = process.env;

const asked = { model: MODEL, max_tokens: 16, messages: [{ role: "user", content: "hello" }] };
const calm = { ...asked, temperature: 0 };
const connect = (credential) => new Anthropic({ baseURL: GATE, apiKey: null, authToken: null, ...credential });

async function bothWays(client) {
  const whole = await client.messages.create(calm);
  const events = await collect(await client.messages.create({ ...calm, stream: true }));
  const deltas = events.filter((event) => event.type === "content_block_delta");
  expect(deltas.length > 2, `a stream of ${deltas.length} parts`);
  expect(deltas.map((event) => event.delta.text).join("") === whole.content[0].text, "streamed, it reads otherwise");
}

async function refused(name, client) {
  await check(name, async () => {
    const thrown = await error(() => client.messages.create(asked));
    expect(thrown instanceof AuthenticationError, `it is a ${thrown.constructor.name}: ${thrown.message}`);
    expect(thrown.error.error.type === "authentication_error", `its type is ${thrown.error.error.type}`);
    expectRefusal(name, thrown.message, SAYS_WRONG_KEY_MESSAGES);
  });
}

(async () => {
  await check("anthropic-node: messages, x-api-key by apiKey", () => bothWays(connect({ apiKey: KEY })));
  await check("anthropic-node: messages, Bearer by authToken", () => bothWays(connect({ authToken: KEY })));
  await refused("anthropic-node: wrong apiKey", connect({ apiKey: WRONG_KEY }));
  await refused("anthropic-node: wrong authToken", connect({ authToken: WRONG_KEY }));
})();
