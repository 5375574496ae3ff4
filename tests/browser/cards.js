// What a person sees on the page: its text, and its cards. TensorBoard's tabs are part Angular, part
// Polymer, whose elements keep their content in shadow roots.
const all = (root, selector) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll("*")].flatMap((e) => (e.shadowRoot ? all(e.shadowRoot, selector) : [])),
];

const visibleText = (node) => {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  if (node.nodeType !== Node.ELEMENT_NODE || /^(style|script|template)$/i.test(node.tagName)) return "";
  const style = getComputedStyle(node);
  if (style.display === "none" || style.visibility === "hidden") return "";
  const slotted = node.tagName === "SLOT" ? node.assignedNodes() : [];
  const children = slotted.length ? slotted : (node.shadowRoot || node).childNodes;
  return [...children].map(visibleText).join(" ");
};

const clean = (text) => text.replace(/\s+/g, " ").trim();

const CARDS =
  "card-view, tf-custom-scalar-margin-chart-card, tf-custom-scalar-multi-line-chart-card, " +
  "tf-histogram-loader, tf-distribution-loader, tf-image-loader, tf-text-loader";

// How many columns of a canvas, which a worker fills at its own time, have ink on them.
const inkedColumns = (canvas) => {
  if (!canvas.width || !canvas.height) return 0;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const inked = new Set();
  for (let i = 3; i < data.length; i += 4) if (data[i]) inked.add(((i - 3) / 4) % canvas.width);
  return inked.size;
};

const card = (element) => {
  const inside = element.shadowRoot || element;
  const find = (selector) => all(inside, selector);
  const texts = (root, selector) => all(root, selector).map((e) => clean(e.textContent));
  // A point of a path is a command with coordinates. A path without any is not seen.
  const points = (selector) =>
    find(selector).map((e) => ((e.getAttribute("d") || "").match(/[ML]/g) || []).length).filter((n) => n);
  const heading = find(".heading-label.name, tb-truncated-path")[0];
  const columns = texts(inside, "tb-data-table-header-cell");
  return {
    title: heading ? heading.getAttribute("title") || clean(heading.textContent) : "",
    text: clean(visibleText(element)),
    top: element.getBoundingClientRect().top,
    series: texts(inside, ".match-list-entry").map((entry) => entry.replace(/^\W+/, "")),
    rows: find("tb-data-table-content-row").map((row) =>
      Object.fromEntries(texts(row, "tb-data-table-content-cell").map((cell, i) => [columns[i], cell]))),
    lines: points("path.line"),
    areas: points("path.area"),
    outlines: points("path.outline, .histogram path"),
    canvases: find("canvas").map(inkedColumns),
    images: find("img").filter((e) => e.complete && e.naturalWidth)
      .map((e) => [e.naturalWidth, e.naturalHeight]),
    cells: texts(inside, "td"),
    loading: find("mat-spinner, #loading-spinner-container").some((e) => e.getClientRects().length > 0),
  };
};

return { text: clean(visibleText(document.body)), cards: all(document, CARDS).map(card) };
