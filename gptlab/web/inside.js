"use strict";
// What a model computes for a prompt: the views of gptlab/analysis/lens.py, made in the page.
// What takes long is a generator: it yields between steps, and the name of a view that is ready.

const TOP = 5, NEAREST = 8;  // tokens that are named
const LONGEST = 128;         // tokens of a prompt

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// Natural logarithm of the sum of exponentials, which turns logits into log probabilities.
function logSum(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - top);
  return top + Math.log(sum);
}

class Inside {
  // content: what Python knows of the model for any prompt: { titles, heads, left_out, means }, as
  // views have them. Means of parts are the tensors means.heads [L, H, D] and means.mlps [L, C],
  // translators of the tuned lens tuned.l.weight [C, C] and tuned.l.bias [C].
  constructor(config, tensors, tokenizer, content) {
    const block_size = Math.min(config.block_size, LONGEST);
    this.config = { ...config, block_size };
    this.model = new GPT(this.config, tensors);  // with a cache of its own
    this.tokenizer = tokenizer;
    this.content = content;
    this.parts = [];  // every head and MLP
    for (let layer = 0; layer < config.n_layer; layer++) {
      for (let head = 0; head < config.n_head; head++) this.parts.push(`${layer}.${head}`);
      if (config.intermediate_size) this.parts.push(`mlp${layer}`);
    }
    const text = id => (Number(id) === tokenizer.end ? END
      : new TextDecoder().decode(tokenizer.bytes(id)));
    this.texts = new Proxy({}, { get: (_, id) => text(id) });
  }

  // Read a prompt: after "all", this.views has what one pass tells; the other views follow.
  // start: { position, target, parts }, what is explained and ablated at first.
  *look(prompt, start = {}) {
    const pieces = Text.promptPieces(this.model, this.tokenizer, prompt);
    const { config, model, content } = this;
    const ids = pieces.filter(piece => !piece.unknown).map(piece => piece.id);
    this.seen = { residual: [], mixed: [], mlp: [] };  // [layer][position] -> Float32Array
    this.without = new Map();  // part -> what the model says without it
    this.logits = [];
    this.views = {
      format_version: 1,
      model: { layers: config.n_layer, heads: config.n_head },
      prompt, tokens: ids, texts: this.texts, views: {}, left_out: content.left_out,
    };
    yield* this.read(ids, (kind, layer, values) => {
      (this.seen[kind][layer] ??= []).push(values.slice());
    }, logits => this.logits.push(logits.slice()));
    this.candidates = this.logits.map((logits, at) => [
      ...new Set([...largest(logits, TOP).map(([id]) => id), ...ids.slice(at + 1, at + 2)])]);
    const { position = ids.length - 1, target = this.candidates[position][0], parts = [] } = start;
    if (!this.candidates[position].includes(target)) this.candidates[position].push(target);
    this.chosen = parts.join();
    this.means = this.averages();
    this.whole = this.said(this.logits);
    this.show("surprise", { nats: [null, ...this.whole.losses] });
    this.show("attention", { weights: this.attention(ids.length) });
    if (content.heads) this.show("heads", content.heads);
    this.explain(position, target);
    yield "all";
    yield* this.nearest();
    yield "neighbours";
    yield* this.lens();
    yield "lens";
    if (this.chosen) yield* this.ablations([this.chosen]);
    if (this.isQuick) yield* this.ablations();
  }

  show(name, found) {
    this.views.views[name] = { ...this.content.titles[name], ...found };
  }

  // Run the model on tokens; each(logits) after each token.
  *read(ids, visit, each) {
    this.model.length = 0;
    this.model.visit = visit;
    for (const id of ids) {
      each(this.model.step(id));
      yield;
    }
  }

  attention(count) {
    return Array.from({ length: this.config.n_layer }, (_, layer) =>
      Array.from({ length: this.config.n_head }, (_, head) =>
        Array.from({ length: count }, (_, position) =>
          Array.from(this.model.attention(layer, head, position)))));
  }

