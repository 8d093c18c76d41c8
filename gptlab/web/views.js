"use strict";
// Draws what a model computes for a prompt: one function for each view of gptlab/analysis/lens.py,
// recorded in the page or made in it.

// The views of a prompt on the page, and what is chosen in them.
class Shown {
  // box: where the cards go; live: an Inside, or null for recorded views
  constructor(box, live = null) {
    this.box = box;
    this.live = live;
    this.updates = {};
    this.follow = steps => {};  // takes the steps of what takes long
    this.redraw = () => {};     // the pictures, whose colours are not those of the style
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  show(views) {
    this.views = views;
    this.position = views.position;
    this.part = null;    // the head or MLP that is ablated
    this.head = null;    // [layer, head] whose attention is shown; null for the mean of all
    this.isTuned = null;  // whether the lens is the tuned one
    this.updates = {};
    const cards = Object.keys(DRAW).map(name => this.card(name));
    this.box.replaceChildren(...cards.flat());
    for (const name of Object.keys(DRAW)) this.draw(name);
  }

  card(name) {
    const text = this.views.views[name] ?? this.live?.content.titles[name];
    const body = element("div", { className: "view", id: `view-${name}` });
    const why = this.views.left_out[name];
    if (why) return [element("section", {}, element("p", { className: "hint" }, why))];
    if (!text) return [];
    const card = element("section", { className: `card ${name}` },
      element("h3", {}, text.title), element("p", {}, `${text.sentence} `,
        element("cite", {}, `(${text.reference})`)));
    if (name === "surprise") return [card, body];  // the tokens stay in sight
    card.append(body);
    return [card];
  }

  draw(name) {
    const body = byId(`view-${name}`);
    if (!body) return;
    if (!this.views.views[name]) {
      body.replaceChildren(element("p", { className: "hint" }, "Computing …"));
      return;
    }
    this.updates[name] = DRAW[name](body, this.views.views[name], this);
    this.updates[name]();
  }

  // Choose a position, target, head or part; every view follows.
  choose(change) {
    const { position = this.position, target } = change;
    if (this.live && (position !== this.views.position || target !== undefined)) {
      this.live.explain(position, target);
      delete change.target;
    }
    Object.assign(this, change);
    for (const update of Object.values(this.updates)) update();
  }

  token(position) {
    return this.word(this.views.tokens[position]);
  }

  word(id) {
    return marked(this.views.texts[id]);
  }

  // A word in a sentence.
  quoted(id) {
    return element("q", {}, ...this.word(id));
  }

  // A grid of heads, a row for each layer; make(part, layer, head) gives a button, head null for
  // the MLP, which `withMLPs` adds.
  grid(make, withMLPs = false) {
    const { layers, heads } = this.views.model, columns = heads + withMLPs;
    const name = head => (head === heads ? "mlp" : String(head));
    const places = Array.from({ length: columns }, (_, head) => head);
    const grid = element("div", { className: columns > 8 ? "grid many" : "grid" }, element("span"),
      ...places.map(head => element("span", {}, name(head))));
    for (let layer = 0; layer < layers; layer++) {
      grid.append(element("span", {}, String(layer)), ...places.map(head => {
        const isMLP = head === heads, part = isMLP ? `mlp${layer}` : `${layer}.${head}`;
        const cell = make(part, layer, isMLP ? null : head);
        cell.type = "button";
        cell.dataset.part = part;
        return cell;
      }));
    }
    grid.style.setProperty("--columns", columns);
    return element("div", { className: "scroll" }, roving(grid, columns));
  }
}

// What surprises the model: the tokens, which choose the position for every other view.
function drawSurprise(body, { nats }, shown) {
  const buttons = shown.views.tokens.map((id, position) => shade(element("button", {
    type: "button",
    onclick: () => shown.choose({ position }),
    onmouseenter: () => tell(position),
    onmouseleave: () => tell(shown.position),
  }, ...shown.word(id)), "rise", (nats[position] ?? 0) / 6));
  const hint = element("p", { className: "hint" });
  const strip = roving(element("div", { className: "tokens" }, ...buttons));
  body.replaceChildren(strip, hint);
  function tell(position) {
    const loss = nats[position];
    hint.replaceChildren(shown.quoted(shown.views.tokens[position]), ` is token ${position}. `,
      loss === null ? "It is the first: nothing came before it." : "The model expected it with "
        + `${percent(Math.exp(-loss))}: a surprise of ${loss.toFixed(2)} nats.`);
  }
  return () => {
    buttons.forEach((button, i) => { button.ariaPressed = String(i === shown.position); });
    tell(shown.position);
  };
}

// What the model would say at each layer: a row for each token, a column for each layer.
function drawLens(body, { layers, tuned }, shown) {
  const last = layers.length - 1, count = shown.views.tokens.length;
  const cells = [], panel = element("div", { className: "panel" });
  const heads = ["token", ...Array.from({ length: last }, (_, i) => i), "output", "next"];
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(
    name => element("th", { scope: "col" }, String(name))))));
  const rows = Array.from({ length: count }, (_, position) => {
    const row = element("tr", {}, element("th", { scope: "row" }, ...shown.token(position)));
    cells.push(layers.map((_, layer) => {
      const cell = element("button", {
        type: "button",
        onmouseenter: () => tell(layer, position),
        onfocus: () => tell(layer, position),
        onclick: () => { shown.choose({ position }); tell(layer, position); },
      });
      row.append(element("td", {}, cell));
      return cell;
    }));
    row.append(element("td", {}, ...(position + 1 < count ? shown.token(position + 1) : [])));
    return row;
  });
  table.append(element("tbody", {}, ...rows));
  shown.isTuned ??= tuned !== null;
  const guesses = () => (shown.isTuned ? tuned : layers);
  function fill() {
    guesses().forEach((column, layer) => column.forEach(({ top, next }, position) => {
      const cell = cells[position][layer];
      cell.replaceChildren(...shown.word(top[0][0]));
      cell.classList.toggle("right", next?.[0] === 1);
      cell.ariaLabel = `${shown.views.texts[top[0][0]]}, ${percent(top[0][1])}`;
      shade(cell, "likely", top[0][1]);
    }));
  }
  function tell(layer, position) {
    const { top, next } = guesses()[layer][position];
    const where = layer === last ? "At the output" : `After ${layer} of ${last} layers`;
    panel.replaceChildren(element("p", {}, `${where}, at `,
      shown.quoted(shown.views.tokens[position]), ":"), bars(top.map(([id, chance]) => ({
      name: shown.word(id), value: chance, figure: percent(chance),
      kind: id === shown.views.tokens[position + 1] ? "right" : "",
    })), 1), element("p", { className: "hint" }, ...(next ? ["The real next token ",
      shown.quoted(shown.views.tokens[position + 1]),
      ` is guess number ${next[0].toLocaleString("en")}, with ${percent(next[1])}.`]
      : ["The prompt ends here."])));
  }
  fill();
  const scroll = element("div", { className: "scroll" }, roving(table, layers.length));
  const choice = tuned ? [element("label", { className: "choice" }, element("input", {
    type: "checkbox", checked: shown.isTuned,
    onchange: event => {
      shown.isTuned = event.target.checked;
      fill();
      tell(last, shown.position);
    },
  }), " tuned: each layer read through a translator trained for it (Belrose et al. 2023)")] : [];
  body.replaceChildren(...choice, element("div", { className: "beside" }, scroll, panel));
  scroll.scrollLeft = scroll.scrollWidth;  // to the output
  let told = null;
  return () => {
    rows.forEach((row, i) => row.classList.toggle("picked", i === shown.position));
    if (told !== shown.position) tell(last, told = shown.position);
  };
}

