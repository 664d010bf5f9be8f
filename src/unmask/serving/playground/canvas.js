// A canvas on the page: a span for each position, and only those that changed are touched.

const LEVELS = [0.1, 0.5, 0.9]; // confidences at which a token's look changes
const CODE = /```[^]*?(?:```|$)|`[^`\n]+`|^\s*\[?\s*\{"[^]*$/g; // between fences or backticks, and JSON as a whole
const KINDS = {
  unmask: "written", edit: "replaced", remask: "masked again", renoise: "made noise again", insert: "inserted", delete: "deleted",
};

/** 0 (doubtful) to 3 (sure). */
export function level(confidence) {
  return LEVELS.filter((bound) => confidence >= bound).length;
}

export function percent(share) {
  return share >= 0.1 ? `${Math.round(100 * share)}%` : `${(100 * share).toPrecision(2)}%`;
}

/** What a change is called. */
export function named(kind) {
  return KINDS[kind] ?? kind;
}

/** Which cells are code. */
function coded(cells) {
  const texts = cells.map((cell) => cell.text ?? "\u25a1");
  const spans = [...texts.join("").matchAll(CODE)].map(({ index, 0: { length } }) => [index, index + length]);
  let end = 0;
  return texts.map((text) => {
    end += text.length;
    return spans.some(([from, to]) => end > from && end <= to);
  });
}

function described(cell, position) {
  const place = `Position ${position + 1}`;
  if (cell.state === "given") return `${place}: given`;
  const was = cell.was === null || cell.kind === "unmask" ? "" : `; was “${cell.was}”`;
  if (!cell.kind) return `${place}: ${cell.state}`;
  const sure = cell.confidence === null ? "" : `, confidence ${percent(cell.confidence)}`;
  return `${place}, step ${cell.step}: ${named(cell.kind)}${sure}${was}`;
}

export class CanvasView {
  constructor(element) {
    this.element = element;
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    [this.spans, this.shown, this.marked] = [[], [], []];
  }

  /** Text that stands before the canvas. `grid`: its rows and columns, and those of a box, where it is one. */
  begin(prompt, grid) {
    this.clear();
    this.grid = grid;
    this.element.classList.toggle("cells", Boolean(grid));
    if (grid) this.element.style.setProperty("--columns", grid[1]);
    if (!prompt) return;
    const span = document.createElement("span");
    span.className = "given";
    span.textContent = prompt;
    this.element.append(span);
  }

  /** Shows cells as they are after frame `count`; `gone`: positions before which that frame deleted something. */
  show(cells, count, gone = []) {
    for (const index of this.marked) this.spans[index]?.classList.remove("fresh", "cut");
    this.marked = [];
    while (this.spans.length > cells.length) this.spans.pop().remove();
    this.shown.length = Math.min(this.shown.length, cells.length);
    const code = coded(cells);
    cells.forEach((cell, index) => {
      let span = this.spans[index];
      if (!span) {
        span = document.createElement("span");
        this.spans.push(span);
        this.element.append(span);
      }
      if (this.shown[index] !== cell) {
        this.#dress(span, cell, index);
        this.shown[index] = cell;
      }
      span.classList.toggle("code", code[index]);
      if (count && cell.made === count) this.#mark(index, "fresh");
    });
    for (const index of gone) if (index < cells.length) this.#mark(index, "cut");
  }

  /** Shows cells anew although they are the same objects. */
  refresh() {
    this.shown = [];
  }

  #mark(index, name) {
    this.spans[index].classList.add(name);
    this.marked.push(index);
  }

  #dress(span, cell, index) {
    const names = [cell.state];
    if (cell.state === "written") names.push(`c${level(cell.confidence)}`);
    if (cell.kind && cell.kind !== "unmask") names.push(cell.kind);
    if (cell.revisions && cell.state === "written") names.push("revised");
    const text = cell.text ?? "";
    const word = text.trimStart();
    const blank = text.slice(0, text.length - word.length);
    if (blank && !word) names.push(blank.includes("\n") ? "line" : "blank"); // a mark stands for it, that is not copied
    if (this.grid) {
      const [rows, columns, high, wide] = this.grid;
      const [row, column] = [Math.floor(index / columns) + 1, (index % columns) + 1];
      if (row % high === 0 && row < rows) names.push("below");
      if (column % wide === 0 && column < columns) names.push("right");
      span.style.setProperty("--sure", (cell.confidence ?? 0) ** 10); // of digits only the surest are green
    }
    span.className = names.join(" ");
    span.title = described(cell, index);
    const mark = document.createElement("i"); // what has the colour: the word without the space before it
    mark.textContent = word;
    span.replaceChildren(...(word ? [blank, mark] : [mark, blank]));
  }
}
