// The rows of a run. Python sends texts, this file puts them into cells that are there already.
// Everything is set as text, never as HTML.

const FIELDS = ["name", "state", "about", "time", "tokens", "cost", "error", "traceback", "text", "bar", "failures"];
const HEADS = ["step", "state", "", "time", "tokens", "cost"];
const MANY = 12; // rows from which on filters are offered

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Row {
  constructor(table, key) {
    this.table = table;
    this.key = key;
    this.shown = [];
    this.tr = element("tr");
    this.button = element("button", "tagent-step");
    this.button.type = "button";
    this.button.setAttribute("aria-pressed", "false");
    this.button.addEventListener("click", () => table.select(this.shown[0]));
    this.mark = element("span");
    this.mark.setAttribute("aria-hidden", "true");
    this.word = element("span");
    this.bar = element("div", "tagent-bar");
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-valuemin", "0");
    this.bar.setAttribute("aria-label", "items");
    this.bar.append(...table.bar.map((state) => element("div", `tagent-${state}`)));
    this.bar.hidden = true;
    this.kinds = new Map();
    this.failures = element("div", "tagent-kinds");
    this.failures.hidden = true;
    this.about = element("span", "tagent-muted");
    this.error = element("div", "tagent-error");
    this.folded = element("details");
    this.folded.append(element("summary", "tagent-muted", "traceback"));
    this.traceback = element("pre");
    this.folded.append(this.traceback);
    this.text = element("pre", "tagent-text");
    this.text.setAttribute("aria-label", "output");
    const cells = HEADS.map((_, index) => element("td", index > 2 ? "tagent-number" : index === 2 ? "tagent-wide" : ""));
    cells[0].append(this.button);
    cells[1].append(this.mark, " ", this.word);
    cells[2].append(this.bar, this.about, this.error, this.failures, this.text);
    [, , , this.time, this.tokens, this.cost] = cells;
    this.state = cells[1];
    this.tr.append(...cells);
  }

  set(values) {
    for (const [index, field] of FIELDS.entries()) {
      if (values[index] === this.shown[index]) continue;
      this.shown[index] = values[index];
      this[`set_${field}`](values[index]);
    }
  }

  set_name(value) {
    this.button.textContent = value;
    this.tr.dataset.step = value;
  }

  set_state(value) {
    const [mark, word] = this.table.styles[value];
    this.mark.textContent = mark;
    this.word.textContent = word;
    this.state.className = `tagent-state tagent-${value}`;
    this.tr.dataset.state = value;
  }

  set_about(value) { this.about.textContent = value; }
  set_time(value) { this.time.textContent = value; }
  set_tokens(value) { this.tokens.textContent = value; }
  set_cost(value) { this.cost.textContent = value; }

  set_error(value) {
    this.error.textContent = value;
    this.error.hidden = !value;
  }

  set_traceback(value) {
    this.traceback.textContent = value;
    if (!value) this.folded.remove();
    else if (!this.folded.parentNode) this.error.after(this.folded);
  }

  set_bar(value) {
    this.bar.hidden = !value;
    if (!value) return;
    const numbers = value.split(",").map(Number);
    const total = numbers.pop();
    const done = numbers.reduce((sum, number) => sum + number, 0);
    this.bar.setAttribute("aria-valuemax", String(total));
    this.bar.setAttribute("aria-valuenow", String(done));
    for (const [index, number] of numbers.entries()) this.bar.children[index].style.width = `${(100 * number) / total}%`;
  }

  set_failures(value) {
    // What is open stays open while its numbers change: kinds are known by their names.
    const wanted = value ? JSON.parse(value) : [];
    this.failures.hidden = !wanted.length;
    const kinds = new Map(wanted.map(([label, text]) => [label.replace(/^\S+ x /, ""), [label, text]]));
    for (const [name, kind] of this.kinds) {
      if (kinds.has(name)) continue;
      kind.remove();
      this.kinds.delete(name);
    }
    for (const [index, [name, [label, text]]] of [...kinds].entries()) {
      let kind = this.kinds.get(name);
      if (!kind) {
        kind = element("details");
        kind.append(element("summary", "tagent-error"), element("pre"));
        this.kinds.set(name, kind);
      }
      const there = this.failures.children[index];
      if (there !== kind) this.failures.insertBefore(kind, there || null);
      const [head, lines] = kind.children;
      if (head.textContent !== label) head.textContent = label;
      if (lines.textContent !== text) lines.textContent = text;
    }
  }

  set_text(value) {
    this.text.textContent = value;
    this.text.hidden = !value;
    this.text.scrollTop = this.text.scrollHeight;
  }
}

