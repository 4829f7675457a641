-- uses: common meter price budget classes capacity fair promise request grant
-- ADMIT <now> <digest> <rid> <ingress> <prompt> <max_tokens> <wait> <cold wait> <longest run> <bound>
--     <class> <model> <price> <mark> <retries>
-- Times in microseconds; the class as asked for, or ''; the mark of the request's content, or ''; how
-- often it was sent before, -1 when it does not say. Every limit of key and tenant is checked before
-- any is written. Replies:
--   run   fence replica kv output key tenant weight class figures   a lease
--   wait  place eta_ms  kv output key tenant weight class figures   queued: grants are told
--   limit which scope wait_us figures       full wait_ms figures       none wait_ms figures
--   quota period scope unit cost budget spent figures    (unit: tokens, or a currency's micro-units)
--   burst which scope cost most             auth unknown|revoked|expired
--   rebuild (Redis is empty: load the keys first)    lease (this ingress has none: BEAT first)

local digest, rid, ingress = ARGV[2], ARGV[3], ARGV[4]
local prompt, most = tonumber(ARGV[5]), tonumber(ARGV[6])
local wait, cold_wait = tonumber(ARGV[7]), tonumber(ARGV[8])
local longest, bound = tonumber(ARGV[9]), tonumber(ARGV[10])
local asked, model, price = ARGV[11], ARGV[12], ARGV[13]
local mark, retries = ARGV[14], tonumber(ARGV[15])

local function told(reply, r, scopes)
  for _, value in ipairs({r.kv, r.output, r.key, r.tenant, r.weight, CLASSES[r.rank]}) do
    reply[#reply + 1] = value
  end
  return add_figures(reply, scopes)
end

local function same_answer(r)  -- seldom
  if r.state == 'q' then return told({'wait', pool.waiting, -1}, r, scopes_of(r)) end
  return told({'run', r.fence, r.replica}, r, scopes_of(r))
end

-- The refusal with the longest wait over both scopes, or nil.
local function refused_limit(scopes, cost)
  local wait_us, reply = 0, nil
  for s = 1, 2 do
    local scope = scopes[s]
    local pause, which = wait_of(scope, cost)
    if pause < 0 then
      return {'burst', LIMITS[which], scope.kind, cost[which],
        divide_down(scope.may[LIMITS[which]] * scope.burst, MINUTE)}
    end
    local name = LIMITS[which]
    local most = scope.may.conc
    if pause == 0 and most > 0 and scope.m.n >= most then
      pause, name = math.max(1000000, math.floor(scope.m.ewd / 256 / most) * 1000), 'concurrency'
    end
    if pause > wait_us then wait_us, reply = pause, {'limit', name, scope.kind, pause} end
  end
  return reply and add_figures(reply, scopes)
end

-- No tenant may take more than four fifths of the queue's places: whoever comes next finds one.
local function is_full(count, places)
  return pool.waiting >= places or count > 4 * (places - pool.waiting)
end

local promised = false

-- Milliseconds that `r`, for which there is no room now, is to stay away; `due`: the promise of its that
-- is broken by that.
local function send_away(r, line, due, lead)
  line = line or line_of(r.rank, r.tenant)
  if due then count_promise(line, 'b', due) end
  local told = promise(line, mark, time_of_place(r), lead, due)
  save_line(r.rank, r.tenant, line)
  promised = true
  return told
end

-- Retries that nobody told to come then may wait as one in ten of what else their key was let in for,
-- and ten beyond: `m.again` grows by ten with each, and falls by one with each other request.
local RETRY, RETRIES = 10, 100

local function is_stray(due) return retries > 0 and not due end

local function count_retries(m, strayed)
  m.again = strayed and m.again + RETRY or math.max(0, m.again - 1)
end

-- Patience in microseconds and the predicted wait in milliseconds, or the refusal.
local function place_in_queue(r, scopes)  -- seldom
  local class, patience = r.rank, math.min(wait, rule_of(r.rank)[4])
  local count = call('ZCARD', queue_of(class, r.tenant)) + 1
  if pool.ready == 0 then
    patience = math.min(patience, cold_wait)
    if patience <= 0 or is_full(count, bound) then
      return nil, add_figures({'none', cold_start_left()}, scopes)
    end
    return patience, -1
  end
  local own = num(call('HGET', WN, field_of(class, r.tenant))) + r.kv
  local share = shares(class, r.weight, count > 1)
  local all_kv, all_count = pool[NEED[class]] + r.kv, pool[WAITING[class]] + 1
  local eta = fair_wait(class, own, count, share, all_kv, all_count)
  local places, longest, line, due = bound, patience, nil, nil
  if pool.prom + LAPSE > now then
    line = line_of(class, r.tenant)
    if mark ~= '' and retries ~= 0 then due = take_up(mark) end
    if not due and line.out + LATE > now then  -- who has no promises out finds its fifth
      places = divide_down(bound, 2)
      if line.last > now then longest = divide_down(patience * 3, 4) end
    end
  end
  local too_often = is_stray(due) and scopes[1].m.again >= RETRIES
  if too_often or is_full(count, places) or eta * 1000 > longest then
    local lead = math.max(0, eta * 1000 - patience)
    return nil, add_figures({'full', send_away(r, line, due, lead)}, scopes)
  end
  if due then
    count_promise(line, 'k', due)
    save_line(class, r.tenant, line)
  end
  return patience, eta, is_stray(due)
end

-- Whether `r` may start at once: its class's turn it would be, nobody of its class waits, and it fits.
local function may_start(r)
  if pool.ready == 0 or pool[WAITING[r.rank]] > 0 then return false end
  local class, ceiling = turn(r.rank)
  return class == r.rank and fits(r.kv, ceiling)
end

local looked, swept, admitted = false, false, false

local function admit()
  if pool.epoch == '' then return {'rebuild'} end
  local known = read_request(rid)
  if known then return same_answer(known) end  -- and nothing changes
  if not lease_holds(ingress) then return {'lease'} end
  local key = load(P .. 'key:' .. digest)
  local refusal = refused_key(key)
  if refusal then return {'auth', refusal} end
  if now >= pool.due then
    swept = reap()
    swept = drop_silent_replicas() or swept
    know_due()
    looked = true
  end
  local tenant = load(P .. 'ten:' .. key.ten)
  local scopes = {read_scope('k', key.id, key), read_scope('t', key.ten, tenant)}
  local mean, own = mean_output(scopes[1].m, scopes[2].m)
  local output = reserved_output(mean, USUAL, most)
  local cost = {1, prompt + output, prompt, output}
  local money, currency = cost_of(price, prompt, 0, output)
  local reply = refused_budget(scopes, cost[2], money, currency)
    or refused_limit(scopes, cost)
  if reply then return reply end
  local r = {
    state = 'q', digest = digest, key = key.id, tenant = key.ten, input = prompt, most = most,
    weight = math.max(1, tenant.weight), rank = class_of(asked, key, tenant), output = output,
    kv = 0, ingress = ingress, replica = '', fence = 0, enq = now, beg = 0,
    vc = 0, mx = longest, day = TODAY, model = model, price = price, mark = mark,
  }
  r.kv = kv_wanted(r, mean, own)
  local strayed = false
  if may_start(r) then
    start(rid, r, lifted(r.rank, scopes[2].m), output, scopes[2].m)
    reply = {'run', r.fence, r.replica}
  else
    local patience, eta
    patience, eta, strayed = place_in_queue(r, scopes)
    if not patience then return eta end
    enqueue(rid, r, now + patience, scopes[2].m)
    reply = {'wait', pool.waiting, eta}
  end
  hold(rid, r, scopes)
  count_retries(scopes[1].m, strayed)
  for s = 1, 2 do
    take(scopes[s], cost)
    spend(scopes[s], cost[2], money, TODAY)
  end
  save_scopes(scopes, request_key(rid), pack_request(r))
  pool.nadm = pool.nadm + 1
  admitted = true
  return told(reply, r, scopes)
end

local reply = admit()
if swept or (admitted and reply[1] == 'wait') then grant() end
if looked or admitted or promised then save_pool() end
return reply
