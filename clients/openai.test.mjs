// The official OpenAI client for JavaScript. The server's address is BASE_URL.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const baseURL = `${process.env.BASE_URL}/v1`;
const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const plain = { chat_template_kwargs: { enable_thinking: false } };
const hello = [{ role: "user", content: "What is the weather in Paris?" }];
const ask = (fields) =>
  client.chat.completions.create({
    model, messages: hello, seed: 7, max_completion_tokens: 24, ...plain, ...fields,
  });
const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Berlin"] }, metric: { type: "boolean" } },
  required: ["city", "metric"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];

test("an answer, and the same as a stream", async () => {
  const answer = await ask({});
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 24);
  let text = "";
  let usage = null;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, answer.choices[0].message.content);
  assert.equal(usage.completion_tokens, 24);
});

test("thinking is beside the answer", async () => {
  const { message } = (await ask({ chat_template_kwargs: {} })).choices[0];
  assert.ok(message.reasoning_content.length > 0);
  assert.equal(message.reasoning, message.reasoning_content);
});

test("a call of a tool, and the same as a stream", async () => {
  const fields = { tools, tool_choice: "required", max_completion_tokens: 300 };
  const { message } = (await ask(fields)).choices[0];
  const { city, metric } = JSON.parse(message.tool_calls[0].function.arguments);
  assert.ok(["Paris", "Berlin"].includes(city) && typeof metric === "boolean");
  const stream = client.chat.completions.stream({
    model, messages: hello, seed: 7, ...plain, ...fields,
  });
  const final = (await stream.finalChatCompletion()).choices[0].message;
  const named = (calls) => calls.map(({ function: f }) => [f.name, f.arguments]);
  assert.deepEqual(named(final.tool_calls), named(message.tool_calls));
});

test("structured output", async () => {
  const json_schema = { name: "it", strict: true, schema: parameters };
  const response_format = { type: "json_schema", json_schema };
  const { message } = (await ask({ response_format, max_completion_tokens: 300 })).choices[0];
  assert.deepEqual(Object.keys(JSON.parse(message.content)).sort(), ["city", "metric"]);
});

test("a response, and the same as a stream", async () => {
  const fields = { model, input: "Hello", max_output_tokens: 16, seed: 7, ...plain };
  const whole = await client.responses.create(fields);
  let text = "";
  for await (const event of await client.responses.create({ ...fields, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
  assert.ok(text.length > 0);
});

test("leaving a stream, and asking again", async () => {
  const stream = await ask({ stream: true, max_completion_tokens: 7000 });
  for await (const _ of stream) break;
  assert.ok((await ask({})).choices[0].message.content);
});

test("errors are errors", async () => {
  const wrong = { status: 400, param: "temperature" };
  await assert.rejects(ask({ temperature: -1 }), wrong);
  await assert.rejects(ask({ temperature: -1 }), OpenAI.BadRequestError);
  await assert.rejects(ask({ model: "gpt-none" }), OpenAI.NotFoundError);
});
