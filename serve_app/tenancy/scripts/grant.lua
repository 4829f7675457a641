-- GRANT: hands free capacity to waiters in fair order, at most 64 a call; and the sweeping that
-- any script may do: waiters past their deadline, runners past their longest end, requests of dead
-- ingresses (32 a call). Whatever happens to a waiter is pushed to its ingress's list as
-- `g <rid> <fence> <replica>`, `x <rid> full|none <ms>` or `s <rid>` (a runner was ended).

local function tell(ingress, ...)
  call('RPUSH', P .. 'gr:' .. ingress, table.concat({...}, ' '))
end

local function lease_holds(ingress)
  local ends = call('ZSCORE', P .. 'ls', ingress)
  return ends and tonumber(ends) > now
end

local function refuse_late(rid, r)
  release(rid, r, 'deadline', 0, 0, 0)
  if pool.ready == 0 then
    tell(r.ingress, 'x', rid, 'none', int(cold_start_left()))
  else
    local more = time_to_serve(pool.wneed + r.kv, pool.waiting + 1)
    tell(r.ingress, 'x', rid, 'full', int(math.max(1000, more)))
  end
end

local function sweep_deadlines()
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'dl', '-inf', int(now), 'LIMIT', 0, 64)) do
    refuse_late(rid, read_request(rid))
  end
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'mx', '-inf', int(now), 'LIMIT', 0, 32)) do
    local r = read_request(rid)
    release(rid, r, 'lost', r.input, 0, 0)
    tell(r.ingress, 's', rid)
  end
end

local function reap()
  local dead = call('ZRANGEBYSCORE', P .. 'ls', '-inf', int(now), 'LIMIT', 0, 1)[1]
  if not dead then return false end
  for _, rid in ipairs(call('SRANDMEMBER', P .. 'in:' .. dead, 32)) do
    local r = read_request(rid)
    release(rid, r, 'lost', r.state == 'r' and r.input or 0, 0, 0)
  end
  if call('EXISTS', P .. 'in:' .. dead) == 0 then
    call('ZREM', P .. 'ls', dead)
    call('DEL', P .. 'gr:' .. dead)
  end
  return true
end

local function grant()
  for _ = 1, 64 do
    if pool.waiting == 0 or pool.running >= pool.maxrun then return end
    local turn = call('ZRANGE', VT, 0, 0, 'WITHSCORES')
    local tenant, time = turn[1], tonumber(turn[2])
    local rid = call('ZRANGE', queue_of(tenant), 0, 0)[1]
    local r = read_request(rid)
    local late = num(call('ZSCORE', P .. 'dl', rid)) <= now
    if late then
      refuse_late(rid, r)
    elseif not lease_holds(r.ingress) then
      release(rid, r, 'lost', 0, 0, 0)
    else
      local kv = math.min(r.kv, pool.maxneed)
      if not fits(kv) then return end
      unqueue(rid, tenant, r.kv)
      r.kv = kv
      start(rid, r, time)
      write_request(rid, r)
      tell(r.ingress, 'g', rid, int(r.fence), r.replica)
    end
  end
end
