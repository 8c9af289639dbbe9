// What the WebGL 2 path keeps on the graphics processor: grids, weights, programs.

const LAYERS_AT_ONCE = 4; // that a pass may draw; every WebGL 2 can do four

/** Switches off, for the texture that is bound, what would mix neighbouring values. */
function readExactly(gl, target) {
  gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  gl.texParameteri(target, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
  gl.texParameteri(target, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
}

/** Makes the texture of a state, all zero, and a framebuffer for each pass that writes it. */
function makeGrid(gl, width, height, layers) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
  gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, gl.RGBA32F, width, height, layers);
  readExactly(gl, gl.TEXTURE_2D_ARRAY);
  const framebuffers = [];
  for (let first = 0; first < layers; first += LAYERS_AT_ONCE) {
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    const places = range(Math.min(LAYERS_AT_ONCE, layers - first)).map(
      (i) => gl.COLOR_ATTACHMENT0 + i,
    );
    places.forEach((place, i) => {
      gl.framebufferTextureLayer(gl.FRAMEBUFFER, place, texture, 0, first + i);
    });
    gl.drawBuffers(places);
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) {
      throw new Error("this browser's WebGL 2 cannot draw on several float textures");
    }
    framebuffers.push(framebuffer);
  }
  return { texture, framebuffers };
}

/** Makes the texture of the weights. */
function makeWeights(gl, model) {
  const { columns, rows, values } = packWeights(model);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32F, columns, rows);
  gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, columns, rows, gl.RGBA, gl.FLOAT, values);
  readExactly(gl, gl.TEXTURE_2D);
  return texture;
}

/** Compiles a program, sets what never changes in it, and returns how to find its uniforms. */
function makeProgram(gl, fragmentSource, { height, model, seedWords, width }) {
  const program = gl.createProgram();
  for (const [kind, source] of [
    [gl.VERTEX_SHADER, VERTEX_SHADER],
    [gl.FRAGMENT_SHADER, fragmentSource],
  ]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
    throw new Error("this browser's WebGL 2 cannot compile the model");
  }
  const places = new Map();
  const at = (name) => {
    if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
    return places.get(name);
  };
  gl.useProgram(program);
  gl.uniform2i(at("size"), width, height);
  gl.uniform2ui(at("seed"), ...seedWords);
  gl.uniform1f(at("threshold"), model.aliveThreshold);
  gl.uniform1f(at("stepSize"), model.stepSize);
  gl.uniform1fv(at("taps"), model.taps);
  if (model.clamp) gl.uniform2f(at("limits"), ...model.clamp);
  gl.uniform1i(at("state"), 0);
  gl.uniform1i(at("updated"), 1);
  gl.uniform1i(at("weights"), 2);
  return { program, at };
}
