// What a run did, frame by frame, and the canvas after any of its frames.
//
// A cell is one position: {state, text, confidence, kind, step, was, revisions, made}. `state` is "mask", "noise"
// (a random token that is still to be denoised), "written" or "given"; `made` is the number of the frame that made it.
// Cells are never copied, so a view knows by identity which positions have changed.

const EVERY = 32; // frames between two canvases that are kept whole

export const MASK = { state: "mask", text: null, confidence: null, kind: null, step: 0, was: null, revisions: 0, made: 0 };

/** Values after some positions before `end` are deleted and a gap is put before others; as `moved` of canvas.py. */
export function moved(values, deleted, inserted, end, gap) {
  const part = [];
  for (let position = 0; position < end; position++) {
    if (inserted.has(position)) part.push(gap());
    if (!deleted.has(position)) part.push(position < values.length ? values[position] : gap());
  }
  part.length = Math.min(part.length, end);
  while (part.length < end) part.push(gap());
  return [...part, ...values.slice(end)];
}

export class Recording {
  /** `texts`: what stands at each position at first, null where it is a mask. `given`: whether that text is to stay. */
  constructor(texts, given) {
    this.length = texts.length;
    const first = texts.map((text) => (text === null ? MASK : { ...MASK, text, state: given ? "given" : "noise" }));
    this.open = first.filter((cell) => cell.state !== "given").length;
    this.frames = [];
    this.kept = [first];
    this.last = first;
  }

  /** Takes a frame of the stream; `at` is when it came, in ms after the request was sent. */
  add(frame, at) {
    const made = this.frames.length + 1;
    const change = { step: frame.step, at, cells: [], deleted: new Set(), inserted: new Set(), end: frame.end ?? 0, rows: [] };
    const next = [...this.last];
    frame.positions.forEach((position, i) => {
      const [kind, text, confidence] = [frame.kinds[i], frame.texts[i], frame.confidences[i]];
      const old = next[position] ?? MASK;
      change.rows.push({ position, kind, text, was: old.text, confidence });
      if (kind === "delete") change.deleted.add(position);
      else if (kind === "insert") change.inserted.add(position);
      else {
        const state = { remask: "mask", renoise: "noise" }[kind] ?? "written";
        const revisions = old.revisions + (kind !== "unmask" || old.state === "written" ? 1 : 0);
        const was = old.text ?? old.was;
        const cell = { state, text: state === "mask" ? null : text, confidence, kind, step: frame.step, was, revisions, made };
        change.cells.push([position, cell]);
        while (next.length <= position) next.push(MASK);
        next[position] = cell;
      }
    });
    change.gap = { ...MASK, kind: "insert", step: frame.step, made };
    this.last = this.#move(next, change);
    // where something was deleted: the position that follows it now
    change.gone = [...change.deleted].map((p) => {
      const before = [...change.deleted].filter((q) => q < p).length;
      const added = [...change.inserted].filter((q) => q <= p).length;
      return p - before + added;
    });
    this.frames.push(change);
    if (this.frames.length % EVERY === 0) this.kept.push(this.last);
  }

  #move(cells, change) {
    if (!change.deleted.size && !change.inserted.size) return cells;
    return moved(cells, change.deleted, change.inserted, change.end, () => change.gap);
  }

  /** The canvas after so many frames, 0 being its beginning. */
  at(count) {
    if (count === this.frames.length) return this.last.slice(0, this.length);
    const whole = Math.floor(count / EVERY);
    let cells = [...this.kept[whole]];
    for (let i = whole * EVERY; i < count; i++) {
      const change = this.frames[i];
      for (const [position, cell] of change.cells) {
        while (cells.length <= position) cells.push(MASK);
        cells[position] = cell;
      }
      cells = this.#move(cells, change);
    }
    return cells.slice(0, this.length);
  }

  /** How many frames had come by a time in ms. */
  countBy(time) {
    let [low, high] = [0, this.frames.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.frames[middle].at <= time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** When a frame came, in ms; 0 before the first. */
  timeOf(count) {
    return count ? this.frames[count - 1].at : 0;
  }
}

/** Positions that hold text that was written, of a canvas. */
export function written(cells) {
  return cells.reduce((sum, cell) => sum + (cell.state === "written"), 0);
}

/** Gives cells the text they have in context: characters that several tokens share, spaces that a lone token loses. */
export function align(cells, whole) {
  let at = 0;
  for (let i = 0; i < cells.length; i++) {
    const text = cells[i].text ?? "";
    if (!text.includes("\ufffd") && whole.startsWith(text, at)) {
      at += text.length;
    } else if (whole.startsWith(` ${text}`, at)) {
      cells[i].text = ` ${text}`;
      at += text.length + 1;
    } else {
      let [next, found] = [i + 1, whole.length];
      for (; next < cells.length; next++) {
        const anchor = cells[next].text ?? "";
        if (!anchor || anchor.includes("\ufffd")) continue;
        found = whole.indexOf(anchor, at);
        if (found >= 0) break;
      }
      if (found < 0) found = whole.length;
      cells[i].text = whole.slice(at, found);
      for (let j = i + 1; j < next && j < cells.length; j++) cells[j].text = "";
      at = found;
      i = next - 1;
    }
  }
}
