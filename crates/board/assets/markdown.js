// The Markdown of reports: headings, tables, lists, paragraphs, pictures, code, bold,
// links. What it does not know it shows as it is written.

/**
 * Elements of a text. Headings begin at `level`; `picture(name, alt)` makes an element of
 * a picture, or null.
 */
function markdown(text, level, picture) {
  const lines = text.split(/\r?\n/);
  const made = [];
  let heading = "";
  let tables = 0;
  let at = 0;
  const isTable = (index) =>
    /^\s*\|/.test(lines[index] ?? "") && /^\s*\|[\s:|-]+\|?\s*$/.test(lines[index + 1] ?? "");
  const isOther = (index) =>
    index >= lines.length ||
    lines[index].trim() === "" ||
    /^(#{1,6} |[-*] |```|!\[)/.test(lines[index]) ||
    isTable(index);
  while (at < lines.length) {
    const line = lines[at];
    const found = line.match(/^(#{1,6}) +(.*)$/);
    const image = line.match(/^!\[([^\]]*)\]\(([^)]+)\)\s*$/);
    if (line.trim() === "") {
      at += 1;
    } else if (found) {
      heading = found[2];
      tables = 0;
      const deep = Math.min(6, level + found[1].length - 1);
      made.push(element(`h${deep}`, {}, inline(heading)));
      at += 1;
    } else if (image) {
      made.push(picture(image[2], image[1]) ?? element("p", {}, line));
      at += 1;
    } else if (line.startsWith("```")) {
      const end = lines.findIndex((other, index) => index > at && other.startsWith("```"));
      const last = end < 0 ? lines.length : end;
      made.push(element("pre", {}, element("code", {}, lines.slice(at + 1, last).join("\n"))));
      at = last + 1;
    } else if (/^[-*] /.test(line)) {
      const list = element("ul", {});
      while (/^[-*] /.test(lines[at] ?? "")) {
        list.append(element("li", {}, inline(lines[at].slice(2))));
        at += 1;
      }
      made.push(list);
    } else if (isTable(at)) {
      const head = cells(lines[at]);
      const sides = cells(lines[at + 1]);
      const rows = [];
      for (at += 2; /^\s*\|/.test(lines[at] ?? ""); at += 1) {
        rows.push(cells(lines[at]).map(inline));
      }
      tables += 1;
      const caption = `${plain(heading) || "Table"}${tables > 1 ? `, table ${tables}` : ""}`;
      const isEmpty = head.every((cell) => cell === "");
      const isNumber = (column) => (sides[column] ?? "").endsWith(":");
      made.push(table(caption, isEmpty ? null : head.map(inline), rows, isNumber));
    } else {
      const paragraph = [line];
      for (at += 1; !isOther(at); at += 1) {
        paragraph.push(lines[at]);
      }
      made.push(element("p", {}, inline(paragraph.join(" "))));
    }
  }
  return made;
}

/** The cells of a row; `\|` is no end of one. */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** Text with code, bold and links in it. */
function inline(text) {
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(/`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)\s]+)\)/g)) {
    parts.push(text.slice(last, found.index));
    const [whole, code, bold, label, target] = found;
    if (code !== undefined) {
      parts.push(element("code", {}, code));
    } else if (bold !== undefined) {
      parts.push(element("strong", {}, bold));
    } else if (/^https?:\/\//.test(target)) {
      parts.push(element("a", { href: target, rel: "noreferrer" }, label));
    } else {
      parts.push(label);
    }
    last = found.index + whole.length;
  }
  parts.push(text.slice(last));
  return parts.filter((part) => part !== "");
}

/** The same without its marks. */
function plain(text) {
  return inline(text)
    .map((part) => (typeof part === "string" ? part : part.textContent))
    .join("");
}
