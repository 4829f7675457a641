-- uses: common meter price budget classes capacity fair promise request grant
-- REPLAY <now> then for each rid (at most 64):
--   <rid> <digest> <key> <tenant> <class> <model> <price> <how> <prompt> <cached> <output> <reasoning>
--   <ran ms>
-- Requests that an ingress ran while Redis was away: charged and written into the ledger, each once
-- however often it is sent (`paid:<rid>`, a week); where RESTORE has registered one, it is released.
-- Returns how many were new, or -1: Redis is empty, the keys have to be loaded first.

local WEEK_S, FIELDS = 604800, 13

local function settle_late(rid, told)
  local how, used = told[8], {input = tonumber(told[9]), cached = tonumber(told[10]),
    output = tonumber(told[11]), reasoning = tonumber(told[12])}
  local known = read_request(rid)
  if known and known.state == 'r' then return release(rid, known, how, used) end
  local took = tonumber(told[13])
  local began = now - took * 1000
  local r = {
    state = 'r', digest = told[2], key = told[3], tenant = told[4], rank = RANK[told[5]],
    model = told[6], price = told[7], input = 0, output = 0, kv = 0, day = TODAY, enq = began,
    beg = began,
  }
  pool.nadm, pool.nset = pool.nadm + 1, pool.nset + 1
  local entry, rest, times = since_it_was_gone(rid, used)
  write_ledger(entry, r, how, rest, took)
  account(r, how, rest, took, nil, times > 0)
end

if pool.epoch == '' then return -1 end
local new = 0
for i = 2, math.min(#ARGV, 1 + 64 * FIELDS), FIELDS do
  local told = {unpack(ARGV, i, i + FIELDS - 1)}
  if call('GET', P .. 'paid:' .. told[1]) ~= 'told' then
    settle_late(told[1], told)
    call('SET', P .. 'paid:' .. told[1], 'told', 'EX', WEEK_S)
    pool.gone = math.max(pool.gone, now + WEEK_S * 1000000)
    new = new + 1
  end
end
if new > 0 then
  grant()
  save_pool()
end
return new
