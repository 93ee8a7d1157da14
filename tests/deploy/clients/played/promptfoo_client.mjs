// promptfoo: its command over a file of tests, with its providers for OpenAI's API.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GIVEN, play } from "./play.mjs";

const { max_tokens, temperature, seed } = GIVEN.drawn;
const QUIET = { PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1", PROMPTFOO_DISABLE_REMOTE_GENERATION: "1" };
const HELD = { apiBaseUrl: GIVEN.address, apiKey: "none", max_tokens, temperature, seed };

function evaluated(provider, prompt, assert = []) {
  const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
  const out = join(folder, "out.json");
  const config = { prompts: [prompt], providers: [provider], tests: [{ assert }] };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const given = ["node_modules/promptfoo/dist/src/entrypoint.js", "eval", "-c", join(folder, "config.json"), "-o", out, "--no-cache"];
  const environment = { ...process.env, ...QUIET, PROMPTFOO_CONFIG_DIR: folder };
  try {
    execFileSync(process.execPath, [...given, "--no-progress-bar"], { env: environment, stdio: "pipe" });
  } catch (error) {
    if (error.status !== 100) throw new Error(`${error.stdout}${error.stderr}`); // 100: a test failed
  }
  return JSON.parse(readFileSync(out, "utf8")).results.results[0];
}

const provider = (config = {}) => ({ id: `openai:chat:${GIVEN.model}`, config: { ...HELD, ...config } });

function answered(row) {
  if (row.response?.error) throw new Error(row.response.error);
  return row.response.output;
}

const hello = GIVEN.messages[0].content;

async function chat() {
  return answered(evaluated(provider(), hello));
}

async function scored() {
  return evaluated(provider(), hello, [{ type: "equals", value: GIVEN.text }]).success;
}

async function schema() {
  const form = { type: "json_schema", json_schema: { name: "ticket", schema: GIVEN.schema, strict: true } };
  return answered(evaluated(provider({ max_tokens: 60, response_format: form }), hello));
}

async function tools() {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const tool = { type: "function", function: { name: "weather", description: "Looks.", parameters } };
  const config = { apiBaseUrl: GIVEN.agent_address, apiKey: "none", tools: [tool] };
  const [call] = answered(evaluated({ id: `openai:chat:${GIVEN.agent}`, config }, hello));
  return [JSON.parse(call.function.arguments).city];
}

async function too_long() {
  answered(evaluated(provider(), GIVEN.long));
}

async function unknown() {
  answered(evaluated({ id: "openai:chat:nowhere", config: HELD }, hello));
}

await play({ chat, scored, schema, tools, too_long, unknown });
