// The page: asks, follows the queue, shows pictures. All text from people is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const form = $("ask");
const followed = new Map(); // job id -> AbortController of its event stream
const previews = new Map(); // job id -> data URL of the newest preview
let jobs = [];

function headers(extra = {}) {
  const key = form.elements.key.value.trim();
  return key ? { ...extra, Authorization: `Bearer ${key}` } : extra;
}

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: headers(body ? { "Content-Type": "application/json" } : {}),
    body: body ? JSON.stringify(body) : undefined,
  });
  const text = await answer.text();
  const value = text ? JSON.parse(text) : {};
  if (!answer.ok) throw new Error(value.error ? value.error.message : `the server answered ${answer.status}`);
  return value;
}

function problem(text) {
  $("problem").textContent = text || "";
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function wish() {
  const fields = form.elements;
  const body = { prompt: fields.prompt.value, partial_images: 3, stream: true };
  for (const name of ["steps", "seed", "n"]) if (fields[name].value) body[name] = parseInt(fields[name].value, 10);
  if (fields.guidance.value) body.guidance = parseFloat(fields.guidance.value);
  if (fields.negative_prompt.value) body.negative_prompt = fields.negative_prompt.value;
  const width = fields.width.value || fields.height.value;
  const height = fields.height.value || fields.width.value;
  if (width) body.size = `${width}x${height}`;
  return body;
}

async function draw(body) {
  problem("");
  try {
    await call("POST", "/jobs", body);
    await refresh();
  } catch (error) {
    problem(error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  draw(wish());
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});

async function follow(id) {
  if (followed.has(id)) return;
  const control = new AbortController();
  followed.set(id, control);
  try {
    const answer = await fetch(`/jobs/${id}/events`, { headers: headers(), signal: control.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) hear(id, part);
    }
  } catch (error) {
    if (error.name !== "AbortError") console.debug(error.message);
  }
  followed.delete(id);
  refresh();
}

function hear(id, text) {
  const kind = /^event: (.*)$/m.exec(text);
  const data = /^data: (.*)$/m.exec(text);
  const job = jobs.find((other) => other.id === id);
  if (!kind || !data || !job) return;
  const value = JSON.parse(data[1]);
  if (kind[1] === "step") {
    Object.assign(job, { state: "running", step: value.step, steps: value.steps });
    if (value.preview) previews.set(id, `data:image/png;base64,${value.preview}`);
    showQueue();
  }
}

function act(label, action, name) {
  const button = make("button", { type: "button", textContent: label });
  button.setAttribute("aria-label", name);
  button.addEventListener("click", action);
  return button;
}

// Puts `elements` into `parent` in that order and touches only what differs, so focus and clicks survive.
function arrange(parent, elements) {
  elements.forEach((element, index) => {
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] || null);
  });
  while (parent.children.length > elements.length) parent.lastElementChild.remove();
}

// One element for each key, made when the key is first seen and forgotten when it is not asked for any more.
function keeper() {
  let known = new Map();
  let asked = new Map();
  return {
    get(key, build) {
      asked.set(key, known.get(key) || build());
      return asked.get(key);
    },
    end() {
      known = asked;
      asked = new Map();
    },
  };
}

const rows = keeper();
const cards = keeper();

function showQueue() {
  const open = jobs.filter((job) => job.state === "queued" || job.state === "running");
  open.sort((one, other) => (one.position ?? -1) - (other.position ?? -1));
  const shown = open.map((job) => {
    const row = rows.get(`${job.id} ${job.state}`, () => queueRow(job));
    const preview = previews.get(job.id);
    const [image, , bar, , up] = row.parts;
    image.hidden = !preview;
    if (preview && image.src !== preview) image.src = preview;
    Object.assign(bar, { value: job.step, max: job.steps || 1, hidden: job.state !== "running" });
    row.parts[3].textContent = job.state === "queued" ? (job.position ? `${job.position} before it` : "next") : "";
    up.hidden = job.state !== "queued" || !job.position;
    up.position = job.position - 1;
    return row;
  });
  if (!shown.length) shown.push(rows.get("empty", () => make("li", { className: "empty", textContent: "Nothing is waiting." })));
  rows.end();
  arrange($("queue"), shown);
}

function queueRow(job) {
  const up = act("Up", () => change(`/jobs/${job.id}/move`, { position: up.position }), `Move up: ${job.prompt}`);
  const bar = make("progress");
  bar.setAttribute("aria-label", `Progress: ${job.prompt}`);
  const parts = [
    make("img", { alt: "" }),
    make("span", { className: "what", textContent: job.prompt, title: job.prompt }),
    bar,
    make("span", { className: "place" }),
    up,
    act("Cancel", () => change(`/jobs/${job.id}`), `Cancel: ${job.prompt}`),
  ];
  return Object.assign(make("li", {}, ...parts), { parts });
}

async function change(path, body) {
  try {
    await call(body ? "POST" : "DELETE", path, body);
  } catch (error) {
    problem(error.message);
  }
  refresh();
}

const pictures = new Map(); // url -> object URL (the key travels in a header, so images are fetched)

async function picture(url, image) {
  if (!pictures.has(url)) {
    const answer = await fetch(url, { headers: headers() });
    if (!answer.ok) return;
    pictures.set(url, URL.createObjectURL(await answer.blob()));
  }
  image.src = pictures.get(url);
}

function showGallery() {
  const words = $("search").value.toLowerCase();
  const shown = [];
  for (const job of jobs) {
    if (!job.prompt.toLowerCase().includes(words)) continue;
    if (job.state === "failed") {
      const text = `${job.prompt}: ${job.error}`;
      shown.push(cards.get(job.id, () => make("p", { className: "failed", textContent: text })));
    }
    for (const facts of job.images) shown.push(cards.get(facts.url, () => card(job, facts)));
  }
  const empty = words ? "No picture has these words." : "No pictures yet.";
  if (!shown.length) shown.push(cards.get(empty, () => make("p", { className: "empty", textContent: empty })));
  cards.end();
  arrange($("gallery"), shown);
}

function card(job, facts) {
  const image = make("img", { alt: job.prompt });
  picture(facts.url, image);
  const again = { prompt: job.prompt, n: 1, partial_images: 3, stream: true, size: `${facts.width}x${facts.height}` };
  for (const name of ["steps", "guidance"]) if (job.request[name]) again[name] = job.request[name];
  if (job.request.negative) again.negative_prompt = job.request.negative;
  const save = act("Save", () => make("a", { href: image.src, download: `${facts.seed}-${facts.file}` }).click(), `Save: ${job.prompt}`);
  const buttons = make(
    "div",
    { className: "actions" },
    act("Repeat", () => draw({ ...again, seed: facts.seed }), `Draw again: ${job.prompt}`),
    act("Vary", () => draw(again), `Draw with another seed: ${job.prompt}`),
    save,
  );
  const what = make("p", { textContent: job.prompt, title: `seed ${facts.seed}` });
  return make("figure", {}, image, make("figcaption", {}, what, buttons));
}

async function refresh() {
  try {
    jobs = (await call("GET", "/jobs")).jobs;
    const health = await call("GET", "/health");
    $("state").textContent = `${health.running} drawing, ${health.queued} waiting`;
  } catch (error) {
    $("state").textContent = error.message;
    return;
  }
  showQueue();
  showGallery();
  for (const job of jobs) if (job.state === "queued" || job.state === "running") follow(job.id);
}

$("search").addEventListener("input", showGallery);
form.elements.key.addEventListener("change", refresh);
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
refresh();
setInterval(() => {
  if (!document.hidden) refresh();
}, 5000);
