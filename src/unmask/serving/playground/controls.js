// The settings: a field each, blank for the model's own value. One that no side reads is disabled.

import { fieldsOf } from "./requests.js";

const FIELDS = [
  { name: "max_tokens", label: "Max tokens", min: 1, max: 256, step: 1, value: 96 },
  { name: "max_denoising_steps", label: "Denoising steps", min: 1, max: 128, step: 1, unset: "no bound" },
  { name: "threshold", label: "Threshold", min: 0, max: 1, step: 0.01 },
  { name: "block_length", label: "Block length", min: 1, max: 128, step: 1, unset: "whole" },
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05 },
  { name: "seed", label: "Seed", unset: "drawn", whole: true },
  { name: "rule", label: "Rule", options: [] },
  { name: "remask_budget", label: "Remask budget", min: 0, step: 1 },
  { name: "factor", label: "Factor", min: 0, step: 0.1 },
  { name: "entropy_bound", label: "Entropy bound", min: 0, step: 0.05 },
  { name: "editing_threshold", label: "Editing threshold", min: 0, step: 0.01 },
  { name: "top_p", label: "Top p", min: 0, step: 0.05 },
  { name: "top_k", label: "Top k", min: 0, step: 1 },
];
const MAIN = 6; // of them are always in sight

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Controls {
  /** `changed` is called after every change. */
  constructor(main, more, changed) {
    this.changed = changed;
    this.fields = FIELDS.map((field, index) => this.#build(field, index < MAIN ? main : more));
  }

  #build(field, into) {
    const id = `set-${field.name}`;
    const hint = element("span", { id: `${id}-hint`, className: "hint" });
    const label = element("label", { htmlFor: id, textContent: field.label });
    const row = element("div", { className: "control" });
    const made = { ...field, hint, row };
    if (field.options) {
      made.input = element("select", { id });
    } else {
      made.input = element("input", { id, type: "number", step: "any", autocomplete: "off", value: field.value ?? "" });
      made.input.setAttribute("inputmode", field.step === 1 || field.whole ? "numeric" : "decimal");
    }
    made.input.setAttribute("aria-describedby", hint.id);
    made.input.addEventListener("input", () => {
      if (made.slider && made.input.value !== "") made.slider.value = made.input.value;
      this.fault(null);
      this.changed();
    });
    row.append(element("div", { className: "control-head" }, label, made.input));
    if (field.max !== undefined) {
      made.slider = element("input", { type: "range", min: field.min, max: field.max, step: field.step, value: field.value ?? field.min });
      made.slider.setAttribute("aria-label", `${field.label}, slider`);
      made.slider.addEventListener("input", () => {
        made.input.value = made.slider.value;
        this.fault(null);
        this.changed();
      });
      row.append(made.slider);
    }
    row.append(hint);
    into.append(row);
    return made;
  }

  /** What was set, by name: null where it is blank. Throws where a field holds no number. */
  values() {
    return Object.fromEntries(this.fields.map(({ name, label, input }) => {
      if (input.validity.badInput) throw Object.assign(new Error(`${label} is not a number.`), { param: name });
      if (input.value === "") return [name, null];
      return [name, input.type === "number" ? Number(input.value) : input.value];
    }));
  }

  /** Sets what is named, as text, and leaves the rest. */
  set(values) {
    for (const { name, input, slider } of this.fields) {
      if (!(name in values)) continue;
      if (input.tagName === "SELECT") input.replaceChildren(new Option(values[name])); // the others come when sides are known
      input.value = values[name];
      if (slider && input.value) slider.value = input.value;
    }
  }

  get rule() {
    return this.fields.find(({ name }) => name === "rule").input.value || null;
  }

  /** Shows which sides read what: `sides` is a list of {name, card, mode, fill}, `fill` being whether it fills gaps. */
  suit(sides) {
    this.#rules(sides);
    const asked = sides.map((side) => ({ ...side, fields: fieldsOf(side.card, side.mode, this.rule, side.fill) }));
    for (const field of this.fields) {
      const readers = asked.filter(({ fields }) => fields.has(field.name));
      const others = asked.filter((side) => !readers.includes(side));
      const off = !readers.length;
      field.row.classList.toggle("off", off);
      for (const part of [field.input, field.slider]) if (part) part.disabled = off;
      const every = asked.length === 1 ? "this model ignores it" : "both models ignore it";
      field.hint.textContent = off ? every : others.map(({ name }) => `${name} ignores it`).join("");
      this.#default(field, readers);
    }
  }

  #default(field, readers) {
    const own = readers.map(({ card }) => (field.name === "block_length" ? card.block_length : card.defaults[field.name]));
    const texts = [...new Set(own.map((value) => (value ?? field.unset ?? "its own").toString()))];
    if (field.options || field.value !== undefined) return;
    field.input.placeholder = field.name === "seed" ? field.unset : texts.join(" / ");
    if (field.slider && field.input.value === "") field.slider.value = own.find((value) => value != null) ?? field.max;
  }

  #rules(sides) {
    const { input } = this.fields.find(({ name }) => name === "rule");
    const offers = sides.flatMap(({ card, mode, fill }) => card.offers.filter((offer) => offer.rule && offer.fill === fill && (fill || offer.mode === mode)));
    const names = [...new Set(offers.map((offer) => offer.rule))];
    const chosen = names.includes(input.value) ? input.value : "";
    input.replaceChildren(element("option", { value: "", textContent: "model’s own" }), ...names.map((name) => element("option", { value: name, textContent: name })));
    input.value = chosen;
  }

  /** Marks the field that a message is about; null takes all marks away. */
  fault(name) {
    for (const field of this.fields) {
      if (field.name === name) field.input.setAttribute("aria-invalid", "true");
      else field.input.removeAttribute("aria-invalid");
    }
  }
}
