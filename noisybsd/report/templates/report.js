"use strict";
// The gallery: which samples are shown, the decisions on them, and their download. The page's data are
// columns; a sample is a row number. Only cards in view are in the document.

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const size = rows.index.length;
const byId = (id) => document.getElementById(id);
const percent = (p) => p === null ? "unknown" : `${(100 * p).toFixed(0 < p && p < 1 && (p < 0.01 || p > 0.99) ? 1 : 0)}%`;
const className = (k) => data.classes[k];

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// --- decisions: sample index -> [decision, label], kept in this browser for these images and labels. Of a
// label that is wrong, the label is null until another class is chosen.

const store = `noisybsd-review-${data.sha256}`;
let marks = {};
try {
  marks = JSON.parse(localStorage.getItem(store) || "{}");
} catch {
  // storage is refused or its content damaged: decisions last as long as the page
}

function decide(row, decision, label = null) {
  const index = rows.index[row];
  const suggested = rows.suggested[row] === rows.given[row] ? null : rows.suggested[row];
  if (decision === null) delete marks[index];
  else marks[index] = [decision, decision === "wrong" ? (label ?? suggested) : rows.given[row]];
  try {
    localStorage.setItem(store, JSON.stringify(marks));
  } catch {
    // as above
  }
  const card = cards.get(row);
  if (card) dress(card, row);
  tellMarked();
}

/** The decision on a row, or null. Pages of earlier versions stored the given class where they knew no other. */
function markOf(row) {
  const mark = marks[rows.index[row]] || null;
  return mark && mark[0] === "wrong" && mark[1] === rows.given[row] ? ["wrong", null] : mark;
}

/** Whether a label is marked as wrong and its class is still to be chosen. */
const isOpen = (row) => markOf(row)?.[1] === null;

function tellMarked() {
  const all = [...Array(size).keys()];
  const [count, open] = [all.filter(markOf).length, all.filter(isOpen).length];
  byId("marked").value = count ? `${count} decided${open ? `, ${open} without a class` : ""}` : "";
  byId("download").disabled = byId("clear").disabled = count === 0;
}

