-- Meters: GCRA in its exact integer form.
-- A meter's debt is the cost taken and not yet worked off, times 60,000,000; it falls by `limit`
-- (cost per minute) every microsecond and may reach limit x burst. So five a minute are five in a
-- burst and then one each 12 s, whatever the limit divides to; and a changed limit acts at once.

local MINUTE = 60000000
local LIMITS = {'rpm', 'tpm', 'itpm', 'otpm'}
local EW_LEAST, EW_SPAN = 8, 16

local function divide_up(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b + (rest > 0 and 1 or 0)
end

local function divide_down(a, b) return (a - math.fmod(a, b)) / b end

local function refused_key(key)
  if key.id == 0 then return 'unknown' end
  if key.status ~= 'active' then return 'revoked' end
  if key.expires > 0 and key.expires * 1000000 <= now then return 'expired' end
end

-- A scope is a key or a tenant: what it may do, `may` (the record key:<digest> or ten:<tenant>, as
-- publishing.py writes it), and its meter record `m`: at r t i o (when, and the four debts, worked off
-- to now by reading), n (requests in flight, waiting ones included), ew ewn ewd (as in the pool), nreq
-- nin ncached nout (totals of what was settled), again (of retries, admit.lua), what budgets took
-- (budget.lua), and a tenant's virtual times (fair.lua).
local DEBTS = {'r', 't', 'i', 'o'}
local read_meter_record, pack_meter = record [[
  at r t i o n ew ewn ewd nreq nin ncached nout again dno dsp dmo mno msp mmo rest t1 t2 t3 t4
]]
local function read_meter(name) return read_meter_record(call('GET', P .. 'mt:' .. name)) end

local function read_scope(kind, name, may)
  local m = read_meter(kind .. ':' .. name)
  local idle = math.max(0, now - m.at)
  for i = 1, 4 do
    local limit, debt = may[LIMITS[i]], DEBTS[i]
    m[debt] = limit > 0 and math.max(0, m[debt] - idle * limit) or 0
  end
  m.at = now
  local burst = (may.burst > 0 and may.burst or 60) * 1000000
  return {kind = kind, name = kind .. ':' .. name, may = may, burst = burst, m = m}
end

local function read_scopes(key, digest, tenant)
  return {
    read_scope('k', key, load(P .. 'key:' .. digest)),
    read_scope('t', tenant, load(P .. 'ten:' .. tenant)),
  }
end

-- Both scopes, and whatever else is given, by one command: each costs what a record costs.
local function save_scopes(scopes, ...)
  local key, tenant = scopes[1], scopes[2]
  call('MSET', P .. 'mt:' .. key.name, pack_meter(key.m), P .. 'mt:' .. tenant.name, pack_meter(tenant.m), ...)
end

-- Returns the wait in microseconds until `cost` fits all meters, and which one decides;
-- -1 when it can never fit.
local function wait_of(scope, cost)
  local longest, which = 0, 0
  for i = 1, 4 do
    local limit = scope.may[LIMITS[i]]
    if limit > 0 and cost[i] > 0 then
      local most = limit * scope.burst
      if cost[i] * MINUTE > most then return -1, i end
      local over = scope.m[DEBTS[i]] + cost[i] * MINUTE - most
      if over > 0 then
        local wait = divide_up(over, limit)
        if wait > longest then longest, which = wait, i end
      end
    end
  end
  return longest, which
end

-- Adds `cost` (negative: a refund, never below empty) to the meters in force.
local function take(scope, cost)
  for i = 1, 4 do
    if scope.may[LIMITS[i]] > 0 then
      scope.m[DEBTS[i]] = math.max(0, scope.m[DEBTS[i]] + cost[i] * MINUTE)
    end
  end
end

-- Appends (limit, remaining, microseconds until full again) of the tighter scope for each of the
-- four meters; limit -1 where nobody set one.
local function add_figures(reply, scopes)
  for i = 1, 4 do
    local limit, left, reset = -1, -1, 0
    for s = 1, #scopes do
      local scope = scopes[s]
      local own = scope.may[LIMITS[i]]
      if own > 0 then
        local debt = scope.m[DEBTS[i]]
        local free = divide_down(math.max(0, own * scope.burst - debt), MINUTE)
        if limit < 0 or free < left then limit, left, reset = own, free, divide_up(debt, own) end
      end
    end
    reply[#reply + 1] = limit
    reply[#reply + 1] = left
    reply[#reply + 1] = reset
  end
  return reply
end

-- Means keep 1/256ths: the first samples are averaged, later ones weigh a sixteenth.
local function learn(mean, count, sample)
  return mean + math.floor((sample * 256 - mean) / math.min(count + 1, EW_SPAN))
end

-- What a key (else its tenant, else the pool) used to produce, of their meter records, and whether it
-- was them; nil while nothing is known.
local function mean_output(key, tenant)
  if key.ewn >= EW_LEAST then return key.ew, true end
  if tenant.ewn >= EW_LEAST then return tenant.ew, true end
  if pool.ewn >= EW_LEAST then return pool.ew, false end
end

-- Output tokens to reserve, so many percent of that mean; the whole max_tokens while there is none.
local USUAL = 150
local function reserved_output(mean, percent, most)
  if not mean then return most end
  return math.min(most, math.max(1, math.ceil(mean * percent / 25600)))
end

-- One finished request into the means of a record (a meter's or the pool's).
local function learn_all(record, output, took)
  record.ew = learn(record.ew, record.ewn, output)
  record.ewd = learn(record.ewd, record.ewn, took)
  record.ewn = record.ewn + 1
end
