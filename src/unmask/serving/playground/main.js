// The page: what the person chooses, two sides that run it, and which of them is ahead.

import { Controls } from "./controls.js";
import { Gaps, marker, pieces } from "./gaps.js";
import { isPuzzle, read, solution } from "./puzzle.js";
import { described, horizon, pair, requestFor } from "./requests.js";
import { copy } from "./share.js";
import { Side } from "./side.js";
import { models } from "./stream.js";

const NARROW = matchMedia("(max-width: 56rem)");
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const CALM = 400; // ms between two pictures where motion is not wanted
const BRISK = 50; // and where it is
const HOME = "areas: Den, Bedroom\nlight: Desk Lamp, Ceiling Light\nclimate: Thermostat\n";
const PUZZLE = ".2.6.8...\n58...97..\n....4....\n37....5..\n6.......4\n..8....13\n....2....\n..98...36\n...3.6.9.";
const chats = (card) => card.can_chat && !card.id.startsWith("assist");
const writes = (card) => !card.can_chat && !card.grid;
const EXAMPLES = [ // `suits`: of which models; those that are `more` only make up three
  { label: "Ask", text: "Why is the sky blue?", suits: chats },
  { label: "Call functions", text: `${HOME}> turn off the desk lamp and set the bedroom to 21 degrees`, suits: (card) => card.id.startsWith("assist") },
  { label: "Go on with a novel", text: "Emma was", suits: writes },
  { label: "Fill gaps", text: "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]].", suits: (card) => card.can_fill && writes(card) },
  { label: "Solve a sudoku", text: PUZZLE, suits: (card) => card.grid?.join() === "9,9,3,3" },
  { label: "Begin a letter", text: "My dear Jane,", suits: writes, more: true },
  { label: "Write code", text: "Write a Python function that reverses a list.", suits: chats, more: true },
  { label: "Make a list", text: "Name five rivers of Europe, one a line.", suits: chats, more: true },
];

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
let [cards, running, together, last, frame] = [[], false, true, 0, 0];
let key = ""; // in memory only: gone with the page
let seen = ""; // what the sides are about to show, in a sentence

const say = (text) => ($("said").textContent = text);
const trouble = (text, lost = false) => {
  $("trouble-text").textContent = text;
  $("trouble").hidden = !text;
  $("again").hidden = !lost;
};

const controls = new Controls($("controls"), $("more-controls"), () => suit());
const gaps = new Gaps(prompt, $("marks"), $("gaps"), say);
const sides = ["A", "B"].map((name) => {
  const side = new Side(name, $("side"), $("sides"), { changed: () => suit(), moved: () => wake(), sought: (time) => follow(side, time), announce: (text) => announce(text), request: () => ({ made: side.card && attempt(() => requestOf(side)), keyed: Boolean(key) }) });
  side.speed = () => Number($("speed").value);
  return side;
});

/** Tells screen readers, who hear a text once it is done and not while it is denoised. */
function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("announced").append(line);
  while ($("announced").childElementCount > 2) $("announced").firstElementChild.remove();
}

/** Brings the other side to the moment that one was dragged to. */
function follow(side, time) {
  if (!$("linked").checked || running) return;
  for (const other of sides) if (other !== side && other.frames) other.seek(other.recording.countBy(time));
}

const taking = () => sides.filter(({ card }) => card);
const fills = ({ card }) => Boolean(card.grid) || (gaps.any && card.can_fill);
const able = ({ card }) => Boolean(card && (card.grid || card.can_fill || !gaps.any));

/** What would be sent for a side; throws where a setting is no number, or the prompt no puzzle. */
function requestOf(side, values = controls.values()) {
  const { card, mode } = side; // the blanks of a puzzle are gaps of one token
  const text = card.grid ? read(prompt.value, card.grid).map((digit) => digit ?? marker(1, 1)).join("") : prompt.value;
  return requestFor({ card, mode, prompt: text, fill: fills(side), chat: $("chat").checked, values });
}

/** What `make` returns; null where it throws. */
function attempt(make) {
  try {
    return make();
  } catch {
    return null;
  }
}

/** What the picture of a side begins with. */
function preview(side) {
  const { card, mode } = side;
  const values = attempt(() => controls.values()) ?? {};
  const reach = horizon(card, mode, values, fills(side));
  const masks = Array(Math.min(values.max_tokens ?? 96, 512)).fill(null);
  if (card.grid) side.preview("", attempt(() => read(prompt.value, card.grid)) ?? Array(card.grid[0] * card.grid[1]).fill(null), reach);
  else if (fills(side)) side.preview("", pieces(prompt.value).flatMap((piece) => (piece.low ? Array(Math.min(piece.low, 512)).fill(null) : piece)), reach);
  else side.preview(card.can_chat && $("chat").checked ? "" : prompt.value, masks, reach);
  return described(side, reach);
}

