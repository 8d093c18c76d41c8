"use strict";
// The page around the model: prompt, text, bars and heads.

const content = JSON.parse(byId("model").textContent);
const model = new GPT(content.config, readTensors(
  content.tensors, content.group,
  new Int8Array(fromBase64(byId("int8").textContent).buffer),
  new Float32Array(fromBase64(byId("floats").textContent).buffer)));
const tokenizer = makeTokenizer(content.tokenizer);
for (const id of ["int8", "floats"]) byId(id).remove();  // or the weights stay in memory twice

const BARS = 9;
const LOOK_EVERY = 120;  // milliseconds between two pictures of the attention while writing
let text = null;       // the text in progress
let shown = [];        // for each token: { span, next: [[id, probability], ...] }
let decoder = null;    // bytes -> characters, which may need several tokens
let picked = null;     // number of the token whose predictions and attention are shown
let isHeld = false;    // a click holds the picked token, so that the pointer can move to the heads
let pickedHead = null; // [layer, head], or null for the mean of all
let run = 0;           // number of the current generation; a new one ends it
let remark = "";       // a sentence about the prompt

const value = id => Number(byId(id).value);
const isWriting = () => document.body.classList.contains("writing");

// A token as nodes.
const label = id => marked(id === tokenizer.end ? END
  : new TextDecoder().decode(tokenizer.bytes(id)));

function begin() {
  text = new Text(model, tokenizer);
  decoder = new TextDecoder();
  shown = [];
  picked = null;
  isHeld = false;
  showHead(null);
  byId("text").replaceChildren();
}

function add(id, isGiven) {
  const logits = text.push(id);
  const span = document.createElement("span");
  span.className = isGiven ? "given" : "new";
  span.textContent = decoder.decode(tokenizer.bytes(id), { stream: true });
  span.dataset.number = shown.length;
  byId("text").append(span);
  shown.push({ span, next: largest(softmax(logits.slice()), BARS) });
  return logits;
}

const pause = () => new Promise(resolve => setTimeout(resolve, 8));

function setWriting(writing) {
  document.body.classList.toggle("writing", writing);
  byId("go-on").textContent = writing ? "Stop" : "Continue";
}

// Continue the text token by token until it ends, has `count` more tokens, or a new run begins.
async function goOn(count) {
  const mine = ++run, box = byId("text"), began = performance.now();
  setWriting(true);
  byId("go-on").disabled = false;
  let written = 0, ended = false, looked = -LOOK_EVERY;
  while (written < count && mine === run) {
    const next = choose(model.logits, value("temperature"), value("top-k"), Math.random());
    if ((ended = next === tokenizer.end)) break;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    add(next, false);
    written++;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    showNext(shown.length - 1);
    if (performance.now() - looked > LOOK_EVERY) {
      drawLook();
      looked = performance.now();
    }
    await pause();
  }
  if (mine !== run) return;
  run++;
  setWriting(false);
  byId("go-on").disabled = ended;
  const speed = Math.round(written / Math.max(performance.now() - began, 1) * 1000);
  note(`${remark}${written} tokens${written ? `, ${speed.toLocaleString("en")} per second` : ""}`
    + (ended ? "; the model ended the text" : ""));
  pick(shown.length - 1);
}

function note(sentence, isWrong = false) {
  byId("note").textContent = sentence;
  byId("note").className = isWrong ? "wrong" : "";
}

function stop() {
  run++;
  setWriting(false);
  pick(shown.length - 1);
}

async function write(prompt, count) {
  const pieces = Text.promptPieces(model, tokenizer, prompt);
  const unknown = [...new Set(pieces.flatMap(piece => piece.unknown ?? []))];
  remark = unknown.length ? `${skipped(unknown)} ` : "";
  begin();
  note(remark);
  setWriting(true);
  const mine = ++run;
  for (const [number, { id, unknown }] of pieces.entries()) {
    if (unknown) addUnknown(unknown);
    else add(id, true);
    if (number % 32 === 31) await pause();
    if (mine !== run) return;
  }
  await goOn(count);
}

const skipped = unknown => "Skipped, because the model does not know it: "
  + `${unknown.map(c => `“${c}”`).join(" ")}.`;

