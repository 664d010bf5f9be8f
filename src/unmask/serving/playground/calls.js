// Calls of functions in a text that is still being denoised, as chips.

const CALL = /\{"name": ?"([^"]+)", ?"(?:arguments|parameters)": ?(\{[^{}]*\})\}/g;
const OPEN = "\u25a1"; // stands for a mask

/** Calls that are wholly written: [{ name, values }], values being [argument, value]. */
export function calls(cells) {
  const text = cells.map((cell) => (cell.state === "written" || cell.state === "given" ? cell.text : OPEN)).join("");
  if (!/^\s*\[?\s*\{"name"/.test(text)) return [];
  return [...text.matchAll(CALL)].filter(([whole]) => !whole.includes(OPEN)).flatMap(([, name, values]) => {
    try {
      return [{ name, values: Object.entries(JSON.parse(values)) }];
    } catch {
      return [];
    }
  });
}

/** A chip for each call. */
export function chips(found) {
  return found.map(({ name, values }) => {
    const item = document.createElement("li");
    const head = document.createElement("b");
    head.textContent = name;
    item.append(head, ...values.map(([argument, value]) => {
      const part = document.createElement("span");
      part.textContent = `${argument}: ${typeof value === "string" ? value : JSON.stringify(value)}`;
      return part;
    }));
    return item;
  });
}
