"use strict";
// The transformer with a KV cache, one token at a time, and its tokenizers.
// The same computation as gptlab/model/transformer.py; matrices are [out, in], row-major.

function fromBase64(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// manifest: [name, rows, columns] in the order of the data. A matrix is int8 with one scale per
// `group` weights of a row. A vector (columns 0) is float32. Scales and vectors share `floats`.
function readTensors(manifest, group, int8, floats) {
  const tensors = {};
  let i = 0, f = 0;
  for (const [name, rows, columns] of manifest) {
    if (columns === 0) {
      tensors[name] = floats.subarray(f, f += rows);
      continue;
    }
    const values = tensors[name] = new Float32Array(rows * columns);
    for (let row = 0, k = 0; row < rows; row++) {
      for (let column = 0, scale = 0; column < columns; column++) {
        if (column % group === 0) scale = floats[f++];
        values[k++] = int8[i++] * scale;
      }
    }
  }
  return tensors;
}

// out = weight x + bias
function linear(out, weight, bias, x) {
  const columns = x.length, whole = columns - columns % 4;
  for (let row = 0, k = 0; row < out.length; row++) {
    let a = 0, b = 0, c = 0, d = 0, i = 0;
    for (; i < whole; i += 4, k += 4) {  // four sums, so that additions do not wait for each other
      a += weight[k] * x[i];
      b += weight[k + 1] * x[i + 1];
      c += weight[k + 2] * x[i + 2];
      d += weight[k + 3] * x[i + 3];
    }
    for (; i < columns; i++) a += weight[k++] * x[i];
    out[row] = a + b + c + d + (bias ? bias[row] : 0);
  }
}

function rmsNorm(out, x, weight, eps) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * x[i];
  const scale = 1 / Math.sqrt(sum / x.length + eps);
  for (let i = 0; i < x.length; i++) out[i] = x[i] * scale * weight[i];
}

function layerNorm(out, x, weight, bias, eps) {
  let mean = 0, variance = 0;
  for (let i = 0; i < x.length; i++) mean += x[i];
  mean /= x.length;
  for (let i = 0; i < x.length; i++) variance += (x[i] - mean) ** 2;
  const scale = 1 / Math.sqrt(variance / x.length + eps);
  for (let i = 0; i < x.length; i++) {
    out[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
}

function softmax(values) {
  let top = -Infinity, sum = 0;
  for (const value of values) if (value > top) top = value;
  for (let i = 0; i < values.length; i++) sum += values[i] = Math.exp(values[i] - top);
  for (let i = 0; i < values.length; i++) values[i] /= sum;
  return values;
}

// Abramowitz & Stegun 7.1.26: error below 2e-7, the precision of float32
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = 0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429)));
  return Math.sign(x) * (1 - t * series * Math.exp(-x * x));
}

const ACTIVATIONS = {
  silu: x => x / (1 + Math.exp(-x)),
  gelu: x => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: x => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: x => Math.max(0, x),
  relu2: x => Math.max(0, x) ** 2,
};

