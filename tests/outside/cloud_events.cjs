// Writes and reads CloudEvents with the official SDK: as cloud_events.py.
const { CloudEvent, HTTP } = require("cloudevents");

const bytes = (data) => (Buffer.isBuffer(data) || data instanceof Uint8Array ? Buffer.from(data) : Buffer.from(`${data}`));

const written = ({ data_base64: encoded, ...event }) =>
  ["binary", "structured"].map((mode) => {
    const data = encoded === undefined ? event.data : Uint8Array.from(Buffer.from(encoded, "base64"));
    const { headers, body } = HTTP[mode](new CloudEvent({ ...event, data, id: `${event.id}-${mode}` }));
    return { headers, body: bytes(body).toString("base64") };
  });

const read = ({ headers, body }) => {
  // As a web server hands it on: text where the type is one, bytes elsewhere.
  const raw = Buffer.from(body, "base64");
  const isText = /json|text/.test(headers["content-type"] ?? "");
  const event = HTTP.toEvent({ headers, body: isText ? raw.toString() : raw });
  const { data, data_base64: encoded, ...attributes } = event.toJSON();
  if (encoded !== undefined) return { ...attributes, data_base64: encoded };
  if (typeof data === "object" && !Buffer.isBuffer(data)) return { ...attributes, data };
  return { ...attributes, data_base64: bytes(data).toString("base64") };
};

const { write, read: requests } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
console.log(JSON.stringify({ written: write.flatMap(written), read: requests.map(read) }));
