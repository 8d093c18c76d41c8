"use strict";
// The page around the model: prompt, text, bars and heads.

const byId = id => document.getElementById(id);
const content = JSON.parse(byId("model").textContent);
const model = new GPT(content.config, readTensors(
  content.tensors, content.group,
  new Int8Array(fromBase64(byId("int8").textContent).buffer),
  new Float32Array(fromBase64(byId("floats").textContent).buffer)));
const tokenizer = makeTokenizer(content.tokenizer);
for (const id of ["int8", "floats"]) byId(id).remove();  // or the weights stay in memory twice

const BARS = 9;
const canHover = matchMedia("(hover: hover)").matches;
let text = null;       // the text in progress
let shown = [];        // for each token: { span, next: [[id, probability], ...] }
let decoder = null;    // bytes -> characters, which may need several tokens
let picked = null;     // number of the token whose predictions and attention are shown
let isHeld = false;    // a click holds the picked token, so that the pointer can move to the heads
let pickedHead = null; // [layer, head], or null for the mean of all
let run = 0;           // number of the current generation; a new one ends it

const value = id => Number(byId(id).value);
const isWriting = () => document.body.classList.contains("writing");

// A readable token: spaces and line ends become visible marks.
function label(id) {
  if (id === tokenizer.end) return "<small>end of text</small>";
  const letters = new TextDecoder().decode(tokenizer.bytes(id));
  const safe = letters.replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  return safe.replace(/ /g, "<small>␣</small>").replace(/\n/g, "<small>⏎</small>")
    .replace(/\t/g, "<small>⇥</small>");
}

function begin() {
  text = new Text(model, tokenizer);
  decoder = new TextDecoder();
  shown = [];
  picked = pickedHead = null;
  isHeld = false;
  byId("text").replaceChildren();
}

function add(id, isGiven) {
  const logits = text.push(id);
  const span = document.createElement("span");
  span.className = isGiven ? "given" : "new";
  span.textContent = decoder.decode(tokenizer.bytes(id), { stream: true });
  span.dataset.number = shown.length;
  byId("text").append(span);
  shown.push({ span, next: likeliest(logits, BARS) });
  return logits;
}

const pause = () => new Promise(resolve => setTimeout(resolve, 8));

// Continue the text token by token until it ends, has `count` more tokens, or a new run begins.
async function goOn(count) {
  const mine = ++run, box = byId("text");
  document.body.classList.add("writing");
  byId("write").textContent = "Stop";
  let written = 0, spent = 0, ended = false;
  while (written < count && mine === run) {
    const before = performance.now();
    const next = choose(model.logits, value("temperature"), value("top-k"), Math.random());
    if ((ended = next === tokenizer.end)) break;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    add(next, false);
    written++;
    spent += performance.now() - before;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    if (picked === null) showNext(shown.length - 1);
    await pause();
  }
  if (mine !== run) return;
  run++;
  document.body.classList.remove("writing");
  byId("write").textContent = "Write";
  byId("go-on").disabled = ended;
  const speed = Math.round(written / Math.max(spent, 1) * 1000);
  note(`${written} tokens${written ? `, ${speed.toLocaleString("en")} per second` : ""}`
    + (ended ? "; the model ended the text" : ""));
  pick(shown.length - 1);
}

function note(sentence, isWrong = false) {
  byId("note").textContent = sentence;
  byId("note").className = isWrong ? "wrong" : "";
}

function stop() {
  run++;
  document.body.classList.remove("writing");
  byId("write").textContent = "Write";
  pick(shown.length - 1);
}

async function write(prompt, count) {
  let ids;
  try {
    ids = Text.promptIds(model, tokenizer, prompt);
  } catch (error) {
    note(error.message, true);
    return;
  }
  begin();
  byId("go-on").disabled = false;
  note("");
  const mine = ++run;
  for (const [number, id] of ids.entries()) {
    add(id, true);
    if (number % 32 === 31) await pause();
    if (mine !== run) return;
  }
  await goOn(count);
}

// What comes next --------------------------------------------------------------------------------

