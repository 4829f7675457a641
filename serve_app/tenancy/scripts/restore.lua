-- uses: common meter price budget classes capacity fair promise request grant
-- RESTORE <now> <ingress> then for each rid (at most 64):
--   <rid> <digest> <key> <tenant> <weight> <class> <prompt> <output> <kv> <longest run> <model> <price>
-- Registers running requests again that Redis has lost, unless they have ended meanwhile (REPLAY).
-- Limits are not checked: they do run.

local ingress, restored = ARGV[2], 0
for i = 3, math.min(#ARGV, 2 + 64 * 12), 12 do
  local rid = ARGV[i]
  if call('EXISTS', P .. 'req:' .. rid) == 0 and call('GET', P .. 'paid:' .. rid) ~= 'told' then
    local r = {
      digest = ARGV[i + 1], key = ARGV[i + 2], tenant = ARGV[i + 3], weight = tonumber(ARGV[i + 4]),
      rank = RANK[ARGV[i + 5]], input = tonumber(ARGV[i + 6]), output = tonumber(ARGV[i + 7]),
      most = tonumber(ARGV[i + 7]), kv = tonumber(ARGV[i + 8]), mx = tonumber(ARGV[i + 9]), model = ARGV[i + 10],
      price = ARGV[i + 11], mark = '', ingress = ingress, enq = now, replica = '', vc = 0, day = TODAY,
    }
    local scopes = scopes_of(r)
    start(rid, r, lifted(r.rank, scopes[2].m), r.output, scopes[2].m)
    hold(rid, r, scopes)
    for _, scope in ipairs(scopes) do
      spend(scope, r.input + r.output, cost_of(r.price, r.input, 0, r.output), TODAY)
    end
    save_scopes(scopes, request_key(rid), pack_request(r))
    pool.nadm = pool.nadm + 1
    restored = restored + 1
  end
end
save_pool()
return restored
