// The plain JavaScript path: one step of the rule for every cell, in float32.
//
// E1 to E7 are the equations of fastnca/reference.py. Sums are rounded to float32 after every
// operation, as torch's are; a processor does that as fast as float64.

const { fround } = Math;

/** An automaton that computes in JavaScript. Its state is `[cells, channels]`. */
class JavaScriptAutomaton {
  constructor(model, height, width, seed) {
    Object.assign(this, { model, height, width, seed, step: 0 });
    const cells = height * width;
    this.table = neighbours(height, width, model.padding);
    this.state = new Float32Array(cells * model.channels);
    this.updated = new Float32Array(cells * model.channels);
    this.mask = new Uint8Array(cells);
    this.before = new Uint8Array(cells).fill(1);
    this.near = new Uint8Array(cells).fill(1);
    this.prepareWeights();
    this.reset();
  }

  /** Lays weights out as the loops read them: rows of four, and the last layer transposed. */
  prepareWeights() {
    const { channels, filters, hidden, written, taps, hiddenWeight, outputWeight } = this.model;
    const features = channels * filters;
    const stride = Math.ceil(features / 4) * 4;
    this.perceived = new Float32Array(stride);
    this.delta = new Float32Array(written);
    this.first = new Float32Array(hidden * stride);
    this.last = new Float32Array(hidden * written);
    for (let unit = 0; unit < hidden; unit++) {
      this.first.set(hiddenWeight.subarray(unit * features, (unit + 1) * features), unit * stride);
      for (let c = 0; c < written; c++) {
        this.last[unit * written + c] = outputWeight[c * hidden + unit];
      }
    }
    this.nonzero = []; // of each place in the neighbourhood, the filters that look at it
    for (let place = 0; place < 9; place++) {
      const looking = [];
      for (let k = 0; k < filters; k++) if (taps[9 * k + place] !== 0) looking.push(k);
      this.nonzero.push(looking);
    }
  }

  /** Starts again from the seed, at step 0. */
  reset() {
    this.step = 0;
    this.state.fill(0);
    if (this.model.start === "cell") {
      this.plant(Math.floor(this.height / 2), Math.floor(this.width / 2));
    }
  }

  /** Advances by `count` steps in which cells update with probability `updateRate`. */
  advance(count, updateRate) {
    for (let i = 0; i < count; i++) {
      drawMask(this.mask, this.seed, this.step, updateRate); // E4
      if (this.model.aliveBefore) this.findLiving();
      this.updated.set(this.state);
      for (let cell = 0; cell < this.mask.length; cell++) {
        if (this.mask[cell] && this.near[cell]) this.update(cell);
      }
      this.clearDead();
      [this.state, this.updated] = [this.updated, this.state];
      this.step++;
    }
  }

  /** Marks the cells that are alive (E2), and those whose update a living cell could see. */
  findLiving() {
    const { table, before, near } = this;
    near.fill(0);
    for (let cell = 0; cell < before.length; cell++) {
      before[cell] = this.isAlive(this.state, cell) ? 1 : 0;
      if (!before[cell]) continue;
      for (let i = 9 * cell; i < 9 * cell + 9; i++) if (table[i] >= 0) near[table[i]] = 1;
    }
  }

  /** Tells whether the largest alpha around a cell is above the threshold. */
  isAlive(state, cell) {
    const { channels, aliveThreshold } = this.model;
    for (let i = 9 * cell; i < 9 * cell + 9; i++) {
      const place = this.table[i];
      if (place >= 0 && state[place * channels + ALPHA] > aliveThreshold) return true;
    }
    return false;
  }

  /** Computes one cell's new state into `updated`: E1, E3, E5. */
  update(cell) {
    const { channels, written, clamp, stepSize } = this.model;
    this.perceive(cell);
    this.applyNetwork();
    const { delta, state, updated } = this;
    for (let c = 0; c < written; c++) {
      const i = cell * channels + c;
      let value = fround(state[i] + fround(delta[c] * stepSize));
      if (clamp) value = Math.min(Math.max(value, clamp[0]), clamp[1]);
      updated[i] = value;
    }
  }

  /** Looks at the neighbourhood of a cell through the filters (E1). */
  perceive(cell) {
    const { channels, filters, taps } = this.model;
    const { perceived, state, table } = this;
    perceived.fill(0);
    for (let place = 0; place < 9; place++) {
      const start = table[9 * cell + place] * channels;
      if (start < 0) continue;
      for (const k of this.nonzero[place]) {
        const tap = taps[9 * k + place];
        for (let c = 0; c < channels; c++) {
          const i = c * filters + k;
          perceived[i] = fround(perceived[i] + fround(tap * state[start + c]));
        }
      }
    }
  }

