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

-- `config`: the hash with the limits (key:<digest> or ten:<tenant>). Debts are worked off to now.
local function read_config(config)
  local v = call('HMGET', config, 'rpm', 'tpm', 'itpm', 'otpm', 'conc', 'burst', 'weight',
    'id', 'ten', 'status', 'expires')
  return {
    limit = {num(v[1]), num(v[2]), num(v[3]), num(v[4])}, conc = num(v[5]),
    burst = (tonumber(v[6]) or 60) * 1000000, weight = math.max(1, num(v[7])),
    id = v[8], tenant = v[9], status = v[10], expires = num(v[11]),
  }
end

local function refused_key(key)
  if not key.id then return 'unknown' end
  if key.status ~= 'active' then return 'revoked' end
  if key.expires > 0 and key.expires * 1000000 <= now then return 'expired' end
end

-- A scope is a config with its meter record `m`: at r t i o (when, and the four debts, worked off to
-- now by reading), ew ewn ewd (as in the pool), nreq nin ncached nout (totals of what was settled).
local DEBTS = {'r', 't', 'i', 'o'}
local function read_scope(kind, name, config)
  local scope = config
  scope.kind, scope.name = kind, kind .. ':' .. name
  local m = load(P .. 'mt:' .. scope.name)
  local idle = math.max(0, now - m.at)
  for i = 1, 4 do
    local limit = scope.limit[i]
    m[DEBTS[i]] = limit > 0 and math.max(0, m[DEBTS[i]] - idle * limit) or nil
  end
  m.at = now
  scope.m = m
  return scope
end

local function save_scope(scope) save(P .. 'mt:' .. scope.name, scope.m) end

-- Returns the wait in microseconds until `cost` fits all meters, and which one decides;
-- -1 when it can never fit.
local function wait_of(scope, cost)
  local longest, which = 0, 0
  for i = 1, 4 do
    local limit = scope.limit[i]
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

-- Adds `cost` (negative: a refund, never below empty) to the meters in force. True when there are any.
local function take(scope, cost)
  local limited = false
  for i = 1, 4 do
    if scope.limit[i] > 0 then
      limited = true
      scope.m[DEBTS[i]] = math.max(0, scope.m[DEBTS[i]] + cost[i] * MINUTE)
    end
  end
  return limited
end

-- Appends (limit, remaining, microseconds until full again) of the tighter scope for each of the
-- four meters; limit -1 where nobody set one.
local function add_figures(reply, scopes)
  for i = 1, 4 do
    local limit, left, reset = -1, -1, 0
    for s = 1, #scopes do
      local scope = scopes[s]
      if scope.limit[i] > 0 then
        local debt = scope.m[DEBTS[i]]
        local room = math.max(0, scope.limit[i] * scope.burst - debt)
        local free = divide_down(room, MINUTE)
        if limit < 0 or free < left then
          limit, left, reset = scope.limit[i], free, divide_up(debt, scope.limit[i])
        end
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

-- Output tokens to reserve: one and a half times what the key (else its tenant, else the pool)
-- used to produce; the whole max_tokens while nothing is known.
local function expected_output(key, tenant, most)
  local mean
  if key.m.ewn >= EW_LEAST then mean = key.m.ew
  elseif tenant.m.ewn >= EW_LEAST then mean = tenant.m.ew
  elseif pool.ewn >= EW_LEAST then mean = pool.ew end
  if not mean then return most end
  return math.min(most, math.max(1, math.ceil(mean * 3 / 512)))
end

-- One finished request into the means of a record (a meter's or the pool's).
local function learn_all(record, output, took)
  record.ew = learn(record.ew, record.ewn, output)
  record.ewd = learn(record.ewd, record.ewn, took)
  record.ewn = record.ewn + 1
end
