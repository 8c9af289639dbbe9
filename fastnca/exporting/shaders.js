// The shaders of the WebGL 2 path, written for one model.
//
// A state is an array texture of RGBA32F layers, four channels a layer. Names of registers and
// constants are written into the text, because arrays with changing indices are slow on many
// drivers. E1 to E7 are the equations of fastnca/reference.py.

const VERTEX_SHADER = `#version 300 es
void main() { // one triangle that covers everything
  vec2 corner = vec2((gl_VertexID << 1) & 2, gl_VertexID & 2);
  gl_Position = vec4(2.0 * corner - 1.0, 0.0, 1.0);
}`;

const HEADER = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
precision highp sampler2DArray;
uniform ivec2 size; // width, height
`;

/** Which cells update (E4); see philox.js. */
const MASK = `
uniform uvec2 seed;
uniform uvec2 stepNumber;
uniform uint limit;

uint multiplyHigh(uint a, uint b) {
  uint aLow = a & 0xffffu, aHigh = a >> 16, bLow = b & 0xffffu, bHigh = b >> 16;
  uint middle = aHigh * bLow + ((aLow * bLow) >> 16);
  uint cross = aLow * bHigh + (middle & 0xffffu);
  return aHigh * bHigh + (middle >> 16) + (cross >> 16);
}

bool updates(ivec2 at) {
  uint cell = uint(at.y * size.x + at.x);
  uvec4 c = uvec4(cell >> 2, 0u, stepNumber);
  uvec2 key = seed;
  for (int turn = 0; turn < 10; turn++) {
    uint high0 = multiplyHigh(c.x, 0xd2511f53u), high1 = multiplyHigh(c.z, 0xcd9e8d57u);
    c = uvec4(high1 ^ c.y ^ key.x, c.z * 0xcd9e8d57u, high0 ^ c.w ^ key.y, c.x * 0xd2511f53u);
    key += uvec2(0x9e3779b9u, 0xbb67ae85u);
  }
  uint place = cell & 3u;
  uint word = place == 0u ? c.x : place == 1u ? c.y : place == 2u ? c.z : c.w;
  return (word >> 8) < limit;
}
`;

const PLACES = {
  zeros: `return any(lessThan(at, ivec2(0))) || any(greaterThanEqual(at, size)) ? ivec2(-1) : at;`,
  circular: `return (at + 2 * size) % size;`,
  reflect: `ivec2 last = size - 1; return last - abs(last - abs(at));`,
  replicate: `return clamp(at, ivec2(0), size - 1);`,
};

/** Which cells are alive (E2, E7); what lies beyond the border has no alpha, but on a torus. */
function lifeSource(model) {
  const wraps = model.padding === "circular";
  return `
uniform float threshold;

float alphaAt(sampler2DArray from, ivec2 at) {
  ${PLACES[wraps ? "circular" : "zeros"].replace("return", "ivec2 cell =")}
  return cell.x < 0 ? -1.0 : texelFetch(from, ivec3(cell, 0), 0).w;
}

bool alive(sampler2DArray from, ivec2 at, int reach) {
  for (int dy = -reach; dy <= reach; dy++) {
    for (int dx = -reach; dx <= reach; dx++) {
      if (alphaAt(from, at + ivec2(dx, dy)) > threshold) return true;
    }
  }
  return false;
}
`;
}

/** Declares the outputs of a pass that writes layers `first` to `first + count - 1`. */
function outputs(count) {
  return range(count).map((i) => `layout(location = ${i}) out vec4 next${i};\n`).join("");
}

/** Tells which components of a layer are channels that a step writes. */
function writtenIn(model, layer) {
  return [0, 1, 2, 3].map((part) => 4 * layer + part < model.written);
}

/** Lays the weights out as a picture of four numbers a pixel, as `updateSource` reads it. */
function packWeights(model) {
  const { channels, filters, hidden, written } = model;
  const layers = Math.ceil(channels / 4);
  const bias = layers * filters;
  const columns = bias + 1 + layers;
  const values = new Float32Array(4 * columns * (hidden + 1));
  for (let unit = 0; unit < hidden; unit++) {
    const row = 4 * columns * unit;
    for (let c = 0; c < channels; c++) {
      for (let k = 0; k < filters; k++) {
        const weight = model.hiddenWeight[(unit * channels + c) * filters + k];
        values[row + 4 * (Math.floor(c / 4) * filters + k) + (c % 4)] = weight;
      }
    }
    values[row + 4 * bias] = model.hiddenBias[unit];
    for (let c = 0; c < written; c++) {
      values[row + 4 * (bias + 1) + c] = model.outputWeight[c * hidden + unit];
    }
  }
  values.set(model.outputBias, 4 * columns * hidden + 4 * (bias + 1));
  return { columns, rows: hidden + 1, values };
}

/** Returns the shader that updates layers of the state: E1, E3, E4 and E5. */
function updateSource(model, first, count) {
  const layers = Math.ceil(model.channels / 4);
  const filters = range(model.filters);
  const seen = range(layers).flatMap((g) => filters.map((k) => `seen${g}_${k}`));
  const look = range(layers).map(
    (g) => `
      value = texelFetch(state, ivec3(cell, ${g}), 0);
      ${filters.map((k) => `seen${g}_${k} += taps[${9 * k} + tap] * value;`).join(" ")}`,
  );
  const sums = seen.map((name, i) => `    sum += dot(weight(${i}, unit), ${name});\n`).join("");
  const bias = seen.length;
  const change = (i, row) => `weight(${bias + 1 + first + i}, ${row})`;
  const limits = model.clamp ? "value = clamp(value, limits.x, limits.y);" : "";
  const finish = range(count).map((i) => `
  value = next${i} + stepSize * delta${i};
  ${limits}
  next${i} = mix(next${i}, value, bvec4(${writtenIn(model, first + i)}));`);
  return `${HEADER}${MASK}${lifeSource(model)}