  /** Computes `delta` of what is perceived (E3); four sums at once keep the processor busy. */
  applyNetwork() {
    const { hidden, hiddenBias, outputBias, written } = this.model;
    const { delta, first, last, perceived } = this;
    const stride = perceived.length;
    delta.set(outputBias);
    for (let unit = 0; unit < hidden; unit++) {
      let a = hiddenBias[unit];
      let [b, c, d] = [fround(0), fround(0), fround(0)];
      for (let i = 0, w = unit * stride; i < stride; i += 4, w += 4) {
        a = fround(a + fround(first[w] * perceived[i]));
        b = fround(b + fround(first[w + 1] * perceived[i + 1]));
        c = fround(c + fround(first[w + 2] * perceived[i + 2]));
        d = fround(d + fround(first[w + 3] * perceived[i + 3]));
      }
      const value = fround(fround(a + b) + fround(c + d));
      if (value <= 0) continue; // what is no number goes on
      for (let o = 0, w = unit * written; o < written; o++, w++) {
        delta[o] = fround(delta[o] + fround(last[w] * value));
      }
    }
  }

  /** Clears the cells of `updated` that were not alive, or are not (E6, E7). */
  clearDead() {
    const { aliveBefore, aliveAfter, channels, written } = this.model;
    if (!aliveBefore && !aliveAfter) return;
    const dead = [];
    for (let cell = 0; cell < this.mask.length; cell++) {
      const lives = this.before[cell] && (!aliveAfter || this.isAlive(this.updated, cell));
      if (!lives) dead.push(cell); // cleared later: neighbours still have to see its alpha
    }
    for (const cell of dead) {
      this.updated.fill(0, cell * channels, cell * channels + written);
    }
  }

  /** Sets a disc of cells to `values`, one a channel; a rule's inputs stay as they are. */
  paint(row, column, radius, values) {
    const { channels, written, padding } = this.model;
    const wraps = padding === "circular";
    for (let y = 0; y < this.height; y++) {
      const dy = distance(y, row, this.height, wraps);
      for (let x = 0; x < this.width; x++) {
        const dx = distance(x, column, this.width, wraps);
        if (dx * dx + dy * dy >= radius * radius) continue;
        const start = (y * this.width + x) * channels;
        for (let c = 0; c < written; c++) this.state[start + c] = values[c];
      }
    }
  }

  /** Clears a disc of cells; the centre and the radius are in cells. */
  damage(row, column, radius) {
    this.paint(row, column, radius, new Float32Array(this.model.channels));
  }

  /** Plants a seed in one cell. */
  plant(row, column) {
    this.paint(row, column, 0.5, seedValues(this.model));
  }

  /** Promises the first four channels of every cell, `[cells, 4]`. */
  async readVisible() {
    return this.visible();
  }

  /** Returns the first four channels of every cell, `[cells, 4]`. */
  visible() {
    const { channels } = this.model;
    const rgba = new Float32Array(4 * this.mask.length);
    for (let cell = 0; cell < this.mask.length; cell++) {
      for (let c = 0; c < Math.min(4, channels); c++) {
        rgba[4 * cell + c] = this.state[cell * channels + c];
      }
    }
    return rgba;
  }

  /** Returns the state as Python has it, `[channels, height, width]`. */
  read() {
    const { channels } = this.model;
    const cells = this.mask.length;
    const planes = new Float32Array(this.state.length);
    for (let i = 0; i < planes.length; i++) {
      planes[i] = this.state[(i % cells) * channels + Math.floor(i / cells)];
    }
    return planes;
  }

  /** Takes a state as `read` returns it. */
  write(planes) {
    const { channels } = this.model;
    const cells = this.mask.length;
    for (let i = 0; i < planes.length; i++) {
      this.state[(i % cells) * channels + Math.floor(i / cells)] = planes[i];
    }
  }

  /** Returns the mask of one step, a byte a cell. */
  readMask(step, updateRate) {
    const mask = new Uint8Array(this.mask.length);
    drawMask(mask, this.seed, step, updateRate);
    return mask;
  }

  /** Draws the state on a 2D canvas of one pixel a cell. */
  draw(context) {
    const image = context.createImageData(this.width, this.height);
    const rgba = this.visible();
    for (let i = 0; i < rgba.length; i += 4) {
      const alpha = this.model.texture ? 1 : limit(rgba[i + ALPHA]);
      for (let c = 0; c < 3; c++) {
        const colour = limit(this.model.texture ? rgba[i + c] + 0.5 : rgba[i + c]);
        image.data[i + c] = 255 * (1 - alpha + colour);
      }
      image.data[i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  /** Gives back what the automaton holds; nothing here. */
  dispose() {}
}

/** Limits what is shown to [0, 1]; what is no number is 0, as in pictures of Python. */
function limit(value) {
  return Math.min(Math.max(value, 0), 1) || 0;
}

/** Returns how far two places on an axis are from one another, around a torus if it wraps. */
function distance(a, b, length, wraps) {
  const straight = Math.abs(a - b);
  return wraps ? Math.min(straight, Math.abs(length - straight)) : straight;
}