function download() {
  if ([...Array(size).keys()].some(isOpen)) {
    byId("tools").reset();
    byId("decision").value = "open";
    refilter();
    return choose(shown[0]);
  }
  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const header = "index,path,given,given_name,decision,label,label_name,data_sha256";
  const lines = [];
  for (let row = 0; row < size; row++) {
    const mark = markOf(row);
    if (!mark) continue;
    const given = rows.given[row];
    const cells = [rows.index[row], rows.path[row] ?? "", given, className(given), mark[0], mark[1], className(mark[1]), data.sha256];
    lines.push(cells.map((cell) => quote(String(cell))).join(","));
  }
  const url = URL.createObjectURL(new Blob([[header, ...lines, ""].join("\n")], { type: "text/csv" }));
  element("a", { href: url, download: `review-${data.sha256.slice(0, 12)}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// --- pictures: cells of sheets, each decoded when it is first needed

const sheets = new Map();

function sheet(kind, number) {
  const id = `${kind}-${number}`;
  if (!sheets.has(id)) {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    sheets.set(id, createImageBitmap(new Blob([bytes], { type: data.sheets[kind].type })));
  }
  return sheets.get(id);
}

/** Where the file of a row is, or null. */
const fileOf = (row) =>
  data.files === null || rows.path[row] === null
    ? null
    : `${data.files}/${rows.path[row].split("/").map(encodeURIComponent).join("/")}`;

/** A link to the file of a row, or its index. */
function named(row, text) {
  const href = fileOf(row);
  if (href === null) return element("span", { className: "path", textContent: text ?? `index ${rows.index[row]}` });
  return element("a", { className: "path", href, target: "_blank", rel: "noopener", textContent: text, title: rows.path[row] });
}

/** Show the picture of a row large: its file, or, where that cannot be shown, the picture on this page. */
function enlarge(row) {
  const small = picture("pictures", row, "");
  const large = element("img", { alt: `given ${className(rows.given[row])}` });
  large.onload = () => small.replaceWith(large);
  if (fileOf(row) !== null) large.src = fileOf(row);
  const text = `given ${className(rows.given[row])}, suggested ${className(rows.suggested[row])}`;
  const caption = element("p", { className: "muted" }, `${text} · `, named(row, rows.path[row]));
  byId("large").replaceChildren(small, caption, element("button", { type: "button", textContent: "Close", onclick: () => byId("large").close() }));
  byId("large").classList.toggle("pixels", data.sheets.pictures.side <= 16);
  byId("large").showModal();
}

/** The picture in a cell of the sheets of a kind, or a box that says there is none. */
function picture(kind, cell, label) {
  const { side, pitch, columns, perSheet, missing } = data.sheets[kind];
  if (cell < 0 || missing.includes(cell)) {
    const text = kind === "pictures" ? "no picture" : "";
    const box = element("div", { className: "none", textContent: text });
    if (label) box.title = label;
    return box;
  }
  const canvas = element("canvas", { width: side, height: side });
  if (label) canvas.title = label;
  canvas.setAttribute("aria-hidden", "true");
  const place = cell % perSheet;
  const [x, y] = [(place % columns) * pitch, Math.floor(place / columns) * pitch];
  sheet(kind, Math.floor(cell / perSheet)).then((image) =>
    canvas.getContext("2d").drawImage(image, x, y, side, side, 0, 0, side, side),
  );
  return canvas;
}

// --- one card

const isHeldOut = (row) => Boolean(rows.held_out?.[row]);

function facts(row) {
  const said = [`#${rows.rank[row]}`, ...(isHeldOut(row) ? ["held out"] : [])];
  if (rows.agreement[row] !== null) said.push(`${percent(rows.agreement[row])} of neighbours agree`);
  return said.join(" · ");
}

function details(row) {
  const lines = [
    `index ${rows.index[row]}`,
    rows.path[row],
    `entropy ${rows.entropy[row]}`,
    rows.strength[row] === null ? null : `strength ${rows.strength[row]}`,
    isHeldOut(row)
      ? "held out: judged by the network, which never saw it"
      : rows.left[row] === null
        ? "in training the belief never left the given label"
        : `the belief left the given label after epoch ${rows.left[row]}`,
    rows.margin[row] === null ? null : `margin ${rows.margin[row]}`,
  ];
  return lines.filter(Boolean).join("\n");
}

function bar(row) {
  const [given, suggested] = [rows.given_prob[row], rows.suggested_prob[row]];
  const box = element("div", { className: "bar" }, element("i"), element("i"));
  box.setAttribute("aria-hidden", "true");
  box.firstChild.style.width = `${100 * given}%`;
  box.lastChild.style.width = rows.given[row] === rows.suggested[row] ? "0" : `${100 * suggested}%`;
  return box;
}

function neighbours(row) {
  const box = element("div", { className: "near" });
  for (const [cell, label] of rows.near[row]) {
    const one = picture("neighbours", cell, `neighbour, given ${className(label)}`);
    if (label === rows.given[row]) one.classList.add("same-given");
    else if (label === rows.suggested[row]) one.classList.add("same-suggested");
    box.append(one);
  }
  box.setAttribute("role", "img");
  const named = rows.near[row].map(([, label]) => className(label)).join(", ");
  box.setAttribute("aria-label", named ? `nearest neighbours are given: ${named}` : "no neighbours");
  return box;
}

function build(row) {
  const disputed = rows.given[row] !== rows.suggested[row];
  const buttons = ["wrong", "right", "unsure"].map((decision) =>
    element("button", { type: "button", className: decision, textContent: decision, onclick: () => press(row, decision) }),
  );
  const group = element("div", { className: "marks" }, ...buttons);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "the given label is");
  const labels = element(
    "div",
    { className: "labels" },
    element("small", { textContent: `given · ${percent(rows.given_prob[row])}` }),
    element("b", { className: "given", textContent: className(rows.given[row]), title: className(rows.given[row]) }),
    element("small", { textContent: disputed ? `suggested · ${percent(rows.suggested_prob[row])}` : "suggested" }),
    element("b", {
      className: disputed ? "suggested" : "given",
      textContent: disputed ? className(rows.suggested[row]) : "keep it",
      title: className(rows.suggested[row]),
    }),
  );
  if (rows.clean && rows.clean[row] !== null) labels.append(element("small", { textContent: `truth · ${className(rows.clean[row])}` }));
  const shown = picture("pictures", row, details(row));
  shown.classList.add("picture");
  shown.onclick = () => enlarge(row);
  const card = element(
    "li",
    { className: `card${data.sheets.pictures.side <= 16 ? " pixels" : ""}` },
    element("div", { className: "top" }, shown, labels),
    bar(row),
    neighbours(row),
    element("div", { className: "facts", textContent: facts(row), title: details(row) }),
    group,
    element("div", { className: "instead" }),
  );
  card.onfocus = () => activate(row, false);
  card.onpointerdown = () => activate(row, false);
  dress(card, row);
  return card;
}

/** What of a card depends on the decision. */
function dress(card, row) {
  const mark = markOf(row);
  card.dataset.mark = mark ? mark[0] : "";
  for (const button of card.querySelectorAll(".marks button")) {
    button.setAttribute("aria-pressed", String(mark !== null && mark[0] === button.className));
  }
  const instead = card.querySelector(".instead");
  card.classList.toggle("open", isOpen(row));
  if (mark && mark[0] === "wrong") {
    if (!instead.querySelector("select")) {
      const options = data.classes.map((name, k) => element("option", { value: k, textContent: name }));
      options[rows.given[row]] = element("option", { value: "", textContent: "which class?", disabled: true });
      const select = element("select", { id: `label-${row}`, onchange: () => decide(row, "wrong", Number(select.value)) }, ...options);
      select.tabIndex = row === active ? 0 : -1;
      instead.replaceChildren(element("label", { textContent: "it is ", htmlFor: select.id }), select);
    }
    instead.querySelector("select").value = mark[1] ?? "";
  } else {
    instead.replaceChildren(named(row, rows.path[row] && tail(rows.path[row])));
    for (const link of instead.querySelectorAll("a")) link.tabIndex = row === active ? 0 : -1;
  }
  const said = mark ? `, decided: ${mark[0]}${mark[0] !== "wrong" ? "" : mark[1] === null ? ", its class is to be chosen" : `, it is ${className(mark[1])}`}` : "";
  card.setAttribute(
    "aria-label",
    `rank ${rows.rank[row]}: given ${className(rows.given[row])}, belief ${percent(rows.given_prob[row])}; ` +
      `suggested ${className(rows.suggested[row])}, belief ${percent(rows.suggested_prob[row])}${said}`,
  );
}

const tail = (path) => (path.length > 30 ? `…${path.slice(-29)}` : path);

function press(row, decision) {
  const mark = markOf(row);
  decide(row, mark && mark[0] === decision ? null : decision);
  if (isOpen(row)) choose(row);
}

/** Ask for the class of a row. */
function choose(row) {
  activate(row);
  cards.get(row).querySelector("select").focus();
}

// --- filter and sort

const descending = (values) => (a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity);
const ascending = (values) => (a, b) => (values[a] ?? Infinity) - (values[b] ?? Infinity);
const orders = {
  suspicion: ["suspicion", ascending(rows.rank)],
  confidence: ["confidence of the suggestion", descending(rows.suggested_prob)],
  entropy: ["undecided belief first", descending(rows.entropy)],
  agreement: ["fewest agreeing neighbours", ascending(rows.agreement)],
  margin: ["smallest margin", ascending(rows.margin)],
  left: ["belief left first", ascending(rows.left)],
  given: ["given label", ascending(rows.given)],
  suggested: ["suggested label", ascending(rows.suggested)],
  index: ["index", ascending(rows.index)],
};

let shown = []; // rows that pass the filter, in order
let active = null; // the row that the keys act on

function refilter() {
  const [given, suggested, decision] = ["given", "suggested", "decision"].map((id) => byId(id).value);
  const [disputed, part] = [byId("disputed").checked, byId("part").value];
  shown = [...Array(size).keys()].filter((row) => {
    const mark = markOf(row);
    return (
      (given === "" || rows.given[row] === Number(given)) &&
      (suggested === "" || rows.suggested[row] === Number(suggested)) &&
      (decision === "" || (decision === "none" ? !mark : decision === "open" ? isOpen(row) : mark && mark[0] === decision)) &&
      (part === "" || isHeldOut(row) === (part === "held")) &&
      (!disputed || rows.given[row] !== rows.suggested[row])
    );
  });
  shown.sort(orders[byId("sort").value][1]); // stable: suspicion decides among equals
  active = shown.length ? shown[0] : null;
  byId("count").value = `${shown.length.toLocaleString("en")} of ${size.toLocaleString("en")}`;
  byId("empty").hidden = shown.length > 0;
  byId("asked").hidden = decision !== "open" || shown.length === 0;
  tellMarked();
  discard(() => true);
  lay();
}

function options(select, column) {
  const counts = new Map();
  for (const k of rows[column]) counts.set(k, (counts.get(k) || 0) + 1);
  const present = [...counts.keys()].sort((a, b) => a - b);
  const entry = (k) => element("option", { value: k, textContent: `${className(k)} (${counts.get(k)})` });
  select.replaceChildren(element("option", { value: "", textContent: "any" }), ...present.map(entry));
}

// --- the cards in view

const WIDTH = 256; // least width of a card
const GAP = 12;
const list = byId("cards");
const cards = new Map(); // row -> its card in the document
let grid = { columns: 1, width: WIDTH, pitch: 0 };

function discard(which) {
  for (const [row, card] of cards) {
    if (!which(row)) continue;
    card.remove();
    cards.delete(row);
  }
}

/** Measure, and put every card in view in its place. */
function lay() {
  const width = list.clientWidth;
  const columns = Math.max(1, Math.floor((width + GAP) / (WIDTH + GAP)));
  grid = { columns, width: (width - GAP * (columns - 1)) / columns, pitch: grid.pitch };
  if (!shown.length) {
    list.style.height = "0";
    return;
  }
  if (!grid.pitch) {
    const probe = build(shown[0]);
    probe.style.width = `${grid.width}px`;
    list.append(probe);
    grid.pitch = probe.offsetHeight + GAP;
    probe.remove();
  }
  list.style.height = `${Math.ceil(shown.length / columns) * grid.pitch}px`;
  draw();
}

function draw() {
  const top = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / grid.pitch) - 1) * grid.columns;
  const end = Math.max(0, Math.ceil((top + innerHeight) / grid.pitch) + 1) * grid.columns;
  const wanted = new Map();
  for (let i = first; i < Math.min(end, shown.length); i++) wanted.set(shown[i], i);
  if (active !== null && !wanted.has(active)) wanted.set(active, shown.indexOf(active)); // keeps the focus
  discard((row) => !wanted.has(row));
  for (const [row, i] of wanted) {
    let card = cards.get(row);
    if (!card) {
      card = build(row);
      cards.set(row, card);
      const next = [...list.children].find((other) => Number(other.dataset.place) > i);
      list.insertBefore(card, next || null); // in reading order
    }
    card.dataset.place = i;
    card.style.width = `${grid.width}px`;
    card.style.transform = `translate(${(i % grid.columns) * (grid.width + GAP)}px, ${Math.floor(i / grid.columns) * grid.pitch}px)`;
    card.setAttribute("aria-posinset", i + 1);
    card.setAttribute("aria-setsize", shown.length);
    reach(card, row === active);
  }
}