uniform sampler2DArray state;
uniform sampler2D weights; // one row a hidden unit; the last row is the bias of the last layer
uniform float taps[${9 * model.filters}];
uniform float stepSize;
uniform vec2 limits;
${outputs(count)}
ivec2 place(ivec2 at) { ${PLACES[model.padding]} }

vec4 weight(int column, int row) { return texelFetch(weights, ivec2(column, row), 0); }

void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  ${range(count).map((i) => `next${i} = texelFetch(state, ivec3(at, ${first + i}), 0);`).join("\n  ")}
  if (!updates(at)) return;
  ${model.aliveBefore ? "if (!alive(state, at, 2)) return; // no living cell could see it" : ""}
  vec4 value, ${seen.map((name) => `${name} = vec4(0.0)`).join(", ")};
  for (int row = 0; row < 3; row++) {
    for (int column = 0; column < 3; column++) {
      ivec2 cell = place(at + ivec2(column - 1, row - 1));
      if (cell.x < 0) continue;
      int tap = 3 * row + column;${look.join("")}
    }
  }
  vec4 ${range(count).map((i) => `delta${i} = ${change(i, model.hidden)}`).join(", ")};
  for (int unit = 0; unit < ${model.hidden}; unit++) {
    float sum = weight(${bias}, unit).x;
${sums}    if (sum <= 0.0) continue;
    ${range(count).map((i) => `delta${i} += sum * ${change(i, "unit")};`).join("\n    ")}
  }${finish.join("")}
}`;
}

/** Returns the shader that clears the cells that were not alive, or are not: E6 and E7. */
function clearSource(model, first, count) {
  const tests = [];
  if (model.aliveBefore) tests.push("alive(state, at, 1)");
  if (model.aliveAfter) tests.push("alive(updated, at, 1)");
  const clear = range(count).map((i) => `
  next${i} = texelFetch(updated, ivec3(at, ${first + i}), 0);
  if (!lives) next${i} = mix(next${i}, vec4(0.0), bvec4(${writtenIn(model, first + i)}));`);
  return `${HEADER}${lifeSource(model)}
uniform sampler2DArray state;
uniform sampler2DArray updated;
${outputs(count)}
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  bool lives = ${tests.join(" && ")};${clear.join("")}
}`;
}

/** Returns the shader that sets a disc of cells to a value. */
function paintSource(model) {
  const wraps = model.padding === "circular";
  return `${HEADER}
uniform vec2 centre;
uniform float radius;
uniform vec4 value;
out vec4 painted;
void main() {
  vec2 away = abs(floor(gl_FragCoord.xy) - centre);
  ${wraps ? "away = min(away, abs(vec2(size) - away));" : ""}
  if (dot(away, away) >= radius * radius) discard;
  painted = value;
}`;
}

/** Returns the shader that shows a state on white; rows of a canvas are counted from below. */
function showSource(model) {
  const [moved, alpha] = model.texture ? ["cell + 0.5", "1.0"] : ["cell", "shown.a"];
  return `${HEADER}
uniform sampler2DArray state;
out vec4 colour;
void main() {
  ivec2 at = ivec2(gl_FragCoord.x, size.y - 1 - int(gl_FragCoord.y));
  vec4 cell = texelFetch(state, ivec3(at, 0), 0);
  vec4 shown = mix(clamp(${moved}, 0.0, 1.0), vec4(0.0), isnan(cell));
  colour = vec4(1.0 - ${alpha} + shown.rgb, 1.0);
}`;
}

/** Returns the shader that draws the mask of one step. */
function maskSource() {
  return `${HEADER}${MASK}
out vec4 drawn;
void main() { drawn = vec4(updates(ivec2(gl_FragCoord.xy)) ? 1.0 : 0.0); }`;
}

/** Returns 0, 1, ... `count` - 1. */
function range(count) {
  return Array.from({ length: count }, (_, i) => i);
}
