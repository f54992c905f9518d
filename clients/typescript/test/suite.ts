// The tests that run on every runtime. They use the client, `fetch` and nothing of Node.

import { callTests } from "./calls.js";
import { conversationTests } from "./conversations.js";
import { streamTests } from "./streams.js";
import { writtenTurnTests } from "./written-turns.js";
import type { Environment, Test } from "./support.js";

export const tests: Record<string, Test> = { ...callTests, ...streamTests, ...writtenTurnTests, ...conversationTests };

/** Runs all tests; for runtimes without a test runner. */
export async function run(env: Environment): Promise<{ name: string; error: string | null }[]> {
  const results = [];
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test(env);
      results.push({ name, error: null });
    } catch (error) {
      results.push({ name, error: `${error instanceof Error ? error.stack : error}` });
    }
  }
  return results;
}