/** Tab reaches the active card and what is in it; the arrows reach the others. */
function reach(card, yes) {
  card.tabIndex = yes ? 0 : -1;
  for (const control of card.querySelectorAll("button, select, a")) control.tabIndex = yes ? 0 : -1;
}

function activate(row, focus = true) {
  if (row !== active) {
    const before = cards.get(active);
    active = row;
    if (before) reach(before, false);
    if (cards.has(row)) reach(cards.get(row), true);
  }
  if (!focus) return;
  const place = shown.indexOf(row);
  const top = list.getBoundingClientRect().top + Math.floor(place / grid.columns) * grid.pitch;
  const covered = byId("tools").getBoundingClientRect().bottom + 8;
  if (top < covered) scrollBy(0, top - covered);
  else if (top + grid.pitch > innerHeight) scrollBy(0, top + grid.pitch - innerHeight);
  draw();
  cards.get(row).focus({ preventScroll: true });
}

const steps = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -grid.columns, ArrowDown: () => grid.columns };
const decisions = { w: "wrong", r: "right", u: "unsure", x: null };

document.addEventListener("keydown", (event) => {
  if (active === null || event.ctrlKey || event.metaKey || event.altKey || byId("large").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape" && event.target.closest(".card")) activate(active);
    return;
  }
  const inside = list.contains(event.target);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const place = shown.indexOf(active);
  if (inside && key in steps) {
    const next = Math.min(Math.max(place + steps[key](), 0), shown.length - 1);
    activate(shown[next]);
  } else if (inside && (key === "Home" || key === "End")) {
    activate(shown[key === "Home" ? 0 : shown.length - 1]);
  } else if ((inside || event.target === document.body) && key in decisions) {
    decide(active, decisions[key]);
    if (isOpen(active)) choose(active);
    else activate(shown[decisions[key] === null ? place : Math.min(place + 1, shown.length - 1)]);
  } else if (inside && key === "l") {
    if (markOf(active)?.[0] !== "wrong") decide(active, "wrong");
    choose(active);
  } else if (event.target === cards.get(active) && key === "Enter") {
    enlarge(active);
  } else return;
  event.preventDefault();
});

