// What words mean: terms of the glossary, endings of pushes, and who was responsible for them.

let terms = {};
let meanings = {};
let responsible = {};

export async function loadWords() {
  const load = async (path) => (await fetch(path)).json();
  [terms, meanings, responsible] = await Promise.all(
    [load("console/words.json"), load("endings.json"), load("console/parties.json")]);
}

export const definition = (term) => terms[term] ?? "";
export const meaning = (outcome, reason) => meanings[`${outcome}/${reason}`] ?? "";
export const party = (outcome, reason) => responsible[`${outcome}/${reason}`] ?? null;
export const outcomes = () => [...new Set(Object.keys(meanings).map((key) => key.split("/")[0]))];
export const reasons = () => [...new Set(Object.keys(meanings).map((key) => key.split("/")[1]))].sort();
export const parties = () => [...new Set(Object.values(responsible))].filter(Boolean).sort();
