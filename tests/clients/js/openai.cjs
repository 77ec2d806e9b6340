// openai-node: chat, responses, embeddings, models.

const { OpenAI, AuthenticationError } = require("openai");
const { check, expect, error, expectRefusal, collect } = require("./report.cjs");
const { GATE, MODEL, KEY, WRONG_KEY, SAYS_WRONG_KEY_V1 } = process.env;

const client = new OpenAI({ baseURL: `${GATE}/v1`, apiKey: KEY });
const calm = { model: MODEL, temperature: 0, max_tokens: 16, messages: [{ role: "user", content: "hello" }] };

(async () => {
  await check("openai-node: chat, whole and streaming", async () => {
    const whole = await client.chat.completions.create(calm);
    const parts = await collect(await client.chat.completions.create({ ...calm, stream: true }));
    expect(parts.length > 2, `a stream of ${parts.length} parts`);
    const text = parts.map((part) => part.choices[0]?.delta.content ?? "").join("");
    expect(text === whole.choices[0].message.content, "streamed, it reads otherwise");
  });

  await check("openai-node: responses, whole and streaming", async () => {
    const asked = { model: MODEL, input: "hello", temperature: 0, max_output_tokens: 16 };
    const whole = await client.responses.create(asked);
    const events = await collect(await client.responses.create({ ...asked, stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    expect(deltas.map((event) => event.delta).join("") === whole.output_text, "streamed, it reads otherwise");
  });

  await check("openai-node: embeddings", async () => {
    const { data } = await client.embeddings.create({ model: MODEL, input: ["one", "two"] });
    expect(data.length === 2 && data[0].embedding.length === 64, "other vectors than two of 64");
  });

  await check("openai-node: models", async () => {
    const names = (await collect(await client.models.list())).map((model) => model.id);
    expect(names.includes(`${MODEL}:latest`), `the list is ${names}`);
  });

  await check("openai-node: wrong key", async () => {
    const wrong = new OpenAI({ baseURL: `${GATE}/v1`, apiKey: WRONG_KEY });
    const thrown = await error(() => wrong.chat.completions.create({ ...calm, stream: true }));
    expect(thrown instanceof AuthenticationError, `it is a ${thrown.constructor.name}: ${thrown.message}`);
    expect(thrown.code === "bad_credentials", `its code is ${thrown.code}`);
    expectRefusal("openai-node: wrong key", thrown.message, SAYS_WRONG_KEY_V1);
  });
})();
