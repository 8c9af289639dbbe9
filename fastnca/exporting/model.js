// The model that the page was written with: its rule, its weights, its seed.

/** Decodes the base64 text of little-endian float32 numbers. */
function decodeNumbers(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Makes a model of the JSON in the page; the names of a rule's fields are those of Python. */
function decodeModel(text) {
  const { rule, weights, ...facts } = JSON.parse(text);
  const written = facts.channels - rule.inputs;
  return {
    ...facts, // title, channels, hidden, size, seed, updateRate, start, fillHidden, texture
    written, // the first channels; the inputs of the rule follow, which no step writes
    filters: rule.taps.length,
    taps: Float32Array.from(rule.taps.flat(2)), // [filters, 3, 3]
    padding: rule.padding,
    aliveBefore: rule.alive === "both" || rule.alive === "before",
    aliveAfter: rule.alive === "both" || rule.alive === "after",
    aliveThreshold: Math.fround(rule.alive_threshold),
    clamp: rule.clamp && rule.clamp.map(Math.fround),
    stepSize: Math.fround(rule.step_size),
    hiddenWeight: decodeNumbers(weights.hiddenWeight), // [hidden, channels * filters]
    hiddenBias: decodeNumbers(weights.hiddenBias), // [hidden]
    outputWeight: decodeNumbers(weights.outputWeight), // [written, hidden]
    outputBias: weights.outputBias
      ? decodeNumbers(weights.outputBias)
      : new Float32Array(written),
  };
}

/** Returns what the channels of a seed's one cell hold; all zero where nothing is planted. */
function seedValues(model) {
  const values = new Float32Array(model.channels);
  if (model.start === "cell") {
    values.fill(1, ALPHA, model.fillHidden ? model.written : ALPHA + 1);
  }
  return values;
}

/** Index of the alpha channel. */
const ALPHA = 3;

/** Returns the place along one axis that padding shows at `at`, or -1 for a zero. */
function padded(at, length, padding) {
  if (at >= 0 && at < length) return at;
  if (padding === "circular") return (at + length) % length;
  if (padding === "reflect") return at < 0 ? -at : 2 * (length - 1) - at;
  if (padding === "replicate") return at < 0 ? 0 : length - 1;
  return -1;
}

/** Returns the nine neighbours of every cell, row by row, -1 for zeros: `[cells * 9]`. */
function neighbours(height, width, padding) {
  const table = new Int32Array(height * width * 9);
  let next = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let tap = 0; tap < 9; tap++) {
        const row = padded(y + Math.floor(tap / 3) - 1, height, padding);
        const column = padded(x + (tap % 3) - 1, width, padding);
        table[next++] = row < 0 || column < 0 ? -1 : row * width + column;
      }
    }
  }
  return table;
}

/** What `countCells` counts. */
function countedCells(model) {
  if (model.texture) return "blank cells";
  return model.aliveBefore || model.aliveAfter ? "living cells" : "visible cells";
}

/** Counts cells that are alive; without an alive test those one can see, of a texture the blank. */
function countCells(model, rgba, table) {
  const cells = rgba.length / 4;
  const visible = (cell) => rgba[4 * cell + ALPHA] > model.aliveThreshold;
  const blank = (cell) => !rgba[4 * cell] && !rgba[4 * cell + 1] && !rgba[4 * cell + 2];
  const alive = (cell) => {
    for (let i = 9 * cell; i < 9 * cell + 9; i++) {
      if (table[i] >= 0 && visible(table[i])) return true;
    }
    return false;
  };
  const tested = model.aliveBefore || model.aliveAfter;
  const counts = model.texture ? blank : tested ? alive : visible;
  let count = 0;
  for (let cell = 0; cell < cells; cell++) if (counts(cell)) count++;
  return count;
}
