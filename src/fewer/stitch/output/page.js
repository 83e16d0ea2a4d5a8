"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map"), context = canvas.getContext("2d");
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const pieces = data.segments.map(piece => {
  const picture = new Image();
  picture.src = "data:image/jpeg;base64," + piece.picture;
  picture.onload = () => { if (pieces[current].picture === picture) fit(); };
  return { ...piece, picture, frame: new Int32Array(bytes(piece.frame)), place: new Int16Array(bytes(piece.place)) };
});
let current = 0, zoom = 1, left = 0, top_ = 0, mark = null, shown = null, size = null;  // size: null while the map fits
const sure = document.getElementById("sure"), numberField = document.getElementById("number");
const unsure = 4;  // map pixels at which a frame's place is drawn red

// Green where neighbouring frames agree, red where they do not, dark where nothing was seen.
function certainty(piece) {
  if (piece.layer) return piece.layer;
  const rows = piece.frame.length / piece.columns, layer = new OffscreenCanvas(piece.columns, rows);
  const pixels = new ImageData(piece.columns, rows);
  piece.frame.forEach((frame, cell) => {
    const error = piece.error[frame], bad = Math.min(1, (error ?? unsure) / unsure);
    pixels.data.set(frame < 0 ? [0, 0, 0, 160] : [255 * Math.min(1, 2 * bad), 220 * Math.min(1, 2 - 2 * bad), 60, 110], 4 * cell);
  });
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return piece.layer = layer;
}
// The map rolled up again: the view of a lens of 140 degrees on the tube's axis at row `at`, looking down the rows.
const inside = document.getElementById("inside"), fieldPixels = 400;
let at = 0;
function wallAt(u, v, piece) {
  const radius = Math.hypot(u, v);
  if (radius > 1 || radius < 0.02) return null;
  const turn = (Math.atan2(v, u) / (2 * Math.PI) + 1) % 1, depth = 1 / Math.tan(radius * 70 * Math.PI / 180);
  return [turn * piece.width, at + depth * piece.width / (2 * Math.PI), depth];
}
function texture(piece) {
  if (piece.pixels) return piece.pixels;
  const sheet = new OffscreenCanvas(piece.picture.naturalWidth, piece.picture.naturalHeight);
  const brush = sheet.getContext("2d", { willReadFrequently: true });
  brush.drawImage(piece.picture, 0, 0);
  return piece.pixels = brush.getImageData(0, 0, sheet.width, sheet.height);
}
function insideBox() {
  const box = canvas.getBoundingClientRect(), side = Math.min(box.width, box.height);
  return [(box.width - side) / 2, (box.height - side) / 2, side];
}
function drawInside(piece) {
  const sheet = texture(piece), n = fieldPixels, view = new ImageData(n, n), scale = sheet.width / piece.width;
  for (let row = 0; row < n; row++) for (let column = 0; column < n; column++) {
    const wall = wallAt(2 * (column + 0.5) / n - 1, 2 * (row + 0.5) / n - 1, piece), to = 4 * (row * n + column);
    view.data[to + 3] = 255;
    if (!wall || wall[1] < 0 || wall[1] >= piece.height) continue;
    const from = 4 * (Math.floor(wall[1] * scale) * sheet.width + Math.floor(wall[0] * scale)), light = 1.2 / (1 + wall[2] * wall[2] / 3);
    for (let colour = 0; colour < 3; colour++) view.data[to + colour] = light * sheet.data[from + colour];
  }
  const layer = new OffscreenCanvas(n, n), [x, y, side] = insideBox();
  layer.getContext("2d").putImageData(view, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(layer, x, y, side, side);
}
function travel(rows) { at = Math.min(pieces[current].height, Math.max(-pieces[current].width / 8, at + rows)); draw(); }
// What the shown frame saw; columns go round, so it is drawn one turn to either side as well.
function drawOutline(piece) {
  const outline = piece.outline[shown];
  if (!outline) return;
  context.save(); context.beginPath();
  context.rect(-left * zoom, -top_ * zoom, piece.width * zoom, piece.height * zoom); context.clip();
  context.strokeStyle = "#ffe066"; context.lineWidth = 2;
  for (const turn of [-2, -1, 0, 1, 2]) {
    context.beginPath();  // the edge of the field, then the far end: two lines, without the seam between them
    outline.forEach(([x, y], at) => {
      const to = [(x + turn * piece.width - left) * zoom, (y - top_) * zoom];
      if (2 * at === outline.length) context.moveTo(...to); else context.lineTo(...to);
    });
    context.stroke();
  }
  context.restore();
}

function draw() {
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  canvas.width = box.width * ratio; canvas.height = box.height * ratio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const piece = pieces[current];
  if (size) { left += (size[0] - box.width) / 2 / zoom; top_ += (size[1] - box.height) / 2 / zoom; size = [box.width, box.height]; }
  if (inside.checked && piece.picture.complete) { drawInside(piece); return; }
  context.imageSmoothingEnabled = zoom < 3;
  context.drawImage(piece.picture, -left * zoom, -top_ * zoom, piece.width * zoom, piece.height * zoom);
  if (sure.checked) context.drawImage(certainty(piece), -left * zoom, -top_ * zoom, piece.columns * piece.cell * zoom, piece.layer.height * piece.cell * zoom);
  drawOutline(piece);
  if (mark) {
    context.strokeStyle = "#7fe3ff"; context.lineWidth = 2; context.beginPath();
    context.arc((mark[0] - left) * zoom, (mark[1] - top_) * zoom, 7, 0, 7); context.stroke();
  }
  if (canvas.matches(":focus-visible")) {  // what Enter would pick
    const x = box.width / 2, y = box.height / 2;
    context.strokeStyle = "#fff"; context.lineWidth = 1; context.beginPath();
    context.moveTo(x - 9, y); context.lineTo(x + 9, y); context.moveTo(x, y - 9); context.lineTo(x, y + 9); context.stroke();
  }
}
function moved() { size ??= [canvas.clientWidth, canvas.clientHeight]; draw(); }
function fit() {
  const box = canvas.getBoundingClientRect(), piece = pieces[current];
  zoom = Math.min(box.width / piece.width, box.height / piece.height);
  left = (piece.width - box.width / zoom) / 2; top_ = (piece.height - box.height / zoom) / 2;
  size = null; draw();
}
function zoomAt(x, y, factor) {
  const next = Math.min(20, Math.max(Math.min(zoom, 0.02), zoom * factor));
  left += x / zoom - x / next; top_ += y / zoom - y / next; zoom = next;
  moved();
}
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return String(minutes).padStart(2, "0") + ":" + (seconds - 60 * minutes).toFixed(2).padStart(5, "0");
}
function pick(x, y) {
  const piece = pieces[current], where = document.getElementById("where");
  const thumb = document.getElementById("thumb"), dot = document.getElementById("dot");
  mark = [x, y];
  const cell = Math.floor(y / piece.cell) * piece.columns + Math.floor(x / piece.cell);
  const inside = x >= 0 && y >= 0 && x < piece.width && y < piece.height;
  const frame = inside ? piece.frame[cell] : -1;
  shown = frame;
  if (frame < 0) { where.textContent = "This part of the wall was not seen."; thumb.hidden = dot.hidden = true; draw(); return; }
  numberField.value = frame;
  const px = piece.place[2 * cell], py = piece.place[2 * cell + 1];
  const angle = (360 * x / piece.width).toFixed(0);
  const depth = piece.depth ? (piece.depth[0] + piece.depth[1] * y).toFixed(1) + " cm" : (y / piece.width).toFixed(2) + " circumferences";
  where.textContent = `Frame ${frame}, time ${clock(piece.seconds[frame])}, at x ${px}, y ${py} of the picture. Angle ${angle} degrees, depth ${depth}. ${trust(piece, frame)}`;
  showFrame(frame);
  if (!dot.hidden) {
    const entry = data.thumbnails[frame];
    dot.style.left = 100 * (px - entry.left) / entry.side + "%"; dot.style.top = 100 * (py - entry.top) / entry.side + "%";
  }
  draw();
}
function trust(piece, frame) {
  const error = piece.error[frame];
  if (error === undefined) return "How well this frame fits its neighbours is not known.";
  return `It fits its neighbours within ${error.toFixed(2)} map pixels (${(100 * error / piece.width).toFixed(2)} % of the way round).`;
}
// The picture of the frame, or of the nearest one that the page holds; the dot only on the frame itself.
function showFrame(frame) {
  const thumb = document.getElementById("thumb"), dot = document.getElementById("dot");
  const known = Object.keys(data.thumbnails).map(Number);
  const nearest = known.reduce((best, each) => Math.abs(each - frame) < Math.abs(best - frame) ? each : best, known[0]);
  thumb.hidden = nearest === undefined; dot.hidden = nearest !== frame;
  if (nearest === undefined) return;
  thumb.src = "data:image/jpeg;base64," + data.thumbnails[nearest].picture;
  thumb.alt = "frame " + nearest;
  if (nearest !== frame) document.getElementById("where").textContent += ` The picture is of frame ${nearest}, the nearest that this page holds.`;
}
function pickFrame(frame) {
  const place = pieces.findIndex(piece => String(frame) in piece.seconds), where = document.getElementById("where");
  const dot = document.getElementById("dot");
  mark = null; shown = frame;
  if (place < 0) { where.textContent = `Frame ${frame} is not on the map.`; document.getElementById("thumb").hidden = dot.hidden = true; draw(); return; }
  if (place !== current) { which.value = String(place); which.onchange(); shown = frame; }
  where.textContent = `Frame ${frame}, time ${clock(pieces[current].seconds[frame])}: the yellow line is what it saw. ${trust(pieces[current], frame)}`;
  showFrame(frame); dot.hidden = true; draw();
}
function pickOnScreen(x, y) {
  if (!inside.checked) { pick(left + x / zoom, top_ + y / zoom); return; }
  const [before, above, side] = insideBox();
  const wall = wallAt(2 * (x - before) / side - 1, 2 * (y - above) / side - 1, pieces[current]);
  if (wall) pick(wall[0], wall[1]);
}
let drag = null;
canvas.addEventListener("pointerdown", e => { if (!drag) drag = [e.offsetX, e.offsetY, left, top_, false, 0, e.pointerId]; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointermove", e => {
  if (!drag || e.pointerId !== drag[6]) return;
  const dx = e.offsetX - drag[0], dy = e.offsetY - drag[1];
  if (Math.hypot(dx, dy) > 4) drag[4] = true;
  if (drag[4] && inside.checked) { travel(drag[5] - dy); drag[5] = dy; }
  else if (drag[4]) { left = drag[2] - dx / zoom; top_ = drag[3] - dy / zoom; moved(); }
});
canvas.addEventListener("pointerup", e => { if (drag && e.pointerId === drag[6]) { if (!drag[4]) pickOnScreen(e.offsetX, e.offsetY); drag = null; } });
canvas.addEventListener("pointercancel", () => { drag = null; });
for (const event of ["focus", "blur"]) canvas.addEventListener(event, draw);
canvas.addEventListener("wheel", e => { e.preventDefault(); if (inside.checked) travel(-e.deltaY / 4); else zoomAt(e.offsetX, e.offsetY, Math.exp(-e.deltaY / 400)); }, { passive: false });
canvas.addEventListener("keydown", e => {
  const step = 40 / zoom, middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
  if (inside.checked) {
    const rows = { ArrowUp: 8, ArrowDown: -8 }[e.key];
    if (rows) { e.preventDefault(); travel(rows); }
    if (e.key === "Enter") pickOnScreen(middle[0], middle[1] / 2);
    return;
  }
  const act = {
    ArrowLeft: () => { left -= step; }, ArrowRight: () => { left += step; },
    ArrowUp: () => { top_ -= step; }, ArrowDown: () => { top_ += step; },
    "+": () => zoomAt(...middle, 1.25), "-": () => zoomAt(...middle, 0.8),
    Enter: () => pick(left + middle[0] / zoom, top_ + middle[1] / zoom),
  }[e.key];
  if (act) { e.preventDefault(); act(); moved(); }
});
document.getElementById("in").onclick = () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1.5);
document.getElementById("out").onclick = () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1 / 1.5);
document.getElementById("fit").onclick = fit;
sure.onchange = () => {
  if (sure.checked) document.getElementById("where").textContent = `Green: neighbouring frames agree. Red: they are ${unsure} map pixels or more apart, or nothing is known. Dark: not seen.`;
  draw();
};
inside.onchange = () => { at = -pieces[current].width / 16; draw(); };
numberField.onchange = () => { if (numberField.value !== "") pickFrame(Number(numberField.value)); };
const which = document.getElementById("which");
pieces.forEach((piece, number) => which.add(new Option(String(number + 1), String(number))));
which.onchange = () => { current = Number(which.value); mark = shown = null; at = 0; figures(); fit(); };
const number = value => value === null || value === undefined ? "-" : value.toFixed(2);
function figures() {
  const table = document.getElementById("figures"), report = data.report, piece = report.segments[current];
  table.replaceChildren();
  const row = (name, value) => { const line = table.insertRow(); const head = document.createElement("th"); head.scope = "row"; head.textContent = name; line.append(head); line.insertCell().textContent = value; };
  row("frames used", report.frames_used + " of " + report.frames);
  for (const [reason, count] of Object.entries(report.frames_rejected)) row("rejected: " + reason, count);
  row("frames in this segment", piece.frames); row("pairs", piece.pairs);
  row("median pair error (strip px)", number(piece.rmse)); row("on matches not used in the fit", number(piece.held_out_rmse));
  row("residual of all poses (picture px)", number(piece.pose_rms));
  row("part of the map that was seen", (100 * piece.coverage).toFixed(1) + " %");
  row("length in circumferences", number(piece.length_in_circumferences));
  for (const text of report.warnings) row("warning", text);
}
document.getElementById("notice").textContent = data.report.notice;
window.addEventListener("resize", () => { if (size) draw(); else fit(); });
figures(); fit();
