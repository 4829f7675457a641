-- One request's life: start (a lease), release (exactly once: it deletes req:<rid>), ledger.

local LEDGER_LENGTH = 200000
local UNUSED = {input = 0, cached = 0, output = 0, reasoning = 0}

local function scopes_of(r) return read_scopes(r.key, r.digest, r.tenant) end

-- What a request holds from admission to release, waiting or running.
local function hold(rid, r, scopes)
  for s = 1, 2 do scopes[s].m.n = scopes[s].m.n + 1 end
  call('SADD', P .. 'in:' .. r.ingress, rid)
end

-- Makes `r` run at virtual time `time`: capacity, longest end, a replica (a hint: most room). Charged
-- is the `output` expected now, in the tenant's meter record `m`, which the caller saves.
local function start(rid, r, time, output, m)
  local clock, held = CLOCK[r.rank], HELD[r.rank]
  pool[clock] = math.max(pool[clock], time)
  r.vc = fair_cost(r.input, 0, output, r.weight)
  set_time(r.rank, r.tenant, m, time + r.vc)
  pool.fence = pool.fence + 1
  pool.running = pool.running + 1
  pool.committed, pool[held] = pool.committed + r.kv, pool[held] + r.kv
  granted_lately(r.kv)
  r.state, r.fence, r.beg = 'r', pool.fence, now
  r.replica = call('ZREVRANGE', P .. 'room', 0, 0)[1] or ''
  if r.replica ~= '' then call('ZINCRBY', P .. 'room', 0 - r.kv, r.replica) end
  call('ZADD', P .. 'mx', now + r.mx, rid)
end

-- Refunds (or charges) what `r` used less (or more) than it reserved. `owed`: the virtual time by which
-- that differs from what was charged, of one that was in flight until now, or nil; `again`: it was
-- counted before.
local function account(r, how, used, took, owed, again)
  local input, output = used.input, used.output
  local more = {0, input + output - r.input - r.output, input - r.input, output - r.output}
  local money = cost_of(r.price, input, used.cached, output) - cost_of(r.price, r.input, 0, r.output)
  local scopes = scopes_of(r)
  for s = 1, 2 do
    local scope = scopes[s]
    local m = scope.m
    if owed then m.n = math.max(0, m.n - 1) end
    take(scope, more)
    spend(scope, more[2], money, r.day)
    if r.state == 'r' then
      m.nreq, m.nin = m.nreq + (again and 0 or 1), m.nin + input
      m.ncached, m.nout = m.ncached + used.cached, m.nout + output
      if how == 'ok' then learn_all(m, output, took) end
    end
  end
  if owed and owed ~= 0 then
    local m = scopes[2].m
    set_time(r.rank, r.tenant, m, virtual_time(m, r.rank) + owed)
  end
  save_scopes(scopes)
  if how == 'ok' then
    learn_all(pool, output, took)
    -- eww / ewk is the mean time of a KV token in use; both fade together
    pool.eww = math.floor(pool.eww * 15 / 16) + r.kv * took
    pool.ewk = math.floor(pool.ewk * 15 / 16) + r.kv
  end
end

-- What is known of a request whose end nobody told: its prompt, and the output last heard of (SEEN).
local function used_so_far(rid, r)
  if r.state ~= 'r' then return UNUSED end
  return {input = r.input, cached = 0, output = num(call('HGET', P .. 'out:' .. r.ingress, rid)),
    reasoning = 0}
end

-- Entries wait here until they are stored. Where nobody stores them the oldest are dropped at last, and
-- counted: Redis's memory is for the living.
local function write_ledger(rid, r, how, used, took)
  local cost, currency = cost_of(r.price, used.input, used.cached, used.output)
  call('XADD', P .. 'led', '*', 'rid', rid, 'key', r.key,
    'ten', r.tenant, 'model', r.model, 'class', CLASSES[r.rank], 'how', how, 'day', r.day,
    'in', used.input, 'cached', used.cached, 'out', used.output,
    'reas', used.reasoning, 'cost', cost, 'cur', currency,
    'queued', math.floor((r.beg - r.enq) / 1000), 'ran', took, 'epoch', pool.epoch)
  if call('XLEN', P .. 'led') > LEDGER_LENGTH then
    pool.ndrop = pool.ndrop + call('XTRIM', P .. 'led', 'MAXLEN', '~', LEDGER_LENGTH)
  end
end

-- A request that was taken for lost may come back, with its ingress, and end again; one that was
-- cancelled too, when a call to admit it was long under way. What was written of it is kept a day in
-- `paid:<rid>` (input, output, times); what it used since is an entry of its own, under its id and how
-- often it came back.
local GONE_S = 86400
local function since_it_was_gone(rid, used)
  local paid = pool.gone > now and call('GET', P .. 'paid:' .. rid)
  if not paid or paid == 'told' then return rid, used, 0 end
  local input, output, times = string.match(paid, '(%d+) (%d+) (%d+)')
  local rest = {
    input = math.max(0, used.input - num(input)), output = math.max(0, used.output - num(output)),
  }
  rest.cached = math.min(used.cached, rest.input)
  rest.reasoning = math.min(used.reasoning, rest.output)
  return rid .. '-back' .. times, rest, num(times)
end

local function note_gone(rid, used, times)
  local told = used.input .. ' ' .. used.output .. ' ' .. times + 1
  call('SET', P .. 'paid:' .. rid, told, 'EX', GONE_S)
  pool.gone = math.max(pool.gone, now + GONE_S * 1000000)
end

-- Ends `r` in whatever state it is; `how`: ok, abort, error, lost, cancel, deadline.
-- Frees first, so that it also works when Redis is out of memory.
local function release(rid, r, how, used)
  call('DEL', P .. 'req:' .. rid)
  call('SREM', P .. 'in:' .. r.ingress, rid)
  local took = math.max(0, math.floor((now - r.beg) / 1000))
  local again, owed = false, 0
  if r.state == 'r' then
    call('ZREM', P .. 'mx', rid)
    pool.running = pool.running - 1
    local held = HELD[r.rank]
    pool.committed, pool[held] = pool.committed - r.kv, pool[held] - r.kv
    pool.nset = pool.nset + 1
    forget_grant(r.kv, r.beg)
    if r.replica ~= '' then call('ZADD', P .. 'room', 'XX', 'INCR', r.kv, r.replica) end
    owed = fair_cost(used.input, used.cached, used.output, r.weight) - r.vc
    call('HDEL', P .. 'out:' .. r.ingress, rid)
    local entry, rest, times = since_it_was_gone(rid, used)
    write_ledger(entry, r, how, rest, took)
    if how == 'lost' or how == 'cancel' then note_gone(rid, used, times) end
    used, again = rest, times > 0
  else
    unqueue(rid, r)
    pool.ncan = pool.ncan + 1
  end
  account(r, how, used, took, owed, again)
  rest_when_empty()
end
