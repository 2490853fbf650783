// The buttons below a form. A click takes along what the fields say in the page: sent by themselves, their
// values may be handled after the click.

const entered = (field) => field.get(field.get("_model_name") === "DropdownModel" ? "index" : "value");

export default {
  async render({ model, el }) {
    const manager = model.widget_manager;
    const fields = await Promise.all(model.get("fields").map((id) => manager.get_model(id)));
    const buttons = model.get("offers").map(([name, text, icon, title, style]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = `jupyter-widgets jupyter-button widget-button ${style}`;
      button.title = title;
      const mark = document.createElement("i");
      mark.className = `fa fa-${icon}`;
      mark.setAttribute("aria-hidden", "true");
      button.append(mark, text);
      button.addEventListener("click", () => model.send({ decision: name, values: fields.map(entered) }));
      return button;
    });
    const decided = () => buttons.forEach((button) => (button.disabled = model.get("decided")));
    decided();
    model.on("change:decided", decided);
    el.append(...buttons);
    return () => model.off("change:decided", decided);
  },
};
