// The WebGL 2 path: the same steps as automaton.js, every cell at once.
//
// Three array textures hold the state, what a step makes of it, and the next state. A pass writes
// up to four layers, which is what every WebGL 2 can do; larger states take several passes.

const MOST_CHANNELS = 64;
const POLL_EVERY = 4; // milliseconds

/** An automaton that computes with WebGL 2. */
class WebGLAutomaton {
  /** Throws an Error with the reason, as part of a sentence, where WebGL 2 cannot do it. */
  constructor(model, height, width, seed) {
    Object.assign(this, { model, height, width, step: 0 });
    if (model.channels > MOST_CHANNELS) {
      throw new Error(`this model has more than ${MOST_CHANNELS} channels`);
    }
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width, height });
    const gl = this.canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.gl = gl;
    try {
      this.prepare(seed);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Makes textures, framebuffers and programs. */
  prepare(seed) {
    const { gl, model } = this;
    if (!gl.getExtension("EXT_color_buffer_float")) {
      throw new Error("this browser's WebGL 2 has no float textures to draw on");
    }
    this.layers = Math.ceil(model.channels / 4);
    const side = Math.max(this.width, this.height, model.hidden + 1);
    if (side > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      throw new Error("the grid or the hidden layer is larger than a texture can be");
    }
    this.seedWords = splitSeed(seed);
    gl.disable(gl.DITHER);
    this.scratch = gl.createFramebuffer();
    const makeOne = () => makeGrid(gl, this.width, this.height, this.layers);
    [this.state, this.updated] = [makeOne(), makeOne()];
    this.cleared = model.aliveBefore || model.aliveAfter ? makeOne() : null;
    this.weights = makeWeights(gl, model);
    this.passes = range(Math.ceil(this.layers / LAYERS_AT_ONCE)).map((number) => {
      const first = LAYERS_AT_ONCE * number;
      const count = Math.min(LAYERS_AT_ONCE, this.layers - first);
      return {
        number,
        update: this.makeProgram(updateSource(model, first, count)),
        clear: this.cleared && this.makeProgram(clearSource(model, first, count)),
      };
    });
    this.painting = this.makeProgram(paintSource(model));
    this.showing = this.makeProgram(showSource(model));
    this.reset();
  }

  /** Compiles a program for this grid and seed. */
  makeProgram(fragmentSource) {
    const { gl, height, model, seedWords, width } = this;
    return makeProgram(gl, fragmentSource, { height, model, seedWords, width });
  }

  /** Draws a pass on a framebuffer; null is the canvas. */
  run({ program }, framebuffer) {
    const { gl } = this;
    gl.useProgram(program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.viewport(0, 0, this.width, this.height);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  /** Lets programs read a grid: unit 0 is the state, unit 1 the updated one. */
  bind(unit, grid) {
    const { gl } = this;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, grid && grid.texture);
  }

  /** Starts again from the seed, at step 0. */
  reset() {
    this.step = 0;
    this.write(new Float32Array(this.model.channels * this.height * this.width));
    if (this.model.start === "cell") {
      this.plant(Math.floor(this.height / 2), Math.floor(this.width / 2));
    }
  }

  /** Says which mask a program draws. */
  setMask({ program, at }, step, updateRate) {
    const { gl } = this;
    gl.useProgram(program);
    gl.uniform2ui(at("stepNumber"), ...splitStep(step));
    gl.uniform1ui(at("limit"), maskLimit(updateRate));
  }

  /** Advances by `count` steps in which cells update with probability `updateRate`. */
  advance(count, updateRate) {
    const { gl } = this;
    for (let i = 0; i < count; i++) {
      this.bind(1, null);
      this.bind(0, this.state);
      gl.activeTexture(gl.TEXTURE2);
      gl.bindTexture(gl.TEXTURE_2D, this.weights);
      for (const { number, update } of this.passes) {
        this.setMask(update, this.step, updateRate);
        this.run(update, this.updated.framebuffers[number]);
      }
      if (this.cleared) {
        this.bind(1, this.updated);
        for (const { number, clear } of this.passes) {
          this.run(clear, this.cleared.framebuffers[number]);
        }
        [this.state, this.cleared] = [this.cleared, this.state];
      } else {
        [this.state, this.updated] = [this.updated, this.state];
      }
      this.step++;
    }
  }

  /** Lets one layer of the state be drawn on or read. */
  openLayer(layer) {
    const { gl } = this;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.scratch);
    const place = [gl.COLOR_ATTACHMENT0, this.state.texture, 0, layer];
    gl.framebufferTextureLayer(gl.FRAMEBUFFER, ...place);
  }

  /** Sets a disc of cells to `values`, one a channel; a rule's inputs stay as they are. */
  paint(row, column, radius, values) {
    const { gl, painting } = this;
    this.bind(0, null);
    this.bind(1, null);
    gl.useProgram(painting.program);
    gl.uniform2f(painting.at("centre"), column, row);
    gl.uniform1f(painting.at("radius"), radius);
    for (const layer of range(this.layers)) {
      const four = [0, 1, 2, 3].map((part) => values[4 * layer + part] || 0);
      gl.uniform4f(painting.at("value"), ...four);
      gl.colorMask(...writtenIn(this.model, layer));
      this.openLayer(layer);
      this.run(painting, this.scratch);
    }
    gl.colorMask(true, true, true, true);
  }

  /** Clears a disc of cells; the centre and the radius are in cells. */
  damage(row, column, radius) {
    this.paint(row, column, radius, new Float32Array(this.model.channels));
  }

  /** Plants a seed in one cell. */
  plant(row, column) {
    this.paint(row, column, 0.5, seedValues(this.model));
  }

  /** Returns four channels of every cell, `[cells, 4]`. */
  readLayer(layer) {
    const { gl, height, width } = this;
    const values = new Float32Array(4 * height * width);
    this.openLayer(layer);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.FLOAT, values);
    return values;
  }

  /** Promises the first four channels of every cell, `[cells, 4]`; nobody waits for them. */
  async readVisible() {
    const { gl, height, width } = this;
    const values = new Float32Array(4 * height * width);
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, buffer);
    gl.bufferData(gl.PIXEL_PACK_BUFFER, values.byteLength, gl.STREAM_READ);
    this.openLayer(0);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.FLOAT, 0);
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    do await new Promise((done) => setTimeout(done, POLL_EVERY));
    while (!gl.isContextLost() && gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED);
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, buffer);
    gl.getBufferSubData(gl.PIXEL_PACK_BUFFER, 0, values);
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, null);
    gl.deleteBuffer(buffer);
    gl.deleteSync(fence);
    return values;
  }

  /** Returns the state as Python has it, `[channels, height, width]`. */
  read() {
    const cells = this.height * this.width;
    const planes = new Float32Array(this.model.channels * cells);
    for (const layer of range(this.layers)) {
      const four = this.readLayer(layer);
      const last = Math.min(planes.length, 4 * (layer + 1) * cells);
      for (let i = 4 * layer * cells; i < last; i++) {
        planes[i] = four[4 * (i % cells) + (Math.floor(i / cells) % 4)];
      }
    }
    return planes;
  }

  /** Takes a state as `read` returns it. */
  write(planes) {
    const { gl, height, layers, width } = this;
    const cells = height * width;
    const values = new Float32Array(4 * layers * cells);
    for (let i = 0; i < planes.length; i++) {
      const channel = Math.floor(i / cells);
      const cell = i % cells;
      values[4 * (Math.floor(channel / 4) * cells + cell) + (channel % 4)] = planes[i];
    }
    this.bind(0, this.state);
    const place = [0, 0, 0, 0, width, height, layers];
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, ...place, gl.RGBA, gl.FLOAT, values);
  }

  /** Returns the mask of one step, a byte a cell. */
  readMask(step, updateRate) {
    const { gl } = this;
    this.drawing ??= this.makeProgram(maskSource());
    this.setMask(this.drawing, step, updateRate);
    this.openLayer(0);
    this.run(this.drawing, this.scratch);
    return Uint8Array.from(this.readLayer(0).filter((_, i) => i % 4 === 0));
  }

  /** Draws the state on a 2D canvas of one pixel a cell. */
  draw(context) {
    this.bind(0, this.state);
    this.run(this.showing, null);
    context.drawImage(this.canvas, 0, 0);
  }

  /** Gives the context back: a browser has few. */
  dispose() {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}
