// Which options a side reads, and the request made of what was chosen. Only what is read is sent: the server refuses the rest.

/** The offer of /v1/models that a choice falls under. A rule that the side does not have leaves it with its own. */
export function offerFor(card, mode, rule, fill) {
  const offers = card.offers.filter((offer) => offer.fill === fill && (fill || offer.mode === mode));
  const named = (name) => offers.find((offer) => offer.rule === name);
  return (rule && named(rule)) || named(card.defaults.rule) || offers[0] || null;
}

/** Whether the offer is that of the rule asked for. */
const takesRule = (offer, rule) => Boolean(rule) && offer.rule === rule;

/** All names that a request of a side may carry. */
export function fieldsOf(card, mode, rule, fill) {
  const offer = offerFor(card, mode, rule, fill);
  if (!offer) return new Set();
  return new Set([...offer.fields, ...(offer.rule ? ["rule"] : []), ...(fill ? [] : ["max_tokens"])]);
}

/** Path and body of a run. `values`: what was set, by name; `chat`: as a message where the model can chat. */
export function requestFor({ card, mode, prompt, fill, chat, values }) {
  const fields = fieldsOf(card, mode, values.rule, fill);
  const offer = offerFor(card, mode, values.rule, fill);
  const set = Object.entries(values).filter(([name, value]) => {
    return value !== null && fields.has(name) && (name !== "rule" || takesRule(offer, value));
  });
  const body = { model: card.id, ...Object.fromEntries(set) };
  Object.assign(body, { stream: true, stream_options: { frames: true, include_usage: true } });
  if (fill) return { path: "v1/infill", body: { ...body, template: prompt } };
  body.mode = mode;
  if (chat && card.can_chat) {
    return { path: "v1/chat/completions", body: { ...body, messages: [{ role: "user", content: prompt }] } };
  }
  return { path: "v1/completions", body: { ...body, prompt } };
}

/** What a side does, in words. */
export function described({ name, card, mode }, reach) {
  if (card.grid) return `${name} fills the blanks all at once, the surest cells first`;
  if (mode === "ar") return `${name} writes one token after another`;
  if (mode === "verify") return `${name} drafts several tokens at once and checks them as it would write them one by one`;
  if (reach < Infinity) return `${name} denoises ${reach} masks at a time`;
  return `${name} begins with a canvas of ${card.layout === "canvas" ? "noise" : "masks"} and denoises all of it at once`;
}

/** How many masks behind the last written token belong to the picture: a canvas is whole, the others grow. */
export function horizon(card, mode, values, fill) {
  if (fill || card.layout === "bidirectional" || card.layout === "canvas") return Infinity;
  if (mode === "ar") return 1;
  return values.block_length ?? card.block_length ?? 1;
}

/** Two sides to begin with: a full canvas beside its AR twin, else two modes of one model, else one of each kind. */
export function pair(cards) {
  const first = cards[0];
  const twin = (card) => cards.find(({ id }) => id === `${card.id}-ar`);
  const whole = cards.find((card) => card.layout === "bidirectional" && twin(card));
  if (whole) return [[twin(whole).id, "ar"], [whole.id, "diffusion"]];
  if (first.grid) return [[first.id, first.modes[0]], ["", ""]];
  const both = [[first.id, "ar"], [first.id, first.modes.find((mode) => mode !== "ar")]];
  if (first.modes.includes("ar") && first.modes.includes("diffusion")) return both;
  const plain = cards.find((card) => card.modes[0] === "ar");
  const other = first.modes[0] === "ar" ? cards.find((card) => card.modes.includes("diffusion")) : first;
  if (plain && other) return [[plain.id, "ar"], [other.id, "diffusion"]];
  if (first.modes.length > 1 && first.modes.includes("ar")) return both;
  return [[first.id, first.modes[0]], [cards[1]?.id ?? "", cards[1]?.modes[0] ?? ""]];
}
