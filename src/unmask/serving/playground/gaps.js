// Gaps in the prompt, written as the project writes them: [[mask:4]], [[mask:2-6]].

const GAP = /\[\[mask:(\d{1,6})(?:-(\d{1,6}))?\]\]/g;
const LONGEST = 16; // tokens that a fresh gap may grow to

export function find(text) {
  return [...text.matchAll(GAP)].map((match) => ({
    start: match.index,
    end: match.index + match[0].length,
    low: Number(match[1]),
    high: Number(match[2] ?? match[1]),
  }));
}

/** A text's parts in order: what is given as strings, gaps as `find` has them. */
export function pieces(text) {
  const gaps = find(text);
  return [...gaps.flatMap((gap, index) => [text.slice(gaps[index - 1]?.end ?? 0, gap.start), gap]), text.slice(gaps.at(-1)?.end ?? 0)];
}

export function marker(low, high) {
  return low === high ? `[[mask:${low}]]` : `[[mask:${low}-${high}]]`;
}

/** Lengths to try in place of some text: its words at least, twice as many tokens and two at most. */
export function lengths(text) {
  const words = text.trim().split(/\s+/).filter(Boolean).length;
  const low = Math.min(Math.max(words, 1), LONGEST);
  return [low, Math.min(Math.max(2 * words + 2, 4), LONGEST)];
}

/** Replaces part of a text area so that undo brings it back. */
function replace(area, start, end, text) {
  area.focus();
  area.setSelectionRange(start, end);
  if (!document.execCommand("insertText", false, text)) area.setRangeText(text, start, end, "end");
  area.dispatchEvent(new Event("input", { bubbles: true }));
}

/** A prompt's gaps: chips over the text, `marks`, and a list with their lengths. */
export class Gaps {
  constructor(area, marks, list, say) {
    Object.assign(this, { area, marks, list, say });
    this.originals = [];
    area.addEventListener("input", () => this.update());
    area.addEventListener("scroll", () => (marks.scrollTop = area.scrollTop));
  }

  /** Covers each marker with a chip: the same text lies over the area, unseen but for them. */
  #mark() {
    this.marks.replaceChildren(...pieces(this.area.value).map((piece) => {
      if (typeof piece === "string") return piece;
      const { start, end, low, high } = piece;
      const chip = Object.assign(document.createElement("mark"), { textContent: this.area.value.slice(start, end) });
      chip.dataset.length = low === high ? low : `${low}–${high}`;
      return chip;
    }), "\n");
    this.marks.scrollTop = this.area.scrollTop;
  }

  get any() {
    return find(this.area.value).length > 0;
  }

  /** Makes the selected text a gap, or puts one at the cursor. */
  make() {
    const { value } = this.area;
    let [start, end] = [this.area.selectionStart, this.area.selectionEnd];
    while (start < end && /\s/.test(value[start])) start++;
    while (end > start && /\s/.test(value[end - 1])) end--;
    if (find(value).some((gap) => gap.start < Math.max(end, start + 1) && start < gap.end && end > gap.start)) {
      this.say("There is a gap in the selection already. Change its length below.");
      return;
    }
    const original = value.slice(start, end);
    const number = find(value).filter((gap) => gap.end <= start).length;
    this.originals.splice(number, 0, original);
    const label = original ? `“${original}” is now gap ${number + 1}.` : `Gap ${number + 1} is at the cursor.`;
    this.say(`${label} Fill writes into it.`); // before the change: the page may have more to say about it
    replace(this.area, start, end, marker(...lengths(original)));
  }

  /** Shows the gaps that the text has now. */
  update() {
    const gaps = find(this.area.value);
    this.#mark();
    if (gaps.length !== this.originals.length) this.originals = gaps.map(() => "");
    if (this.list.contains(document.activeElement)) return; // a length is being typed
    this.list.replaceChildren(...gaps.map((gap, index) => this.#row(gap, index)));
    this.list.hidden = !gaps.length;
  }

  #row(gap, index) {
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.className = "gap-name";
    const original = this.originals[index];
    name.textContent = original ? `Gap ${index + 1}, was “${original}”` : `Gap ${index + 1}`;
    const [low, high] = [this.#number(gap.low, `Gap ${index + 1}: fewest tokens`), this.#number(gap.high, `Gap ${index + 1}: most tokens`)];
    const change = () => {
      const now = find(this.area.value)[index];
      const [a, b] = [low, high].map((input) => Math.max(1, Number(input.value) || 1));
      if (now) {
        this.area.setRangeText(marker(a, Math.max(a, b)), now.start, now.end, "end");
        this.area.dispatchEvent(new Event("input", { bubbles: true }));
      }
    };
    for (const input of [low, high]) input.addEventListener("input", change);
    const back = document.createElement("button");
    back.type = "button";
    back.textContent = original ? "Put the text back" : "Remove";
    back.setAttribute("aria-label", `${back.textContent}, gap ${index + 1}`);
    back.addEventListener("click", () => {
      const now = find(this.area.value)[index];
      this.originals.splice(index, 1);
      replace(this.area, now.start, now.end, original);
    });
    row.append(name, low, " to ", high, " tokens ", back);
    return row;
  }

  #number(value, label) {
    const input = document.createElement("input");
    Object.assign(input, { type: "number", min: 1, max: 512, value });
    input.setAttribute("aria-label", label);
    return input;
  }
}
