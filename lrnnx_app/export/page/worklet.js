// Runs the model on the audio thread: samples gather to a hop, and the hop's outputs leave during the next.
class Model {
  constructor(bytes, facts) {
    const imports = { wasi_snapshot_preview1: new Proxy({}, { get: () => () => 0 }) };
    this.facts = facts;
    this.wasm = new WebAssembly.Instance(new WebAssembly.Module(bytes), imports).exports;
    this.wasm.begin();
    const memory = this.wasm.memory.buffer;
    this.x = new Float32Array(memory, this.wasm.input(), facts.hop * facts.inputs);
    this.y = new Float32Array(memory, this.wasm.output(), facts.rows * facts.outputs);
  }
  push() { this.wasm.push(); }
}

class Live extends AudioWorkletProcessor {
  constructor({ processorOptions: { bytes, facts } }) {
    super();
    this.model = new Model(bytes, facts);
    this.facts = facts;
    const { hop, delay, sound } = facts;
    this.filled = 0;
    this.after = new Float32Array(hop);
    // What is heard before the model is as late as what is heard after it, so that a switch keeps its place.
    this.late = new Float32Array(delay + hop);
    this.shown = this.late.subarray(0, hop);
    this.hops = this.spent = this.longest = this.last = 0;
    this.new = [];
    this.alive = true;
    this.port.onmessage = () => { this.alive = false; };
  }
  process([[input]], [[before], [after]]) {
    const now = Date.now();
    if (this.last) this.longest = Math.max(this.longest, now - this.last);
    this.last = now;
    const { hop, sound } = this.facts;
    for (let i = 0; i < before.length; i++) {
      before[i] = this.shown[this.filled];
      after[i] = sound ? this.after[this.filled] : 0;
      this.model.x[this.filled++] = input ? input[i] : 0;
      if (this.filled === hop) this.hop();
    }
    return this.alive;
  }
  hop() {
    const { x, y } = this.model, { hop, delay, sound, keep } = this.facts;
    const start = Date.now();
    this.model.push();
    this.spent += Date.now() - start;
    this.hops++;
    this.filled = 0;
    if (sound) {
      this.after.set(y);
      this.new.push([x.slice(), y.slice()]);
    }
    this.late.copyWithin(0, hop);
    this.late.set(x, delay);
    if (this.hops % this.facts.period === 0) {
      const { hops, spent, longest, new: parts } = this;
      this.port.postMessage({ hops, spent, longest, parts, classes: sound ? null : y.slice(-this.facts.outputs) });
      this.longest = 0;
      this.new = [];
    }
  }
}

registerProcessor("model", Live);
