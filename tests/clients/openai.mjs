// A user's script against an OpenAI-compatible server, written from the documentation of the npm package `openai` alone.
//
//     cd FOLDER_WITH_node_modules; OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none node openai.mjs MODEL [tools]
//
// With `tools` the model calls functions, and nothing else is asked.
// Knows nothing of this project.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const packages = createRequire(join(process.cwd(), "here.js"));
const { OpenAI, toFile } = packages("openai");
const client = new OpenAI({ maxRetries: 0 });
const model = process.argv[2];
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Say something." }];
const pause = (ms) => new Promise((go) => setTimeout(go, ms));
const schema = {
  type: "object", properties: { label: { type: "string", enum: ["A", "B"] }, sure: { type: "boolean" } },
  required: ["label", "sure"], additionalProperties: false,
};

async function chat() {
  const asked = { model, messages, n: 2, seed: 7, max_completion_tokens: 8, logprobs: true, top_logprobs: 3 };
  const whole = await client.chat.completions.create(asked);
  assert.equal(whole.choices.length, 2);
  const text = ["", ""], scored = [[], []];
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    for (const choice of chunk.choices) {
      text[choice.index] += choice.delta.content ?? "";
      scored[choice.index].push(...(choice.logprobs?.content ?? []));
    }
  }
  for (const choice of whole.choices) {
    assert.equal(text[choice.index], choice.message.content);
    assert.deepEqual(scored[choice.index], choice.logprobs.content);
  }
  const runner = client.chat.completions.stream({ model, messages, seed: 7, max_completion_tokens: 8 });
  assert.equal((await runner.finalChatCompletion()).choices[0].message.role, "assistant");
  await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
}

async function heldToASchema() {
  const shape = { name: "label", schema, strict: true };
  const chatted = await client.chat.completions.parse({
    model, messages, max_completion_tokens: 60, response_format: { type: "json_schema", json_schema: shape },
  });
  assert.ok(["A", "B"].includes(JSON.parse(chatted.choices[0].message.content).label));
  const response = await client.responses.create({
    model, input: "Which?", max_output_tokens: 60, text: { format: { type: "json_schema", ...shape } },
  });
  assert.ok(["A", "B"].includes(JSON.parse(response.output_text).label));
}

async function tools() {
  const parameters = {
    type: "object", properties: { city: { type: "string", enum: ["Oslo", "Rome"] } }, required: ["city"],
    additionalProperties: false,
  };
  const weather = { name: "weather", description: "Tells the weather.", parameters, strict: true };
  const asked = {
    model, messages, seed: 1, max_completion_tokens: 200, tools: [{ type: "function", function: weather }],
    tool_choice: { type: "function", function: { name: "weather" } },
  };
  const first = (await client.chat.completions.create(asked)).choices[0];
  assert.equal(first.finish_reason, "tool_calls");
  assert.ok(["Oslo", "Rome"].includes(JSON.parse(first.message.tool_calls[0].function.arguments).city));
  const runner = client.chat.completions.stream(asked);
  const streamed = (await runner.finalChatCompletion()).choices[0].message;
  assert.equal(streamed.tool_calls[0].function.arguments, first.message.tool_calls[0].function.arguments);
  const result = { role: "tool", tool_call_id: first.message.tool_calls[0].id, content: "14 degrees" };
  const answer = await client.chat.completions.create({
    ...asked, messages: [...messages, first.message, result], max_completion_tokens: 8, tool_choice: "none",
  });
  assert.equal(answer.choices[0].message.tool_calls, undefined);
  const question = [{ role: "user", content: "Which?" }];
  const flat = { model, max_output_tokens: 200, tools: [{ type: "function", ...weather }], tool_choice: "required" };
  const response = await client.responses.create({ ...flat, input: question });
  const call = response.output[0];
  assert.ok(["Oslo", "Rome"].includes(JSON.parse(call.arguments).city));
  const output = { type: "function_call_output", call_id: call.call_id, output: "14 degrees" };
  const again = await client.responses.create({ ...flat, input: [...question, call, output], tool_choice: "none" });
  assert.equal(again.output[0].type, "message");
}

async function responses() {
  const asked = {
    model, instructions: "Be brief.", input: "Say something.", temperature: 0, max_output_tokens: 8,
    include: ["message.output_text.logprobs"],
  };
  const whole = await client.responses.create(asked);
  let text = "", scored = 0;
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type !== "response.output_text.delta") continue;
    text += event.delta;
    scored += event.logprobs.length;
  }
  assert.equal(text, whole.output_text);
  assert.equal(scored, whole.output[0].content[0].logprobs.length);
}

async function texts() {
  const text = await client.completions.create({ model, prompt: ["One", "Two"], max_tokens: 4, logprobs: 1, seed: 1 });
  assert.equal(text.choices.length, 2);
  const found = await client.embeddings.create({ model, input: ["one", "two"] });
  assert.ok(found.data[0].embedding.length > 1 && found.usage.total_tokens > 0);
}

async function trained() {
  const rows = Array.from({ length: 12 }, (_, i) => JSON.stringify({
    messages: [{ role: "user", content: `Item ${i}` }, { role: "assistant", content: "ABC"[i % 3] }],
  })).join("\n");
  const file = await client.files.create({ file: await toFile(Buffer.from(rows), "train.jsonl"), purpose: "fine-tune" });
  assert.equal(await (await client.files.content(file.id)).text(), rows);
  const supervised = { hyperparameters: { n_epochs: 1, batch_size: 4 } };
  let job = await client.fineTuning.jobs.create({
    model, training_file: file.id, method: { type: "supervised", supervised },
  });
  while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
    await pause(300);
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  assert.equal(job.status, "succeeded");
  const listed = [];
  for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) listed.push(event.type);
  assert.ok(listed.includes("metrics"));
  await client.chat.completions.create({ model: job.fine_tuned_model, messages, max_tokens: 2 });
  assert.ok((await client.models.delete(job.fine_tuned_model)).deleted);
  assert.ok((await client.files.delete(file.id)).deleted);
}

async function batches() {
  const lines = Array.from({ length: 4 }, (_, i) => JSON.stringify({
    custom_id: `row-${i}`, method: "POST", url: "/v1/chat/completions", body: { model, messages, max_tokens: 3 },
  })).join("\n");
  const file = await client.files.create({ file: await toFile(Buffer.from(lines), "batch.jsonl"), purpose: "batch" });
  let batch = await client.batches.create({
    input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
  });
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    await pause(200);
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.request_counts.completed, 4);
  const answers = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(answers.map((line) => line.custom_id).sort(), ["row-0", "row-1", "row-2", "row-3"]);
}

const parts = process.argv[3] === "tools" ? [tools] : [chat, heldToASchema, responses, texts, trained, batches];
for (const part of parts) await part();
console.log("openai of npm: all of it works");
