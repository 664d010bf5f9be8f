// What leaves the page: text on the clipboard, and a request as a program.

const STANDARD = ["model", "messages", "prompt", "max_tokens", "temperature", "top_p", "seed"]; // what openai's client names

/** Puts text on the clipboard and says so on the button that asked for it. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only pages of https and of this machine have one
    const area = Object.assign(document.createElement("textarea"), { value: text });
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.dataset.label ??= button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = button.dataset.label), 1500);
}

/** [name, program] for each way to send a request without the page. */
export function programs({ path, body: { stream, stream_options, ...body } }, keyed) {
  const key = keyed ? ' \\\n  -H "Authorization: Bearer $UNMASK_API_KEY"' : "";
  const sent = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const curl = `curl ${location.origin}/${path} \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${sent}'`;
  const secret = keyed ? 'os.environ["UNMASK_API_KEY"]' : '"none"';
  const client = `${keyed ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key=${secret})\n`;
  const names = Object.keys(body).filter((name) => STANDARD.includes(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => !names.includes(name)));
  const lines = [...names.map((name) => `    ${name}=${JSON.stringify(body[name])},\n`), `    extra_body=${JSON.stringify(others)},\n`];
  const chat = path.includes("chat");
  const python = path === "v1/infill"
    ? `reply = client.post("/infill", body=${JSON.stringify(body)}, cast_to=object)\nprint(reply["choices"][0]["text"])`
    : `reply = client.${chat ? "chat." : ""}completions.create(\n${lines.join("")})\nprint(reply.choices[0].${chat ? "message.content" : "text"})`;
  return [["curl", curl], ["Python", client + python]];
}
