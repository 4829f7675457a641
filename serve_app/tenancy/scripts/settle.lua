-- uses: common meter price budget classes capacity fair promise request grant
-- SETTLE <now> <rid> <how> <prompt> <cached> <output> <reasoning>: 1, or 0 when it was settled before.
-- A request that never ran is cancelled: nothing is charged but its one request.

local rid, how = ARGV[2], ARGV[3]
local r = read_request(rid)
if not r then return 0 end
if r.state == 'r' then
  release(rid, r, how, {input = tonumber(ARGV[4]), cached = tonumber(ARGV[5]),
    output = tonumber(ARGV[6]), reasoning = tonumber(ARGV[7])})
else
  release(rid, r, 'cancel', UNUSED)
end
grant()
save_pool()
return 1