// Where each head looks: a small map for each head, and the tokens coloured by one of them.
function drawAttention(body, { weights }, shown) {
  const { tokens } = shown.views, maps = [];
  const grid = shown.grid((part, layer, head) => {
    const canvas = element("canvas");
    maps.push(() => drawMap(canvas, weights[layer][head]));
    return element("button", {
      className: "map", ariaLabel: `head ${part}`, title: `head ${part}`,
      onclick: () => shown.choose({ head: shown.head === part ? null : part }),
    }, canvas);
  });
  const big = element("canvas", { className: "big" });
  const hint = element("p", { className: "hint" });
  const spans = tokens.map((id, at) => element("span", {
    onmouseenter: () => tell(at), onmouseleave: () => tell(shown.position),
    onclick: () => shown.choose({ position: at }),
  }, ...shown.word(id)));
  const rowsOf = part => {
    if (part === null) return meanRows(weights.flat());
    const [layer, head] = part.split(".");
    return weights[layer][head];
  };
  let rows, drawn;
  function tell(from, to = null) {
    hint.replaceChildren(shown.head === null ? "The mean of all heads" : `Head ${shown.head}`,
      " reads ", shown.quoted(tokens[from]), ...(to === null ? [": the stronger the colour, the "
        + `more it looks there. ${canHover ? "Click" : "Tap"} a map for one head, again for all.`]
        : [` and looks at `, shown.quoted(tokens[to]),
        ` with ${percent(rows[from][to])}.`]));
    const most = Math.max(...rows[from]);
    spans.forEach((span, at) => {
      shade(span, "look", (rows[from][at] ?? 0) / most);
      span.classList.toggle("later", at > from);
      span.classList.toggle("picked", at === from);
    });
  }
  big.onmousemove = event => {
    const place = (offset, size) => Math.min(tokens.length - 1,
      Math.max(0, Math.floor(offset / size * tokens.length)));
    const from = place(event.offsetY, big.clientHeight), to = place(event.offsetX, big.clientWidth);
    tell(from, Math.min(from, to));
  };
  big.onmouseleave = () => tell(shown.position);
  shown.redraw = () => { drawn = undefined; maps.forEach(draw => draw()); update(); };
  body.replaceChildren(element("div", { className: "beside" }, grid,
    element("div", { className: "panel" }, big, element("p", { className: "hint" },
      "Rows: the token that looks. Columns: the token that it looks at."))),
  element("p", { className: "tokens" }, ...spans), hint);
  maps.forEach(draw => draw());
  function update() {
    if (drawn !== shown.head) drawMap(big, rows = rowsOf(drawn = shown.head));
    for (const button of grid.querySelectorAll("button")) {
      button.ariaPressed = String(button.dataset.part === shown.head);
    }
    tell(shown.position);
  }
  return update;
}

