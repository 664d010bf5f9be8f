// The page: what the person chooses, two sides that run it, and which of them is ahead.

import { Controls } from "./controls.js";
import { Gaps } from "./gaps.js";
import { pair, requestFor } from "./requests.js";
import { Side } from "./side.js";
import { models } from "./stream.js";

const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const CALM = 400; // ms between two pictures where motion is not wanted
const BRISK = 50; // and where it is
const HOME = "areas: Den, Bedroom\nlight: Desk Lamp, Ceiling Light\nclimate: Thermostat\n";
const EXAMPLES = [ // of models by the beginning of their names; `suits` says of which others
  { label: "Ask", text: "Why is the sky blue?", suits: (card) => card.can_chat && !card.id.startsWith("assist") },
  { label: "Call functions", text: `${HOME}> turn off the desk lamp and set the bedroom to 21 degrees`, suits: (card) => card.id.startsWith("assist") },
  { label: "Go on with a novel", text: "Emma was", suits: (card) => !card.can_chat },
  { label: "Fill gaps", text: "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]].", suits: (card) => card.can_fill && !card.can_chat },
];

const $ = (id) => document.getElementById(id);
const prompt = $("prompt");
let [cards, running, together, last, frame] = [[], false, true, 0, 0];
let key = ""; // in memory only: gone with the page

const say = (text) => ($("said").textContent = text);
const trouble = (text) => {
  $("trouble-text").textContent = text;
  $("trouble").hidden = !text;
};

const controls = new Controls($("controls"), $("more-controls"), () => suit());
const gaps = new Gaps(prompt, $("gaps"), say);
const sides = ["A", "B"].map((name) => {
  const side = new Side(name, $("side"), $("sides"), { changed: () => suit(), moved: () => wake(), sought: (time) => follow(side, time), announce: (text) => announce(text) });
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

/** Brings everything in line with what is chosen. */
function suit() {
  const fill = gaps.any;
  if (fill && !running && cards.length && !taking().some(({ card }) => card.can_fill)) {
    const able = cards.find((card) => card.can_fill);
    if (able) {
      sides[1].choose(able.id);
      say(`${$("said").textContent} Side B is now ${able.id}, which can fill gaps.`.trim());
    }
  }
  controls.suit(taking().map(({ name, card, mode }) => ({ name, card, mode })), fill);
  $("chat-choice").hidden = fill || !taking().some(({ card }) => card.can_chat);
  $("run-text").textContent = fill ? "Fill" : "Run";
  for (const side of sides) side.article.classList.toggle("none", !side.card);
  for (const name of ["run", "gap"]) $(name).setAttribute("aria-disabled", String(!cards.length || (running && name === "run")));
  $("stop").setAttribute("aria-disabled", String(!running));
  const able = cards.filter((card) => card.can_fill).map(({ id }) => id);
  $("gap-hint").textContent = able.length ? "Select text to have it filled anew." : "No model served here can fill gaps.";
  if (!able.length) $("gap").setAttribute("aria-disabled", "true");
}

async function run() {
  if (running || !cards.length) return;
  trouble("");
  say("");
  $("announced").replaceChildren();
  const fill = gaps.any;
  let values;
  try {
    values = controls.values();
  } catch (error) {
    trouble(error.message);
    controls.fault(error.param);
    return;
  }
  const able = taking().filter(({ card }) => !fill || card.can_fill);
  if (!able.length) {
    trouble(fill ? "None of the chosen models can fill gaps. Choose one that sees what follows a gap." : "Choose a model for a side.");
    return;
  }
  running = true;
  together = $("order").value === "together" && able.length > 1;
  suit();
  for (const side of sides) {
    side.reset();
    const rests = side.card && !able.includes(side);
    side.article.classList.toggle("resting", Boolean(rests));
    if (rests) side.note(`${side.card.id} writes from left to right and cannot fill gaps.`);
  }
  const speed = Number($("speed").value);
  const starts = able.map((side) => async () => {
    const { card, mode } = side;
    const request = requestFor({ card, mode, prompt: prompt.value, fill, chat: $("chat").checked, values });
    return side.run(request, key, { fill, prompt: prompt.value, values, slow: speed < 1 ? speed : null });
  });
  wake();
  let failures = [];
  if ($("order").value === "turn") {
    for (const start of starts) {
      if (!running) break;
      failures.push(await start());
    }
  } else failures = await Promise.all(starts.map((start) => start()));
  running = false;
  const failed = failures.find((error) => error && error.name !== "AbortError");
  if (failed?.param) controls.fault(failed.param);
  if (failed?.status === 401) askForKey();
  suit();
  wake();
}

function stop() {
  if (!running) return;
  running = false; // a side that waits for its turn does not start
  for (const side of sides) side.stop();
}

function askForKey() {
  $("key-box").open = true;
  $("key").focus();
}

/** Who is ahead where the pictures stand. */
function standing() {
  const shown = taking().filter(({ recording }) => recording);
  if (shown.length < 2) return "";
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
  $("replay").disabled = !sides.some(({ frames }) => frames);
  if (sides.some((side) => side.busy)) wake();
}

function wake() {
  frame ||= requestAnimationFrame(draw);
}

async function connect() {
  try {
    cards = await models(key);
  } catch (error) {
    cards = [];
    trouble(error.message);
    if (error.status === 401) askForKey();
    suit();
    return;
  }
  trouble("");
  const pairs = pair(cards);
  sides.forEach((side, index) => side.offer(cards, pairs[index]));
  const known = EXAMPLES.filter(({ suits }) => cards.some(suits));
  if (!prompt.value) prompt.value = (known.find(({ suits }) => suits(cards[0])) ?? known[0])?.text ?? "";
  $("examples").replaceChildren(...known.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.label;
    button.addEventListener("click", () => take(example));
    return button;
  }));
  suit();
}

/** Puts an example into the prompt, and models that suit it on the sides. */
function take({ text, suits }) {
  if (running) return;
  const pairs = pair(cards.filter(suits));
  sides.forEach((side, index) => side.offer(cards, pairs[index]));
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
}

$("run").addEventListener("click", run);
$("stop").addEventListener("click", stop);
$("gap").addEventListener("click", () => $("gap").getAttribute("aria-disabled") === "true" || gaps.make());
$("again").addEventListener("click", connect);
$("replay").addEventListener("click", () => {
  for (const side of sides) if (side.frames) side.play(Number($("speed").value), 0);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key-box").open = false;
  connect();
});
prompt.addEventListener("input", suit);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  else if (event.key === "Escape") stop();
});
if (matchMedia("(max-width: 56rem)").matches) $("settings").open = false;
connect();
