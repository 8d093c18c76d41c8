"use strict";
// The look inside the model of a page: the text that is looked into, and the work on its views.

// Where no text is given: the beginning of the model's own, if it is long enough.
const LEAST = 12, MOST = 32, OTHER = "The quick brown fox";

// What the views show of a prompt is computed in small steps, between which the page answers.
class Looking {
  constructor() {
    this.inside = new Inside(content.config, model.tensors, tokenizer, content.inside);
    this.shown = new Shown(byId("views"), this.inside);
    this.shown.follow = steps => this.follow(steps);
    this.jobs = [];  // the newest goes first, from the next view that is ready on
    this.run = 0;    // number of the current prompt; a new one ends the work on the last
  }

  look(prompt, start) {
    const pieces = tokenizer.pieces(prompt), most = this.inside.config.block_size;
    const unknown = [...new Set(pieces.flatMap(piece => piece.unknown ?? []))];
    this.remark = (unknown.length ? `${skipped(unknown)} ` : "")
      + (pieces.length > most ? `These are its last ${most} tokens.` : "");
    byId("inside-note").textContent = `Computing … ${this.remark}`;
    byId("views").inert = true;  // until the new prompt is read
    this.run++;
    this.jobs = [this.inside.look(prompt, start)];
    this.work();
  }

  follow(steps) {
    if (this.jobs.push(steps) === 1) this.work();
  }

  async work() {
    const mine = this.run;
    let rest = performance.now() + 24, job = null;
    while (this.jobs.length) {
      job ??= this.jobs.at(-1);
      const { value, done } = job.next();
      if (value) this.draw(value);
      if (done) this.jobs = this.jobs.filter(other => other !== job);
      if (value || done) job = null;
      if (performance.now() < rest) continue;
      await pause();
      if (mine !== this.run) return;
      rest = performance.now() + 24;
    }
  }

  draw(name) {
    if (name !== "all") {
      this.shown.draw(name);
      return;
    }
    byId("inside-note").textContent = this.remark;
    byId("views").inert = false;
    this.shown.show(this.inside.views);
  }
}

function startLooking() {
  const work = new Looking(), box = byId("inside-prompt");
  const { start } = content.inside;
  const look = start => {
    const own = shown.slice(0, MOST).map(({ span }) => span.textContent).join("");
    box.value ||= shown.length < LEAST ? OTHER : own;
    work.look(box.value, start);
  };
  box.value = start?.prompt ?? "";
  box.onkeydown = event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) look();
  };
  byId("look").onclick = () => look();
  if (start) {
    look(start);
    return;
  }
  new IntersectionObserver((entries, observer) => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    observer.disconnect();
    if (!byId("views").firstChild) look();
  }).observe(byId("inside"));
}

if (content.inside) startLooking();
