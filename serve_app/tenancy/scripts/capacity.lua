-- Capacity: what the replicas say they have, less what has been promised.
-- usable = min(plan, brake, referee) over ready replicas:
--   plan     sum(kv_total) - committed                                  what Redis has promised
--   brake    sum(kv_free - 8 % of kv_total) - granted in the last second  what engines really use
--   referee  sum(kv_total - kv_planned) - granted in the last second    what engines really run

local QUARTER = 250000

local function roll_buckets()
  local bucket = math.floor(now / QUARTER)
  local steps = bucket - pool.gb
  if steps <= 0 then return end
  for i = 1, math.min(steps, 4) do pool['g' .. ((pool.gb + i) % 4)] = 0 end
  if steps > 4 then pool.g0, pool.g1, pool.g2, pool.g3 = 0, 0, 0, 0 end
  pool.gb = bucket
end

local function granted_lately(kv)
  roll_buckets()
  local field = 'g' .. (pool.gb % 4)
  pool[field] = pool[field] + kv
end

-- A request that ends within the second no longer waits to be seen by its engine.
local function forget_grant(kv, began)
  roll_buckets()
  local bucket = math.floor(began / QUARTER)
  if began > 0 and pool.gb - bucket < 4 then
    local field = 'g' .. (bucket % 4)
    pool[field] = math.max(0, pool[field] - kv)
  end
end

-- KV tokens that may be promised so that `ceiling` percent of all are not passed.
local function usable(ceiling)
  roll_buckets()
  local fresh = pool.g0 + pool.g1 + pool.g2 + pool.g3
  local spare = math.floor(pool.ktot * (100 - ceiling) / 100)
  local braked = math.max(0, spare - (pool.ktot - pool.kmost))  -- kbrake has spared kmost's part
  return math.min(pool.ktot - spare - pool.committed, pool.kbrake - braked - fresh,
    pool.kref - spare - fresh)
end

-- Whether a request may start. The ceiling of a class counts in slots too, and holds nobody back
-- while nothing runs.
local function fits(kv, ceiling)
  if pool.running == 0 then ceiling = ALL end
  local slots = math.max(1, math.floor(pool.maxrun * ceiling / 100))
  return pool.running < math.min(slots, pool.maxrun) and kv <= usable(ceiling)
end

-- Sums the ready replicas up again; at most 256 are counted.
local function recount()
  local was_ready = pool.ready
  pool.ready, pool.ktot, pool.kmost, pool.kbrake, pool.kref = 0, 0, 0, 0, 0
  pool.maxrun, pool.maxneed = 0, 0
  for _, id in ipairs(call('ZRANGE', P .. 'rep', 0, 255)) do
    local v = call('HMGET', P .. 'rep:' .. id, 'state', 'kv_total', 'kv_free', 'kv_planned',
      'max_running', 'block')
    if v[1] == 'ready' then
      local total = num(v[2])
      local reserve = math.floor(total * 8 / 100)
      pool.ready = pool.ready + 1
      pool.ktot = pool.ktot + total
      pool.kmost = pool.kmost + total - reserve
      pool.kbrake = pool.kbrake + num(v[3]) - reserve
      pool.kref = pool.kref + total - num(v[4])
      pool.maxrun = pool.maxrun + num(v[5])
      pool.maxneed = math.max(pool.maxneed, total - reserve)
      pool.block = math.max(1, num(v[6]))
    end
  end
  if pool.ready == 0 and was_ready > 0 then pool.emptyat = now end
  if pool.ready > 0 and was_ready == 0 and pool.emptyat > 0 then
    local took = math.max(0, now - pool.emptyat)
    pool.cold = pool.cold == 0 and took or math.floor((pool.cold * 3 + took) / 4)
    pool.emptyat = 0
  end
end

local function remove_replica(id)
  call('ZREM', P .. 'rep', id)
  call('ZREM', P .. 'room', id)
  call('DEL', P .. 'rep:' .. id)
end

-- A replica that has not reported for its time to live offers nothing any more.
local function drop_silent_replicas()  -- seldom
  local silent = call('ZRANGEBYSCORE', P .. 'rep', '-inf', now, 'LIMIT', 0, 16)
  for _, id in ipairs(silent) do remove_replica(id) end
  if #silent > 0 then recount() end
  return #silent > 0
end

-- KV tokens of a request, in whole blocks and never more than one empty replica can take.
local function kv_need(tokens)
  local need = tokens
  if pool.block > 1 then need = divide_up(tokens, pool.block) * pool.block end
  if pool.maxneed > 0 then need = math.min(need, pool.maxneed) end
  return need
end

-- Over-commitment: `pool.q` percent of the expected output are reserved. It falls while requests wait
-- beside idle KV, and rises when engines had to preempt. A step down takes a part of the time that a KV
-- token is in use, for what the last one let in must grow before its need is seen; and, once anybody
-- was preempted, CALM requests that end after the last step: so about one in CALM is.
local IDLE, FIRST, STEP_DOWN, PAUSE, CALM = 15, 100, 3, 1000000, 60
local function reserve() return pool.q > 0 and pool.q or FIRST end

local function adapt(preempted, least, most)
  local q, since = reserve(), now - pool.qat
  local free = pool.kbrake + pool.ktot - pool.kmost
  local idle = pool.waiting > 0 and pool.running < pool.maxrun and free * 100 > IDLE * pool.ktot
  local lifetime = pool.ewk > 0 and pool.eww / pool.ewk * 1000 or 0
  local calm = pool.qset == 0 or pool.nset - pool.qset >= CALM
  if preempted > 0 and since >= PAUSE then
    q, pool.qat, pool.qset = divide_up(q * 21, 20), now, math.max(1, pool.nset)
  elseif idle and calm and since >= math.max(2 * PAUSE, lifetime / 32) then
    q, pool.qat = q - STEP_DOWN, now
    if pool.qset > 0 then pool.qset = pool.nset end
  end
  pool.q = math.max(least, math.min(most, q))
end

-- KV tokens to reserve for a request, of which `mean` output (x 256) is expected, or nil; `own`: its
-- key or tenant is known for it. Strangers may be unlike all others: what they may produce is reserved,
-- up to a sixteenth of all.
local function kv_wanted(r, mean, own)
  local output = reserved_output(mean, reserve(), r.most)
  if not own then output = math.max(output, math.min(r.most, divide_down(pool.ktot, 16))) end
  return kv_need(r.input + output)
end

-- Milliseconds in which what runs makes room for `count` requests with `kv` tokens of need, by Little's
-- law and the mean times of finished requests; -1 while nothing is known.
local function time_of(kv, count)
  if pool.running <= 0 or pool.committed <= 0 or pool.ewk <= 0 then return -1 end
  return math.max(kv * (pool.eww / pool.ewk) / pool.committed, count * (pool.ewd / 256) / pool.running)
end

-- Milliseconds until `count` waiters with `kv` tokens of need have been let in, into what is free first.
local function time_to_serve(kv, count)
  local tokens = math.max(0, kv - math.max(0, usable(ALL)))
  local slots = math.max(0, count - math.max(0, pool.maxrun - pool.running))
  return math.ceil(time_of(tokens, slots))
end

-- Milliseconds a client should stay away while no replica is ready.
local function cold_start_left()
  local usual = pool.cold > 0 and pool.cold or 10000000
  local gone = pool.emptyat > 0 and now - pool.emptyat or 0
  return math.max(1000, math.floor((usual - gone) / 1000))
end
