-- GRANT: hands free capacity to waiters, the class whose turn it is first and fair within it, at most
-- 64 a call; who is next and does not fit is waited for, or large requests would starve. And the
-- sweeping that any script may do: waiters past their deadline, runners past their longest end, requests of dead
-- ingresses (32 a call). Whatever happens to a waiter is pushed to its ingress's list as
-- `g <rid> <fence> <replica> <kv>`, `x <rid> full|none <ms>`, `s <rid>` (a runner was ended) or
-- `c <rid>` (its owner wants it no more).

local function tell(ingress, ...)
  call('RPUSH', P .. 'gr:' .. ingress, table.concat({...}, ' '))
end

local function lease_holds(ingress)
  local ends = call('ZSCORE', P .. 'ls', ingress)
  return ends and tonumber(ends) > now
end

local function refuse_late(rid, r)
  release(rid, r, 'deadline', UNUSED)
  if pool.ready == 0 then
    tell(r.ingress, 'x', rid, 'none', cold_start_left())
  else
    local line = line_of(r.rank, r.tenant)
    local told = promise(line, r.mark, time_of_place(r), 0)
    save_line(r.rank, r.tenant, line)
    tell(r.ingress, 'x', rid, 'full', told)
  end
end

local function sweep_deadlines()
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'dl', '-inf', now, 'LIMIT', 0, 64)) do
    refuse_late(rid, read_request(rid))
  end
  for _, rid in ipairs(call('ZRANGEBYSCORE', P .. 'mx', '-inf', now, 'LIMIT', 0, 32)) do
    local r = read_request(rid)
    release(rid, r, 'lost', used_so_far(rid, r))
    tell(r.ingress, 's', rid)
  end
end

local function reap()  -- seldom
  local dead = call('ZRANGEBYSCORE', P .. 'ls', '-inf', now, 'LIMIT', 0, 1)[1]
  if not dead then return false end
  local rids = call('SRANDMEMBER', P .. 'in:' .. dead, 32)
  table.sort(rids)  -- a refund stops at an empty meter, so their order counts
  for _, rid in ipairs(rids) do
    local r = read_request(rid)
    release(rid, r, 'lost', used_so_far(rid, r))
  end
  if call('EXISTS', P .. 'in:' .. dead) == 0 then
    call('ZREM', P .. 'ls', dead)
    call('DEL', P .. 'gr:' .. dead)
  end
  return true
end

-- Until then no lease and no replica can be found to have ended.
local function know_due()
  pool.due = 2 ^ 52
  for _, ends in ipairs({P .. 'ls', P .. 'rep'}) do
    pool.due = math.min(pool.due, tonumber(call('ZRANGE', ends, 0, 0, 'WITHSCORES')[2]) or pool.due)
  end
end

-- KV and output that a waiter would reserve if it came now: lengths have been learned meanwhile. `m`: the
-- tenant's meter record.
local function wanted_now(r, m)
  local mean, own = mean_output(read_meter('k:' .. r.key), m)
  return kv_wanted(r, mean, own), reserved_output(mean, USUAL, r.most)
end

local function hand_out()  -- seldom
  for _ = 1, 64 do
    if pool.waiting == 0 or pool.running >= pool.maxrun then return end
    local class, ceiling = turn()
    local next_one = call('ZRANGE', turns_of(class), 0, 0, 'WITHSCORES')
    local tenant, time = next_one[1], tonumber(next_one[2])
    local rid = call('ZRANGE', queue_of(class, tenant), 0, 0)[1]
    local r = read_request(rid)
    local late = num(call('ZSCORE', P .. 'dl', rid)) <= now
    if late then
      refuse_late(rid, r)
    elseif not lease_holds(r.ingress) then
      release(rid, r, 'lost', UNUSED)
    else
      local m = read_meter('t:' .. tenant)
      local kv, output = wanted_now(r, m)
      if not fits(kv, ceiling) then return end
      unqueue(rid, r)
      pool[TURN[class]] = now
      r.kv = kv
      start(rid, r, time, output, m)
      call('MSET', request_key(rid), pack_request(r), P .. 'mt:t:' .. tenant, pack_meter(m))
      tell(r.ingress, 'g', rid, r.fence, r.replica, r.kv)
    end
  end
end

-- Whether a token of whoever is next would fit: else there is nothing to hand out, and TICK sweeps.
local function any_room()  -- seldom
  local _, ceiling = turn()
  return fits(1, ceiling)
end

local function grant()
  if pool.waiting > 0 and pool.running < pool.maxrun and any_room() then hand_out() end
end