/** Brings everything in line with what is chosen. */
function suit() {
  if (gaps.any && !running && cards.length && !taking().some(able)) {
    const filler = cards.find((card) => card.can_fill && !card.grid);
    if (filler) {
      sides[1].choose(filler.id);
      say(`${$("said").textContent} Side B is now ${filler.id}, which can fill gaps.`.trim());
    }
  }
  controls.suit(taking().filter(able).map((side) => ({ name: side.name, card: side.card, mode: side.mode, fill: fills(side) })));
  $("chat-choice").hidden = gaps.any || !taking().some(({ card }) => card.can_chat);
  $("run-text").textContent = taking().some(({ card }) => card.grid) ? "Solve" : gaps.any ? "Fill" : "Run";
  prompt.classList.toggle("puzzle", taking().some(({ card }) => card.grid));
  for (const side of sides) {
    const rests = Boolean(side.card) && !able(side);
    side.article.classList.toggle("none", !side.card);
    side.article.classList.toggle("resting", rests);
    if (rests || side.state === "idle") side.note(rests ? `${side.card.id} writes from left to right and cannot fill gaps.` : "");
  }
  for (const name of ["run", "gap"]) $(name).setAttribute("aria-disabled", String(!cards.length || (running && name === "run")));
  $("stop").setAttribute("aria-disabled", String(!running));
  const fillers = cards.some((card) => card.can_fill && !card.grid);
  $("gap-hint").textContent = fillers ? "Select text, here or in a result, to have it filled anew." : "No model served here can fill gaps.";
  if (!fillers) $("gap").setAttribute("aria-disabled", "true");
  seen = taking().filter(able).map(preview).join("; ");
  if (seen) seen += ".";
  for (const side of sides) side.programs();
  wake();
}

async function run() {
  if (running || !cards.length) return;
  trouble("");
  say("");
  $("announced").replaceChildren();
  const ready = taking().filter(able);
  let requests;
  try {
    if (!ready.length) throw new Error(gaps.any ? "None of the chosen models can fill gaps. Choose one that sees what follows a gap." : "Choose a model for a side.");
    const values = controls.values();
    requests = ready.map((side) => requestOf(side, values));
    const solved = sides.map(({ card }) => card?.grid && solution(read(prompt.value, card.grid), card.grid));
    for (const [index, side] of sides.entries()) {
      side.reset();
      side.solution = solved[index];
    }
  } catch (error) {
    trouble(error.message);
    controls.fault(error.param);
    return;
  }
  running = true;
  together = $("order").value === "together" && ready.length > 1;
  suit();
  if (NARROW.matches) document.querySelector(".stage").scrollIntoView();
  const speed = Number($("speed").value);
  const starts = ready.map((side, index) => async () => side.run(requests[index], key, speed < 1 ? speed : null));
  wake();
  let failures = [];
  if ($("order").value === "turn") {
    for (const start of starts) failures.push(running ? await start() : null);
  } else failures = await Promise.all(starts.map((start) => start()));
  running = false;
  blame(ready, failures);
  suit();
  wake();
}

/** Says what went wrong, once where it is the same on both sides. */
function blame(ready, failures) {
  const failed = failures.map((error) => (error?.name === "AbortError" ? null : error));
  const messages = [...new Set(failed.map((error) => error?.message).filter(Boolean))];
  const whose = (message) => ready.filter((_, index) => failed[index]?.message === message).map(({ name }) => name).join(" and ");
  trouble(messages.map((message) => (ready.length > 1 ? `${whose(message)}: ${message}` : message)).join("\n"));
  for (const error of failed) {
    if (error?.param) controls.fault(error.param);
    if (error?.status === 401) askForKey(true);
  }
}

function stop() {
  if (!running) return;
  running = false; // a side that waits for its turn does not start
  for (const side of sides) side.stop();
}

function askForKey(refused) {
  const why = key ? "The server does not know this key." : "This server asks for a key.";
  $("key-said").textContent = refused ? why : "The key of this server, if it asks for one";
  if (!$("key-box").open) $("key-box").showModal();
  $("key").value = "";
  $("key").focus();
}

/** A link that opens the page with all that is chosen here; the key is no part of it. */
function link() {
  const set = Object.entries(attempt(() => controls.values()) ?? {}).filter(([, value]) => value !== null);
  const chosen = sides.flatMap(({ name, card, mode }) => [[name, card?.id ?? ""], [`${name}.mode`, mode]]);
  const parts = new URLSearchParams([["prompt", prompt.value], ["order", $("order").value], ["chat", $("chat").checked], ...chosen, ...set]);
  return `${location.origin}${location.pathname}#${parts}`;
}