class GPT {
  // config: the fields of GPTConfig; tensors: {name in the checkpoint: Float32Array}
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    this.length = 0;  // tokens in the cache
    // Sees what step() computes, and may change it: visit(kind, layer, values). "residual": the
    // stream before block `layer`, layer n_layer after the last; "mixed": what the heads of a layer
    // mixed, before o_proj; "mlp": what its MLP adds to the stream.
    this.visit = () => {};
    const { n_layer, n_embd, n_head, n_kv_head, head_dim, block_size } = config;
    this.cache = Array.from({ length: n_layer }, () => ({
      q: new Float32Array(block_size * n_head * head_dim),  // kept to show attention later
      k: new Float32Array(block_size * n_kv_head * head_dim),
      v: new Float32Array(block_size * n_kv_head * head_dim),
    }));
    this.x = new Float32Array(n_embd);
    this.normed = new Float32Array(n_embd);
    this.branch = new Float32Array(n_embd);
    this.mixed = new Float32Array(n_head * head_dim);
    this.hidden = new Float32Array(config.intermediate_size);
    this.gate = new Float32Array(config.intermediate_size);
    this.logits = new Float32Array(config.vocab_size);
  }

  norm(out, x, name) {
    const weight = this.tensors[name + ".weight"], eps = this.config.norm_eps;
    if (this.config.use_rms_norm) rmsNorm(out, x, weight, eps);
    else layerNorm(out, x, weight, this.tensors[name + ".bias"], eps);
  }

  apply(out, name, x) {
    linear(out, this.tensors[name + ".weight"], this.tensors[name + ".bias"], x);
  }

  // Add one token to the cache; returns the logits of the next one (valid until the next call).
  step(token) {
    const { n_embd, n_layer, intermediate_size, block_size } = this.config;
    if (this.length === block_size) throw new Error("the window is full");
    const table = this.tensors["token_embedding.weight"];
    for (let i = 0; i < n_embd; i++) this.x[i] = table[token * n_embd + i];
    this.addPosition();
    for (let layer = 0; layer < n_layer; layer++) {
      const block = `blocks.${layer}`;
      this.visit("residual", layer, this.x);
      this.norm(this.normed, this.x, block + ".attention_norm");
      this.attend(layer, block + ".attention");
      for (let i = 0; i < n_embd; i++) this.x[i] += this.branch[i];
      if (intermediate_size === 0) continue;  // attention only
      this.norm(this.normed, this.x, block + ".mlp_norm");
      this.transform(block + ".mlp");
      this.visit("mlp", layer, this.branch);
      for (let i = 0; i < n_embd; i++) this.x[i] += this.branch[i];
    }
    this.visit("residual", n_layer, this.x);
    this.length++;
    return this.unembed(this.x);
  }

  // [vocab_size, n_embd]: its row for a token says how a normed stream scores that token.
  get head() {
    return this.tensors[this.config.tie_weights ? "token_embedding.weight" : "lm_head.weight"];
  }

  // The logits of a residual stream (valid until the next call).
  unembed(x) {
    this.norm(this.normed, x, "final_norm");
    linear(this.logits, this.head, null, this.normed);
    return this.logits;
  }

  addPosition() {
    const { n_embd, position_encoding } = this.config;
    if (position_encoding === "learned") {
      const table = this.tensors["position_embedding.weight"];
      for (let i = 0; i < n_embd; i++) this.x[i] += table[this.length * n_embd + i];
    } else if (position_encoding === "sinusoidal") {
      const half = (n_embd + 1) >> 1;
      for (let i = 0; i < n_embd; i++) {
        const angle = this.length * Math.pow(10000, -(i % half) / half);
        this.x[i] += i < half ? Math.sin(angle) : Math.cos(angle);
      }
    }
  }

  attend(layer, name) {
    const { n_head, n_kv_head, head_dim, qk_norm, norm_eps } = this.config;
    const { q, k, v } = this.cache[layer], position = this.length;
    const place = (values, heads) =>
      values.subarray(position * heads * head_dim, (position + 1) * heads * head_dim);
    const query = place(q, n_head), key = place(k, n_kv_head), value = place(v, n_kv_head);
    this.apply(query, name + ".q_proj", this.normed);
    this.apply(key, name + ".k_proj", this.normed);
    this.apply(value, name + ".v_proj", this.normed);
    for (const [rows, norm] of [[query, ".q_norm.weight"], [key, ".k_norm.weight"]]) {
      for (let start = 0; start < rows.length; start += head_dim) {
        const head = rows.subarray(start, start + head_dim);
        if (qk_norm) rmsNorm(head, head, this.tensors[name + norm], norm_eps);
        this.rotate(head);
      }
    }
    this.mixed.fill(0);
    const width = n_kv_head * head_dim;
    for (let head = 0; head < n_head; head++) {
      const weights = this.attention(layer, head, position);
      const shared = Math.floor(head * n_kv_head / n_head) * head_dim, at = head * head_dim;
      for (let past = 0; past <= position; past++) {
        const weight = weights[past], from = past * width + shared;
        for (let i = 0; i < head_dim; i++) this.mixed[at + i] += weight * v[from + i];
      }
    }
    this.visit("mixed", layer, this.mixed);
    this.apply(this.branch, name + ".o_proj", this.mixed);
  }

  // Rotate the channel pairs (i, i + head_dim / 2) by the angles of the position.
  rotate(head) {
    if (this.config.position_encoding !== "rope") return;
    const half = head.length / 2;
    for (let i = 0; i < half; i++) {
      const frequency = Math.fround(Math.pow(this.config.rope_theta, -i / half));
      const angle = Math.fround(this.length * frequency);
      const cos = Math.cos(angle), sin = Math.sin(angle), a = head[i], b = head[i + half];
      head[i] = a * cos - b * sin;
      head[i + half] = b * cos + a * sin;
    }
  }

  // The attention weights of a head from a cached position to each position up to it; sum 1.
  attention(layer, head, position) {
    const { n_head, n_kv_head, head_dim } = this.config, { q, k } = this.cache[layer];
    const from = (position * n_head + head) * head_dim, width = n_kv_head * head_dim;
    const shared = Math.floor(head * n_kv_head / n_head) * head_dim;
    const scores = new Float32Array(position + 1);
    for (let past = 0; past <= position; past++) {
      let sum = 0;
      for (let i = 0, at = past * width + shared; i < head_dim; i++) sum += q[from + i] * k[at + i];
      scores[past] = sum / Math.sqrt(head_dim);
    }
    return softmax(scores);
  }

  transform(name) {
    const { use_swiglu, activation } = this.config, { hidden, gate } = this;
    this.apply(hidden, name + ".up_proj", this.normed);
    if (use_swiglu) {
      this.apply(gate, name + ".gate_proj", this.normed);
      for (let i = 0; i < hidden.length; i++) hidden[i] *= ACTIVATIONS.silu(gate[i]);
    } else {
      const function_ = ACTIVATIONS[activation];
      for (let i = 0; i < hidden.length; i++) hidden[i] = function_(hidden[i]);
    }
    this.apply(this.branch, name + ".down_proj", hidden);
  }
}

