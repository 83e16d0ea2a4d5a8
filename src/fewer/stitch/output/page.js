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
let current = 0, zoom = 1, left = 0, top_ = 0, mark = null, shown = null;
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
// What the shown frame saw; columns go round, so it is drawn one turn to either side as well.
function drawOutline(piece) {
  const outline = piece.outline[shown];
  if (!outline) return;
  context.save(); context.beginPath();
  context.rect(-left * zoom, -top_ * zoom, piece.width * zoom, piece.height * zoom); context.clip();
  context.strokeStyle = "#ffe066"; context.lineWidth = 2;
  for (const turn of [-2, -1, 0, 1, 2]) {
    context.beginPath();
    for (const [x, y] of outline) context.lineTo((x + turn * piece.width - left) * zoom, (y - top_) * zoom);
    context.closePath(); context.stroke();
  }
  context.restore();
}

function draw() {
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  canvas.width = box.width * ratio; canvas.height = box.height * ratio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const piece = pieces[current];
  context.imageSmoothingEnabled = zoom < 3;
  context.drawImage(piece.picture, -left * zoom, -top_ * zoom, piece.width * zoom, piece.height * zoom);
  if (sure.checked) context.drawImage(certainty(piece), -left * zoom, -top_ * zoom, piece.columns * piece.cell * zoom, piece.layer.height * piece.cell * zoom);
  drawOutline(piece);
  if (mark) {
    context.strokeStyle = "#7fe3ff"; context.lineWidth = 2; context.beginPath();
    context.arc((mark[0] - left) * zoom, (mark[1] - top_) * zoom, 7, 0, 7); context.stroke();
  }
}
function fit() {
  const box = canvas.getBoundingClientRect(), piece = pieces[current];
  zoom = Math.min(box.width / piece.width, box.height / piece.height);
  left = (piece.width - box.width / zoom) / 2; top_ = (piece.height - box.height / zoom) / 2;
  draw();
}
function zoomAt(x, y, factor) {
  const next = Math.min(20, Math.max(0.02, zoom * factor));
  left += x / zoom - x / next; top_ += y / zoom - y / next; zoom = next;
  draw();
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
let drag = null;
canvas.addEventListener("pointerdown", e => { drag = [e.offsetX, e.offsetY, left, top_, false]; canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener("pointermove", e => {
  if (!drag) return;
  const dx = e.offsetX - drag[0], dy = e.offsetY - drag[1];
  if (Math.hypot(dx, dy) > 4) drag[4] = true;
  if (drag[4]) { left = drag[2] - dx / zoom; top_ = drag[3] - dy / zoom; draw(); }
});
canvas.addEventListener("pointerup", e => { if (drag && !drag[4]) pick(left + e.offsetX / zoom, top_ + e.offsetY / zoom); drag = null; });
canvas.addEventListener("wheel", e => { e.preventDefault(); zoomAt(e.offsetX, e.offsetY, Math.exp(-e.deltaY / 400)); }, { passive: false });
canvas.addEventListener("keydown", e => {
  const step = 40 / zoom, middle = [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const act = {
    ArrowLeft: () => { left -= step; }, ArrowRight: () => { left += step; },
    ArrowUp: () => { top_ -= step; }, ArrowDown: () => { top_ += step; },
    "+": () => zoomAt(...middle, 1.25), "-": () => zoomAt(...middle, 0.8),
    Enter: () => pick(left + middle[0] / zoom, top_ + middle[1] / zoom),
  }[e.key];
  if (act) { e.preventDefault(); act(); draw(); }
});
document.getElementById("in").onclick = () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1.5);
document.getElementById("out").onclick = () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 1 / 1.5);
document.getElementById("fit").onclick = fit;
sure.onchange = draw;
numberField.onchange = () => { if (numberField.value !== "") pickFrame(Number(numberField.value)); };
const which = document.getElementById("which");
pieces.forEach((piece, number) => which.add(new Option(String(number + 1), String(number))));
which.onchange = () => { current = Number(which.value); mark = shown = null; figures(); fit(); };
const number = value => value === null || value === undefined ? "-" : value.toFixed(2);
function figures() {
  const table = document.getElementById("figures"), report = data.report, piece = report.segments[current];
  table.replaceChildren();
  const row = (name, value) => { const line = table.insertRow(); line.insertCell().textContent = name; line.insertCell().textContent = value; };
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
window.addEventListener("resize", draw);
figures(); fit();
