// The WASI calls that hosts give to the filter, over the memory of the module under test.
const crypto = require("node:crypto");

function memory() {
  const loaded = Object.values(require.cache)
    .map((m) => m.exports?.__wasm?.memory ?? m.exports?.memory);
  return loaded.find((m) => m instanceof WebAssembly.Memory).buffer;
}

module.exports = {
  random_get(at, length) {
    crypto.randomFillSync(new Uint8Array(memory(), at, length));
    return 0;
  },
  environ_sizes_get(count, size) {
    new DataView(memory()).setUint32(count, 0, true);
    new DataView(memory()).setUint32(size, 0, true);
    return 0;
  },
  environ_get() {
    return 0;
  },
  clock_time_get(_clock, _precision, at) {
    new DataView(memory()).setBigUint64(at, process.hrtime.bigint(), true);
    return 0;
  },
};
