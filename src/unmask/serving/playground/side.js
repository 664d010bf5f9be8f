// One of the two runs: its model and mode, its canvas, its timeline, its figures.

import { CanvasView, named, percent } from "./canvas.js";
import { calls, chips } from "./calls.js";
import { align, MASK, Recording, written } from "./frames.js";
import { copy, programs } from "./share.js";
import { events } from "./stream.js";

const STATES = { idle: "", running: "writing", done: "done", stopped: "stopped", failed: "failed" };
const ROWS = 200; // changes of one step that the table shows

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`;

export class Side {
  /** `changed`: the model or mode was; `moved`: there is something else to see; `sought`: the timeline was dragged
   *  to a time in ms; `announce`: what a screen reader is to say; `request`: what would be sent now. */
  constructor(name, template, into, { changed, moved, sought, announce, request }) {
    const article = template.content.cloneNode(true).firstElementChild;
    into.append(article);
    Object.assign(this, { name, article, moved, announce, request });
    const part = (what) => article.querySelector(`[data-part="${what}"]`);
    this.parts = Object.fromEntries(
      ["title", "model", "mode", "state", "note", "canvas", "play", "time", "place", "calls", "rows", "changes", "scroll", "copy", "code"]
        .map((what) => [what, part(what)]),
    );
    this.figures = Object.fromEntries([...article.querySelectorAll("[data-figure]")].map((dd) => [dd.dataset.figure, dd]));
    this.parts.title.textContent = name;
    article.setAttribute("aria-label", `Side ${name}`);
    for (const what of ["model", "mode", "play", "time", "canvas", "scroll", "copy"]) {
      const label = this.parts[what].getAttribute("aria-label") ?? this.parts[what].textContent;
      this.parts[what].setAttribute("aria-label", `${label}, side ${name}`);
    }
    this.view = new CanvasView(this.parts.canvas);
    this.parts.model.addEventListener("change", () => (this.#modes(), changed()));
    this.parts.mode.addEventListener("change", changed);
    this.parts.time.addEventListener("input", () => {
      this.seek(Number(this.parts.time.value));
      sought(this.count === this.frames ? Infinity : this.recording.timeOf(this.count));
    });
    this.parts.play.addEventListener("click", () => (this.playing ? this.pause() : this.play(this.speed?.() ?? 1)));
    this.parts.changes.addEventListener("toggle", () => this.#table());
    this.parts.copy.addEventListener("click", () => copy(this.parts.canvas.textContent, this.parts.copy));
    this.parts.code.addEventListener("toggle", () => this.programs());
    this.reset();
  }

  reset() {
    Object.assign(this, {
      state: "idle", recording: null, count: 0, shownCount: -1, following: true, playing: null, text: "", usage: null,
      began: 0, ended: 0, length: 0,
    });
    this.view.clear();
    this.note("");
    this.parts.calls.hidden = true;
    this.#show();
  }

  /** Offers models; "" among the chosen leaves the side out. */
  offer(cards, [model, mode]) {
    this.cards = cards;
    const options = cards.map(({ id }) => new Option(id, id));
    this.parts.model.replaceChildren(...options, new Option("none", ""));
    this.parts.model.value = model;
    this.#modes(mode);
  }

  choose(model) {
    this.parts.model.value = model;
    this.#modes();
  }

  #modes(mode) {
    const modes = this.card?.modes ?? [];
    this.parts.mode.replaceChildren(...modes.map((name) => new Option(name, name)));
    if (modes.includes(mode)) this.parts.mode.value = mode;
    this.parts.mode.disabled = modes.length < 2;
  }

  get card() {
    return this.cards?.find(({ id }) => id === this.parts.model.value) ?? null;
  }

  get mode() {
    return this.parts.mode.value;
  }

  get label() {
    return `${this.name}, ${this.card?.id} in mode ${this.mode}`;
  }

  note(text) {
    this.parts.note.textContent = text;
    this.parts.note.hidden = !text;
  }

  /** Shows what a run begins with: the prompt, and given text and masks (null), of which `reach` belong to the picture. */
  preview(prompt, texts, reach) {
    if (this.state !== "idle") return;
    Object.assign(this, { prompt, reach });
    this.view.begin(prompt, this.card.grid);
    const cells = texts.map((text) => (text === null ? MASK : { ...MASK, text, state: "given" }));
    this.view.show(cells.slice(0, cells.findLastIndex((cell) => cell !== MASK) + 1 + reach), 0);
  }

  /** The request that would be sent now, as programs. */
  programs() {
    const { code } = this.parts;
    while (code.childElementCount > 1) code.lastElementChild.remove();
    if (!code.open) return;
    const { made, keyed } = this.request();
    for (const [name, text] of made ? programs(made, keyed) : []) {
      const head = Object.assign(document.createElement("p"), { className: "line", textContent: name });
      const button = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: "Copy" });
      button.setAttribute("aria-label", `Copy ${name}, side ${this.name}`);
      button.addEventListener("click", () => copy(text, button));
      head.append(button);
      code.append(head, Object.assign(document.createElement("pre"), { tabIndex: 0, textContent: text }));
    }
  }

  /** Runs a request to its end and returns what went wrong: null or the error. */
  async run({ path, body }, key, slow) {
    this.state = "running";
    this.filling = "template" in body;
    this.following = !slow;
    this.abort = new AbortController();
    if (/\[\[mask:\d+-\d+\]\]/.test(body.template)) this.note("Trying the lengths of the gaps…");
    this.began = performance.now();
    if (slow) this.play(slow);
    this.#show();
    let failed = null;
    try {
      for await (const event of events(path, body, key, this.abort.signal)) this.#take(event);
      this.#finish();
    } catch (error) {
      failed = error;
      const stopped = error.name === "AbortError";
      this.state = stopped ? "stopped" : "failed";
      this.ended ||= performance.now() - this.began;
    }
    if (this.parts.note.textContent.startsWith("Trying")) this.note("");
    this.shownCount = -1;
    this.moved();
    return failed;
  }

  stop() {
    this.abort?.abort();
  }

  #take(event) {
    if (event.usage) this.usage = event.usage;
    this.seed = event.seed;
    const choice = event.choices[0];
    if (!choice) return;
    this.text += choice.delta?.content ?? choice.text ?? "";
    if (choice.canvas) {
      this.note("");
      this.recording = new Recording(choice.canvas.texts, this.filling);
      this.length = this.recording.length;
      this.view.begin(this.prompt, this.card.grid);
    }
    if (choice.frame) {
      this.recording.add(choice.frame, performance.now() - this.began);
      this.ended = performance.now() - this.began;
    }
    this.moved();
  }

  #finish() {
    this.state = "done";
    const { recording, usage } = this;
    const given = recording.length - recording.open;
    this.length = given ? recording.length : Math.min(usage.completion_tokens, recording.length);
    align(recording.at(recording.frames.length).slice(0, this.length), this.text);
    this.view.refresh();
    const { steps, completion_tokens: tokens } = usage;
    if (this.solution) this.note(this.text === this.solution ? `Solved: ${tokens} cells in ${steps} steps.` : "Not solved: this differs from the one solution.");
    this.announce(`${this.label}: done after ${steps} steps and ${seconds(this.ended)}, ${tokens} tokens. ${this.text.trim()}`);
  }

  get frames() {
    return this.recording?.frames.length ?? 0;
  }

  seek(count) {
    this.playing = null;
    this.following = false;
    this.count = count;
    this.moved();
  }

  /** Plays from here, or from the start if this is the end, at a speed; time is that of the run. */
  play(speed, from = null) {
    const at = from ?? (this.count >= this.frames ? 0 : this.count);
    this.count = at;
    this.following = false;
    this.playing = { since: performance.now(), base: this.recording?.timeOf(at) ?? 0, speed };
    this.moved();
  }

  pause() {
    this.playing = null;
    this.moved();
  }

  /** Whether something moves by itself. */
  get busy() {
    return this.state === "running" || this.playing !== null;
  }

  /** Brings the picture to what it should be now. */
  tick(now) {
    if (this.recording && this.playing) {
      const { since, base, speed } = this.playing;
      this.count = Math.max(this.count, this.recording.countBy(base + (now - since) * speed));
      if (this.count >= this.frames && this.state !== "running") this.playing = null;
    } else if (this.following) this.count = this.frames;
    this.#show();
  }

  /** Share of the canvas that is written where the picture stands, and when that was in ms. */
  get progress() {
    const { recording, count } = this;
    if (!recording) return { share: 0, written: 0, of: 0, at: 0, over: false };
    const given = recording.length - recording.open;
    const over = count === this.frames && this.state === "done";
    const of = this.length - given; // once it is known where the text ends, what lies behind does not count
    const there = written(recording.at(count).slice(0, this.length));
    return { share: over ? 1 : there / Math.max(1, of), written: there, of, at: recording.timeOf(count), over };
  }

  #show() {
    const { recording, count, parts } = this;
    parts.state.textContent = STATES[this.state];
    parts.state.dataset.state = this.state;
    const key = `${count} ${this.frames} ${this.state} ${Boolean(this.playing)} ${this.length}`;
    if (this.shownCount === key) return;
    this.shownCount = key;
    parts.canvas.setAttribute("aria-busy", String(this.state === "running"));
    parts.time.max = this.frames;
    parts.time.value = count;
    parts.time.disabled = parts.play.disabled = !this.frames;
    parts.copy.disabled = !recording;
    parts.play.textContent = this.playing ? "Pause" : "Play";
    const { written: there, of } = this.progress;
    const step = count ? recording.frames[count - 1].step : 0;
    const last = this.frames ? recording.frames.at(-1).step : 0;
    parts.place.textContent = recording ? `step ${step} of ${last}` : "";
    parts.time.setAttribute("aria-valuetext", `step ${step} of ${last}, ${there} of ${of} positions written`);
    if (recording) {
      const cells = recording.at(count);
      const end = count === this.frames && this.state === "done" ? this.length : cells.length;
      const past = cells.findLastIndex((cell) => cell.state !== "mask") + 1 + this.reach;
      this.view.show(cells.slice(0, Math.min(end, past)), count, count ? recording.frames[count - 1].gone : []);
      const made = calls(cells.slice(0, end));
      parts.calls.replaceChildren(...chips(made));
      parts.calls.hidden = !made.length;
      if (this.following && this.reach < Infinity) parts.canvas.scrollTop = parts.canvas.scrollHeight;
    }
    parts.canvas.classList.toggle("calm", this.state === "done" && count === this.frames && !this.playing);
    this.#numbers();
    this.#table();
  }

  #numbers() {
    const { recording, usage, figures } = this;
    const set = (name, text) => (figures[name].textContent = text);
    const at = recording?.last ? this.ended : 0;
    const tokens = usage?.completion_tokens ?? (recording ? written(recording.last) : 0);
    const steps = usage?.steps ?? (this.frames ? recording.frames.at(-1).step : 0);
    set("rate", tokens && at ? (tokens / (at / 1000)).toFixed(0) : "–");
    set("tokens", recording ? String(tokens) : "–");
    set("steps", steps ? String(steps) : "–");
    set("each", steps ? (tokens / steps).toFixed(2) : "–");
    set("first", this.frames ? seconds(recording.frames[0].at) : "–");
    set("whole", this.frames ? seconds(at) : "–");
    set("seed", recording ? String(this.seed) : "–");
  }

  /** Tokens a second of the whole run, null before its end. */
  get rate() {
    return this.state === "done" && this.ended ? this.usage.completion_tokens / (this.ended / 1000) : null;
  }

  #table() {
    if (!this.parts.changes.open) return;
    const frame = this.count ? this.recording?.frames[this.count - 1] : null;
    const rows = (frame?.rows ?? []).slice(0, ROWS).map((row) => {
      const line = document.createElement("tr");
      const sure = row.confidence == null || row.kind === "delete" ? "" : percent(row.confidence);
      for (const text of [row.position + 1, JSON.stringify(row.text), named(row.kind), sure, row.was === null ? "" : JSON.stringify(row.was)]) {
        line.insertCell().textContent = text;
      }
      return line;
    });
    this.parts.rows.replaceChildren(...rows);
  }
}
