// OpenAI's client for node.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { GIVEN, play } from "./play.mjs";

const ASKED = { model: GIVEN.model, messages: GIVEN.messages, ...GIVEN.drawn };
const client = new OpenAI({ baseURL: GIVEN.address, apiKey: "none", maxRetries: 0 });
const agent = new OpenAI({ baseURL: GIVEN.agent_address, apiKey: "none", maxRetries: 0 });
const Ticket = z.object({ team: z.enum(["sales", "support"]) });

async function chat() {
  return (await client.chat.completions.create(ASKED)).choices[0].message.content;
}

async function stream() {
  const parts = [];
  for await (const chunk of await client.chat.completions.create({ ...ASKED, stream: true })) {
    if (chunk.choices[0]?.delta.content) parts.push(chunk.choices[0].delta.content);
  }
  return parts;
}

async function schema() {
  const form = zodResponseFormat(Ticket, "ticket");
  const said = await client.chat.completions.parse({ ...ASKED, max_tokens: 60, response_format: form });
  return said.choices[0].message.parsed;
}

async function tools() {
  const called = [];
  const look = ({ city }) => (called.push(city), GIVEN.result);
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const weather = { name: "weather", description: "Looks.", parameters, function: look, parse: JSON.parse };
  const tool = { type: "function", function: weather };
  const asked = { model: GIVEN.agent, messages: GIVEN.messages, tools: [tool] };
  const last = await agent.chat.completions.runTools({ ...asked, stream: true }).finalContent();
  return [...called, last];
}

async function forced_tool() {
  const tool = { type: "function", function: { name: "route", parameters: GIVEN.schema } };
  const said = await client.chat.completions.create({ ...ASKED, max_tokens: 60, tools: [tool], tool_choice: "required" });
  return JSON.parse(said.choices[0].message.tool_calls[0].function.arguments);
}

async function responses() {
  const asked = { model: GIVEN.model, input: GIVEN.messages, max_output_tokens: GIVEN.drawn.max_tokens };
  return (await client.responses.create({ ...asked, temperature: GIVEN.drawn.temperature })).output_text;
}

async function embeddings() {
  const found = await client.embeddings.create({ model: GIVEN.encoder, input: GIVEN.texts });
  return found.data.map((each) => Array.from(each.embedding));
}

async function too_long() {
  await client.chat.completions.create({ ...ASKED, messages: [{ role: "user", content: GIVEN.long }] });
}

async function unknown() {
  await client.chat.completions.create({ ...ASKED, model: "nowhere" });
}

await play({ chat, stream, schema, tools, forced_tool, responses, embeddings, too_long, unknown });