/** Takes what a link carries; what it does not name, or names and is not here, stays as it is. */
function restore() {
  const parts = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!parts.prompt) return;
  for (const side of sides) {
    const known = cards.some(({ id }) => id === parts[side.name]);
    if (known || parts[side.name] === "") side.offer(cards, [parts[side.name], parts[`${side.name}.mode`]]);
  }
  if (["together", "turn"].includes(parts.order)) $("order").value = parts.order;
  $("chat").checked = parts.chat !== "false";
  controls.set(parts);
  write(parts.prompt);
}

/** Who is ahead where the pictures stand. */
function standing() {
  const shown = taking().filter(({ recording }) => recording);
  if (shown.length < 2) return seen;
  const [a, b] = shown;
  const [pa, pb] = [a.progress, b.progress];
  if (pa.over && pb.over) {
    const [fast, slow] = a.rate >= b.rate ? [a, b] : [b, a];
    const times = fast.rate / slow.rate;
    const close = times < 1.05 ? "A and B are as fast as each other" : `${fast.name} is ${times.toFixed(1)} times as fast`;
    return `${close}: ${fast.rate.toFixed(0)} against ${slow.rate.toFixed(0)} tokens/s.${together ? " Both ran at once and shared the machine." : ""}`;
  }
  const text = `A has ${pa.written} of ${pa.of} positions, B ${pb.written} of ${pb.of}.`;
  const same = $("linked").checked && !(running && !together); // both pictures are of one moment
  if (!same) return text;
  if (Math.abs(pa.share - pb.share) < 0.01) return `Level: ${text}`;
  return `${pa.share > pb.share ? "A" : "B"} is ahead: ${text}`;
}

function draw(now) {
  frame = 0;
  const busy = sides.some((side) => side.busy);
  if (busy && now - last < (STILL.matches ? CALM : BRISK)) return wake(); // the model needs the processor more
  last = now;
  for (const side of sides) side.tick(now);
  $("standing").textContent = standing();
  document.querySelectorAll(".lanes progress").forEach((bar, index) => (bar.value = sides[index].progress.share));
  $("replay").disabled = !sides.some(({ frames }) => frames);
  if (sides.some((side) => side.busy)) wake();
}

function wake() {
  frame ||= requestAnimationFrame(draw);
}

async function connect() {
  try {
    cards = await models(key);
    for (const card of cards) if (!isPuzzle(card.grid)) card.grid = null;
  } catch (error) {
    cards = [];
    trouble(error.message, true);
    if (error.status === 401) askForKey(true);
    suit();
    return;
  }
  trouble("");
  const pairs = pair(cards);
  sides.forEach((side, index) => side.offer(cards, pairs[index]));
  const known = EXAMPLES.filter(({ suits }) => cards.some(suits)).filter(({ more }, index) => !more || index < 3);
  $("examples").replaceChildren(...known.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.label;
    button.addEventListener("click", () => take(example));
    return button;
  }));
  if (!prompt.value) write((known.find(({ suits }) => taking().some(({ card }) => suits(card))) ?? known[0])?.text ?? "");
  restore();
  suit();
}

/** Puts text into the prompt, as if it was typed. */
function write(text) {
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Puts an example into the prompt, and models that suit it on the sides. */
function take({ text, suits }) {
  if (running) return;
  const pairs = pair(cards.filter(suits));
  sides.forEach((side, index) => {
    side.reset();
    side.offer(cards, pairs[index]);
  });
  trouble("");
  write(text);
}

/** Makes a gap of what is selected, in the prompt or in a result, which becomes the prompt. */
function makeGap() {
  if ($("gap").getAttribute("aria-disabled") === "true") return;
  const selection = getSelection();
  const range = selection.rangeCount && !selection.isCollapsed ? selection.getRangeAt(0) : null;
  const canvas = sides.map(({ parts }) => parts.canvas).find((one) => range && one.contains(range.commonAncestorContainer));
  if (canvas) {
    const before = document.createRange();
    before.setStart(canvas, 0);
    before.setEnd(range.startContainer, range.startOffset);
    const [from, length] = [before.toString().length, range.toString().length];
    write(canvas.textContent);
    prompt.setSelectionRange(from, from + length);
  }
  gaps.make();
}

$("run").addEventListener("click", run);
$("stop").addEventListener("click", stop);
$("gap").addEventListener("mousedown", (event) => event.preventDefault()); // or the selection would be gone
$("gap").addEventListener("click", makeGap);
$("link").addEventListener("click", () => copy(link(), $("link")));
$("key-open").addEventListener("click", () => askForKey());
$("again").addEventListener("click", connect);
$("replay").addEventListener("click", () => {
  for (const side of sides) if (side.frames) side.play(Number($("speed").value), 0);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key-box").close();
  connect();
});
prompt.addEventListener("input", suit);
$("chat").addEventListener("input", suit);
addEventListener("hashchange", restore);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  else if (event.key === "Escape") stop();
});
if (NARROW.matches) $("settings").open = false;
connect();
