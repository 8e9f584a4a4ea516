"use strict";
// Two things: a click on a heading sorts its table; a click on a number shows how it was made.

const artefacts = JSON.parse(document.getElementById("lineage").textContent);
const dialog = document.getElementById("lineage-dialog");

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// An object as a list of terms; nested objects as lists within it.
function terms(object) {
  const list = element("dl");
  for (const [name, value] of Object.entries(object)) {
    const nested = value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof Node);
    const plain = typeof value === "string" && value.trim() ? value : JSON.stringify(value);
    const shown = value instanceof Node ? value : nested ? terms(value) : plain;
    list.append(element("dt", name), element("dd", shown));
  }
  return list;
}

// The artefact and all it was made from, each once, nearest first.
function chain(path, visited = []) {
  if (visited.includes(path)) return visited;
  visited.push(path);
  for (const parent of artefacts[path].parents) chain(parent, visited);
  return visited;
}

const filled = (object) => object && Object.keys(object).length > 0;

function made(run) {
  if (!run) return null;
  const { hardware, started, seconds, ...rest } = run;
  const { memory_bytes, peak_memory_bytes, peak_device_bytes, predicted } = { ...hardware, ...rest };
  const gigabytes = (bytes) => `${(bytes / 1e9).toPrecision(3)} GB`;
  const facts = { when: `${started.replace("T", " ").replace("Z", " UTC")}, in ${seconds} s`, "made with": element("code", run.command) };
  if (run.commit) facts["at commit"] = element("code", run.commit.replace("-dirty", ", with uncommitted changes"));
  if (run.threads) facts.threads = `${run.threads}, algorithms ${run.deterministic ? "" : "not all "}deterministic`;
  const megabytes = ([name, bytes]) => `${name} ${(bytes / 1e6).toPrecision(3)} MB`;
  if (predicted) facts["predicted of its tensors"] = Object.entries(predicted).map(megabytes).join(", ");
  if (run.real_time_factor) facts["real-time factor"] = `${run.real_time_factor.toPrecision(3)}, of ${run.audio_seconds} s of audio`;
  if (peak_memory_bytes) facts["peak memory"] = gigabytes(peak_memory_bytes);
  if (peak_device_bytes) facts["peak GPU memory"] = gigabytes(peak_device_bytes);
  facts.hardware = [hardware.gpu, `${hardware.cpu}, ${hardware.cores} cores`, gigabytes(memory_bytes)].filter(Boolean).join("; ");
  facts.platform = run.cuda ? `${run.platform}, CUDA ${run.cuda}` : run.platform;
  return facts;
}

function describe(path) {
  const item = artefacts[path];
  const facts = { digest: element("code", item.digest) };
  if (!item.stage) facts.note = "Not on the machine that made this report: known by its digest only.";
  if (filled(item.recipe)) facts.recipe = terms(item.recipe);
  if (filled(item.facts)) facts.facts = terms(item.facts);
  if (filled(item.sources)) facts["source files, SHA-256"] = terms(item.sources);
  if (filled(item.files)) facts["its files, SHA-256"] = terms(Object.fromEntries(item.files.map((file) => [file.path, file.sha256])));
  if (item.parents.length) facts["made from"] = item.parents.join(", ");
  Object.assign(facts, made(item.run));
  if (item.packages) facts.packages = Object.entries(item.packages).filter(([, version]) => version).map((pair) => pair.join(" ")).join(", ");
  facts["make it again"] = element("code", item.again);
  return terms(facts);
}

function show(path) {
  document.getElementById("lineage-title").textContent = path;
  const body = document.getElementById("lineage-body");
  body.replaceChildren();
  if (artefacts[path].numbers) body.append(terms(artefacts[path].numbers));
  body.append(element("h3", "How it was made"));
  chain(path).forEach((ancestor, index) => {
    const stage = artefacts[ancestor].stage ?? "digest only";
    const block = element("details", element("summary", ancestor, element("small", stage)), describe(ancestor));
    block.open = index === 0;
    body.append(block);
  });
  dialog.showModal();
  dialog.scrollTop = 0;
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("button.open");
  if (opener) show(opener.dataset.path);
  if (event.target === dialog) dialog.close();
});

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  // Headings in the order of the columns: those that span both rows, then those of each group.
  const headings = [...table.querySelectorAll("th[rowspan]"), ...table.querySelectorAll("thead tr:last-child th:not([rowspan])")];
  headings.filter((heading) => !heading.classList.contains("group")).forEach((heading, column) => {
    heading.tabIndex = 0;
    const sort = () => {
      const direction = heading.dataset.sorted === "up" ? "down" : "up";
      headings.forEach((other) => { delete other.dataset.sorted; other.removeAttribute("aria-sort"); });
      heading.dataset.sorted = direction;
      heading.setAttribute("aria-sort", direction === "up" ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (heading.dataset.sort === "text" ? a.localeCompare(b) : parseFloat(a) - parseFloat(b));
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return direction === "up" ? compare(a, b) : compare(b, a);
      });
      body.append(...rows);
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
