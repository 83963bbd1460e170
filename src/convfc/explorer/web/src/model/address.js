// The present state as an address, "#1;…", and back. Short for what differs from the defaults; numbers
// that were edited come along, packed, if they are not too many.

import { DEFAULTS, complete, filtersShape, inputShape, problems, product } from "./geometry.js";
import { PRESETS, stateOf } from "./presets.js";
import { CHAPTERS, chapterState } from "./story.js";
import { GRADIENTS, Store, TABS, VERSION } from "./store.js";
import { LANES } from "./trace.js";
import { readPlan } from "./training.js";

/** Characters that an address may have; beyond them the numbers stay at home. */
const LONGEST = 6000;

/** Numbers beyond which it is not worth looking whether they are the usual ones. */
const MANY = 50_000;

const SHORT = {
  axes: "a", size: "n", channels: "c", filters: "f", kernel: "k", stride: "s", padding: "p", mode: "m",
  dilation: "d", groups: "g", transposed: "t", outputPadding: "o", flip: "x", bias: "b",
};
const LONG = Object.fromEntries(Object.entries(SHORT).map(([long, short]) => [short, long]));

/** The address of a store's state. */
export function toAddress(store) {
  if (store.view.story) return `#${VERSION};story=${store.view.story}`; // a picture of the story, as it begins
  const parts = [`${VERSION}`];
  const preset = presetOf(store.preset);
  if (preset) parts.push(`preset=${preset.id}`);
  const usual = preset ? complete(preset.settings) : DEFAULTS;
  for (const [long, short] of Object.entries(SHORT)) {
    const value = store.settings[long];
    if (JSON.stringify(value) !== JSON.stringify(usual[long])) parts.push(`${short}=${written(value)}`);
  }
  const { p, f, q, element } = store.chosen;
  parts.push(`at=${[p, f, ...(q === null ? [] : [q])].join(".")}`);
  if (q === null && element !== null) parts.push(`pixel=${element}`);
  if (store.view.tab !== TABS[0]) parts.push(`tab=${store.view.tab}`);
  if (store.view.feeds) parts.push("feeds=1");
  if (store.moment !== null) parts.push(`film=${store.view.lane}.${store.moment}`);
  if (store.training) parts.push(`train=${store.training}`);
  const { start, edits } = store.dY;
  if (start !== GRADIENTS[0]) parts.push(`dy=${start}`);
  if (edits.size) parts.push(`e=${[...edits].map(([place, v]) => [...place.split(","), packed(v)].join("_")).join(",")}`);
  if (store.given.mark) parts.push(`own=${store.given.mark}`);
  if (Math.max(store.input.length, store.filters.length) > MANY) return "#" + [...parts, "cut=1"].join(";");
  if (store.digit !== null && store.digit !== preset?.input?.digit) parts.push(`digit=${store.digit}`);
  const input = store.digit === null ? null : { digit: store.digit };
  const fresh = new Store({ ...changedFrom(preset ? stateOf(preset) : {}, store.settings), ...(input && { input }) });
  const numbers = [];
  for (const [name, key] of [["input", "i"], ["filters", "w"], ["bias", "v"]]) {
    if (name === "bias" && !store.settings.bias) continue;
    if (!same(store[name], fresh[name])) numbers.push(`${key}=${Array.from(store[name], packed).join(",")}`);
  }
  const whole = "#" + [...parts, ...numbers].join(";");
  return whole.length <= LONGEST ? whole : "#" + [...parts, "cut=1"].join(";");
}

/**
 * The state of an address: {state, notes}; `own` is the state of the layer that the page was made for, if
 * any. Nothing is thrown: what cannot be read is left out, and a note says so.
 */
