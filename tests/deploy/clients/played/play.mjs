// Plays the parts of a client and prints what each gave, as one line of JSON.
import { readFileSync } from "node:fs";

export const GIVEN = JSON.parse(readFileSync(0, "utf8"));

function names(error) {
  const found = [];
  for (let kind = error?.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) found.push(kind.name);
  return [error?.name, ...found];
}

export async function play(parts) {
  const found = {};
  for (const [name, part] of Object.entries(parts)) {
    try {
      found[name] = { value: await part() };
    } catch (error) {
      const { status, statusCode, code, param } = error ?? {};
      found[name] = { raised: names(error), said: String(error?.message ?? error), status: status ?? statusCode, code, param };
    }
  }
  console.log("\n" + JSON.stringify({ played: found }));
}