// A character of the prompt that the model does not know: shown, and skipped.
function addUnknown(character) {
  const span = document.createElement("span");
  span.className = "unknown";
  span.title = "the model does not know this character";
  span.textContent = character;
  byId("text").append(span);
}

// What comes next --------------------------------------------------------------------------------

function showNext(number) {
  const follower = text.ids[number + 1];
  byId("next-hint").replaceChildren("after ", element("q", {}, ...label(text.ids[number])),
    number === shown.length - 1 ? ", the last token; click a token to add it"
      : "; click a token to continue from there");
  byId("bars").replaceChildren(...shown[number].next.map(([id, probability]) => {
    const bar = element("i");
    bar.style.width = `${(100 * probability).toFixed(1)}%`;
    return element("li", {}, element("button", {
      type: "button", className: id === follower ? "taken" : "", onclick: () => take(number, id),
    }, element("code", {}, ...label(id)), element("span", {}, bar),
    element("b", {}, percent(probability))));
  }));
}

// Put token `id` after token `number` and drop everything that followed.
function take(number, id) {
  if (id === tokenizer.end) return;
  stop();
  if (!text.cut(number)) {
    note("That token is no longer in the model's window.", true);
    return;
  }
  shown.length = number + 1;
  while (shown[number].span.nextSibling) shown[number].span.nextSibling.remove();
  decoder = new TextDecoder();
  add(id, false);
  byId("go-on").disabled = false;
  note("");
  pick(shown.length - 1);
}

// Attention --------------------------------------------------------------------------------------

function pick(number) {
  if (number < 0 || number >= shown.length) return;
  if (picked !== null) shown[picked]?.span.classList.remove("picked");
  picked = isWriting() ? null : number;
  showNext(number);
  if (picked !== null) shown[number].span.classList.add("picked");
  drawLook();
}

// The token whose attention is shown: the picked one, or the newest while the model writes.
const looking = () => picked ?? shown.length - 1;

// Its attention by each head: [layer][head] -> Float32Array over the window; null outside of it.
function attentions() {
  const position = looking() - text.start, { n_layer, n_head } = model.config;
  if (position < 0 || position >= model.length) return null;
  return Array.from({ length: n_layer }, (_, layer) =>
    Array.from({ length: n_head }, (_, head) => model.attention(layer, head, position)));
}

function drawLook() {
  const all = attentions(), box = byId("heads");
  box.hidden = !all;
  if (all) {
    const style = getComputedStyle(document.documentElement);
    const colour = `rgb(${style.getPropertyValue("--look")})`;
    const canvases = box.querySelectorAll("canvas");
    all.flat().forEach((weights, i) => drawHead(canvases[i], weights, colour));
  }
  paint(all);
}

function mean(rows) {
  const sum = new Float32Array(rows[0].length);
  for (const row of rows) row.forEach((weight, i) => { sum[i] += weight / rows.length; });
  return sum;
}

// One row per layer, one canvas per head.
function makeHeads() {
  const { n_layer, n_head } = model.config;
  byId("heads").replaceChildren(...Array.from({ length: n_layer }, (_, layer) => {
    const row = document.createElement("div");
    row.className = "layer";
    row.append(String(layer));
    row.append(...Array.from({ length: n_head }, (_, head) => makeHead(layer, head)));
    return row;
  }));
}

function makeHead(layer, head) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [192, 60];
  canvas.title = `head ${layer}.${head}`;
  canvas.dataset.head = `${layer} ${head}`;
  const show = () => { showHead([layer, head]); paint(attentions()); };
  const release = () => { showHead(null); paint(attentions()); };
  if (canHover) [canvas.onmouseenter, canvas.onmouseleave] = [show, release];
  else canvas.onclick = () => (canvas.classList.contains("picked") ? release() : show());
  return canvas;
}

// Let one head alone colour the text; null: the mean of all.
function showHead(which) {
  pickedHead = which;
  for (const canvas of byId("heads").querySelectorAll("canvas")) {
    canvas.classList.toggle("picked", canvas.dataset.head === which?.join(" "));
  }
}

