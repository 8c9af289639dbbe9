// What a page, and a test, ask of a model: an automaton on one of the two paths, and `fastnca`.

/** The paths by name, the faster one first. */
const PATHS = {
  webgl: { label: "WebGL 2", make: (...sizes) => new WebGLAutomaton(...sizes) },
  javascript: { label: "JavaScript", make: (...sizes) => new JavaScriptAutomaton(...sizes) },
};

/**
 * Makes the object `window.fastnca`, which computes apart from what the page shows.
 *
 *   fastnca.run({path, size, seed, steps, updateRate, state, firstStep, plant, damage})
 *       -> Float32Array
 *     The state [channels, height, width] after `steps` steps from the model's seed, or from
 *     `state`, if it is given; what `run_steps(seed_state, steps, update_rate, seed=seed)` gives
 *     in Python for a model in training mode. Before the steps a seed is planted at [row, column]
 *     and then a disc [row, column, radius] is damaged, if they are given.
 *   fastnca.mask({path, size, seed, step, updateRate}) -> Uint8Array
 *     1 where a cell updates in a step, row by row; what `update_mask` gives in Python.
 *
 * `path` is "webgl" or "javascript", `size` one number or [height, width], `seed` a number, BigInt
 * or decimal text. What is missing is the model's own; `path` is then "javascript".
 * `fastnca.model` is the model.
 */
function makeApi(model) {
  function use({ path = "javascript", size = model.size, seed = model.seed }, work) {
    const [height, width] = [size].flat().length === 2 ? size : [size, size];
    const automaton = PATHS[path].make(model, height, width, seed);
    try {
      return work(automaton);
    } finally {
      automaton.dispose();
    }
  }
  const rateOf = ({ updateRate = model.updateRate }) => updateRate;
  return Object.freeze({
    model,
    run(options = {}) {
      return use(options, (automaton) => {
        if (options.state) automaton.write(options.state);
        if (options.plant) automaton.plant(...options.plant);
        if (options.damage) automaton.damage(...options.damage);
        automaton.step = options.firstStep ?? 0;
        automaton.advance(options.steps ?? 0, rateOf(options));
        return automaton.read();
      });
    },
    mask(options = {}) {
      return use(options, (automaton) => automaton.readMask(options.step ?? 0, rateOf(options)));
    },
  });
}