export function fromAddress(address, own = null) {
  const notes = [];
  const [version, ...parts] = decoded(address.replace(/^#/, "")).split(";");
  if (version === "") return { state: null, notes };
  if (version !== String(VERSION)) return { state: null, notes: [`The address is of version “${version.slice(0, 20)}”, which this page does not know.`] };
  const fields = new Map(parts.map((part) => [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)]));
  const story = fields.get("story");
  if (story !== undefined) {
    if (/^\d$/.test(story) && CHAPTERS[story - 1]) return { state: chapterState(Number(story)), notes };
    notes.push(`The story has no picture “${story.slice(0, 20)}”; it has 1 to ${CHAPTERS.length}.`);
  }
  const preset = fields.get("preset");
  let state = {};
  if (preset !== undefined) {
    const found = presetOf(preset);
    if (found) state = stateOf(found);
    else notes.push(`There is no preset “${preset.slice(0, 40)}”.`);
  }
  const asked = {};
  for (const [short, text] of fields) {
    if (!(short in LONG)) continue;
    const value = read(LONG[short], text);
    if (value === undefined) notes.push(`“${short}=${text.slice(0, 40)}” is no ${LONG[short]}.`);
    else asked[LONG[short]] = value;
  }
  const settings = complete({ ...state.settings, ...asked });
  const wrong = problems(settings);
  if (wrong.length) {
    notes.push(...wrong.map((problem) => problem.message));
    return { state: null, notes };
  }
  const ours = own?.mark && fields.get("own") === own.mark;
  state = changedFrom(ours ? own : state, settings);
  const sizes = { i: product(inputShape(settings)), w: product(filtersShape(settings)), v: settings.filters };
  for (const [key, name] of [["i", "input"], ["w", "filters"], ["v", "bias"]]) {
    if (!fields.has(key)) continue;
    const values = fields.get(key).split(",").map(Number);
    if (values.length !== sizes[key] || !values.every(Number.isFinite)) notes.push(`The ${name} in the address has not the ${sizes[key]} numbers that it needs.`);
    else state[name] = name === "input" ? { values } : values;
  }
  if (/^\d{1,2}$/.test(fields.get("digit") ?? "") && !fields.has("i")) state.input = { digit: Number(fields.get("digit")) };
  if (fields.has("at")) {
    const [p, f, q] = fields.get("at").split(".").map(Number);
    const element = /^\d{1,7}$/.test(fields.get("pixel") ?? "") ? Number(fields.get("pixel")) : null;
    if ([p, f].every(Number.isInteger)) state.selection = { p, f, q: Number.isInteger(q) ? q : null, element };
    else notes.push("The selection in the address is no pair of numbers.");
  }
  const tab = fields.get("tab");
  state.view = { tab: TABS.includes(tab) ? tab : TABS[0], feeds: fields.get("feeds") === "1" };
  const [, lane, step] = /^([a-z0-9]+)\.(\d{1,15})$/.exec(fields.get("film") ?? "") ?? [];
  if (lane in LANES) {
    Object.assign(state.view, { lane, step: Number(step) });
    if (!fields.has("at")) delete state.selection; // what the film has come to is selected
  }
  const training = fields.get("train");
  if (training && readPlan(training)) state.training = training;
  else if (training !== undefined) notes.push(`“train=${training.slice(0, 40)}” is no training of this page.`);
  const places = (fields.get("e") ?? "").split(",").filter(Boolean).map((text) => text.split("_").map(Number));
  const start = GRADIENTS.includes(fields.get("dy")) ? fields.get("dy") : GRADIENTS[0];
  state.dY = { start, edits: places.map((place) => [place.slice(0, -1).join(), place.at(-1)]) };
  if (fields.has("cut") && !ours) notes.push("The numbers were too many for an address; these are the usual ones.");
  return { state, notes };
}

/** A state with other settings than it was given with: what it was given with stays with it. */
function changedFrom(given, settings) {
  const { title, source, preset, mark, selection } = given;
  return { title, source, preset, mark, selection, settings, given: { settings, ...given } };
}

function presetOf(id) {
  return PRESETS.find((preset) => preset.id === id);
}

function written(value) {
  if (typeof value === "boolean") return value ? "1" : "0";
  if (Array.isArray(value)) return value.map((v) => (Array.isArray(v) ? v.join("_") : v)).join(".");
  return String(value);
}

function read(name, text) {
  const usual = DEFAULTS[name];
  if (typeof usual === "boolean") return { 0: false, 1: true }[text];
  if (typeof usual === "string") return /^[a-z]{1,12}$/.test(text) ? text : undefined;
  const integer = (s) => (/^\d{1,6}$/.test(s) ? Number(s) : undefined);
  if (typeof usual === "number") return integer(text);
  const parts = text.split(".");
  if (parts.length > 2) return undefined;
  const values = parts.map((part) => (name === "padding" ? part.split("_").map(integer) : integer(part)));
  const flat = values.flat();
  if (flat.some((v) => v === undefined) || (name === "padding" && flat.length !== 2 * values.length)) return undefined;
  return values;
}

/** A number in as few characters as give it back exactly. */
function packed(value) {
  return String(value).replace(/^0\./, ".").replace(/^-0\./, "-.");
}

function same(a, b) {
  return a.length === b.length && a.every((value, i) => value === b[i]);
}

/** Decode what a browser has encoded; rubbish stays as it is. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
