-- One request's life: start (a lease), release (exactly once: it deletes req:<rid>), ledger.

local LEDGER_LENGTH = 100000

local function scopes_of(r)
  return {
    read_scope('k', r.key, read_config(P .. 'key:' .. r.digest)),
    read_scope('t', r.tenant, read_config(P .. 'ten:' .. r.tenant)),
  }
end

-- What a request holds from admission to release, waiting or running.
local function hold(rid, r)
  call('SADD', P .. 'cl:k:' .. r.key, rid)
  call('SADD', P .. 'cl:t:' .. r.tenant, rid)
  call('SADD', P .. 'in:' .. r.ingress, rid)
end

-- Makes `r` run at virtual time `time`: capacity, longest end, a replica (a hint: most room).
local function start(rid, r, time)
  pool.vclock = math.max(pool.vclock, time)
  r.vc = fair_cost(r.input, 0, r.output, r.weight)
  set_time(r.tenant, time + r.vc)
  pool.fence = pool.fence + 1
  pool.running = pool.running + 1
  pool.committed = pool.committed + r.kv
  granted_lately(r.kv)
  r.state, r.fence, r.beg = 'r', pool.fence, now
  r.replica = call('ZREVRANGE', P .. 'room', 0, 0)[1] or ''
  if r.replica ~= '' then call('ZINCRBY', P .. 'room', int(-r.kv), r.replica) end
  call('ZADD', P .. 'mx', int(now + r.mx), rid)
end

local function account(r, how, input, cached, output, took)
  local more = {0, input + output - r.input - r.output, input - r.input, output - r.output}
  for _, scope in ipairs(scopes_of(r)) do
    local m = scope.m
    local changed = take(scope, more)
    if r.state == 'r' then
      m.nreq, m.nin = m.nreq + 1, m.nin + input
      m.ncached, m.nout = m.ncached + cached, m.nout + output
      if how == 'ok' then learn_all(m, output, took) end
      changed = true
    end
    if changed then save_scope(scope) end
  end
  if how == 'ok' then
    learn_all(pool, output, took)
    -- eww / ewk is the mean time of a KV token in use; both fade together
    pool.eww = math.floor(pool.eww * 15 / 16) + r.kv * took
    pool.ewk = math.floor(pool.ewk * 15 / 16) + r.kv
  end
end

-- Ends `r` in whatever state it is; `how`: ok, abort, error, lost, cancel, deadline.
-- Frees first, so that it also works when Redis is out of memory.
local function release(rid, r, how, input, cached, output)
  call('DEL', P .. 'req:' .. rid)
  call('SREM', P .. 'cl:k:' .. r.key, rid)
  call('SREM', P .. 'cl:t:' .. r.tenant, rid)
  call('SREM', P .. 'in:' .. r.ingress, rid)
  local took = math.max(0, math.floor((now - r.beg) / 1000))
  if r.state == 'r' then
    call('ZREM', P .. 'mx', rid)
    pool.running = pool.running - 1
    pool.committed = pool.committed - r.kv
    pool.nset = pool.nset + 1
    forget_grant(r.kv, r.beg)
    if r.replica ~= '' then call('ZADD', P .. 'room', 'XX', 'INCR', int(r.kv), r.replica) end
    charge(r.tenant, fair_cost(input, cached, output, r.weight) - r.vc)
    call('XADD', P .. 'led', 'MAXLEN', '~', LEDGER_LENGTH, '*', 'rid', rid, 'key', r.key,
      'ten', r.tenant, 'how', how, 'in', int(input), 'cached', int(cached), 'out', int(output),
      'queued', int(math.floor((r.beg - r.enq) / 1000)), 'ran', int(took))
  else
    unqueue(rid, r.tenant, r.kv)
    pool.ncan = pool.ncan + 1
  end
  account(r, how, input, cached, output, took)
  rest_when_empty()
end
