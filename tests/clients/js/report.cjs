// How a check tells what came of it; the form is described in ../report.py.

const oneLine = (text) => String(text).split("\n").map((line) => line.trim()).filter(Boolean).join(" | ");
const tell = (word, name, text) => console.log(`${word} ${name}${text === undefined ? "" : ": " + oneLine(text)}`);

async function check(name, run) {
  try {
    await run();
    tell("ok", name);
  } catch (error) {
    tell("FAILED", name, error.expectation ? error.message : `${error.name}: ${error.message}`);
  }
}

function expect(condition, why) {
  if (!condition) throw Object.assign(new Error(why), { expectation: true });
}

// Runs what must be refused and hands the error over.
async function error(run) {
  let value;
  try {
    value = await run();
  } catch (thrown) {
    return thrown;
  }
  expect(false, `no error, but ${JSON.stringify(value)}`);
}

function expectRefusal(name, shown, gateSays) {
  tell("says", name, shown);
  expect(shown.includes(gateSays), `the gate said ${JSON.stringify(gateSays)}, the client shows ${shown}`);
}

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

module.exports = { check, expect, error, expectRefusal, collect };
