// The update masks: which cells take part in a step, a pure function of seed, step and cell.
//
// Philox 4x32-10 with the counters of fastnca/masks.py, so that a run here has the same random
// updates as `run_steps(..., seed=...)` in Python. JavaScript has no 64-bit integers that are
// fast, so a product of 32 bits is put together from pieces of 16 bits.

const ROUNDS = 10;
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
const MASK_BITS = 24;

/** Returns the upper 32 bits of the product of two unsigned 32-bit numbers. */
function multiplyHigh(a, b) {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16); // below 2 ** 32, as is `cross`
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (cross >>> 16)) >>> 0;
}

/** Writes the four words of one counter and key into `words`, a Uint32Array of 4. */
function philox(words, c0, c1, c2, c3, key0, key1) {
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = multiplyHigh(c0, MULTIPLIERS[0]);
    const high1 = multiplyHigh(c2, MULTIPLIERS[1]);
    const low0 = Math.imul(c0, MULTIPLIERS[0]);
    const low1 = Math.imul(c2, MULTIPLIERS[1]);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 = (key0 + KEY_STEPS[0]) | 0;
    key1 = (key1 + KEY_STEPS[1]) | 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/** Splits a 64-bit seed, a number, BigInt or decimal text, into its low and high word. */
function splitSeed(seed) {
  const whole = BigInt.asUintN(64, BigInt(seed));
  return [Number(whole & 0xffffffffn), Number(whole >> 32n)];
}

/** Splits the number of a step, a whole number below 2 ** 53, into its low and high word. */
function splitStep(step) {
  return [step >>> 0, Math.floor(step / 2 ** 32)];
}

/** Returns the limit below which the upper 24 bits of a word mean "update". */
function maskLimit(updateRate) {
  const exact = updateRate * 2 ** MASK_BITS;
  const rounded = Math.round(exact); // halves go up here, and to the even number in Python
  return exact % 1 === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}

/** Fills `mask`, one byte a cell, row by row, with 1 where the cell updates and 0 elsewhere. */
function drawMask(mask, seed, step, updateRate) {
  const limit = maskLimit(updateRate);
  const [key0, key1] = splitSeed(seed);
  const [stepLow, stepHigh] = splitStep(step);
  const words = new Uint32Array(4);
  for (let cell = 0; cell < mask.length; cell += 4) {
    philox(words, cell >>> 2, 0, stepLow, stepHigh, key0, key1);
    const count = Math.min(4, mask.length - cell);
    for (let word = 0; word < count; word++) {
      mask[cell + word] = words[word] >>> (32 - MASK_BITS) < limit ? 1 : 0;
    }
  }
}
