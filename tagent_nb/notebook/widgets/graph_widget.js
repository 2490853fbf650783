// The graph of a pipeline: an SVG that is put into the page once, and sent what changes at its nodes from then on.
// Everything is set as text, never as HTML, and nothing is loaded.

const SVG = "http://www.w3.org/2000/svg";
const ALLOWED = new Set(["svg", "g", "title", "path", "polygon", "polyline", "ellipse", "rect", "line", "text"]);
const STEP = 1.25; // one click of zoom
const TALLEST = 420; // pixels
const SCALE = 96 / 72; // pixels of a point

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// What Graphviz draws and nothing else: no links, scripts, styles, pictures, nor attributes that act or fetch.
function cleaned(text) {
  const svg = document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true);
  for (const node of [...svg.querySelectorAll("*")]) {
    if (node.namespaceURI !== SVG || !ALLOWED.has(node.localName)) node.remove();
  }
  for (const node of [svg, ...svg.querySelectorAll("*")]) {
    for (const { name, value } of [...node.attributes]) {
      if (/^on|href$|^style$/i.test(name) || /url\(|script:/i.test(value)) node.removeAttribute(name);
    }
  }
  return svg;
}

class Graph {
  constructor(model, el) {
    this.model = model;
    this.styles = model.get("styles");
    this.root = element("div", "tagent-live-graph");
    this.tools = element("div", "tagent-chips tagent-tools");
    this.tools.setAttribute("role", "toolbar");
    this.tools.setAttribute("aria-label", "Graph");
    this.tool("−", "Zoom out", () => this.zoom(1 / STEP));
    this.tool("+", "Zoom in", () => this.zoom(STEP));
    this.tool("Fit", "Show the whole graph", () => this.fit());
    this.close = this.tool("Close groups", "Draw large groups as one node again", () => this.model.send({ open: "" }));
    this.legend = element("span", "tagent-legend");
    this.legend.setAttribute("aria-label", "Legend");
    this.tools.append(this.legend);
    this.port = element("div", "tagent-port");
    this.port.tabIndex = 0;
    this.port.setAttribute("role", "group");
    this.port.setAttribute("aria-label", "Graph of the pipeline: plus and minus zoom, 0 shows all, arrows move");
    this.tip = element("div", "tagent-tip");
    this.tip.setAttribute("role", "tooltip");
    this.tip.hidden = true;
    this.root.append(this.tools, this.port, this.tip);
    el.append(this.root);
    this.port.addEventListener("wheel", (event) => this.wheeled(event), { passive: false });
    this.port.addEventListener("keydown", (event) => this.pressed(event));
    this.port.addEventListener("pointerdown", (event) => this.grab(event));
    this.resized = new ResizeObserver(() => this.refit());
    this.resized.observe(this.port);
    this.draw();
  }

  tool(text, label, action) {
    const button = element("button", "", text);
    button.type = "button";
    button.title = label;
    button.setAttribute("aria-label", label);
    button.addEventListener("click", action);
    this.tools.append(button);
    return button;
  }

  // -- the picture -----------------------------------------------------------------------------

  draw() {
    this.tip.hidden = true;
    this.nodes = new Map();
    const text = this.model.get("svg");
    this.root.hidden = !text;
    if (!text) return;
    this.svg = cleaned(text);
    const box = (this.svg.getAttribute("viewBox") || "0 0 100 100").split(/\s+/).map(Number);
    this.whole = box;
    this.box = [...box];
    this.fitted = true;
    this.svg.removeAttribute("width");
    this.svg.removeAttribute("height");
    this.svg.setAttribute("role", "group");
    this.port.replaceChildren(this.svg);
    const names = this.model.get("names");
    for (const [id, label] of Object.entries(names)) this.prepare(id, label);
    this.close.hidden = !this.model.get("opened");
    this.update(this.model.get("labels"));
    this.choose();
    this.refit();
  }

