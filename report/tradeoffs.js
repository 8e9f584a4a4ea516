// The picture of trade-offs: quality against size, memory or speed, with a chooser, a filter, zoom and details.
{
  const data = JSON.parse(document.getElementById("tradeoffs-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const SHAPES = { model: "M-6,0A6,6 0 1 1 6,0A6,6 0 1 1 -6,0Z", quantization: "M-5.5,-5.5H5.5V5.5H-5.5Z", finetuning: "M0,-6.5L6.5,5.5H-6.5Z", merge: "M0,-7.5L7.5,0L0,7.5L-7.5,0Z" };
  const KINDS = { model: "full precision", quantization: "quantized", finetuning: "adapter", merge: "merged" };
  const MARKS = { ship: " (the variant to ship)", near: " (nearest to the limits)" };
  const FEW = 16; // points up to which all are named, space permitting
  const at = (id) => document.getElementById(`tradeoffs-${id}`);
  const [quality, cost, filter, search, plot, detail, count] = ["quality", "cost", "filter", "search", "plot", "detail", "count"].map(at);
  let view = null; // [x from, x to, y from, y to] in the coordinates of the scales; null: all
  let points = []; // those drawn
  let chosen = null; // index of the variant whose details are shown
  let frame = null; // scales and edges of the last drawing

  const drawn = (tag, attributes, ...children) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const option = (value, label) => Object.assign(document.createElement("option"), { value, textContent: label });
  const grouped = (label, options) => {
    const group = Object.assign(document.createElement("optgroup"), { label });
    group.append(...options);
    return group;
  };
  const distinct = (values) => [...new Set(values)].filter(Boolean);

  function fillChoosers() {
    data.qualities.forEach((item, place) => quality.append(option(place, item.label)));
    const of = (key, label, values) => values.length > 1 && filter.append(grouped(label, values.map(([value, text]) => option(`${key}:${value}`, text))));
    filter.append(option("all:", "all variants"), option("front:", "best trade-offs"), option("each:", "best of each method"));
    of("method", "Method", distinct(data.variants.flatMap((item) => item.methods)).sort().map((value) => [value, value]));
    of("kind", "Kind", distinct(data.variants.map((item) => item.kind)).map((value) => [value, KINDS[value]]));
    of("model", "Model", distinct(data.variants.map((item) => item.model)).map((value) => [value, value]));
  }
  function fillCosts() {
    const now = cost.selectedOptions[0]?.textContent;
    cost.replaceChildren(...costs().map((item, place) => option(place, item.name)));
    const same = costs().findIndex((item) => item.name === now);
    const limited = costs().findIndex((item) => item.limit !== null);
    cost.value = same >= 0 ? same : Math.max(limited, 0);
  }
  const shown = () => data.qualities[quality.value];
  const costs = () => data.costs[shown().evaluation];
  const against = () => costs()[cost.value];

  function matches(variant) {
    const [key, value] = filter.value.split(/:(.*)/s);
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.every((word) => variant.name.toLowerCase().includes(word))) return false;
    if (key === "method") return variant.methods.includes(value) || variant.kind === "model";
    return key === "kind" || key === "model" ? variant[key] === value : true;
  }

  // Points that no other beats in both, the least cost first.
  function bestOf(all) {
    const [x, y] = [against().more ? -1 : 1, shown().lower ? 1 : -1];
    const sorted = [...all].sort((a, b) => x * (a.x[0] - b.x[0]) || y * (a.y[0] - b.y[0]));
    return sorted.filter((point, place) => sorted.slice(0, place).every((other) => y * (point.y[0] - other.y[0]) < 0));
  }

  function scaleOf(values, from, to, padding, many) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const log = least > 0 && most / least >= many;
    const [into, back] = log ? [Math.log10, (value) => 10 ** value] : [(value) => value, (value) => value];
    let [low, high] = [into(least), into(most)];
    const room = (high - low || Math.abs(high) || 1) * padding;
    return { log, into, back, from, to, low: low - room, high: high + room };
  }
  const place = (scale, value) => scale.from + ((scale.into(value) - scale.low) / (scale.high - scale.low)) * (scale.to - scale.from);
  const value = (scale, pixel) => scale.low + ((pixel - scale.from) / (scale.to - scale.from)) * (scale.high - scale.low);

  function ticks(scale, most) {
    const [low, high] = [scale.back(scale.low), scale.back(scale.high)];
    if (scale.log) {
      for (const parts of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
        const steps = [];
        for (let power = Math.floor(scale.low); power <= scale.high; power++) for (const part of parts) steps.push(part * 10 ** power);
        const inside = steps.filter((tick) => tick >= low && tick <= high);
        if (inside.length <= most && inside.length > 2) return inside;
      }
    }
    const raw = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw);
    const steps = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6 && steps.length < 100; tick += step) steps.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
    return steps;
  }
  const plain = (number) => (Math.abs(number) >= 1e6 ? number.toExponential(0) : Number(number.toPrecision(6)).toLocaleString("en"));

  const signed = (number) => (number ? `${number > 0 ? "+" : "−"}${plain(Math.abs(Number(number.toPrecision(6))))}` : "0");

  function draw() {
    const [item, axis] = [shown(), against()];
    const measured = data.variants.map((variant, index) => ({ variant, index, x: axis.points[index], y: item.points[index] }));
    const known = measured.filter((point) => point.x && point.y && point.y[0] !== null);
    const best = bestOf(known);
    best.forEach((point) => { point.best = true; });
    points = known.filter((point) => matches(point.variant) && (filter.value !== "front:" || point.best));
    if (filter.value === "each:") {
      const methodOf = (point) => point.variant.methods.join("+") || point.variant.kind;
      points = distinct(points.map(methodOf)).flatMap((method) => bestOf(points.filter((point) => methodOf(point) === method)));
    }
    const all = measured.filter((point) => point.y && matches(point.variant));
    const lost = all.filter((point) => point.y[0] === null).length;
    count.textContent = `${points.length} of ${Object.keys(item.points).length} variants${lost ? `; ${lost} not shown: not a finite number` : ""}`;

    const width = Math.max(plot.clientWidth, 280);
    const height = Math.round(Math.min(Math.max(width * 0.66, 300), 440));
    const [left, right, top, bottom] = [58, width - 10, 12, height - 42];
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", class: points.length > 60 ? "many" : "", "aria-label": `${item.label} against ${axis.label}: ${points.length} variants` });
    if (!points.length) {
      svg.append(drawn("text", { x: width / 2, y: height / 2, class: "axis", "text-anchor": "middle" }, "no variant"));
      plot.replaceChildren(svg);
      frame = null;
      describe(null);
      return;
    }
    const xs = points.flatMap((point) => point.x.slice(0, 3)).concat(axis.limit !== null ? [axis.limit] : []);
    const middles = points.map((point) => point.y[0]);
    const ys = points.flatMap((point) => point.y.slice(0, 3).filter((end) => end !== null));
    // Bars may leave the picture: those of a few windows are so long that all points would lie on one line.
    const spread = (Math.max(...middles) - Math.min(...middles)) || Math.abs(middles[0]) || 1;
    const kept = ys.filter((end) => end > Math.min(...middles) - 0.6 * spread && end < Math.max(...middles) + 0.6 * spread);
    if (item.limit !== null) kept.push(item.limit);
    const x = scaleOf(xs, left, right, 0.16, 8);
    const y = scaleOf(kept, bottom, top, 0.07, 3);
    if (view) [x.low, x.high, y.low, y.high] = view;
    frame = { x, y, left, right, top, bottom, width, height };

    const unit = !axis.bytes ? [1, ""] : [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => Math.max(...xs) >= size) ?? [1, "bytes"];
    const grid = drawn("g", { class: "grid" });
    const scaled = { ...x, low: x.log ? x.low - Math.log10(unit[0]) : x.low / unit[0], high: x.log ? x.high - Math.log10(unit[0]) : x.high / unit[0] };
    for (const tick of ticks(scaled, Math.max(3, Math.floor(width / 85)))) {
      const pixel = place(x, tick * unit[0]);
      grid.append(drawn("line", { x1: pixel, x2: pixel, y1: top, y2: bottom }), drawn("text", { x: pixel, y: bottom + 16, "text-anchor": "middle" }, plain(tick)));
    }
    for (const tick of ticks(y, 7)) {
      const pixel = place(y, tick);
      grid.append(drawn("line", { x1: left, x2: right, y1: pixel, y2: pixel }), drawn("text", { x: left - 7, y: pixel + 4, "text-anchor": "end" }, item.ratio ? signed((tick - 1) * 100) : item.signed ? signed(tick) : plain(tick)));
    }
    const better = `${axis.more ? "→" : "←"} better`;
    const label = `${axis.name}${unit[1] ? `, ${unit[1]}` : ""}`;
    grid.append(drawn("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle", class: "axis" }, `${label} (${better})`));
    const name = `${item.label}${item.unit ? `, ${item.unit}` : ""} (${item.lower ? "↓" : "↑"} better)`;
    grid.append(drawn("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, name));

    const inside = drawn("g", { "clip-path": "url(#tradeoffs-clip)" });
    svg.append(drawn("defs", {}, drawn("clipPath", { id: "tradeoffs-clip" }, drawn("rect", { x: left, y: top - 6, width: right - left + 8, height: bottom - top + 12 }))), grid, inside);
    if (axis.limit !== null) {
      const pixel = place(x, axis.limit);
      const beyond = axis.more ? [left, pixel] : [pixel, right];
      if (beyond[1] > beyond[0]) inside.append(drawn("rect", { class: "beyond", x: Math.max(beyond[0], left), y: top, width: Math.max(Math.min(beyond[1], right) - Math.max(beyond[0], left), 0), height: bottom - top }));
      inside.append(drawn("line", { class: "limit", x1: pixel, x2: pixel, y1: top, y2: bottom }), drawn("text", { class: "limit", x: pixel + 5, y: top + 11 }, "limit"));
    }
    if (item.limit !== null) {
      const pixel = place(y, item.limit);
      inside.append(drawn("line", { class: "limit", x1: left, x2: right, y1: pixel, y2: pixel }));
    }
    if (best.length > 1) {
      const kin = best.filter((point) => points.includes(point));
      const path = kin.map((point, index) => (index ? `H${place(x, point.x[0])}V${place(y, point.y[0])}` : `M${place(x, point.x[0])},${place(y, point.y[0])}`)).join("");
      if (kin.length > 1) inside.append(drawn("path", { class: "front", d: path }));
    }
    const order = [...points].sort((a, b) => importance(a) - importance(b));
    for (const point of order) {
      [point.left, point.top] = [place(x, point.x[0]), place(y, point.y[0])];
      inside.append(bars(point, x, y));
    }
    for (const point of order) inside.append(mark(point));
    inside.append(...labels(order.reverse()));
    const keep = plot.contains(document.activeElement) ? chosen : null;
    plot.replaceChildren(svg);
    const first = points.find((point) => point.index === chosen) ?? order[0]; // the most important
    roving(first.index);
    if (keep !== null && first.index === keep) plot.querySelector(`[data-index="${keep}"]`)?.focus();
  }
  const importance = (point) => (point.variant.mark in MARKS ? 4 : point.variant.mark ? 3 : point.best ? 2 : 1);
  const byCost = () => [...points].sort((a, b) => a.left - b.left || a.top - b.top);

  function bars(point, x, y) {
    const group = drawn("g", { class: `bar ${point.variant.kind}` });
    const [, low, high] = point.y;
    if (low !== null && high !== null) group.append(drawn("line", { x1: point.left, x2: point.left, y1: Math.max(Math.min(place(y, high), 4000), -4000), y2: Math.max(Math.min(place(y, low > 0 || !y.log ? low : point.y[0]), 4000), -4000) }));
    if (point.x[1] !== point.x[2]) group.append(drawn("line", { x1: place(x, point.x[1]), x2: place(x, point.x[2]), y1: point.top, y2: point.top }));
    return group;
  }
  function mark(point) {
    const { variant } = point;
    const group = drawn("g", { class: `point ${variant.kind}${variant.mark ? ` ${variant.mark}` : ""}`, transform: `translate(${point.left} ${point.top})`, tabindex: -1, role: "button", "data-index": point.index, "aria-label": text(point) });
    if (variant.mark) group.append(drawn("circle", { r: 12, class: "ring" }));
    group.append(drawn("path", { d: SHAPES[variant.kind] }));
    return group;
  }
  // Names at the first place beside a point that is free, the most important points first.
  function labels(order) {
    const taken = points.map((point) => [point.left - 6, point.top - 6, point.left + 6, point.top + 6]);
    const made = [];
    for (const point of order) {
      if (points.length > FEW && importance(point) < 2) continue;
      const name = shown().alone ? point.variant.steps : point.variant.name;
      const length = name.length * 6.7 + 2;
      const away = point.variant.mark ? 16 : 10;
      const places = [[away, 4, "start"], [-away, 4, "end"], [0, -away - 2, "middle"], [0, away + 11, "middle"], [away, -9, "start"], [away, 17, "start"], [-away, -9, "end"], [-away, 17, "end"]];
      for (const [right, down, anchor] of places) {
        const from = point.left + right - (anchor === "end" ? length : anchor === "middle" ? length / 2 : 0);
        const box = [from, point.top + down - 11, from + length, point.top + down + 3];
        const fits = box[0] > frame.left && box[2] < frame.width && box[1] > 0 && box[3] < frame.bottom + 4;
        const free = (importance(point) > 2 ? taken.slice(points.length) : taken).every((other) => other[2] <= box[0] || other[0] >= box[2] || other[3] <= box[1] || other[1] >= box[3]);
        if (fits && free) {
          taken.push(box);
          made.push(drawn("text", { class: `name${point.variant.mark in MARKS ? " shipped" : ""}`, x: point.left + right, y: point.top + down, "text-anchor": anchor }, name));
          break;
        }
      }
    }
    return made;
  }

  const text = (point) => `${point.variant.name}${MARKS[point.variant.mark] ?? ""}: ${point.y[3]}; ${against().name} ${point.x[3]}${point.best ? "; no other is better in both" : ""}.`;
  function describe(index) {
    const point = points.find((item) => item.index === index);
    chosen = point ? index : chosen;
    detail.textContent = point ? text(point) : "";
    plot.querySelectorAll(".point").forEach((node) => node.classList.toggle("active", point && Number(node.dataset.index) === index));
  }
  function roving(index) {
    plot.querySelectorAll(".point").forEach((node) => node.setAttribute("tabindex", Number(node.dataset.index) === index ? 0 : -1));
    describe(index);
  }
  function nearest(event) {
    const box = plot.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    const distance = (point) => Math.hypot(point.left - left, point.top - top);
    const near = points.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null);
    return near && distance(near) < 28 ? near : null;
  }

  function zoom(factor, centre) {
    if (!frame) return;
    const { x, y } = frame;
    const point = points.find((item) => item.index === chosen);
    const [middle, height] = centre ?? (point ? [x.into(point.x[0]), y.into(point.y[0])] : [(x.low + x.high) / 2, (y.low + y.high) / 2]);
    const around = (scale, at) => [at - (at - scale.low) / factor, at + (scale.high - at) / factor];
    view = [...around(x, middle), ...around(y, height)];
    draw();
  }
  function whole() {
    view = null;
    draw();
  }

  function rows() {
    const kept = new Set(data.variants.filter(matches).map((item) => item.name));
    document.querySelectorAll("tr[data-variant]").forEach((row) => { row.hidden = !kept.has(row.dataset.variant); });
  }

  let from = null; // where a drag began
  plot.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0 || !frame) return;
    const box = plot.getBoundingClientRect();
    from = [event.clientX - box.left, event.clientY - box.top];
  });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const to = [event.clientX - box.left, event.clientY - box.top];
    plot.querySelector(".drag")?.remove();
    if (from && frame && Math.hypot(to[0] - from[0], to[1] - from[1]) > 6) {
      plot.firstChild.append(drawn("rect", { class: "drag", x: Math.min(from[0], to[0]), y: Math.min(from[1], to[1]), width: Math.abs(to[0] - from[0]), height: Math.abs(to[1] - from[1]) }));
      return;
    }
    const point = nearest(event);
    plot.style.cursor = point ? "pointer" : "";
    if (point) describe(point.index);
  });
  window.addEventListener("pointerup", (event) => {
    if (!from || !frame) return;
    const box = plot.getBoundingClientRect();
    const [start, to] = [from, [event.clientX - box.left, event.clientY - box.top]];
    from = null;
    plot.querySelector(".drag")?.remove();
    if (Math.abs(to[0] - start[0]) < 12 || Math.abs(to[1] - start[1]) < 12) return;
    const [x, y] = [[start[0], to[0]], [start[1], to[1]]].map((pair) => pair.sort((a, b) => a - b));
    view = [value(frame.x, x[0]), value(frame.x, x[1]), value(frame.y, y[1]), value(frame.y, y[0])];
    draw();
  });
  plot.addEventListener("click", (event) => {
    const point = nearest(event);
    if (!point) return;
    if (chosen === point.index && event.detail > 1) return;
    roving(point.index);
    plot.querySelector(`[data-index="${point.index}"]`).focus();
  });
  plot.addEventListener("dblclick", (event) => {
    const point = nearest(event);
    if (point) show(point.variant.path);
    else whole();
  });
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey || !frame) return; // without Ctrl the page scrolls
    event.preventDefault();
    const box = plot.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, [value(frame.x, event.clientX - box.left), value(frame.y, event.clientY - box.top)]);
  }, { passive: false });
  plot.addEventListener("keydown", (event) => {
    const order = byCost();
    const now = order.findIndex((point) => point.index === chosen);
    const steps = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: order.length - 1 };
    if (event.key in steps) {
      const point = order[Math.min(Math.max(steps[event.key], 0), order.length - 1)];
      const seen = point.left >= frame.left && point.left <= frame.right && point.top >= frame.top && point.top <= frame.bottom;
      if (view && !seen) {
        const [width, height] = [(view[1] - view[0]) / 2, (view[3] - view[2]) / 2];
        const [x, y] = [frame.x.into(point.x[0]), frame.y.into(point.y[0])];
        view = [x - width, x + width, y - height, y + height];
        chosen = point.index;
        draw();
      }
      roving(point.index);
      plot.querySelector(`[data-index="${point.index}"]`).focus();
    } else if (event.key === "Enter" || event.key === " ") {
      const point = points.find((item) => item.index === chosen);
      if (point) show(point.variant.path);
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") whole();
    else return;
    event.preventDefault();
  });
  at("in").addEventListener("click", () => zoom(1.5));
  at("out").addEventListener("click", () => zoom(1 / 1.5));
  at("whole").addEventListener("click", whole);
  quality.addEventListener("change", () => { fillCosts(); whole(); });
  cost.addEventListener("change", whole);
  for (const [field, event] of [[filter, "change"], [search, "input"]]) field.addEventListener(event, () => { whole(); rows(); });

  fillChoosers();
  fillCosts();
  draw();
  let wide = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth !== wide) {
      wide = plot.clientWidth;
      draw();
    }
  }).observe(plot);
}
