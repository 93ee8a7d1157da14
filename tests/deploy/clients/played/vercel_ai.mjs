// Vercel's ai with its provider for servers that are like OpenAI's.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";
import { GIVEN, play } from "./play.mjs";

const { embedMany, generateText, Output, streamText, tool } = ai;
const stepCountIs = ai.stepCountIs ?? ai.isStepCount;
const { max_tokens, temperature, seed } = GIVEN.drawn;
const open = (baseURL) => createOpenAICompatible({ name: "heredity", baseURL, supportsStructuredOutputs: true });
const here = open(GIVEN.address);
const ASKED = { model: here(GIVEN.model), messages: GIVEN.messages, maxRetries: 0, maxOutputTokens: max_tokens };
const DRAWN = { ...ASKED, temperature, seed };
const Ticket = z.object({ team: z.enum(["sales", "support"]) });

async function chat() {
  return (await generateText(DRAWN)).text;
}

async function stream() {
  const parts = [];
  for await (const part of streamText(DRAWN).textStream) parts.push(part);
  return parts;
}

async function schema() {
  const output = Output.object({ schema: Ticket });
  return (await generateText({ ...ASKED, maxOutputTokens: 60, output })).output;
}

async function tools() {
  const called = [];
  const execute = async ({ city }) => (called.push(city), GIVEN.result);
  const weather = tool({ description: "Looks.", inputSchema: z.object({ city: z.string() }), execute });
  const asked = { model: open(GIVEN.agent_address)(GIVEN.agent), messages: GIVEN.messages, maxRetries: 0 };
  const last = streamText({ ...asked, tools: { weather }, stopWhen: stepCountIs(3) });
  const text = await last.text;
  return [...called, text];
}

async function forced_tool() {
  const route = tool({ description: "Routes.", inputSchema: Ticket });
  const asked = { ...ASKED, maxOutputTokens: 60, tools: { route }, toolChoice: "required" };
  return (await generateText(asked)).toolCalls[0].input;
}

async function embeddings() {
  const model = here.textEmbeddingModel?.(GIVEN.encoder) ?? here.embeddingModel(GIVEN.encoder);
  return (await embedMany({ model, values: GIVEN.texts, maxRetries: 0 })).embeddings;
}

async function too_long() {
  await generateText({ ...ASKED, messages: [{ role: "user", content: GIVEN.long }] });
}

async function unknown() {
  await generateText({ ...ASKED, model: here("nowhere") });
}

await play({ chat, stream, schema, tools, forced_tool, embeddings, too_long, unknown });