  prepare(id, name) {
    const group = [...this.svg.querySelectorAll("g.node")].find((node) => node.id === id);
    if (!group) return;
    group.removeAttribute("id"); // the same graph may be shown twice
    group.dataset.node = id;
    if (name) group.dataset.step = name;
    group.querySelector("title")?.remove(); // the tooltip says it, and at once
    const texts = [...group.querySelectorAll("text")];
    const node = { id, name, group, first: texts[0], last: texts.length > 2 ? texts[2] : null, tip: "" };
    group.setAttribute("role", "button");
    group.setAttribute("tabindex", this.nodes.size ? "-1" : "0");
    group.addEventListener("click", () => { if (!this.dragged) this.chosen(node); });
    group.addEventListener("pointerenter", () => this.show_tip(node));
    group.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    group.addEventListener("focus", () => this.show_tip(node));
    group.addEventListener("blur", () => { this.tip.hidden = true; });
    this.nodes.set(id, node);
  }

  update(labels) {
    for (const [id, [state, first, last, tip]] of Object.entries(labels)) {
      const node = this.nodes.get(id);
      if (!node) continue;
      const chosen = node.group.classList.contains("tagent-chosen");
      node.group.setAttribute("class", `node tagent-${state}${chosen ? " tagent-chosen" : ""}`);
      node.group.dataset.state = state;
      if (node.first) node.first.textContent = first;
      if (node.last) node.last.textContent = last;
      node.tip = tip;
      node.group.setAttribute("aria-label", tip.split("\n").join(", "));
      if (this.tipped === node && !this.tip.hidden) this.tip.textContent = tip;
    }
    this.explain();
  }

  explain() {
    const present = new Set([...this.nodes.values()].map((node) => node.group.dataset.state));
    const wanted = Object.keys(this.styles).filter((state) => present.has(state));
    if (wanted.join() === this.explained) return;
    this.explained = wanted.join();
    this.legend.replaceChildren(...wanted.map((state) => {
      const entry = element("span", `tagent-${state}`);
      entry.append(element("span", "", this.styles[state][0]), ` ${this.styles[state][1]}`);
      entry.firstChild.setAttribute("aria-hidden", "true");
      return entry;
    }));
  }

  show_tip(node) {
    if (this.dragging) return;
    this.tipped = node;
    this.tip.textContent = node.tip;
    this.tip.hidden = false;
    const at = node.group.getBoundingClientRect();
    const frame = this.root.getBoundingClientRect();
    const left = Math.min(at.left - frame.left, frame.width - this.tip.offsetWidth - 4);
    this.tip.style.left = `${Math.max(4, left)}px`;
    this.tip.style.top = `${Math.min(at.bottom, this.port.getBoundingClientRect().bottom) - frame.top + 4}px`;
  }

  // -- choosing --------------------------------------------------------------------------------

  chosen(node) {
    const key = this.model.get("groups")[node.id];
    if (key !== undefined) {
      this.model.send({ open: key });
      return;
    }
    this.model.set("selected", this.model.get("selected") === node.name ? "" : node.name);
    this.model.save_changes();
  }

  choose() {
    const name = this.model.get("selected");
    for (const node of this.nodes.values()) {
      const is = name !== "" && node.name === name;
      node.group.classList.toggle("tagent-chosen", is);
      node.group.setAttribute("aria-pressed", String(is));
    }
  }

  // -- zoom and pan ----------------------------------------------------------------------------

  refit() {
    if (!this.svg) return;
    const width = this.port.clientWidth || 600;
    const natural = this.whole[2] * SCALE;
    // Small graphs keep their size; wide ones shrink, but not below what can be read: they are moved instead.
    const scale = Math.min(1, Math.max(width / natural, 0.55));
    this.height = Math.min(TALLEST, this.whole[3] * SCALE * scale);
    this.port.style.height = `${Math.ceil(this.height) + 4}px`;
    if (this.fitted) {
      const [x, y] = this.whole;
      this.box = [x, y, width / (SCALE * scale), this.height / (SCALE * scale)];
    }
    this.apply();
  }

