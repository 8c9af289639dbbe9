// Damaging and planting: with a mouse, a finger or a pen, and with the keyboard.

const FAR = 8; // cells that Shift and an arrow key move the cursor
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** Turns what happens on the grid into calls of `page`. */
class Painting {
  constructor(page, grid, canvas, ring) {
    Object.assign(this, { page, grid, canvas, ring, last: null, hovering: null });
    grid.addEventListener("pointerdown", (event) => this.start(event));
    grid.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      grid.addEventListener(name, () => this.stop());
    }
    grid.addEventListener("pointerleave", () => this.hover(null));
    grid.addEventListener("dblclick", (event) => page.plant(...this.cellAt(event)));
    grid.addEventListener("keydown", (event) => this.press(event));
    for (const name of ["focus", "blur"]) grid.addEventListener(name, () => this.showRing());
  }

  /** Puts the cursor of the keyboard into the middle. */
  centre() {
    this.cursor = [Math.floor(this.page.height / 2), Math.floor(this.page.width / 2)];
    this.hovering = null;
    this.showRing();
  }

  /** Returns row and column under the pointer; whole numbers are middles of cells. */
  cellAt({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const row = ((clientY - box.top) / box.height) * this.page.height - 0.5;
    const column = ((clientX - box.left) / box.width) * this.page.width - 0.5;
    return [row, column];
  }

  start(event) {
    if (event.button !== 0) return;
    this.grid.setPointerCapture(event.pointerId);
    this.last = this.cellAt(event);
    this.hover(event);
    if (this.page.tool() === "plant") this.page.plant(...this.last);
    else this.page.damage(...this.last);
  }

  move(event) {
    this.hover(event);
    if (!this.last || this.page.tool() === "plant") return;
    const [row, column] = this.last;
    const [toRow, toColumn] = this.cellAt(event);
    const length = Math.hypot(toRow - row, toColumn - column);
    const count = Math.ceil(length / Math.max(0.5, this.page.radius() / 2));
    for (let i = 1; i <= count; i++) {
      const part = i / count;
      this.page.damage(row + part * (toRow - row), column + part * (toColumn - column));
    }
    if (count) this.last = [toRow, toColumn];
  }

  stop() {
    if (this.last) this.page.announce(this.page.tool() === "plant" ? "Planted" : "Damaged");
    this.last = null;
  }

  hover(event) {
    this.hovering = event && event.pointerType !== "touch" ? this.cellAt(event) : null;
    this.showRing();
  }

  press(event) {
    const { page } = this;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const act = {
      enter: () => this.damageAtCursor(),
      d: () => this.damageAtCursor(),
      p: () => this.plantAtCursor(),
      "+": () => page.changeRadius(1),
      "=": () => page.changeRadius(1),
      "-": () => page.changeRadius(-1),
      " ": () => page.toggle(),
      s: () => page.advanceOnce(),
      r: () => page.reset(),
    }[event.key.toLowerCase()];
    const arrow = ARROWS[event.key];
    if (!act && !arrow) return;
    event.preventDefault();
    if (act) act();
    else this.moveCursor(...arrow.map((way) => (event.shiftKey ? FAR : 1) * way));
  }

  damageAtCursor() {
    this.page.damage(...this.cursor);
    this.page.announce(`Damaged around ${this.cursorText()}`);
  }

  plantAtCursor() {
    this.page.plant(...this.cursor);
    this.page.announce(`Planted at ${this.cursorText()}`);
  }

  moveCursor(down, right) {
    const limit = (value, count) => Math.min(Math.max(value, 0), count - 1);
    const [row, column] = this.cursor;
    this.cursor = [limit(row + down, this.page.height), limit(column + right, this.page.width)];
    this.hovering = null;
    this.showRing();
    this.page.say(`Cursor at ${this.cursorText()}`);
  }

  cursorText() {
    return `row ${this.cursor[0] + 1}, column ${this.cursor[1] + 1}`;
  }

  /** Shows what damage would take: under the pointer, or around the cursor of the keyboard. */
  showRing() {
    const { canvas, page, ring } = this;
    const place = this.hovering ?? (this.grid.matches(":focus-visible") ? this.cursor : null);
    ring.hidden = !place;
    if (!place) return;
    const cell = canvas.clientWidth / page.width;
    const radius = page.tool() === "plant" ? 0.5 : page.radius();
    ring.style.left = `${(place[1] + 0.5) * cell}px`;
    ring.style.top = `${(place[0] + 0.5) * cell}px`;
    ring.style.width = ring.style.height = `${Math.max(4, 2 * radius * cell)}px`;
  }
}
