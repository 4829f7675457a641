-- uses: common meter capacity fair request grant
-- SETTLE <now> <rid> <how> <prompt> <cached> <output>: 1, or 0 when it was settled before.
-- A request that never ran is cancelled: nothing is charged but its one request.

local rid, how = ARGV[2], ARGV[3]
local r = read_request(rid)
if not r then return 0 end
if r.state == 'r' then
  release(rid, r, how, tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
else
  release(rid, r, 'cancel', 0, 0, 0)
end
grant()
save_pool()
return 1
