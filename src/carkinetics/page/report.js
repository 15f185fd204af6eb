"use strict";
(() => {
  // On paper everything is unfolded.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  });
  window.addEventListener("afterprint", () => { for (const part of folded) part.open = false; });

  const data = JSON.parse(document.getElementById("embedded").textContent);
  const select = document.getElementById("patient");
  if (!select) return;
  const linear = document.getElementById("linear"), place = document.getElementById("curve");
  const facts = document.getElementById("facts"), NS = "http://www.w3.org/2000/svg";
  const WIDTH = 760, HEIGHT = 330, LEFT = 74, RIGHT = 14, TOP = 26, BOTTOM = 42;

  const element = (parent, name, attributes, text) => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  };
  const short = (v) => {
    if (v === 0) return "0";
    const size = Math.floor(Math.log10(Math.abs(v)) + 1e-9);
    return size >= 5 || size <= -3 ? (v / 10 ** size).toFixed(0) + "e" + size : String(+v.toPrecision(6));
  };
  const steps = (low, high) => {
    const rough = (high - low) / 6 || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough), found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(+v.toPrecision(12));
    return found;
  };

  const draw = (patient, panel) => {
    const log = !linear.checked, points = panel.samples;
    const keep = (v) => Number.isFinite(v) && (!log || v > 0);
    const shown = [...panel.low, ...panel.high, ...points.map((p) => p[1])].filter(keep);
    let bottom = log ? Math.min(...points.map((p) => p[1]).filter(keep), ...panel.curve.filter(keep)) : 0;
    let top = Math.max(...points.map((p) => p[1]).filter(keep), ...panel.curve.filter(keep));
    if (!shown.length) { bottom = 1; top = 10; }
    if (log) {
      bottom = Math.max(bottom, top * 1e-8);
      bottom = 10 ** Math.floor(Math.log10(bottom));
      top = 10 ** Math.ceil(Math.log10(top) + 1e-9);
    } else top *= 1.1;
    const end = Math.max(...panel.time, ...points.map((p) => p[0]), 1);
    const begin = Math.min(0, ...points.map((p) => p[0]));
    const x = (t) => LEFT + ((t - begin) / (end - begin)) * (WIDTH - LEFT - RIGHT);
    // Far outside the axis it ends a little beyond the edge, where it is cut off.
    const share = (v) => Math.min(Math.max(log ? Math.log(Math.max(v, 1e-300) / bottom) / Math.log(top / bottom) : v / top,
      -0.5), 1.5);
    const y = (v) => HEIGHT - BOTTOM - share(v) * (HEIGHT - TOP - BOTTOM);

    const svg = element(place, "svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, role: "img"});
    element(svg, "title", {}, `Patient ${patient.id}, ${panel.assay}: samples and fitted curve`);
    const ticks = log ? [] : steps(0, top);
    if (log) {
      const decades = Math.round(Math.log10(top / bottom)), every = Math.ceil(decades / 6);
      for (let k = 0; k <= decades; k += every) ticks.push(bottom * 10 ** k);
    }
    for (const v of ticks) {
      element(svg, "line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v)});
      element(svg, "text", {x: LEFT - 8, y: y(v) + 4, "text-anchor": "end"}, short(v));
    }
    for (const t of steps(begin, end)) {
      element(svg, "line", {class: "grid", x1: x(t), x2: x(t), y1: TOP, y2: HEIGHT - BOTTOM});
      element(svg, "text", {x: x(t), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle"}, short(t));
    }
    element(svg, "path", {class: "axis", d: `M${LEFT},${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}`});
    element(svg, "text", {x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle"}, "days since infusion");
    element(svg, "text", {x: LEFT, y: 15}, `${panel.assay} (${panel.unit})`);
    const line = (values) => panel.time.map((t, k) => `${k ? "L" : "M"}${x(t).toFixed(1)},${y(values[k]).toFixed(1)}`).join("");
    const back = (values) => panel.time.map((t, k) => `L${x(t).toFixed(1)},${y(values[k]).toFixed(1)}`).reverse().join("");
    const [wide, tall] = [WIDTH - RIGHT - LEFT, HEIGHT - BOTTOM - TOP];
    const inside = element(svg, "svg", {x: LEFT, y: TOP, width: wide, height: tall, viewBox: `${LEFT} ${TOP} ${wide} ${tall}`});
    element(inside, "path", {class: "new", d: line(panel.higher) + back(panel.lower) + "Z"});
    element(inside, "path", {class: "band", d: line(panel.high) + back(panel.low) + "Z"});
    element(inside, "path", {class: "typical", d: line(panel.typical)});
    element(inside, "path", {class: "curve", d: line(panel.curve)});
    for (const [t, v, cens] of points) {
      const at = `${x(t).toFixed(1)},${y(v).toFixed(1)}`;
      const made = cens === 0 ? element(svg, "circle", {class: "sample", cx: x(t), cy: y(v), r: 3.5})
        : element(svg, "path", {class: "limit", d: cens === 1 ? `M${at}m-5,-4h10l-5,8z` : `M${at}m-5,4h10l-5,-8z`});
      const said = cens === 0 ? "" : cens === 1 ? "below " : "above ";
      element(made, "title", {}, `day ${short(t)}: ${said}${short(v)} ${panel.unit}`);
    }
  };

  const show = () => {
    const patient = data.patients[select.selectedIndex];
    place.replaceChildren();
    for (const panel of patient.panels) draw(patient, panel);
    facts.textContent = patient.facts + " Dots: quantified; triangles: at a limit. Line and band: the patient's curve " +
      "with its 90 % interval; wide band: 90 % of new samples; dashed: the typical patient.";
  };
  const move = (by) => {
    const n = data.patients.length;
    select.selectedIndex = (select.selectedIndex + by + n) % n;
    show();
  };
  for (const patient of data.patients) select.add(new Option(patient.id));
  select.addEventListener("change", show);
  linear.addEventListener("change", show);
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  if (data.patients.length) show();
})();