function meanRows(heads) {
  return heads[0].map((row, t) => row.map((_, s) => (
    heads.reduce((sum, head) => sum + head[t][s], 0) / heads.length)));
}

// Attention as a picture: a row for each token, a column for each token that it looks at.
function drawMap(canvas, rows) {
  const size = canvas.width = canvas.height = rows.length, pen = canvas.getContext("2d");
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--look").split(",");
  const image = pen.createImageData(size, size);
  rows.forEach((row, t) => row.forEach((weight, s) => {
    image.data.set([...colour, 255 * Math.sqrt(weight)], 4 * (t * size + s));  // faint ones show
  }));
  pen.putImageData(image, 0, 0);
}

// What the prediction needs: the loss without each head and MLP, and what is said instead.
function drawAblation(body, view, shown) {
  const grid = shown.grid(part => element("button", {
    onclick: () => {
      shown.choose({ part });
      if (shown.live && !found(part)) shown.follow(shown.live.ablations([part]));
    },
  }), shown.views.views.contributions.parts.some(({ part }) => part.startsWith("mlp")));
  const buttons = [...grid.querySelectorAll("button")];
  const now = () => shown.views.views.ablation;
  const found = part => [...now().parts, now().chosen].find(some => some?.parts.join() === part);
  const panel = element("div", { className: "panel" });
  const all = element("button", {
    type: "button", className: "second", onclick: () => shown.follow(shown.live.ablations()),
  }, "Measure every part");
  const foot = element("p", { className: "hint" });
  body.replaceChildren(foot, element("div", { className: "beside" }, element("div", {}, grid,
    element("div", { className: "buttons" }, all)), panel));
  function tell() {
    const whole = now(), { position, target, tokens } = shown.views;
    foot.replaceChildren("Red: the loss of ", shown.quoted(target), " after ",
      shown.quoted(tokens[position]), ` (token ${position}) rises without the part; blue: it `
      + `falls. The average is that of ${whole.means}.`);
    panel.replaceChildren(
      ...compared(shown, whole, found(shown.part ?? whole.chosen?.parts.join())));
  }
  return () => {
    const whole = now(), changes = new Map(whole.parts.map(
      ({ parts, loss }) => [parts.join(), loss - whole.loss]));
    const most = Math.max(0.05, ...[...changes.values()].map(Math.abs));
    for (const button of buttons) {
      const change = changes.get(button.dataset.part);
      shade(button, change < 0 ? "likely" : "rise", Math.abs(change ?? 0) / most);
      button.classList.toggle("unknown", change === undefined);
      button.textContent = change === undefined ? "?" : signed(change);
      button.ariaLabel = `${button.dataset.part}: ${button.textContent}`;
      button.ariaPressed = String(button.dataset.part === shown.part);
    }
    all.hidden = changes.size === buttons.length;
    tell();
  };
}