class Table {
  constructor(model, el) {
    this.model = model;
    this.styles = model.get("styles");
    this.bar = model.get("bar");
    this.rows = new Map();
    this.counts = "";
    this.only = "";
    this.root = element("div", "tagent-live tagent-table");
    this.announced = element("div", "tagent-unseen");
    this.announced.setAttribute("role", "status");
    this.filters = element("div", "tagent-chips");
    this.filters.setAttribute("role", "group");
    this.filters.setAttribute("aria-label", "Show steps by state");
    this.scroller = element("div", "tagent-rows");
    this.scroller.tabIndex = 0;
    this.scroller.setAttribute("role", "region");
    this.scroller.setAttribute("aria-label", "Steps");
    const table = element("table");
    const head = element("tr");
    head.append(...HEADS.map((text, index) => {
      const th = element("th", index > 2 ? "tagent-number" : "", text);
      th.scope = "col";
      if (!text) th.setAttribute("aria-label", "about");
      return th;
    }));
    const top = element("thead");
    top.append(head);
    this.body = element("tbody");
    table.append(top, this.body);
    this.scroller.append(table);
    this.root.append(this.announced, this.filters, this.scroller);
    el.append(this.root);
    this.rebuild();
    this.select_rows();
    this.announce();
  }

  rebuild() {
    this.rows.clear();
    this.body.replaceChildren();
    this.update(this.model.get("rows"));
  }

  update(changed) {
    const made = [];
    for (const [key, values] of Object.entries(changed)) {
      let row = this.rows.get(key);
      if (!row) {
        row = new Row(this, key);
        this.rows.set(key, row);
        made.push(row.tr);
      }
      row.set(values);
    }
    this.body.append(...made);
    this.count();
  }

  count() {
    const counts = {};
    let spends = false;
    for (const row of this.rows.values()) {
      const state = row.shown[1];
      counts[state] = (counts[state] || 0) + 1;
      spends = spends || row.shown[4] !== "" || row.shown[5] !== "";
      row.tr.hidden = this.only !== "" && state !== this.only;
    }
    this.root.classList.toggle("tagent-free", !spends);
    const now = `${JSON.stringify(counts)} ${this.only}`;
    if (now === this.counts) return;
    this.counts = now;
    this.filters.hidden = this.rows.size < MANY;
    if (this.only && !counts[this.only]) {
      this.only = "";
      this.count();
      return;
    }
    const chips = new Map([...this.filters.children].map((chip) => [chip.dataset.state, chip]));
    const wanted = ["", ...Object.keys(this.styles).filter((state) => counts[state])];
    for (const [state, chip] of chips) if (!wanted.includes(state)) chip.remove();
    for (const [index, state] of wanted.entries()) {
      let chip = chips.get(state);
      if (!chip) {
        chip = element("button", state ? `tagent-${state}` : "");
        chip.type = "button";
        chip.dataset.state = state;
        chip.addEventListener("click", () => this.filter(state));
        this.filters.insertBefore(chip, this.filters.children[index] || null);
      }
      const [mark, word] = state ? this.styles[state] : ["", "all"];
      const label = `${mark} ${state ? counts[state] : this.rows.size} ${word}`.trim();
      if (chip.textContent !== label) chip.textContent = label;
      chip.setAttribute("aria-pressed", String(this.only === state));
    }
  }

  filter(state) {
    this.only = this.only === state ? "" : state;
    this.count();
  }

  select(name) {
    this.model.set("selected", this.model.get("selected") === name ? "" : name);
    this.model.save_changes();
  }

  select_rows() {
    const name = this.model.get("selected");
    for (const row of this.rows.values()) {
      const chosen = name !== "" && row.shown[0] === name;
      row.button.setAttribute("aria-pressed", String(chosen));
      row.tr.classList.toggle("tagent-chosen", chosen);
    }
  }

  announce() { this.announced.textContent = this.model.get("announcement"); }
}

export default {
  initialize({ model }) {
    // The model keeps what is sent as differences, for views that are opened later.
    model.on("msg:custom", (message) => Object.assign(model.get("rows"), message.rows));
  },

  render({ model, el }) {
    const table = new Table(model, el);
    const changed = (message) => table.update(message.rows);
    const rebuilt = () => { table.rebuild(); table.select_rows(); };
    const chosen = () => table.select_rows();
    const announce = () => table.announce();
    model.on("msg:custom", changed);
    model.on("change:rows", rebuilt);
    model.on("change:selected", chosen);
    model.on("change:announcement", announce);
    return () => {
      model.off("msg:custom", changed);
      model.off("change:rows", rebuilt);
      model.off("change:selected", chosen);
      model.off("change:announcement", announce);
    };
  },
};
