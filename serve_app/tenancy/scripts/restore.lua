-- uses: common meter capacity fair request grant
-- RESTORE <now> <ingress> then for each rid (at most 64):
--   <rid> <digest> <key> <tenant> <weight> <prompt> <output> <kv> <longest run>
-- Registers running requests again that Redis has lost. Limits are not checked: they do run.

local ingress, restored = ARGV[2], 0
for i = 3, math.min(#ARGV, 2 + 64 * 9), 9 do
  local rid = ARGV[i]
  if call('EXISTS', P .. 'req:' .. rid) == 0 then
    local r = {
      digest = ARGV[i + 1], key = ARGV[i + 2], tenant = ARGV[i + 3], weight = tonumber(ARGV[i + 4]),
      input = tonumber(ARGV[i + 5]), output = tonumber(ARGV[i + 6]), kv = tonumber(ARGV[i + 7]),
      mx = tonumber(ARGV[i + 8]), ingress = ingress, enq = now, replica = '', vc = 0,
    }
    start(rid, r, lifted(r.tenant))
    hold(rid, r)
    write_request(rid, r)
    pool.nadm = pool.nadm + 1
    restored = restored + 1
  end
end
save_pool()
return restored
