// Passes the messages whose header has the wanted value, drops the others, and sets a field of the payload.
//
// What a batch can do is in wit/sluice.wit: `drop-message` there is `dropMessage` here. For the key-value store, metrics or
// schemas, say `"world": "plugin-with-powers"` in package.json and
//   import { get, set } from "sluice:plugin/kv@1.0.0";
import { write } from "sluice:plugin/log@1.0.0";

let config;

export const stage = {
  // Called once per instance, with the stage's config. What is thrown refuses it.
  configure(text) {
    config = JSON.parse(text);
    for (const name of ["header", "value"]) {
      if (typeof config[name] !== "string") {
        throw { code: 1, message: `'${name}' is missing from the config` };
      }
    }
  },

  // Called with up to 128 messages. One that is not touched passes as it is.
  process(batch) {
    const count = batch.len();
    for (let i = 0; i < count; i++) {
      if (batch.header(i, config.header) !== config.value) {
        batch.dropMessage(i, "another value");
      } else if (config.field !== undefined) {
        setField(batch, i);
      }
    }
  },
};

function setField(batch, i) {
  const payload = parse(batch.payload(i));
  if (payload === null || typeof payload !== "object" || Array.isArray(payload)) {
    write("debug", `${batch.id(i)} is no JSON object`);
    batch.reject(i, "NOT_AN_OBJECT", "the payload is no JSON object", undefined);
    return;
  }
  payload[config.field] = config.text ?? "";
  batch.setPayload(i, new TextEncoder().encode(JSON.stringify(payload)));
}

function parse(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}
