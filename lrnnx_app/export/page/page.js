// The page: where sound comes from, what is heard, and the pictures. The model runs in worklet.js.
const at = (id) => document.getElementById(id);
const PERIOD = 0.25; // seconds between two messages of the model
const KEPT = 120; // seconds that can be saved
const LOWEST = -100, HIGHEST = -20; // dB from black to white

const facts = await (await fetch("model.json")).json();
const bytes = await (await fetch("model.wasm")).arrayBuffer();
facts.period = Math.max(1, Math.round(PERIOD * facts.rate / facts.hop));
at("title").textContent = document.title = facts.name;
at("about").textContent = facts.about;
at("choice").hidden = at("save").hidden = !facts.sound;
at("after").parentElement.hidden = !facts.sound;
at("classes").hidden = facts.sound;

let context, node, source, gains, analysers, longest, kept = [];

function say(text) { at("state").textContent = text; }

async function start(open) {
  await stop();
  try {
    context = new AudioContext({ sampleRate: facts.rate, latencyHint: "interactive" });
    await context.audioWorklet.addModule("worklet.js");
    node = new AudioWorkletNode(context, "model", {
      numberOfInputs: 1, numberOfOutputs: 2, outputChannelCount: [1, 1],
      channelCount: 1, channelCountMode: "explicit",
      processorOptions: { bytes, facts },
    });
    node.port.onmessage = ({ data }) => told(data);
    node.onprocessorerror = () => say("The model failed on the audio thread.");
    gains = [0, 1].map(() => new GainNode(context, { gain: 0 }));
    analysers = [0, 1].map(() => new AnalyserNode(context, { fftSize: 512, smoothingTimeConstant: 0 }));
    [0, 1].forEach((i) => {
      node.connect(gains[i], i).connect(context.destination);
      node.connect(analysers[i], i);
    });
    longest = 0;
    kept = [];
    source = await open(context);
    source.connect(node);
    heard();
    for (const id of ["stop", "save"]) at(id).disabled = false;
    at("choice").disabled = false;
    requestAnimationFrame(draw);
  } catch (error) {
    await stop();
    say(`${error.message || error}`);
  }
}

async function stop() {
  source?.mediaStream?.getTracks().forEach((track) => track.stop());
  node?.port.postMessage("stop");
  await context?.close();
  context = source = undefined;
  at("stop").disabled = at("choice").disabled = true;
}

async function microphone(context) {
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { ...plain, channelCount: 1 } });
  say("Listening. Use headphones, or hear nothing, so that the sound does not come back.");
  return new MediaStreamAudioSourceNode(context, { mediaStream: stream });
}

const file = (chosen) => async (context) => {
  const buffer = await context.decodeAudioData(await chosen.arrayBuffer());
  const player = new AudioBufferSourceNode(context, { buffer });
  player.onended = () => say(`${chosen.name} has ended.`);
  player.start();
  say(`Playing ${chosen.name}.`);
  return player;
};

function heard() {
  const chosen = document.querySelector("[name=heard]:checked").value;
  ["before", "after"].forEach((name, i) => {
    gains?.[i].gain.setTargetAtTime(chosen === name && facts.sound ? 1 : 0, context?.currentTime ?? 0, 0.01);
  });
}

function told({ hops, spent, longest: gap, parts, classes }) {
  if (kept.length * facts.hop < KEPT * facts.rate) kept.push(...parts);
  longest = Math.max(longest, gap);
  if (!context) return; // stopped meanwhile
  const hop = 1000 * facts.hop / facts.rate, late = 1000 * (facts.hop + (facts.sound ? facts.delay : 0)) / facts.rate;
  at("latency").textContent = `${(late + 1000 * (context.baseLatency + (context.outputLatency || 0))).toFixed(0)} ms`;
  at("time").textContent = `${(spent / hops).toFixed(2)} ms`;
  at("load").textContent = `${(100 * spent / hops / hop).toFixed(1)} %`;
  at("gap").textContent = `${longest} ms`;
  if (classes) rank(classes);
}

function rank(values) {
  const most = Math.max(...values), powers = values.map((v) => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b);
  const best = [...powers.keys()].sort((a, b) => powers[b] - powers[a]).slice(0, 5);
  at("ranking").replaceChildren(...best.map((i) => {
    const line = document.createElement("li"), meter = document.createElement("meter");
    meter.value = powers[i] / sum;
    line.append(`${facts.classes[i] ?? i} `, meter, ` ${(100 * meter.value).toFixed(0)} %`);
    return line;
  }));
}

function draw() {
  if (!context) return;
  ["before", "after"].forEach((name, i) => {
    const canvas = at(name), picture = canvas.getContext("2d");
    const levels = new Float32Array(analysers[i].frequencyBinCount);
    analysers[i].getFloatFrequencyData(levels);
    picture.drawImage(canvas, -1, 0);
    const column = picture.createImageData(1, canvas.height);
    for (let y = 0; y < canvas.height; y++) {
      const level = levels[Math.floor((1 - (y + 1) / canvas.height) * levels.length)];
      const share = Math.min(1, Math.max(0, (level - LOWEST) / (HIGHEST - LOWEST)));
      column.data.set([510 * share, 510 * share - 255, 255 * (share < 0.25 ? 4 * share : share < 0.5 ? 2 - 4 * share : 2 * share - 1), 255], 4 * y);
    }
    picture.putImageData(column, canvas.width - 1, 0);
  });
  requestAnimationFrame(draw);
}

function save() {
  ["before", "after"].forEach((name, i) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(wav(kept.map((pair) => pair[i])));
    link.download = `${name}.wav`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// Float samples as a wav, so that nothing is rounded.
function wav(parts) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (place, word) => [...word].forEach((letter, i) => head.setUint8(place + i, letter.charCodeAt()));
  text(0, "RIFF"); head.setUint32(4, 36 + 4 * count, true);
  text(8, "WAVEfmt "); head.setUint32(16, 16, true);
  head.setUint16(20, 3, true); head.setUint16(22, 1, true);
  head.setUint32(24, facts.rate, true); head.setUint32(28, 4 * facts.rate, true);
  head.setUint16(32, 4, true); head.setUint16(34, 32, true);
  text(36, "data"); head.setUint32(40, 4 * count, true);
  return new Blob([head, ...parts], { type: "audio/wav" });
}

at("microphone").onclick = () => start(microphone);
at("stop").onclick = () => { stop(); say("Stopped."); };
at("save").onclick = save;
at("file").onchange = ({ target }) => target.files[0] && start(file(target.files[0]));
document.querySelectorAll("[name=heard]").forEach((radio) => { radio.onchange = heard; });
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files[0]) start(file(event.dataTransfer.files[0]));
  });
}
