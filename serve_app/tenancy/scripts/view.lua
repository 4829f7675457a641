-- uses: common
-- VIEW <now>: the pool's totals, with `led`, the ledger entries that are not stored yet, and the
-- replicas whose heartbeat is fresh, each as (id, fields).

local replicas = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'rep', now + 1, '+inf', 'LIMIT', 0, 256)) do
  replicas[#replicas + 1] = id
  replicas[#replicas + 1] = call('HGETALL', P .. 'rep:' .. id)
end
local totals = {'led', call('XLEN', P .. 'led')}
for field, value in pairs(pool) do
  totals[#totals + 1] = field
  totals[#totals + 1] = value
end
return {totals, replicas}
