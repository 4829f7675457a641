-- uses: common meter price budget classes capacity fair promise request grant
-- STOP <now> <rid> <key>: tells the ingress that has the request that its owner wants it no more.
-- 1, or 0 when the key has no such request, waiting or running. Nothing is freed here: whoever ends
-- the request settles it, with what it used.

local r = read_request(ARGV[2])
if not r or r.key ~= ARGV[3] then return 0 end
tell(r.ingress, 'c', ARGV[2])
return 1