  apply() {
    this.svg.setAttribute("viewBox", this.box.map((side) => side.toFixed(2)).join(" "));
    this.svg.setAttribute("preserveAspectRatio", "xMinYMin meet");
  }

  fit() {
    this.fitted = false;
    const ratio = (this.port.clientWidth || 600) / this.port.clientHeight;
    const width = Math.max(this.whole[2], this.whole[3] * ratio);
    this.box = [this.whole[0], this.whole[1], width, width / ratio];
    this.apply();
  }

  zoom(factor, at = [0.5, 0.5]) {
    const [x, y, width, height] = this.box;
    const wide = Math.min(Math.max(width / factor, 60), Math.max(this.whole[2], this.whole[3]) * 6);
    const high = height * (wide / width);
    this.fitted = false;
    this.box = [x + (width - wide) * at[0], y + (height - high) * at[1], wide, high];
    this.apply();
  }

  pan(right, down) {
    this.fitted = false;
    this.box[0] += right * this.box[2];
    this.box[1] += down * this.box[3];
    this.apply();
  }

  wheeled(event) {
    // Without a key or the focus, the wheel scrolls the notebook.
    if (!event.ctrlKey && !event.metaKey && !this.port.contains(document.activeElement)) return;
    event.preventDefault();
    const frame = this.port.getBoundingClientRect();
    const at = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    this.zoom(Math.exp(-event.deltaY / 400), at);
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = this.nodes.get(event.target.dataset?.node);
    const actions = { "+": () => this.zoom(STEP), "=": () => this.zoom(STEP), "-": () => this.zoom(1 / STEP), 0: () => this.fit() };
    if (node) {
      actions.Enter = actions[" "] = () => this.chosen(node);
      actions.ArrowRight = actions.ArrowDown = () => this.go(node, 1);
      actions.ArrowLeft = actions.ArrowUp = () => this.go(node, -1);
    } else {
      Object.assign(actions, {
        ArrowRight: () => this.pan(0.15, 0),
        ArrowLeft: () => this.pan(-0.15, 0),
        ArrowDown: () => this.pan(0, 0.15),
        ArrowUp: () => this.pan(0, -0.15),
      });
    }
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab has its own meaning for keys
    action();
  }

  go(node, by) {
    const all = [...this.nodes.values()];
    const next = all[(all.indexOf(node) + by + all.length) % all.length];
    node.group.setAttribute("tabindex", "-1");
    next.group.setAttribute("tabindex", "0");
    next.group.focus();
  }

  grab(event) {
    if (event.button !== 0) return;
    this.dragged = false;
    const start = [event.clientX, event.clientY];
    const from = [...this.box];
    const frame = this.port.getBoundingClientRect();
    // With "meet", one unit is as wide as it is high.
    const unit = Math.max(this.box[2] / frame.width, this.box[3] / frame.height);
    const move = (moved) => {
      const by = [moved.clientX - start[0], moved.clientY - start[1]];
      if (!this.dragged && Math.hypot(...by) < 4) return;
      this.dragged = this.dragging = true;
      this.tip.hidden = true;
      this.fitted = false;
      this.box = [from[0] - by[0] * unit, from[1] - by[1] * unit, from[2], from[3]];
      this.apply();
    };
    const end = () => {
      this.dragging = false;
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
  }
}

export default {
  initialize({ model }) {
    // The model keeps what is sent as differences, for views that are opened later.
    model.on("msg:custom", (message) => {
      if (message.picture === model.get("picture")) Object.assign(model.get("labels"), message.labels);
    });
  },

  render({ model, el }) {
    const graph = new Graph(model, el);
    const changed = (message) => { if (message.picture === model.get("picture")) graph.update(message.labels); };
    const drawn = () => graph.draw();
    const chosen = () => graph.choose();
    model.on("msg:custom", changed);
    model.on("change:picture", drawn);
    model.on("change:selected", chosen);
    return () => {
      model.off("msg:custom", changed);
      model.off("change:picture", drawn);
      model.off("change:selected", chosen);
      graph.resized.disconnect();
    };
  },
};
