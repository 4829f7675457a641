-- uses: common meter
-- USAGE <now> <k:key or t:tenant>: requests, input, cached and output tokens settled so far.

local m = read_meter(ARGV[2])
return {m.nreq, m.nin, m.ncached, m.nout}
