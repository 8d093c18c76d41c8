"use strict";
// What pages are made of: elements, tokens, bars. Tokens can be any text: they become text nodes,
// never HTML.

const byId = id => document.getElementById(id);
const canHover = matchMedia("(hover: hover)").matches;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const END = "<|endoftext|>";
const MARKS = { " ": "␣", "\n": "⏎", "\t": "⇥" };

// A token's text as nodes: spaces and line ends become visible marks.
function marked(text) {
  if (text === END) return [element("small", {}, "end of text")];
  return text.split(/([ \n\t])/).filter(Boolean).map(
    piece => (MARKS[piece] ? element("small", {}, MARKS[piece]) : piece));
}

function percent(share) {
  if (share < 0.0005) return "<0.1%";
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(Math.abs(value) < 9.95 ? 2 : 1);
}

// Colour an element: kind is a class of style.css, strength from 0 to 1.
function shade(made, kind, strength) {
  made.classList.remove("likely", "look", "rise");
  made.classList.add(kind);
  made.style.setProperty("--strength", Math.min(1, Math.max(0, strength)).toFixed(3));
  return made;
}

// Make a box one stop of the Tab key, in which arrow keys move among its buttons.
function roving(box, columns = 1) {
  const buttons = [...box.querySelectorAll("button")];
  buttons.forEach((one, i) => { one.tabIndex = i ? -1 : 0; });
  box.addEventListener("focusin", event => {
    for (const one of buttons) one.tabIndex = one === event.target ? 0 : -1;
  });
  box.addEventListener("keydown", event => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const next = buttons[buttons.indexOf(event.target) + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return box;
}

// Rows of a name, a bar and a figure: { name: nodes, value, figure, kind }, `most` the longest bar.
function bars(rows, most) {
  return element("div", { className: "bars" }, ...rows.flatMap(({ name, value, figure, kind }) => {
    const bar = element("i", { className: value < 0 ? "below" : "" });
    bar.style.setProperty("--length", Math.min(1, Math.abs(value) / most).toFixed(4));
    return [element("code", { className: kind ?? "" }, ...name), element("span", {}, bar),
      element("b", {}, figure)];
  }));
}
