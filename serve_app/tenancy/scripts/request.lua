-- One request's life: start (a lease), release (exactly once: it deletes req:<rid>), ledger.

local REQUEST_FIELDS = {
  'st', 'dig', 'key', 'ten', 'in', 'out', 'kv', 'ing', 'rep', 'fence', 'enq', 'beg', 'vc', 'w', 'mx',
}
local LEDGER_LENGTH = 100000

local function read_request(rid)
  local v = call('HMGET', P .. 'req:' .. rid, unpack(REQUEST_FIELDS))
  if not v[1] then return nil end
  return {
    state = v[1], digest = v[2], key = v[3], tenant = v[4], input = num(v[5]), output = num(v[6]),
    kv = num(v[7]), ingress = v[8], replica = v[9] or '', fence = num(v[10]), enq = num(v[11]),
    beg = num(v[12]), vc = num(v[13]), weight = math.max(1, num(v[14])), mx = num(v[15]),
  }
end

local function write_request(rid, r)
  call('HSET', P .. 'req:' .. rid, 'st', r.state, 'dig', r.digest, 'key', r.key, 'ten', r.tenant,
    'in', int(r.input), 'out', int(r.output), 'kv', int(r.kv), 'ing', r.ingress, 'rep', r.replica,
    'fence', int(r.fence), 'enq', int(r.enq), 'beg', int(r.beg), 'vc', int(r.vc),
    'w', int(r.weight), 'mx', int(r.mx))
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
  charge(r.tenant, r.vc)
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
  local scopes = {
    read_scope('k', r.key, read_config(P .. 'key:' .. r.digest)),
    read_scope('t', r.tenant, read_config(P .. 'ten:' .. r.tenant)),
  }
  local ran, finished = r.state == 'r', how == 'ok'
  local more = {0, input + output - r.input - r.output, input - r.input, output - r.output}
  for s = 1, 2 do
    local scope = scopes[s]
    local meter = P .. 'mt:' .. scope.name
    take(scope, more)
    if finished then
      call('HSET', meter, 'ew', int(learn(scope.ew, scope.ewn, output)), 'ewn', int(scope.ewn + 1),
        'ewd', int(learn(scope.ewd, scope.ewn, took)))
    end
    if ran then
      call('HINCRBY', meter, 'nreq', 1)
      if input > 0 then call('HINCRBY', meter, 'nin', int(input)) end
      if cached > 0 then call('HINCRBY', meter, 'ncached', int(cached)) end
      if output > 0 then call('HINCRBY', meter, 'nout', int(output)) end
    end
  end
  if finished then
    pool.ew = learn(pool.ew, pool.ewn, output)
    pool.ewd = learn(pool.ewd, pool.ewn, took)
    pool.ewn = pool.ewn + 1
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
