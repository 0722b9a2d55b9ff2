// What the server says, or why it does not.

export class Refused extends Error {}

// The answer of a path below /api. Throws Refused with one line for the reader.
export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  let answer;
  try {
    answer = await fetch(`/api${path}${query.size ? `?${query}` : ""}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server does not answer: is `miles-async web` still running?");
  }
  if (answer.status === 401) location.assign("/login");
  if (answer.ok) return answer.json();
  let message = `${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // no more is known
  }
  throw new Refused(message);
}

export function runPath(name) {
  return `/runs/${encodeURIComponent(name)}`;
}

// A link to a view of a run: its parts are one name each.
export function link(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}
