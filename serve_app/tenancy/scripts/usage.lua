-- uses: common
-- USAGE <now> <k:key or t:tenant>: requests, input, cached and output tokens settled so far.

local m = load(P .. 'mt:' .. ARGV[2])
return {m.nreq, m.nin, m.ncached, m.nout}
