// The page: the controls, the clock, and what it says in words.

const SPEEDS = [1, 2, 5, 10, 20, 30, 60, 120, 240, 480]; // steps a second
const FIRST_SPEED = 30;
const SIDES = [32, 48, 64, 96, 128, 192, 256];
const MOST_STEPS = 64; // in one frame
const SLOW_FRAME = 40; // milliseconds
const READOUT_EVERY = 250; // milliseconds
const DESCRIBE_EVERY = 2000; // milliseconds; the picture's text must not change all the time

const find = (id) => document.getElementById(id);
const format = (number) => Math.round(number).toLocaleString("en");

class Page {
  constructor(model) {
    this.model = model;
    [this.height, this.width] = model.size;
    this.updateRate = model.updateRate;
    this.canvas = find("picture");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.painting = new Painting(this, find("grid"), this.canvas, find("ring"));
    this.running = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.most = 1; // steps in a frame; grows while frames are quick
    this.due = 0;
    this.counting = 0; // how often cells have been counted
    this.last = { frame: 0, readout: 0, description: -Infinity, frames: 0, steps: 0 };
    this.fillControls();
    this.listen();
    const asked = new URLSearchParams(location.search).get("path");
    if (asked === "js" || asked === "javascript") {
      this.open("javascript", "the address of this page asks for it");
    } else {
      this.open("webgl");
    }
    this.showRunning();
    new ResizeObserver(() => this.fit()).observe(find("stage"));
    addEventListener("resize", () => this.fit());
    requestAnimationFrame((now) => this.frame(now));
  }

  fillControls() {
    const { model } = this;
    const own = `${model.size[0]}x${model.size[1]}`;
    const sizes = new Set([own, ...SIDES.map((side) => `${side}x${side}`)]);
    const area = (text) => text.split("x").reduce((a, b) => a * b);
    for (const text of [...sizes].sort((a, b) => area(a) - area(b))) {
      find("size").append(new Option(text.replace("x", " × "), text, false, text === own));
    }
    for (const [name, { label }] of Object.entries(PATHS)) {
      find("path").append(new Option(label, name));
    }
    find("speed").max = SPEEDS.length - 1;
    find("speed").value = SPEEDS.indexOf(FIRST_SPEED);
    find("rate").value = this.updateRate;
    if (model.start !== "cell") {
      find("tools").hidden = true;
      for (const each of document.querySelectorAll(".planting")) each.hidden = true;
    }
    this.fitRadius();
    const words = countedCells(model);
    find("counted").textContent = words[0].toUpperCase() + words.slice(1);
  }

