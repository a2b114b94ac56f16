const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const make = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
};
const MEANING = {
  rollout: "Where information came from, whatever was decided: attention and what passes by it, multiplied through all layers (Abnar & Zuidema 2020).",
  relevance: "What spoke for the answer: attention weighted by how much it raises the logit (Chefer et al. 2021).",
};
const ANSWER = -1, MEAN = -1, TOP = 5, WHOLE = ["rollout", "relevance"];
const state = { image: 0, layer: 0, head: MEAN, token: ANSWER, turned: false, kept: false };
const prefix = data.prefix.length;

// The numbers of an image: see `packed` in vit/report/explorer.py.
const half = bits => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
};
const numbers = data.images.map(() => null);
const unpacked = async number => {
  const image = data.images[number], [layers, heads, tokens, features] = image.shape, rows = layers * heads * tokens;
  const packed = Uint8Array.from(atob(image.numbers), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  let at = 0;
  const part = (kind, count) => {
    const found = new kind(buffer, at, count);
    at += count * kind.BYTES_PER_ELEMENT;
    return found;
  };
  const most = part(Float32Array, rows), sums = part(Float32Array, image.softmax ? rows : 0), reading = part(Float32Array, tokens);
  const halves = () => Float32Array.from(part(Uint16Array, rows * features), half);
  return { layers, heads, tokens, features, most, sums, reading, values: halves(), mixed: halves(),
           codes: part(image.signed ? Int8Array : Uint8Array, rows * tokens), levels: data.levels[image.signed ? 1 : 0] };
};

// Weights.
const weight = (n, layer, head, query, key) => {
  const row = (layer * n.heads + head) * n.tokens + query, share = n.codes[row * n.tokens + key] / n.levels;
  return Math.sign(share) * share * share * n.most[row];
};
const over = (n, head) => head === MEAN ? [...Array(n.heads).keys()] : [head];
const looks = (n, { layer, head, token, turned }) => {
  const found = new Float64Array(n.tokens), heads = over(n, head);
  for (const h of heads) for (let other = 0; other < n.tokens; other++) {
    if (token !== ANSWER) found[other] += (turned ? weight(n, layer, h, other, token) : weight(n, layer, h, token, other)) / heads.length;
    else for (let query = 0; query < n.tokens; query++) if (n.reading[query]) found[other] += n.reading[query] * weight(n, layer, h, query, other) / heads.length;
  }
  return found;
};
const named = (token, columns) => token === ANSWER ? "the answer" : token < prefix ? data.prefix[token]
  : `row ${Math.floor((token - prefix) / columns) + 1}, column ${(token - prefix) % columns + 1}`;

// Colours: those of the scale, over the photo as heat maps are.
const rgb = data.scale.map(text => [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16)));
const colour = share => {
  const place = Math.min(Math.max(share, 0), 1) * (rgb.length - 1), low = Math.floor(place), high = Math.min(low + 1, rgb.length - 1);
  return [0, 1, 2].map(i => rgb[low][i] + (place - low) * (rgb[high][i] - rgb[low][i]));
};
$("scale").style.background = `linear-gradient(90deg, ${data.scale})`;
const paint = (values, [rows, columns]) => {
  const canvas = $("heat"), most = Math.max(...values, 1e-30), context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [columns, rows];
  const picture = context.createImageData(columns, rows);
  values.forEach((value, i) => {
    const share = Math.max(value, 0) / most;
    picture.data.set([...colour(share), 255 * (.1 + .75 * Math.sqrt(share))], 4 * i);
  });
  context.putImageData(picture, 0, 0);
  return most;
};

