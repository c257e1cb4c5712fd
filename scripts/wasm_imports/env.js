// What a proxy gives to the filter. Under node there is no proxy: a unit test that calls one is told so.
module.exports = new Proxy({}, {
  get: (_, name) => () => { throw new Error(`${String(name)} needs a proxy: test it with the simulated host or a real Envoy`); },
});
