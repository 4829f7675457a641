-- uses: common
-- VIEW <now>: the pool's totals and the replicas whose heartbeat is fresh, each as (id, fields).

local replicas = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'rep', int(now + 1), '+inf', 'LIMIT', 0, 256)) do
  replicas[#replicas + 1] = id
  replicas[#replicas + 1] = call('HGETALL', P .. 'rep:' .. id)
end
local totals = {}
for i = 1, #POOL_FIELDS do
  totals[#totals + 1] = POOL_FIELDS[i]
  totals[#totals + 1] = pool[POOL_FIELDS[i]]
end
return {epoch, totals, replicas}