const digits = (value, count = 3) => Number(value).toFixed(count);
const table = (heads, rows) => {
  const [head, body] = $("numbers").children, line = make("tr");
  heads.forEach(text => { const cell = make("th", text); cell.scope = "col"; line.append(cell); });
  head.replaceChildren(line);
  body.replaceChildren(...rows.map(([name, ...cells]) => {
    const row = make("tr", "", name.startsWith("Σ") ? "last" : ""), first = make("th", name);
    first.scope = "row";
    row.append(first, ...cells.map(text => make("td", text)));
    return row;
  }));
};
const below = "₁₂₃₄₅₆₇₈₉";
const formula = (n, image, found) => {
  const { layer, head, token, turned } = state, columns = image.grid[1];
  const order = [...found.keys()].sort((a, b) => found[b] - found[a]).slice(0, TOP), rest = n.tokens - order.length;
  const total = found.reduce((a, b) => a + b, 0), most = order.reduce((a, k) => a + found[k], 0);
  const plain = order.map(k => [named(k, columns), digits(found[k])]);
  if (rest) plain.push([`${rest} others`, digits(total - most)]);
  if (turned && token !== ANSWER) {
    table(["from", "w"], plain);
    $("said").textContent = `So much of all that it takes, each of these tokens takes from ${named(token, columns)}.`;
    return;
  }
  if (head === MEAN || token === ANSWER) {
    table(["to", "w"], [...plain, ["Σ", digits(total, 2)]]);
    $("said").textContent = token === ANSWER ? "What the pooled tokens take, as the pooling weighs them. Choose a patch and a head for the numbers of the formula."
      : "The mean over all heads. Choose a head for the numbers of the formula.";
    return;
  }
  const row = (layer * n.heads + head) * n.tokens, sum = image.softmax ? n.sums[row + token] : null;
  const features = [...Array(n.features).keys()], value = (k, f) => n.values[(row + k) * n.features + f], mixed = f => n.mixed[(row + token) * n.features + f];
  const score = k => digits(Math.log(found[k]) + sum, 2);
  const withScore = (text, cells) => image.softmax ? [text, ...cells] : cells;
  const lines = order.map(k => [named(k, columns), ...withScore(score(k), [digits(found[k]), ...features.map(f => digits(value(k, f), 2))])]);
  if (rest) lines.push([`${rest} others`, ...withScore("", [digits(total - most), ...features.map(() => "")])]);
  lines.push(["Σ w, and z = Σ w v", ...withScore("", [digits(total, 2), ...features.map(f => digits(mixed(f), 2))])]);
  table(["to", ...withScore("score s", ["w", ...features.map(f => `v${below[f]}`)])], lines);
  $("said").textContent = (image.softmax ? `Softmax: w = exp(s) / Σ exp(s). Here Σ exp(s) over all ${n.tokens} tokens is exp(${digits(sum, 2)}), so the first weight is exp(${score(order[0])} − ${digits(sum, 2)}) = ${digits(found[order[0]])}. ` : "The second softmax takes away what both look at: some weights are below 0. ")
    + `v and z are the first ${n.features} features of a head's values.`;
};

const draw = () => {
  const image = data.images[state.image], n = numbers[state.image], whole = WHOLE[-1 - state.layer];
  $("whole").hidden = !whole;
  $("heat").hidden = Boolean(whole);
  for (const part of [$("tokens"), $("numbers"), $("meaning"), document.querySelector(".formula")]) part.hidden = Boolean(whole);
  $("head").disabled = $("turn").disabled = Boolean(whole);
  $("cell").hidden = whole || state.token < prefix;
  if (whole) {
    $("whole").src = image.heats[whole];
    [$("least").textContent, $("most").textContent] = ["least", "most"];
    [$("chosen").textContent, $("said").textContent] = [`${whole[0].toUpperCase()}${whole.slice(1)}, through all layers`, MEANING[whole]];
    return;
  }
  const found = looks(n, state), patches = found.slice(prefix), columns = image.grid[1], most = paint(patches, image.grid);
  $("least").textContent = "0";
  $("most").textContent = `${digits(most)}, ${digits(most * patches.length, 1)} times an even look`;
  if (state.token >= prefix) {
    const place = state.token - prefix, [rows] = image.grid, cell = $("cell").style;
    cell.left = `${100 * (place % columns) / columns}%`;
    cell.top = `${100 * Math.floor(place / columns) / rows}%`;
    cell.width = `${100 / columns}%`;
    cell.height = `${100 / rows}%`;
  }
  $("chosen").textContent = state.turned && state.token !== ANSWER ? `Who looks at ${named(state.token, columns)}` : `Where ${named(state.token, columns)} looks`;
  [...$("tokens").children].forEach((button, i) => {
    button.setAttribute("aria-pressed", state.token === i - 1);
    button.textContent = i === 0 ? "the answer" : `${data.prefix[i - 1]} ${digits(100 * found[i - 1], 1)} %`;
  });
  formula(n, image, found);
};