  // What logits [T][V] say: the loss of each next token, and after each position the likeliest
  // tokens and the log probabilities of the candidates.
  said(rows) {
    const ids = this.views.tokens;
    const sums = rows.map(logSum);
    const share = (at, id) => rows[at][id] - sums[at];
    return {
      losses: ids.slice(1).map((id, at) => -share(at, id)),
      tops: rows.map((logits, at) => (
        largest(logits, TOP).map(([id]) => [id, Math.exp(share(at, id))]))),
      chances: this.candidates.map((some, at) => new Map(some.map(id => [id, share(at, id)]))),
    };
  }

  // The prediction after `position` that contributions and ablations explain; a target is one of
  // the candidates there, by default the likeliest.
  explain(position, target = this.candidates[position][0]) {
    Object.assign(this.views, { position, target });
    this.show("contributions", {
      candidates: this.candidates[position], ...this.contributions(position, target),
    });
    this.showAblations();
  }

  showAblations() {
    const found = ([parts, said]) => ({ parts: parts.split(","), ...this.measured(said) });
    const all = [...this.without].map(found);
    this.show("ablation", {
      means: this.content.means ?? `the ${this.views.tokens.length} tokens of `
        + "the prompt (there is no validation text)",
      ...this.measured(this.whole),
      parts: all.filter(({ parts }) => parts.length === 1),
      chosen: all.find(({ parts }) => parts.join() === this.chosen) ?? null,
    });
  }

  measured({ losses, tops, chances }) {
    const { position, target } = this.views, chance = chances[position].get(target);
    return {
      loss: -chance,
      text_loss: losses.length ? losses.reduce((a, b) => a + b) / losses.length : null,
      probability: Math.exp(chance),
      top: tops[position],
    };
  }

  // Without each of some parts in turn (mean ablation); "2.3,mlp0" is two together.
  *ablations(all = this.parts) {
    const { n_head, n_embd, head_dim } = this.config, { heads, mlps } = this.means;
    for (const parts of all) {
      if (this.without.has(parts)) continue;
      const means = { mixed: [], mlp: [] };  // [layer] -> [where, values]
      for (const part of parts.split(",")) {
        const [layer, head] = part.replace("mlp", "").split(".").map(Number), at = layer * n_embd;
        const row = (layer * n_head + head) * head_dim;
        if (head === undefined) (means.mlp[layer] ??= []).push([0, mlps.subarray(at, at + n_embd)]);
        else {
          (means.mixed[layer] ??= []).push([head * head_dim, heads.subarray(row, row + head_dim)]);
        }
      }
      const rows = [];
      yield* this.read(this.views.tokens, (kind, layer, values) => {
        for (const [at, mean] of means[kind]?.[layer] ?? []) values.set(mean, at);
      }, logits => rows.push(logits.slice()));
      this.without.set(parts, this.said(rows));
      this.showAblations();
      yield "ablation";
    }
  }

  // Whether all ablations take a few seconds at most.
  get isQuick() {
    const { n_layer, n_embd, vocab_size } = this.config;
    const weights = 12 * n_layer * n_embd ** 2 + vocab_size * n_embd;
    return this.parts.length * this.views.tokens.length * weights < 3e9;
  }

  // The mean of each head [L, H, D] and MLP [L, C]: what the page holds, else that of the prompt.
  averages() {
    const { "means.heads": heads, "means.mlps": mlps } = this.model.tensors;
    if (heads) return { heads, mlps };
    const { mixed, mlp } = this.seen;
    const sum = (rows, i) => rows.reduce((total, row) => total + row[i], 0);
    const mean = rows => rows[0].map((_, i) => sum(rows, i) / rows.length);
    const joined = layers => Float32Array.from(layers.flatMap(rows => Array.from(mean(rows))));
    return { heads: joined(mixed), mlps: joined(mlp) };
  }

