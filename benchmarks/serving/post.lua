-- wrk -s post.lua URL -- FILE CONTENT_TYPE: send the file again and again; print the result as JSON.
function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method, wrk.body = "POST", file:read("*all")
   wrk.headers["Content-Type"] = args[2]
   file:close()
end

function done(summary, latency)
   local e = summary.errors
   print(string.format(
      'RESULT {"seconds": %f, "answers": %d, "errors": %d, "p50_ms": %f, "p99_ms": %f}',
      summary.duration / 1e6, summary.requests - e.status,
      e.status + e.connect + e.read + e.write + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