// Tokenizers: encode(text) -> ids, bytes(id) -> UTF-8, pieces(text) -> [{ id } or { unknown }] ------

class CharTokenizer {
  constructor({ alphabet, end }) {
    this.end = end;
    this.alphabet = alphabet;
    this.ids = new Map(alphabet.map((character, id) => [character, id]));
    this.spelled = alphabet.map(character => new TextEncoder().encode(character));
  }

  pieces(text) {
    return Array.from(text, character => (
      this.ids.has(character) ? { id: this.ids.get(character) } : { unknown: character }));
  }

  // Characters that the model does not know are left out.
  encode(text) {
    return this.pieces(text).filter(piece => !piece.unknown).map(piece => piece.id);
  }

  bytes(id) {
    return this.spelled[id] || new Uint8Array();
  }
}

// GPT-2's split rule, with \p{White_Space} instead of \s, which is a different set in JavaScript.
const SPLIT = new RegExp("'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+"
  + "| ?[^\\p{White_Space}\\p{L}\\p{N}]+"
  + "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");

class BytePairTokenizer {
  // merges: lines "left right" in GPT-2's notation. Ids: bytes, merged tokens, end of text.
  constructor({ merges, end }) {
    this.end = end;
    const isVisible = b => (b > 32 && b < 127) || (b > 160 && b !== 173);
    const all = Array.from({ length: 256 }, (_, b) => b);
    const order = [...all.filter(isVisible), ...all.filter(b => !isVisible(b))];
    let hidden = 256;
    this.spelling = [];  // character of each byte
    for (const b of order) this.spelling[b] = String.fromCharCode(isVisible(b) ? b : hidden++);
    const byteOf = new Map(this.spelling.map((character, b) => [character, b]));
    this.ids = new Map(order.map((b, id) => [this.spelling[b], id]));
    this.ranks = new Map();
    for (const merge of merges) {
      this.ranks.set(merge, this.ranks.size);
      this.ids.set(merge.replace(" ", ""), this.ids.size);
    }
    this.spelled = [...this.ids.keys()].map(
      token => Uint8Array.from(token, character => byteOf.get(character)));
  }