const choose = async number => {
  const image = data.images[number];
  numbers[number] ??= await unpacked(number);
  Object.assign(state, { image: number, token: ANSWER, kept: false });
  document.querySelectorAll("[data-number]").forEach(button => button.setAttribute("aria-pressed", Number(button.dataset.number) === number));
  $("photo").src = image.picture;
  $("photo").alt = image.name;
  $("name").textContent = `${image.name}: ${image.answer} ${image.percent} %`;
  draw();
};
document.querySelectorAll("#photo, .strip img").forEach(element => {
  const enlarge = () => element.classList.toggle("small", element.naturalWidth <= 64);
  element.addEventListener("load", enlarge);
  enlarge();
});
const option = (select, value, text) => select.add(new Option(text, value));
const [layers, heads] = data.images[0].shape;
for (let i = 0; i < layers; i++) option($("layer"), i, `attention, layer ${i + 1}`);
WHOLE.forEach((name, i) => option($("layer"), -1 - i, `${name}, all layers`));
option($("head"), MEAN, "mean of all");
for (let i = 0; i < heads; i++) option($("head"), i, `${i + 1}`);
["the answer", ...data.prefix].forEach((_, i) => {
  const button = make("button", "", "button");
  button.type = "button";
  button.addEventListener("click", () => { Object.assign(state, { token: i - 1, kept: i > 0 }); draw(); });
  $("tokens").append(button);
});
for (const id of ["layer", "head"]) $(id).addEventListener("change", () => { state[id] = Number($(id).value); draw(); });
const toggle = (id, act) => $(id).addEventListener("click", () => {
  const pressed = $(id).getAttribute("aria-pressed") !== "true";
  $(id).setAttribute("aria-pressed", pressed);
  act(pressed);
});
toggle("turn", pressed => { state.turned = pressed; draw(); });
toggle("plain", pressed => { $("stage").classList.toggle("plain", pressed); $("heat").style.visibility = $("whole").style.visibility = pressed ? "hidden" : ""; });
document.querySelectorAll("[data-number]").forEach(button => button.addEventListener("click", () => choose(Number(button.dataset.number))));

const patchAt = event => {
  const { left, top, width, height } = $("stage").getBoundingClientRect(), [rows, columns] = data.images[state.image].grid;
  const place = (at, size, count) => Math.min(Math.max(Math.floor(at / size * count), 0), count - 1);
  return prefix + place(event.clientY - top, height, rows) * columns + place(event.clientX - left, width, columns);
};
const move = token => { if (state.layer >= 0 && token !== state.token) { state.token = token; draw(); } };
$("stage").addEventListener("pointermove", event => { if (!state.kept || event.pointerType !== "mouse") move(patchAt(event)); });
$("stage").addEventListener("click", event => {
  const token = patchAt(event);
  state.kept = !(state.kept && token === state.token);
  move(token);
});
$("stage").addEventListener("keydown", event => {
  const [rows, columns] = data.images[state.image].grid, steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.key === "Escape") { Object.assign(state, { token: ANSWER, kept: false }); draw(); }
  if (!(event.key in steps)) return;
  event.preventDefault();
  const at = state.token < prefix ? 0 : state.token - prefix, [down, across] = steps[event.key];
  const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
  state.kept = true;
  move(prefix + (state.token < prefix ? 0 : within(Math.floor(at / columns) + down, rows) * columns + within(at % columns + across, columns)));
});
$("layer").value = state.layer = layers - 1;
choose(0);
