-- One request after the other, each with the next user's gateway token; at the end, the figures as JSON.
-- BENCH_TOKENS: a file with a token a line. BENCH_BODY: a file with the body. BENCH_PATH: the path.
-- BENCH_GATEWAY_HEADER, BENCH_SCHEME: where the token stands, and what stands before it. BENCH_HEADERS: further
-- headers, one a line.
-- Requests are made beforehand, unless that would take more memory than LuaJIT likes: then when they are sent.
local MADE_BYTES_MAX = 128 * 1024 * 1024
local requests, heads, body, position = {}, {}, "", 0

function init()
  local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
  body = file:read("*a")
  file:close()
  for token in io.lines(os.getenv("BENCH_TOKENS")) do
    local headers = {
      [os.getenv("BENCH_GATEWAY_HEADER")] = os.getenv("BENCH_SCHEME") .. token,
      ["content-type"] = "application/json",
      ["accept"] = "application/json",
      ["user-agent"] = "bench",
    }
    for name, value in os.getenv("BENCH_HEADERS"):gmatch("([^:\n]+): ([^\n]*)") do
      headers[name] = value
    end
    headers["content-length"] = tostring(#body)
    heads[#heads + 1] = wrk.format("POST", os.getenv("BENCH_PATH"), headers)
  end
  -- Each run begins with other users, so that of many all get their turn.
  position = os.time() * 1000003 % #heads
  if #heads * #body <= MADE_BYTES_MAX then
    for number, head in ipairs(heads) do
      requests[number] = head .. body
    end
  end
end

function request()
  position = position % #heads + 1
  return requests[position] or heads[position] .. body
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'BENCH {"answers":%d,"duration_s":%.6f,"bytes":%d,"bad_statuses":%d,"socket_errors":%d,'
      .. '"p50_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