  encode(text) {
    const ids = [];
    for (const [piece] of text.matchAll(SPLIT)) {
      const bytes = new TextEncoder().encode(piece);
      for (const token of this.merged(Array.from(bytes, b => this.spelling[b]))) {
        ids.push(this.ids.get(token));
      }
    }
    return ids;
  }

  pieces(text) {
    return this.encode(text).map(id => ({ id }));
  }

  // Merge neighbours, the earliest merge of the list first, until no pair is in the list.
  merged(parts) {
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + " " + parts[i + 1]);
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  bytes(id) {
    return this.spelled[id] || new Uint8Array();
  }
}

function makeTokenizer(spec) {
  return spec.kind === "char" ? new CharTokenizer(spec) : new BytePairTokenizer(spec);
}

// Sampling ---------------------------------------------------------------------------------------

// The next id. temperature 0: always the likeliest; topK: how many likeliest ids to keep (0: all).
function choose(logits, temperature, topK, uniform) {
  if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const scaled = logits.map(logit => logit / temperature);
  if (topK > 0 && topK < scaled.length) {
    const least = scaled.slice().sort()[scaled.length - topK];
    for (let i = 0; i < scaled.length; i++) if (scaled[i] < least) scaled[i] = -Infinity;
  }
  const probabilities = softmax(scaled);
  let rest = uniform;
  for (let i = 0; i < probabilities.length; i++) if ((rest -= probabilities[i]) < 0) return i;
  return probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
}

// The ids of the largest values as [id, value], largest first.
function largest(values, count) {
  const best = [];
  for (let id = 0; id < values.length; id++) {
    if (best.length === count && values[id] <= best[count - 1][1]) continue;
    let at = best.length;
    while (at > 0 && best[at - 1][1] < values[id]) at--;
    best.splice(at, 0, [id, values[id]]);
    if (best.length > count) best.pop();
  }
  return best;
}

// A growing text: the tokens so far, and the model that has read them.
class Text {
  constructor(model, tokenizer) {
    this.model = model;
    this.tokenizer = tokenizer;
    this.ids = [];
    this.start = 0;  // number of the first token that the model still sees
    model.length = 0;
  }

  // The pieces of a prompt that the model sees: at least one token, at most a window.
  static promptPieces(model, tokenizer, prompt) {
    const pieces = tokenizer.pieces(prompt).slice(-model.config.block_size);
    if (pieces.some(piece => !piece.unknown)) return pieces;
    const start = tokenizer.end === null ? tokenizer.encode("\n")[0] : tokenizer.end;
    return [...pieces, { id: start }];
  }

  push(id) {
    const { model } = this, { block_size } = model.config;
    if (model.length === block_size) {  // the window slides: its last half is read again
      const keep = Math.max(1, block_size >> 1) - 1;
      this.start = this.ids.length - keep;
      model.length = 0;
      for (const kept of this.ids.slice(this.start)) model.step(kept);
    }
    this.ids.push(id);
    return model.step(id);
  }

  // Drop everything after token `last`; false if the model no longer sees that token.
  cut(last) {
    if (last < this.start) return false;
    this.ids.length = last + 1;
    this.model.length = last + 1 - this.start;
    return true;
  }
}
