-- uses: common meter capacity fair request grant
-- ADMIT <now> <digest> <rid> <ingress> <prompt> <max_tokens> <wait> <cold wait> <longest run> <bound>
-- Times in microseconds. Every limit of key and tenant is checked before any is written. Replies:
--   run   fence replica kv output key tenant weight figures   a lease
--   wait  place eta_ms  kv output key tenant weight figures   queued: the list of grants tells the rest
--   limit which scope wait_us figures       full wait_ms figures       none wait_ms figures
--   burst which scope cost most             auth unknown|revoked|expired
--   rebuild (Redis is empty: load the keys first)    lease (this ingress has none: BEAT first)

local digest, rid, ingress = ARGV[2], ARGV[3], ARGV[4]
local prompt, most = tonumber(ARGV[5]), tonumber(ARGV[6])
local wait, cold_wait = tonumber(ARGV[7]), tonumber(ARGV[8])
local longest, bound = tonumber(ARGV[9]), tonumber(ARGV[10])

local function same_answer(r)
  local reply = {'run', r.fence, r.replica, r.kv, r.output, r.key, r.tenant, r.weight}
  if r.state == 'q' then reply[1], reply[2], reply[3] = 'wait', pool.waiting, -1 end
  return add_figures(reply, scopes_of(r))
end

-- The refusal with the longest wait over both scopes, or nil.
local function refused_limit(scopes, cost)
  local wait_us, reply = 0, nil
  for s = 1, 2 do
    local scope = scopes[s]
    local pause, which = wait_of(scope, cost)
    if pause < 0 then
      return {'burst', LIMITS[which], scope.kind, cost[which],
        divide_down(scope.limit[which] * scope.burst, MINUTE)}
    end
    local name = LIMITS[which]
    if pause == 0 and scope.conc > 0
      and call('SCARD', P .. 'cl:' .. scope.name) >= scope.conc then
      pause, name = math.max(1000000, math.floor(scope.m.ewd / 256 / scope.conc) * 1000), 'concurrency'
    end
    if pause > wait_us then wait_us, reply = pause, {'limit', name, scope.kind, pause} end
  end
  return reply and add_figures(reply, scopes)
end

-- Patience in microseconds and the predicted wait in milliseconds, or the refusal.
local function place_in_queue(r, scopes)
  if pool.ready == 0 then
    local patience = math.min(wait, cold_wait)
    if patience <= 0 or pool.waiting >= bound then
      return nil, add_figures({'none', cold_start_left()}, scopes)
    end
    return patience, -1
  end
  local own = num(call('HGET', WN, r.tenant)) + r.kv
  local count = call('ZCARD', queue_of(r.tenant)) + 1
  local tenants = call('ZCARD', VT) + (count == 1 and 1 or 0)
  local eta = fair_wait(own, count, tenants, pool.wneed + r.kv, pool.waiting + 1)
  if pool.waiting >= bound or eta * 1000 > wait then
    return nil, add_figures({'full', math.max(1000, eta - math.floor(wait / 1000))}, scopes)
  end
  return wait, eta
end

local swept, admitted = false, false

local function admit()
  if pool.epoch == 0 then return {'rebuild'} end
  local known = read_request(rid)
  if known then return same_answer(known) end  -- and nothing changes
  if not lease_holds(ingress) then return {'lease'} end
  local key = read_config(P .. 'key:' .. digest)
  local refusal = refused_key(key)
  if refusal then return {'auth', refusal} end
  swept = reap()
  swept = drop_silent_replicas() or swept
  local scopes = {
    read_scope('k', key.id, key),
    read_scope('t', key.tenant, read_config(P .. 'ten:' .. key.tenant)),
  }
  local output = expected_output(scopes[1], scopes[2], most)
  local cost = {1, prompt + output, prompt, output}
  local reply = refused_limit(scopes, cost)
  if reply then return reply end
  local r = {
    state = 'q', digest = digest, key = key.id, tenant = key.tenant, input = prompt,
    output = output, kv = kv_need(prompt + output), ingress = ingress, replica = '', fence = 0,
    enq = now, beg = 0, vc = 0, weight = scopes[2].weight, mx = longest,
  }
  if pool.waiting == 0 and pool.ready > 0 and fits(r.kv) then
    start(rid, r, lifted(r.tenant))
    reply = {'run', r.fence, r.replica}
  else
    local patience, eta = place_in_queue(r, scopes)
    if not patience then return eta end
    enqueue(rid, r.tenant, r.kv, now + patience)
    reply = {'wait', pool.waiting, eta}
  end
  hold(rid, r)
  write_request(rid, r)
  for s = 1, 2 do
    if take(scopes[s], cost) then save_scope(scopes[s]) end
  end
  pool.nadm = pool.nadm + 1
  admitted = true
  for _, value in ipairs({r.kv, output, r.key, r.tenant, r.weight}) do reply[#reply + 1] = value end
  return add_figures(reply, scopes)
end

local reply = admit()
if swept or (admitted and reply[1] == 'wait') then grant() end
if swept or admitted then save_pool() end
return reply
