// A scripted model: it waits, then writes one word after another. It stops when `signal` is aborted.

import { setTimeout } from "node:timers/promises";
import type { Message } from "sessiond";

const THINKING_MS = 800;
const WORD_MS = 70;

const REPLIES: [RegExp, string][] = [
  [
    /open|close|hour|sunday/i,
    "We open at nine and close at six, from Monday to Friday. On Saturdays we are here from ten to four. On Sundays " +
      "the shop is closed, but you can order here at any time, and we pack your order first thing on Monday morning.",
  ],
  [
    /order|parcel|deliver/i,
    "I have looked at your order. It left our warehouse on Friday and is with the carrier now. They expect to " +
      "deliver it tomorrow between eight and noon. If you are not at home then, they leave it with a neighbour, and " +
      "put a card into your letter box. Shall I ask them to bring it in the evening instead?",
  ],
  [
    /./s,
    "I am a script that plays a model, so I cannot answer that. But while I write, you can try what this example is " +
      "about. Reload the page: no word is lost, and none comes twice. Open a second tab: both show the same. Press " +
      "Stop: I am aborted at once, and what I have written stays. Close every tab: I go on, and when you are back, " +
      "my reply is there.",
  ],
];

export async function* scriptedModel(messages: Message[], signal: AbortSignal): AsyncGenerator<string> {
  const question = JSON.stringify(messages.at(-1)?.content);
  const [, reply] = REPLIES.find(([pattern]) => pattern.test(question))!;
  try {
    await setTimeout(THINKING_MS, undefined, { signal });
    for (const word of reply.split(/(?<= )/)) {
      yield word;
      await setTimeout(WORD_MS, undefined, { signal });
    }
  } finally {
    if (signal.aborted) console.log(`${new Date().toISOString()} the model was stopped`);
  }
}