  // What each part adds to the logit of `target`: the scale of the final norm is frozen.
  contributions(position, target) {
    const { n_layer, n_head, n_embd: C, head_dim: D, use_rms_norm } = this.config;
    const { tensors } = this.model, row = this.model.head.subarray(target * C, (target + 1) * C);
    const stream = this.seen.residual[n_layer][position];
    let direction = row.map((weight, i) => weight * tensors["final_norm.weight"][i]);
    const average = values => values.reduce((a, b) => a + b) / C;
    const centre = use_rms_norm ? 0 : average(stream);
    const variance = average(stream.map(value => (value - centre) ** 2));
    const scale = 1 / Math.sqrt(variance + this.config.norm_eps);
    const shift = use_rms_norm ? 0 : average(direction);
    direction = direction.map(weight => (weight - shift) * scale);
    const bias = tensors["final_norm.bias"];
    let constant = bias ? dot(bias, row) : 0;
    const parts = [{ part: "embedding", logit: dot(this.seen.residual[0][position], direction) }];
    for (let layer = 0; layer < n_layer; layer++) {
      const name = `blocks.${layer}.attention.o_proj`;
      const weight = tensors[name + ".weight"], mixed = this.seen.mixed[layer][position];
      for (let head = 0; head < n_head; head++) {
        let logit = 0;
        for (let i = 0; i < C; i++) {
          const from = i * n_head * D + head * D;
          for (let j = 0; j < D; j++) {
            logit += direction[i] * weight[from + j] * mixed[head * D + j];
          }
        }
        parts.push({ part: `${layer}.${head}`, logit });
      }
      const added = this.seen.mlp[layer]?.[position];
      if (added) parts.push({ part: `mlp${layer}`, logit: dot(added, direction) });
      if (tensors[name + ".bias"]) constant += dot(tensors[name + ".bias"], direction);
    }
    if (constant) parts.push({ part: "biases", logit: constant });
    return { logit: this.logits[position][target], parts };
  }

  // What the model would say if it stopped before each block, by its own output head.
  *lens() {
    const { n_layer } = this.config, { tensors } = this.model;
    const layers = [], tuned = tensors["tuned.0.weight"] ? [] : null;
    for (let layer = 0; layer <= n_layer; layer++) {
      layers.push([]);
      tuned?.push([]);
      for (const [position, stream] of this.seen.residual[layer].entries()) {
        layers[layer].push(this.guess(stream, position));
        yield;
        const name = `tuned.${layer}`, weight = tensors[name + ".weight"];
        if (!tuned) continue;
        let translated = stream;
        if (weight) {
          translated = new Float32Array(stream.length);
          linear(translated, weight, tensors[name + ".bias"], stream);
          for (let i = 0; i < stream.length; i++) translated[i] += stream[i];
        }
        tuned[layer].push(weight ? this.guess(translated, position) : layers[layer][position]);
      }
    }
    this.show("lens", { layers, tuned });
  }

  guess(stream, position) {
    const probabilities = softmax(this.model.unembed(stream));
    const next = this.views.tokens[position + 1];
    const top = largest(probabilities, TOP);
    if (next === undefined) return { top, next: null };
    const rank = probabilities.reduce((rank, p) => rank + (p > probabilities[next]), 1);
    return { top, next: [rank, probabilities[next]] };
  }

  // The tokens whose embeddings point most nearly the same way, for each token of the prompt.
  *nearest() {
    const { n_embd, vocab_size } = this.config;
    const table = this.model.tensors["token_embedding.weight"];
    const row = id => table.subarray(id * n_embd, (id + 1) * n_embd);
    const length = id => Math.sqrt(dot(row(id), row(id))) || 1;
    const lengths = Array.from({ length: vocab_size }, (_, id) => length(id));
    const nearest = {};
    for (const id of new Set(this.views.tokens)) {
      const cosines = lengths.map((other, i) => dot(row(id), row(i)) / other / lengths[id]);
      cosines[id] = -Infinity;  // every token is nearest to itself
      nearest[id] = largest(cosines, Math.min(NEAREST, vocab_size - 1));
      yield;
    }
    this.show("neighbours", { nearest });
  }
}