// The attention weights of the last positions as bars, the newest on the right.
function drawHead(canvas, weights, colour) {
  const seen = weights.subarray(-48), top = Math.max(...seen, 0.1);
  const pen = canvas.getContext("2d"), width = canvas.width / 48;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = colour;
  seen.forEach((weight, i) => {
    const height = weight / top * (canvas.height - 8);
    pen.fillRect((48 - seen.length + i) * width, canvas.height - height, width - 1, height);
  });
}

// Colour the text by the attention of a token to each token up to it.
function paint(all) {
  for (const { span } of shown) span.style.background = "";
  const word = element("q", {}, ...label(text.ids[looking()]));
  if (!all) {
    byId("look-hint").replaceChildren(word, " is no longer in the model's window of "
      + `${model.config.block_size} tokens.`);
    return;
  }
  const weights = pickedHead ? all[pickedHead[0]][pickedHead[1]] : mean(all.flat());
  const top = Math.max(...weights);
  weights.forEach((weight, i) => {
    const strength = 0.75 * weight / Math.max(top, 0.1);
    if (strength > 0.02) {
      shown[text.start + i].span.style.background = `rgba(var(--look), ${strength.toFixed(3)})`;
    }
  });
  const who = pickedHead ? `head ${pickedHead.join(".")} (layer.head)` : "all heads";
  byId("look-hint").replaceChildren("from ", word, `, ${who}, shown by colour in the text. One row `
    + `per layer, one box per head; ${canHover ? "point at" : "tap"} a box to see that head `
    + "alone.");
}

// Controls ---------------------------------------------------------------------------------------

function showValues() {
  byId("temperature-value").textContent = value("temperature");
  byId("top-k-value").textContent = value("top-k") || "all";
  byId("length-value").textContent = value("length");
}

byId("bars").className = content.tokenizer.kind === "char" ? "characters" : "";
byId("top-k").max = Math.min(100, model.config.vocab_size);
for (const id of ["temperature", "top-k", "length"]) byId(id).oninput = showValues;
byId("write").onclick = () => write(byId("prompt").value, value("length"));
byId("go-on").onclick = () => {
  if (isWriting()) {
    stop();
    return;
  }
  if (picked !== null) shown[picked].span.classList.remove("picked");
  picked = null;
  isHeld = false;
  goOn(value("length"));
};
byId("prompt").oninput = () => { if (isWriting()) stop(); };
byId("prompt").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("write").click();
};
const numberUnder = event => (isWriting() ? undefined : event.target.dataset?.number);
byId("text").onclick = event => {
  const number = numberUnder(event);
  isHeld = number !== undefined && !(isHeld && Number(number) === picked);
  if (isHeld) pick(Number(number));
};
if (canHover) {
  byId("text").onmouseover = event => {
    const number = numberUnder(event);
    if (number !== undefined && !isHeld) pick(Number(number));
  };
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawLook);
byId("text-hint").textContent = `${canHover ? "Point at" : "Tap"} a token to see what the model `
  + `expected after it, and its attention${canHover ? "; click to keep it selected" : ""}.`;

// For scripts: the greedy continuation of a prompt, at most `count` tokens.
window.generate = (prompt, count) => {
  const text = new Text(model, tokenizer), decoder = new TextDecoder();
  let logits, written = "";
  for (const { id, unknown } of Text.promptPieces(model, tokenizer, prompt)) {
    if (!unknown) logits = text.push(id);
  }
  for (let i = 0; i < count; i++) {
    const next = choose(logits, 0);
    if (next === tokenizer.end) break;
    written += decoder.decode(tokenizer.bytes(next), { stream: true });
    if (i + 1 < count) logits = text.push(next);
  }
  return written + decoder.decode();
};

// index.html?prompt=Once&n=50&temperature=0 starts writing at once
const asked = new URLSearchParams(location.search);
if (asked.has("temperature")) byId("temperature").value = asked.get("temperature");
byId("prompt").value = asked.get("prompt") ?? "";
showValues();
makeHeads();
if (asked.has("n")) write(byId("prompt").value, Number(asked.get("n")));
else write(byId("prompt").value, content.inside?.start ? 0 : value("length"));