  listen() {
    const on = (id, name, act) => find(id).addEventListener(name, act);
    on("run", "click", () => this.toggle());
    on("step", "click", () => this.advanceOnce());
    on("reset", "click", () => this.reset());
    on("radius", "input", () => this.showSettings());
    on("speed", "input", () => this.showSettings());
    on("rate", "input", () => {
      this.updateRate = Number(find("rate").value);
      this.showSettings();
    });
    on("size", "change", () => this.resize(find("size").value));
    on("path", "change", () => this.open(find("path").value, "you chose it"));
    document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Starts to compute on a path, and goes on from the state there is, if it fits. */
  open(path, reason = "this browser offers it with float textures") {
    const before = this.automaton;
    const sizes = [this.model, this.height, this.width, this.model.seed];
    let planes = null;
    if (before && !this.lost && before.height === this.height && before.width === this.width) {
      planes = before.read();
    }
    try {
      this.automaton = PATHS[path].make(...sizes);
    } catch (error) {
      [path, reason] = ["javascript", error.message];
      this.automaton = PATHS[path].make(...sizes);
    }
    if (planes) {
      this.automaton.write(planes);
      this.automaton.step = before.step;
    }
    before?.dispose();
    this.lost = false;
    this.most = 1;
    this.path = path;
    const { automaton } = this;
    automaton.canvas?.addEventListener("webglcontextlost", () => {
      if (this.automaton !== automaton) return;
      this.lost = true;
      this.open("javascript", "WebGL lost its memory. It has started again from the seed");
    });
    find("path").value = path;
    find("why").textContent = `${PATHS[path].label} computes this page, because ${reason}.`;
    Object.assign(this.canvas, { width: this.width, height: this.height });
    this.table = neighbours(this.height, this.width, this.model.padding);
    this.painting.centre();
    this.fit();
    this.showSettings();
    this.changed = true;
  }

  resize(text) {
    [this.height, this.width] = text.split("x").map(Number);
    this.fitRadius();
    this.open(this.path, this.path === "webgl" ? undefined : this.reason());
    this.announce("New grid");
  }

  /** Returns why this path computes, as the page says it. */
  reason() {
    return find("why").textContent.split("because ")[1].slice(0, -1);
  }

  /** Lets the radius reach half of the shorter side, and start at a tenth. */
  fitRadius() {
    const shorter = Math.min(this.height, this.width);
    find("radius").max = Math.max(2, Math.floor(shorter / 2));
    find("radius").value = Math.max(1, Math.round(shorter / 10));
  }

  /** Gives every cell the same whole number of pixels, where there is room for that. */
  fit() {
    const room = Math.min(find("stage").clientWidth, this.roomBelow());
    const pixels = (room * devicePixelRatio) / Math.max(this.width, this.height);
    const cell = (pixels >= 4 ? Math.floor(pixels) : pixels) / devicePixelRatio;
    this.canvas.style.width = `${cell * this.width}px`;
    this.canvas.style.height = `${cell * this.height}px`;
    find("automaton").style.setProperty("--picture", this.canvas.style.width);
    this.painting.showRing();
  }

  /** Returns how high the picture may be so that the buttons below it can be seen, too. */
  roomBelow() {
    return Math.max(320, innerHeight - 340);
  }

  tool() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  radius() {
    return Number(find("radius").value);
  }

  changeRadius(by) {
    find("radius").value = this.radius() + by;
    this.showSettings();
    this.say(`Radius ${this.radius()} cells`);
  }

  speed() {
    return SPEEDS[Number(find("speed").value)];
  }

  showSettings() {
    const cells = this.radius() === 1 ? "cell" : "cells";
    find("radius-text").textContent = `${this.radius()} ${cells}`;
    const steps = this.speed() === 1 ? "step" : "steps";
    const speed = `${this.speed()} ${steps} a second`;
    find("speed-text").textContent = speed;
    find("speed").setAttribute("aria-valuetext", speed);
    const rate = `${Math.round(100 * this.updateRate)} %`;
    find("rate-text").textContent = rate;
    find("rate").setAttribute("aria-valuetext", rate);
    this.painting.showRing();
  }

  toggle() {
    this.running = !this.running;
    this.showRunning();
    this.announce(this.running ? "Running" : "Paused");
  }

  showRunning() {
    find("run").textContent = this.running ? "Pause" : "Run";
  }

  advanceOnce() {
    this.running = false;
    this.showRunning();
    this.automaton.advance(1, this.updateRate);
    this.announce("Advanced");
  }

  reset() {
    this.automaton.reset();
    this.due = 0;
    this.announce("Reset");
  }

  damage(row, column) {
    this.automaton.damage(row, column, this.radius());
    this.changed = true; // shown with the next frame: a drag damages more often than that
  }

  plant(row, column) {
    if (this.model.start !== "cell") return;
    this.automaton.plant(Math.round(row), Math.round(column));
    this.changed = true;
  }

  /** Does what is due, once for every frame that the browser shows. */
  frame(now) {
    requestAnimationFrame((next) => this.frame(next));
    const elapsed = now - this.last.frame;
    this.last.frame = now;
    this.last.frames++;
    if (this.running) {
      this.due += (Math.min(elapsed, 1000) / 1000) * this.speed();
      const count = Math.min(Math.floor(this.due), this.most);
      this.due = Math.min(this.due - count, 1); // what cannot be done in time is not made up for
      if (elapsed > SLOW_FRAME) this.most = Math.max(1, Math.floor(this.most / 2));
      else if (count === this.most) this.most = Math.min(MOST_STEPS, this.most + 1);
      if (count) this.automaton.advance(count, this.updateRate);
      this.last.steps += count;
      this.changed ||= count > 0;
    }
    if (this.changed) {
      this.automaton.draw(this.context);
      this.changed = false;
      this.uncounted = true;
      this.canvas.setAttribute("aria-busy", "true"); // until its text is that of what it shows
    }
    if (now - this.last.readout >= READOUT_EVERY) this.measure(now);
  }

  /** Shows numbers, and now and then says them in the text of the picture. */
  async measure(now) {
    const seconds = (now - this.last.readout) / 1000;
    find("frames").textContent = format(this.last.frames / seconds);
    find("pace").textContent = format(this.last.steps / seconds);
    Object.assign(this.last, { readout: now, frames: 0, steps: 0 });
    if (this.busy || !this.uncounted) return;
    if (!(await this.countNow())) return;
    if (this.running && now - this.last.description < DESCRIBE_EVERY) return;
    this.last.description = now;
    this.describe();
  }

  /** Counts cells and shows the number; false if something newer is being counted. */
  async countNow() {
    const { automaton } = this;
    const number = ++this.counting;
    const { step } = automaton;
    this.uncounted = false;
    this.busy = true;
    const rgba = await automaton.readVisible();
    if (number !== this.counting) return false; // another count has begun
    this.busy = false;
    if (automaton !== this.automaton) return false; // the cells of another are still to be counted
    this.counted = { step, cells: countCells(this.model, rgba, this.table) };
    find("steps").textContent = format(step);
    find("count").textContent = format(this.counted.cells);
    return true;
  }

  /** Puts into words what the picture shows. */
  describe() {
    const cells = `${format(this.counted.cells)} ${countedCells(this.model)}`;
    const grid = `${this.height} by ${this.width}`;
    const text = `Step ${format(this.counted.step)}, ${cells} on a grid of ${grid}`;
    this.canvas.setAttribute("aria-label", text);
    this.canvas.setAttribute("aria-busy", String(this.changed || this.uncounted));
    return text;
  }

  /** Draws the state, and says in words what somebody has just done, and what came of it. */
  async announce(what) {
    this.changed = true;
    if (await this.countNow()) this.say(`${what}. ${this.describe()}.`);
  }

  say(text) {
    find("news").textContent = text;
  }
}

const model = decodeModel(find("model").textContent);
window.fastnca = makeApi(model);
new Page(model);
