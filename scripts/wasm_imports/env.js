// What a proxy gives to the filter. Under node there is no proxy: a unit test that calls one fails
// with this error.
const hint = "needs a proxy: test it with the simulated host or a real Envoy";
module.exports = new Proxy({}, {
  get: (_, name) => () => { throw new Error(`${String(name)} ${hint}`); },
});
