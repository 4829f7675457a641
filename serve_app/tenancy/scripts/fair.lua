-- The fair queue: FIFO within a tenant, tenants by virtual time (virtual token counters).
-- vt:<class> orders tenants that have waiters; vth keeps everybody's time while idle. Whoever comes
-- back from idle is lifted to the present, so nobody saves up service. Cost: 10 per input token,
-- 1 per cached one, 40 per output token, divided by the tenant's weight.

local VT, VTH, WN = P .. 'vt:' .. CLASS, P .. 'vth', P .. 'wn:' .. CLASS

local function queue_of(tenant) return P .. 'q:' .. CLASS .. ':' .. tenant end

local function fair_cost(input, cached, output, weight)
  return math.floor((10 * (input - cached) + cached + 40 * output) / weight)
end

-- The time of a tenant without waiters, lifted to the present: that of the tenant next in turn, else
-- the clock left by the last grant. Whoever lifts also sets.
local function lifted(tenant)
  local present = pool.vclock
  if pool.waiting > 0 then
    present = tonumber(call('ZRANGE', VT, 0, 0, 'WITHSCORES')[2])
  end
  return math.max(num(call('HGET', VTH, tenant)), present)
end

local function set_time(tenant, time)
  call('HSET', VTH, tenant, int(time))
  if pool.waiting > 0 then call('ZADD', VT, 'XX', int(time), tenant) end
end

local function charge(tenant, cost)
  local time = call('HINCRBY', VTH, tenant, int(cost))
  if pool.waiting > 0 then call('ZADD', VT, 'XX', int(time), tenant) end
end

local function enqueue(rid, tenant, kv, deadline)
  if call('ZCARD', queue_of(tenant)) == 0 then
    local time = lifted(tenant)
    call('HSET', VTH, tenant, int(time))
    call('ZADD', VT, int(time), tenant)
  end
  pool.arr = math.max(pool.arr + 1, now)
  call('ZADD', queue_of(tenant), int(pool.arr), rid)
  call('ZADD', P .. 'dl', int(deadline), rid)
  call('HINCRBY', WN, tenant, int(kv))
  pool.waiting = pool.waiting + 1
  pool.wneed = pool.wneed + kv
end

local function unqueue(rid, tenant, kv)
  call('ZREM', queue_of(tenant), rid)
  call('ZREM', P .. 'dl', rid)
  pool.waiting = pool.waiting - 1
  pool.wneed = pool.wneed - kv
  if call('ZCARD', queue_of(tenant)) == 0 then
    call('ZREM', VT, tenant)
    call('HDEL', WN, tenant)
  else
    call('HINCRBY', WN, tenant, int(-kv))
  end
end

-- Predicted milliseconds for a waiter with `kv` tokens and `count` waiters of its own tenant up to
-- and with itself, when `tenants` wait: each other tenant may be served as much meanwhile, and
-- never more than waits altogether.
local function fair_wait(kv, count, tenants, all_kv, all_count)
  return time_to_serve(math.min(all_kv, kv * tenants), math.min(all_count, count * tenants))
end

-- With nobody running or waiting nothing is owed: virtual time starts afresh.
local function rest_when_empty()
  if pool.running == 0 and pool.waiting == 0 then
    call('DEL', VTH)
    pool.vclock = 0
  end
end
