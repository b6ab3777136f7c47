// Making elements. Text that comes from files becomes text nodes, never markup: there is
// no other way into the page than these functions.

const SVG = "http://www.w3.org/2000/svg";

/** Sets attributes: functions listen, `true` is an attribute without a value, and what is
 * false, null or undefined is left out. */
function furnish(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (value === true) {
      made.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** An HTML element. */
function element(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** An element of SVG. */
function drawing(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

/** What a path or name is in an id, which must have no spaces. */
function idOf(kind, name) {
  return `${kind}-${encodeURIComponent(name)}`;
}

/**
 * A table with a caption. A wide one scrolls by itself, with the keyboard too. `head` is a
 * list of headings, or null; in rows the first cell is a heading. `isNumber` says of a
 * column whether it is set to the right.
 */
function table(caption, head, rows, isNumber = () => false) {
  const cell = (content, column) => {
    const about = { class: isNumber(column) ? "number" : null };
    return column === 0
      ? element("th", { scope: "row", ...about }, content)
      : element("td", about, content);
  };
  const headings =
    head &&
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        head.map((content, column) =>
          element("th", { scope: "col", class: isNumber(column) ? "number" : null }, content),
        ),
      ),
    );
  const name = typeof caption === "string" ? caption : caption.textContent;
  return element(
    "div",
    { class: "scroll", role: "group", tabindex: "0", "aria-label": name },
    element(
      "table",
      {},
      element("caption", {}, caption),
      headings,
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell)))),
    ),
  );
}

/** Something to be opened, whose content is made when it is. */
function folded(summary, make, attributes = {}) {
  const details = element("details", attributes, element("summary", {}, summary));
  let isMade = false;
  const open = () => {
    if (details.open && !isMade) {
      isMade = true;
      details.append(make());
    }
  };
  details.addEventListener("toggle", open);
  open();
  return details;
}