// What the whole model says, and beside it what it says without some parts (null: not chosen yet).
function compared(shown, whole, some) {
  const { target } = shown.views, loss = value => (value === null ? "none" : value.toFixed(3));
  const rows = [
    ["likeliest next token", ({ top }) => shown.quoted(top[0][0])],
    [["chance of ", shown.quoted(target)], ({ probability }) => percent(probability)],
    [["loss of ", shown.quoted(target)], found => loss(found.loss)],
    ["loss of the whole prompt", found => loss(found.text_loss)],
  ];
  const next = ({ top }) => bars(top.map(([id, chance]) => (
    { name: shown.word(id), value: chance, figure: percent(chance) })), 1);
  const cell = (found, show) => element("td", {}, ...(found ? [show(found)] : []));
  const without = some ? `without ${some.parts.join(", ")}`
    : shown.part ? "computing …" : `${canHover ? "click" : "tap"} a part`;
  const table = element("table", { className: "compared" },
    element("tr", {}, ...["", "whole model", without].map(
      name => element("th", { scope: "col" }, name))),
    ...rows.map(([name, show]) => element("tr", {},
      element("th", { scope: "row" }, ...[name].flat()), cell(whole, show), cell(some, show))));
  return [table, element("div", { className: "pair" }, next(whole), ...(some ? [next(some)] : []))];
}

// Who votes for the next token: what each part adds to its logit, largest first.
function drawContributions(body, view, shown) {
  const MOST = 12;
  return () => {
    const { logit, parts, candidates } = shown.views.views.contributions;
    const { position, target, tokens } = shown.views;
    const sorted = [...parts].sort((a, b) => Math.abs(b.logit) - Math.abs(a.logit));
    const rest = sorted.slice(MOST), sum = rest.reduce((total, part) => total + part.logit, 0);
    const rows = sorted.slice(0, MOST).map(({ part, logit }) => (
      { name: [part], value: logit, figure: signed(logit) }));
    const others = { name: [`${rest.length} others`], value: sum, figure: signed(sum) };
    if (rest.length) rows.push(others);
    const choice = candidates ? element("select", {
      ariaLabel: "the next token", onchange: event => (
        shown.choose({ target: Number(event.target.value) })),
    }, ...candidates.map(id => element("option", { value: id, selected: id === target },
      shown.word(id).map(node => node.textContent ?? node).join("")))) : shown.quoted(target);
    const hadFocus = body.contains(document.activeElement);
    body.replaceChildren(element("p", { className: "choice" }, "The score of ", choice, " after ",
      shown.quoted(tokens[position]), ` (token ${position}) is ${logit.toFixed(2)}, the sum of:`),
    bars(rows, Math.max(...rows.map(row => Math.abs(row.value)))));
    body.querySelector(".bars").classList.add("signed");
    if (hadFocus) choice.focus();
  };
}

const KINDS = {
  previous: ["Previous token", "the token before"],
  induction: ["Induction", "what followed the same token earlier"],
  duplicate: ["Duplicate token", "the same token earlier"],
};

// Heads with a known job: three grids of scores, and who was found.
function drawHeads(body, view, shown) {
  body.replaceChildren(element("div", { className: "three" }, ...Object.keys(KINDS).map(kind => {
    const [name, job] = KINDS[kind], scores = view[kind], found = view.found[kind];
    const best = Math.max(...scores.flat());
    const looks = found.length > 1 ? "look" : "looks";
    const said = found.length ? `${found.join(", ")} ${looks} at ${job}` : "none found";
    return element("div", {}, element("h4", {}, name), element("p", { className: "hint" },
      element("b", {}, said), ` (best score ${best.toFixed(2)}; a head is named from `
      + `${view.threshold} on)`),
    shown.grid((part, layer, head) => shade(element("button", {
      title: `head ${part}: ${scores[layer][head].toFixed(2)}`,
      ariaLabel: `head ${part}: ${scores[layer][head].toFixed(2)}`,
      onclick: () => shown.choose({ head: part }),
    }, scores[layer][head] < 0.1 ? "" : scores[layer][head].toFixed(1)), "look",
    scores[layer][head])));
  })));
  return () => {};
}

// Tokens that are alike to the model: the nearest vectors of the chosen token.
function drawNeighbours(body, { nearest }, shown) {
  return () => {
    const id = shown.views.tokens[shown.position];
    body.replaceChildren(element("p", {}, "Nearest to ", shown.quoted(id), ":"), bars(
      nearest[id].map(([other, cosine]) => (
        { name: shown.word(other), value: cosine, figure: cosine.toFixed(2) })), 1));
  };
}

const DRAW = {
  surprise: drawSurprise,
  lens: drawLens,
  attention: drawAttention,
  ablation: drawAblation,
  contributions: drawContributions,
  heads: drawHeads,
  neighbours: drawNeighbours,
};
