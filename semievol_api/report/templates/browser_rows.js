// The rows of the label browser: unpacked, searched, filtered and sorted. Knows nothing of the page.
const SORTS = ["place", "question", "answer", "confidence", "agreement", "kept", "right"];

async function unpackRows(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const DIGITS = Array.from({ length: 92 }, (_, i) => String.fromCharCode(35 + i)).filter((c) => !"\\<".includes(c)).join("");

// Whole numbers from -1 up: one character a digit, all high digits before all low ones.
function unpackDigits({ width, text }) {
  const size = text.length / width;
  const at = new Int16Array(128);
  for (let i = 0; i < DIGITS.length; i++) at[DIGITS.charCodeAt(i)] = i;
  const values = new Int32Array(size);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0; i < size; i++) values[i] = values[i] * DIGITS.length + at[text.charCodeAt(plane * size + i)];
  }
  return values.map((value) => value - 1);
}

class Rows {
  constructor(data) {
    this.data = data;
    this.size = data.ids.length;
    for (const name of ["answers", "confidences", "kept", "reasons", "categories"]) data[name] = unpackDigits(data[name]);
    for (const annotator of data.annotators) for (const name of ["answers", "confidences"]) annotator[name] = unpackDigits(annotator[name]);
    if (data.gold) for (const name of ["codes", "right"]) data.gold[name] = unpackDigits(data.gold[name]);
    this.annotators = data.annotators.filter((v) => !v.justifies);
    this.justification = data.annotators.find((v) => v.justifies) ?? null;
    this.detailAt = new Map(data.details.places.map((place, i) => [place, i]));
    this.agreeing = this.countAgreeing();
    this.haystack = data.questions.map((question, i) => `${question}\n${this.fullId(i)}`.toLowerCase());
    this.orders = new Map();
  }

  place(i) { return this.data.places ? this.data.places[i] : i; }
  detail(i) { return this.detailAt.get(this.place(i)) ?? -1; }
  fullId(i) { const d = this.detail(i); return d < 0 ? this.data.ids[i] : this.data.details.ids[d]; }
  answer(i) { return this.value(this.data.answers[i]); }
  value(code) { return code < 0 ? null : this.data.values[code]; }
  right(i) { return this.data.gold ? this.data.gold.right[i] : -1; }

  countAgreeing() {
    const counts = new Int16Array(this.size);
    for (const annotator of this.annotators) {
      for (let i = 0; i < this.size; i++) if (annotator.answers[i] >= 0 && annotator.answers[i] === this.data.answers[i]) counts[i]++;
    }
    return counts;
  }

  sortValues(key) {
    const d = this.data;
    switch (key) {
      case "question": return this.ranks(d.questions);
      case "answer": return d.answers;
      case "confidence": return d.confidences;
      case "agreement": return this.agreeing;
      case "kept": return d.kept.map((kept, i) => (kept ? -1 : d.reasons[i]));
      case "right": return d.gold.right;
      default: return null;
    }
  }

  ranks(texts) {
    const order = Uint32Array.from(texts.keys()).sort((a, b) => (texts[a] < texts[b] ? -1 : texts[a] > texts[b] ? 1 : a - b));
    const ranks = new Uint32Array(texts.length);
    order.forEach((row, rank) => { ranks[row] = rank; });
    return ranks;
  }

  order(key, descending) {
    const name = `${key}${descending}`;
    if (!this.orders.has(name)) {
      const values = this.sortValues(key);
      const sign = descending ? -1 : 1;
      const order = Uint32Array.from({ length: this.size }, (_, i) => i);
      if (values) order.sort((a, b) => sign * (values[a] - values[b]) || a - b);
      else if (descending) order.reverse();
      this.orders.set(name, order);
    }
    return this.orders.get(name);
  }

  find({ text, decision, reason, answer, category, agreement, truth }, key, descending) {
    const terms = text.toLowerCase().split(/\s+/).filter(Boolean);
    const d = this.data;
    const all = this.annotators.length;
    const found = new Uint32Array(this.size);
    let count = 0;
    for (const i of this.order(key, descending)) {
      if (decision !== "" && d.kept[i] !== Number(decision)) continue;
      if (reason !== "" && d.reasons[i] !== Number(reason)) continue;
      if (answer !== "" && d.answers[i] !== Number(answer)) continue;
      if (category !== "" && d.categories[i] !== Number(category)) continue;
      if (agreement !== "" && (this.agreeing[i] === all) !== (agreement === "all")) continue;
      if (truth !== "" && d.gold.right[i] !== Number(truth)) continue;
      if (terms.length && !terms.every((term) => this.haystack[i].includes(term))) continue;
      found[count++] = i;
    }
    return found.subarray(0, count);
  }
}
