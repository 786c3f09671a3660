// Passes the messages whose header has the wanted value, drops the others.

// What a column's length says of a message that has no such header.
const ABSENT = 0xffffffff;

let header, wanted;

export const stage = {
  configure(text) {
    const config = JSON.parse(text);
    for (const name of ["header", "value"]) {
      if (typeof config[name] !== "string") {
        throw { code: 1, message: `'${name}' is missing from the config` };
      }
    }
    header = config.header;
    wanted = new TextEncoder().encode(config.value);
  },

  process(batch) {
    const { data, lens } = batch.headerColumn(header);
    let start = 0;
    lens.forEach((len, i) => {
      if (len === ABSENT) {
        batch.dropMessage(i, "another value");
        return;
      }
      if (!isWanted(data, start, len)) {
        batch.dropMessage(i, "another value");
      }
      start += len;
    });
  },
};

function isWanted(data, start, len) {
  return len === wanted.length && wanted.every((byte, at) => data[start + at] === byte);
}