// --- the rest of the page

function setUp() {
  options(byId("given"), "given");
  options(byId("suggested"), "suggested");
  byId("sort").append(...Object.entries(orders).map(([value, [name]]) => element("option", { value, textContent: name })));
  byId("part").parentElement.hidden = !(rows.held_out ?? []).some(Boolean);
  byId("large").onclick = (event) => event.target === byId("large") && byId("large").close();
  for (const id of ["given", "suggested", "decision", "part", "sort", "disputed"]) byId(id).onchange = refilter;
  byId("tools").onsubmit = (event) => event.preventDefault();
  byId("all").onclick = () => {
    byId("tools").reset();
    refilter();
  };
  byId("clear").onclick = () => {
    if (!confirm("Forget all decisions on these samples?")) return;
    for (let row = 0; row < size; row++) if (markOf(row)) decide(row, null);
  };
  byId("download").onclick = download;
  const pairs = new Set(rows.given.map((given, row) => `cell-${rows.suggested[row]}-${given}`));
  for (const cell of document.querySelectorAll("figure [id^='cell-']")) {
    const [, believed, given] = cell.id.split("-");
    if (!pairs.has(cell.id)) continue;
    cell.classList.add("link");
    cell.onclick = () => {
      byId("tools").reset();
      byId("given").value = given;
      byId("suggested").value = believed;
      refilter();
      byId("gallery").scrollIntoView();
    };
  }
  theme();
  refilter();
  addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  new ResizeObserver(() => lay()).observe(list);
}

function theme() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("noisybsd-theme");
  } catch {
    // not kept
  }
  const apply = () => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    button.setAttribute("aria-pressed", String((chosen || (dark.matches ? "dark" : "light")) === "dark"));
  };
  button.onclick = () => {
    chosen = button.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    try {
      localStorage.setItem("noisybsd-theme", chosen);
    } catch {
      // not kept
    }
    apply();
  };
  dark.addEventListener("change", apply);
  button.hidden = false;
  apply();
}

setUp();
