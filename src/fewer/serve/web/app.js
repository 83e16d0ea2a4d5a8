// The page: asks, follows the queue, shows pictures. All text from people is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const form = $("ask");
const followed = new Map(); // job id -> AbortController of its event stream
const previews = new Map(); // job id -> data URL of the newest preview
const FOLLOWED = 3; // a browser opens six connections to a server: the others are for asking and cancelling
const PAGE = 100;
let jobs = []; // the newest
let found = { words: "", jobs: [], end: false }; // what the gallery shows: the same, older ones, or a search's
let drawing = []; // models that draw

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
  const value = text ? parse(text) : {};
  if (answer.status === 401) form.querySelector("details").open = true; // where the key is asked for
  if (!answer.ok) throw new Error(value.error ? value.error.message : `the server answered ${answer.status}`);
  return value;
}

// A number of JavaScript ends at 2^53: a larger seed stays the digits that it is. (In a prompt, quotes are escaped.)
function parse(text) {
  return JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
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
  if (fields.seed.value.trim()) body.seed = fields.seed.value.trim(); // digits, which may be more than a number holds
  for (const name of ["steps", "n"]) if (fields[name].value) body[name] = parseInt(fields[name].value, 10);
  if (fields.guidance.value) body.guidance = parseFloat(fields.guidance.value);
  if (fields.as_written.checked) body.as_written = true;
  if (fields.negative_prompt.value) body.negative_prompt = fields.negative_prompt.value;
  if (fields.model.value && fields.model.value !== "default") body.model = fields.model.value;
  if (fields.lora.value) body.lora = [fields.lora.value];
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

async function offer() {
  const told = await call("GET", "/v1/models");
  drawing = told.data.filter((model) => model.kind === "pictures" || model.kind === "classes");
  const { model, lora } = form.elements;
  model.replaceChildren(...drawing.map(({ id }) => make("option", { value: id, textContent: id })));
  lora.replaceChildren(make("option", { value: "", textContent: "none" }), ...told.loras.map((id) => make("option", { value: id, textContent: id })));
  $("models").hidden = drawing.length < 2;
  $("loras").hidden = !told.loras.length;
}

form.elements.model.addEventListener("change", () => {
  const chosen = drawing.find(({ id }) => id === form.elements.model.value);
  const names = (chosen && chosen.classes) || [];
  $("classes").hidden = !names.length;
  $("classes").textContent = `This model draws one of: ${names.slice(0, 200).join(", ")}`;
});

async function follow(id) {
  if (followed.has(id) || followed.size >= FOLLOWED) return;
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
  previews.delete(id);
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
function keeper(gone = () => {}) {
  let known = new Map();
  let asked = new Map();
  return {
    get(key, build) {
      asked.set(key, known.get(key) || build());
      return asked.get(key);
    },
    end() {
      for (const [key, element] of known) if (!asked.has(key)) gone(key, element);
      known = asked;
      asked = new Map();
    },
  };
}

const rows = keeper();
const cards = keeper((url) => {
  URL.revokeObjectURL(pictures.get(url));
  pictures.delete(url);
});

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
  const words = $("search").value.trim();
  const shown = [];
  for (const job of found.jobs) {
    // Until the answer to other words is here, what we have is looked through.
    if (words !== found.words && !job.prompt.toLowerCase().includes(words.toLowerCase())) continue;
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
  $("older").hidden = found.end;
}

async function page(words, before) {
  const asked = new URLSearchParams({ limit: PAGE, search: words });
  if (before) asked.set("before", before);
  return (await call("GET", `/jobs?${asked}`)).jobs;
}

// The newest page joins what is shown already; other words begin anew.
async function look() {
  const words = $("search").value.trim();
  jobs = await page("");
  const fresh = words ? await page(words) : jobs;
  if (words !== $("search").value.trim()) return; // other words by now: their answer is on its way
  const last = fresh.length ? fresh[fresh.length - 1].created : 0;
  const rest = words === found.words && fresh.length === PAGE ? found.jobs.filter((job) => job.created < last) : [];
  found = { words, jobs: [...fresh, ...rest], end: rest.length ? found.end : fresh.length < PAGE };
}

$("older").addEventListener("click", async () => {
  const { words, jobs: known } = found;
  const more = await page(words, known[known.length - 1].id);
  if (found.words !== words) return;
  found.jobs.push(...more);
  found.end = more.length < PAGE;
  showGallery();
});

function card(job, facts) {
  const image = make("img", { alt: job.prompt });
  picture(facts.url, image);
  const view = make("button", { type: "button", className: "view" }, image);
  view.setAttribute("aria-label", `Look at it large: ${job.prompt}`);
  view.addEventListener("click", () => enlarge(job, facts, image.src));
  const again = { prompt: job.prompt, n: 1, partial_images: 3, stream: true };
  if (job.request.width) again.size = `${job.request.width}x${job.request.height}`;
  for (const name of ["steps", "guidance"]) if (job.request[name] != null) again[name] = job.request[name];
  if (job.request.model !== "default") again.model = job.request.model;
  if (job.request.lora) again.lora = job.request.lora;
  if (job.request.as_written) again.as_written = true;
  if (job.request.negative) again.negative_prompt = job.request.negative;
  const save = act("Save", () => make("a", { href: image.src, download: `${facts.seed}-${facts.file}` }).click(), `Save: ${job.prompt}`);
  const buttons = make(
    "div",
    { className: "actions" },
    act("Repeat", () => draw({ ...again, seed: facts.seed }), `Draw again: ${job.prompt}`),
    act("Vary", () => draw(again), `Draw with another seed: ${job.prompt}`),
    save,
    forget(job),
  );
  const read = facts.revised_prompt ? `\nread as: ${facts.revised_prompt}` : "";
  const what = make("p", { textContent: job.prompt + read, title: `seed ${facts.seed}` });
  return make("figure", {}, view, make("figcaption", {}, what, buttons));
}

// Deletes a job's pictures after a second click.
function forget(job) {
  const button = act("Delete", () => {
    if (button.textContent === "Delete") {
      button.textContent = "Really?";
      setTimeout(() => { button.textContent = "Delete"; }, 4000);
      return;
    }
    found.jobs = found.jobs.filter((other) => other.id !== job.id);
    change(`/jobs/${job.id}?forget=true`);
  }, `Delete: ${job.prompt}`);
  return button;
}

function enlarge(job, facts, source) {
  const [, image, text] = $("large").children;
  Object.assign(image, { src: source, alt: job.prompt });
  text.textContent = `${job.prompt} (${facts.width} × ${facts.height}, seed ${facts.seed})`;
  $("large").showModal();
}

async function refresh() {
  clearTimeout(timer);
  try {
    await look();
    const health = await (await fetch("/health")).json();
    $("state").textContent = health.status === "ok" ? `${health.running} drawing, ${health.queued} waiting` : health.status;
    if (!drawing.length) await offer();
  } catch (error) {
    $("state").textContent = error.message;
  }
  showQueue();
  showGallery();
  const open = jobs.filter(({ state }) => state === "queued" || state === "running");
  for (const job of open.filter(({ state }) => state === "running")) follow(job.id);
  for (const job of open.reverse()) follow(job.id);
  timer = setTimeout(() => document.hidden || refresh(), open.length ? 1500 : 5000);
}

let timer = 0;
$("search").addEventListener("input", () => {
  showGallery(); // what is here already, at once
  clearTimeout(timer);
  timer = setTimeout(refresh, 250);
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
form.elements.key.value = sessionStorage.getItem("key") || ""; // forgotten when the window is closed
form.elements.key.addEventListener("change", () => {
  sessionStorage.setItem("key", form.elements.key.value.trim());
  refresh();
});
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
refresh();
