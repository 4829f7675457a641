-- The fair queue of a class: FIFO within a tenant, tenants by virtual time (virtual token counters).
-- vt:<class> orders tenants that have waiters; their meter records keep everybody's time while idle. Whoever comes
-- back from idle is lifted to the present, so nobody saves up service. Cost: 10 per input token,
-- 1 per cached one, 40 per output token, divided by the tenant's weight. Classes share nothing: what
-- a tenant's batch was given does not hold up what it asks for interactively.

local WN = P .. 'wn'  -- wn: KV tokens waiting, and under `w:...` the tenant's weight
local function turns_of(class) return P .. 'vt:' .. CLASSES[class] end
local function queue_of(class, tenant) return P .. 'q:' .. CLASSES[class] .. ':' .. tenant end
local function field_of(class, tenant) return CLASSES[class] .. ':' .. tenant end

local function fair_cost(input, cached, output, weight)
  return math.floor((10 * (input - cached) + cached + 40 * output) / weight)
end

-- A tenant's time in a class is in its meter record (t1..4), good while the pool has not come to rest since.
local TIME = {'t1', 't2', 't3', 't4'}
local function virtual_time(m, class) return m.rest == pool.rest and m[TIME[class]] or 0 end

-- The time of a tenant without waiters, lifted to the present: that of the tenant next in turn, else
-- the clock left by the last grant. Whoever lifts also sets.
local function lifted(class, m)
  local present = pool[CLOCK[class]]
  if pool[WAITING[class]] > 0 then
    present = tonumber(call('ZRANGE', turns_of(class), 0, 0, 'WITHSCORES')[2])
  end
  return math.max(virtual_time(m, class), present)
end

-- Into the record, which the caller saves, and the order of those that wait.
local function set_time(class, tenant, m, time)
  if m.rest ~= pool.rest then m.rest, m.t1, m.t2, m.t3, m.t4 = pool.rest, 0, 0, 0, 0 end
  m[TIME[class]] = time
  if pool[WAITING[class]] > 0 then call('ZADD', turns_of(class), 'XX', time, tenant) end
end

local function count_waiting(class, count, kv)
  local waiting, need = WAITING[class], NEED[class]
  pool.waiting, pool[waiting] = pool.waiting + count, pool[waiting] + count
  pool.wneed, pool[need] = pool.wneed + kv, pool[need] + kv
end

-- A tenant waits with the weight of its newest request; 0: it waits no more.
local function weigh(class, tenant, weight)
  local field = 'w:' .. field_of(class, tenant)
  local was = num(call('HGET', WN, field))
  if weight == was then return end
  pool[WEIGHT[class]] = pool[WEIGHT[class]] + weight - was
  if weight > 0 then call('HSET', WN, field, weight) else call('HDEL', WN, field) end
end

local function enqueue(rid, r, deadline, m)  -- seldom
  local class, tenant = r.rank, r.tenant
  local queue = queue_of(class, tenant)
  if call('ZCARD', queue) == 0 then
    local time = lifted(class, m)
    set_time(class, tenant, m, time)
    call('ZADD', turns_of(class), time, tenant)
  end
  if pool[WAITING[class]] == 0 then pool[TURN[class]] = now end
  pool.arr = math.max(pool.arr + 1, now)
  call('ZADD', queue, pool.arr, rid)
  call('ZADD', P .. 'dl', deadline, rid)
  call('HINCRBY', WN, field_of(class, tenant), r.kv)
  count_waiting(class, 1, r.kv)
  weigh(class, tenant, r.weight)
end

local function unqueue(rid, r)  -- seldom
  local class, tenant = r.rank, r.tenant
  local queue = queue_of(class, tenant)
  call('ZREM', queue, rid)
  call('ZREM', P .. 'dl', rid)
  count_waiting(class, -1, -r.kv)
  if call('ZCARD', queue) == 0 then
    call('ZREM', turns_of(class), tenant)
    call('HDEL', WN, field_of(class, tenant))
    weigh(class, tenant, 0)
  else
    call('HINCRBY', WN, field_of(class, tenant), 0 - r.kv)
  end
end

-- How much all that wait in a class are given while a tenant of that weight is given one; `waits`:
-- it is one of them already.
local function shares(class, weight, waits)
  local all = pool[WEIGHT[class]] + (waits and 0 or weight)
  return math.max(1, all / weight)
end

-- Predicted milliseconds for a waiter with `kv` tokens and `count` waiters of its own class and tenant
-- up to and with itself, when all there are given `share` times as much meanwhile (and never more than
-- waits altogether: `all_kv` and `all_count` with it); before them go all that wait in higher classes.
local function fair_wait(class, kv, count, share, all_kv, all_count)
  kv, count = math.min(all_kv, kv * share), math.min(all_count, count * share)
  for higher = 1, class - 1 do
    kv, count = kv + pool[NEED[higher]], count + pool[WAITING[higher]]
  end
  return time_to_serve(kv, count)
end

-- Microseconds that `r` holds up those behind it in its class and tenant; while nothing is known
-- requests are taken to last a second.
local function time_of_place(r)
  local waits = call('ZCARD', queue_of(r.rank, r.tenant)) > 0
  local share = shares(r.rank, r.weight, waits)
  local ms = time_of(r.kv * share, share)
  if ms < 0 then ms = 1000 * share / math.max(1, pool.running) end
  return math.ceil(ms * 1000)
end

-- With nobody running or waiting nothing is owed: virtual time starts afresh.
local function rest_when_empty()
  if pool.running == 0 and pool.waiting == 0 then
    pool.rest = pool.rest + 1
    for class = 1, 4 do pool[CLOCK[class]] = 0 end
  end
end
