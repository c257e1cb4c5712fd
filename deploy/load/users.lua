-- Load on /api/user for wrk: what comes per second, how long the slowest hundredth takes, what share fails.
--   wrk -t2 -c64 -d30s --latency -s deploy/load/users.lua http://127.0.0.1:10000
-- A client of its own for each request would need many addresses; an API key does as well where a limit is keyed by it.
local keys = 100
local number = 0

function request()
  number = number + 1
  return wrk.format("GET", "/api/user/" .. number % 1000, { ["x-api-key"] = "load-" .. number % keys })
end

function done(summary, latency, requests)
  local errors = summary.errors
  -- `status` are answers of 400 and above: refusals (429, 503) are among them, and are quick.
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  local asked = summary.requests + errors.connect + errors.timeout
  io.write(string.format("QPS %.0f\n", summary.requests / (summary.duration / 1e6)))
  io.write(string.format("P99 %.1f ms\n", latency:percentile(99) / 1e3))
  io.write(string.format("errors %.2f %%\n", asked > 0 and 100 * failed / asked or 0))
end
