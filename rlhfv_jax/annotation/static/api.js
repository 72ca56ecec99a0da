// Requests to this server, and to no other.

export class Refused extends Error {
  // status 0: the server was not reached
  constructor(status, values) {
    super(values.detail || "The server cannot be reached.");
    this.status = status;
    this.values = values;
    this.fields = values.fields || [];
  }
}

const TIMEOUT = 20000;
let signedOut = () => {};
let session = 0; // a late refusal of an earlier one ends no later one
export const onSignedOut = (listener) => (signedOut = listener);

export async function call(method, path, body, timeout = TIMEOUT) {
  const during = session;
  const headers = { "X-Requested-With": "rlhfv" };
  const raw = body instanceof Blob;
  if (body !== undefined && !raw) headers["Content-Type"] = "application/json";
  let response, values;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: raw || body === undefined ? body : JSON.stringify(body),
      credentials: "same-origin",
      signal: AbortSignal.timeout(timeout),
    });
    values = await response.json();
  } catch {
    throw new Refused(response && !response.ok ? response.status : 0, {});
  }
  if (path === "/api/session" && response.ok) session++;
  if (response.status === 401 && path !== "/api/session" && during === session) signedOut();
  if (!response.ok) throw new Refused(response.status, values);
  return values;
}

// Not crypto.randomUUID: browsers keep that from pages without TLS.
export const operationId = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
