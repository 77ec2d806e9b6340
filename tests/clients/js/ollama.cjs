// ollama-js: key and password by its `headers` option, key in the path of its host.

const { Ollama } = require("ollama");
const { check, expect, error, expectRefusal, collect } = require("./report.cjs");
const { GATE, MODEL, KEY, WRONG_KEY, NAME, PASSWORD, SAYS_WRONG_KEY, SAYS_WRONG_PASSWORD } = process.env;

const options = { temperature: 0, num_predict: 16 };
const messages = [{ role: "user", content: "hello" }];
const basic = (password) => ({ Authorization: `Basic ${Buffer.from(`${NAME}:${password}`).toString("base64")}` });
const bearer = (key) => ({ Authorization: `Bearer ${key}` });

async function everything(client) {
  const names = (await client.list()).models.map((model) => model.name);
  expect(names.includes(`${MODEL}:latest`), `the list is ${names}`);
  expect((await client.show({ model: MODEL })).details.family === "llama", "show tells another family");

  const whole = await client.generate({ model: MODEL, prompt: "hello", options });
  const parts = await collect(await client.generate({ model: MODEL, prompt: "hello", options, stream: true }));
  expect(parts.length > 2, `a stream of ${parts.length} parts`);
  expect(parts.map((part) => part.response).join("") === whole.response, "streamed, it reads otherwise");

  const chat = await client.chat({ model: MODEL, messages, options });
  const streamed = await collect(await client.chat({ model: MODEL, messages, options, stream: true }));
  expect(streamed.map((part) => part.message.content).join("") === chat.message.content, "chat differs");

  const { embeddings } = await client.embed({ model: MODEL, input: ["one", "two"] });
  expect(embeddings.length === 2 && embeddings[0].length === 64, "other vectors than two of 64");
  expect((await client.ps()).models.length > 0, "ps names no model");
}

async function refused(name, client, gateSays) {
  await check(name, async () => {
    const whole = await error(() => client.chat({ model: MODEL, messages }));
    const streamed = await error(async () => collect(await client.chat({ model: MODEL, messages, stream: true })));
    expect(whole.status_code === 401 && streamed.status_code === 401, `status ${whole.status_code}`);
    expectRefusal(name, `${whole.name}: ${whole.message}`, gateSays);
  });
}

(async () => {
  await check("ollama-js: everything, Bearer", () => everything(new Ollama({ host: GATE, headers: bearer(KEY) })));
  await check("ollama-js: everything, Basic", () => everything(new Ollama({ host: GATE, headers: basic(PASSWORD) })));
  await check("ollama-js: everything, key in the path", () => everything(new Ollama({ host: `${GATE}/k/${KEY}` })));
  await refused("ollama-js: wrong key", new Ollama({ host: GATE, headers: bearer(WRONG_KEY) }), SAYS_WRONG_KEY);
  await refused("ollama-js: wrong password", new Ollama({ host: GATE, headers: basic("wrong") }), SAYS_WRONG_PASSWORD);
})();
