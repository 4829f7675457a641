-- uses: common meter
-- QUEUE <now> <class...>: tenants with waiters, at most 64 of a class, those next in turn first, each
-- as [class, tenant, waiting, milliseconds the oldest waits, in flight].

local rows = {}
for i = 2, #ARGV do
  local class = ARGV[i]
  for _, tenant in ipairs(call('ZRANGE', P .. 'vt:' .. class, 0, 63)) do
    local queue = P .. 'q:' .. class .. ':' .. tenant
    local oldest = call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
    rows[#rows + 1] = {
      class, tenant, call('ZCARD', queue),
      oldest and math.max(0, math.floor((now - tonumber(oldest)) / 1000)) or 0,
      read_meter('t:' .. tenant).n,
    }
  end
end
return rows
