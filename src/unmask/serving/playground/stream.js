// Asking the server: JSON, and server-sent events over fetch.

export class Refused extends Error {
  constructor(message, status, param) {
    super(message);
    Object.assign(this, { status, param });
  }
}

export class Unreachable extends Error {}

const UNREACHABLE = "The server cannot be reached. Is it still running, and is the network there?";
const BROKEN = "The connection broke before the text was done. What came until then is kept.";

function refusal(body, status) {
  const error = body?.error;
  return new Refused(error?.message ?? `the server answered with status ${status}`, status, error?.param ?? null);
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable(UNREACHABLE);
  }
  if (response.ok) return response;
  throw refusal(await response.json().catch(() => null), response.status);
}

/** The models being served. */
export async function models(key) {
  return (await (await ask("v1/models", key)).json()).data;
}

/** Posts a body and yields the events of the answer, up to its end. */
export async function* events(path, body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask(path, key, { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Unreachable(BROKEN);
    }
    if (part.done) throw new Unreachable(BROKEN);
    buffer += part.value;
    const pieces = buffer.split("\n\n");
    buffer = pieces.pop();
    for (const piece of pieces) {
      if (!piece.startsWith("data: ")) continue; // a comment: the server is still at it
      if (piece === "data: [DONE]") return;
      const event = JSON.parse(piece.slice(6));
      if (event.error) throw refusal(event, 200);
      yield event;
    }
  }
}