function showNext(number) {
  const follower = text.ids[number + 1];
  const word = label(text.ids[number]);
  byId("next-hint").innerHTML = number === shown.length - 1
    ? `after “${word}”, the last token; click a token to add it`
    : `after “${word}”; click a token to continue from there`;
  byId("bars").replaceChildren(...shown[number].next.map(([id, probability]) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.className = id === follower ? "taken" : "";
    const percent = (100 * probability).toFixed(probability < 0.0995 ? 1 : 0);
    button.innerHTML = `<code>${label(id)}</code>`
      + `<span><i style="width:${(100 * probability).toFixed(1)}%"></i></span><b>${percent}%</b>`;
    button.onclick = () => take(number, id);
    item.append(button);
    return item;
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
  for (const { span } of shown.splice(number + 1)) span.remove();
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
  if (picked === null) return;
  shown[number].span.classList.add("picked");
  drawHeads();
  paint();
}

// Attention of the picked token by each head: [layer][head] -> Float32Array over the window.
function attentions() {
  const position = picked - text.start, { n_layer, n_head } = model.config;
  if (position < 0 || position >= model.length) return null;
  return Array.from({ length: n_layer }, (_, layer) =>
    Array.from({ length: n_head }, (_, head) => model.attention(layer, head, position)));
}

function mean(rows) {
  const sum = new Float32Array(rows[0].length);
  for (const row of rows) row.forEach((weight, i) => { sum[i] += weight / rows.length; });
  return sum;
}

function drawHeads() {
  const all = attentions(), box = byId("heads");
  if (!all) {
    box.replaceChildren();
    return;
  }
  const colour = `rgb(${getComputedStyle(document.documentElement).getPropertyValue("--look")})`;
  box.replaceChildren(...all.map((heads, layer) => {
    const row = document.createElement("div");
    row.className = "layer";
    row.append(String(layer + 1));
    row.append(...heads.map((weights, head) => drawHead(weights, layer, head, colour)));
    return row;
  }));
}

// The attention weights of the last positions as bars, the newest on the right.
function drawHead(weights, layer, head, colour) {
  const canvas = document.createElement("canvas");
  const seen = weights.subarray(-48), top = Math.max(...seen, 0.1);
  [canvas.width, canvas.height] = [192, 60];
  const pen = canvas.getContext("2d"), width = canvas.width / 48;
  pen.fillStyle = colour;
  seen.forEach((weight, i) => {
    const height = weight / top * (canvas.height - 8);
    pen.fillRect((48 - seen.length + i) * width, canvas.height - height, width - 1, height);
  });
  canvas.title = `layer ${layer + 1}, head ${head + 1}`;
  const show = () => {
    pickedHead = [layer, head];
    for (const other of document.querySelectorAll("canvas.picked")) other.classList.remove("picked");
    canvas.classList.add("picked");
    paint();
  };
  const release = () => {
    pickedHead = null;
    canvas.classList.remove("picked");
    paint();
  };
  if (canHover) [canvas.onmouseenter, canvas.onmouseleave] = [show, release];
  else canvas.onclick = () => (canvas.classList.contains("picked") ? release() : show());
  if (pickedHead && pickedHead[0] === layer && pickedHead[1] === head) {
    canvas.classList.add("picked");
  }
  return canvas;
}

// Colour the text by the attention of the picked token to each token up to it.
function paint() {
  for (const { span } of shown) span.style.background = "";
  const all = picked === null ? null : attentions();
  const word = picked === null ? "" : label(text.ids[picked]);
  if (!all) {
    byId("look-hint").innerHTML = `“${word}” is no longer in the model's window of `
      + `${model.config.block_size} tokens.`;
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
  const who = pickedHead ? `head ${pickedHead[1] + 1} of layer ${pickedHead[0] + 1}` : "all heads";
  byId("look-hint").innerHTML = `from “${word}”, ${who}, shown by colour in the text. One row per `
    + `layer, one box per head; ${canHover ? "point at" : "tap"} a box to see that head alone.`;
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
byId("write").onclick = () => (isWriting() ? stop() : write(byId("prompt").value, value("length")));
byId("go-on").onclick = () => { picked = null; isHeld = false; goOn(value("length")); };
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
matchMedia("(prefers-color-scheme: dark)").onchange = () => pick(picked ?? -1);
byId("text-hint").textContent = `${canHover ? "Point at" : "Tap"} a token to see what the model `
  + `expected after it, and its attention${canHover ? "; click to keep it selected" : ""}.`;

// For scripts: the greedy continuation of a prompt, at most `count` tokens.
window.generate = (prompt, count) => {
  const text = new Text(model, tokenizer), decoder = new TextDecoder();
  let logits, written = "";
  for (const id of Text.promptIds(model, tokenizer, prompt)) logits = text.push(id);
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
write(byId("prompt").value, asked.has("n") ? Number(asked.get("n")) : value("length"));
