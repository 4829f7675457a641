-- Classes: who goes first. `system` ranks before `interactive`, `default` and `batch`; in scripts and
-- records a class is its rank. What is so in each class an ingress writes to the key `rules`, a list
-- (MessagePack) by rank of
--   [share     percent of the KV cache that it may fill before higher classes take more,
--    ceiling   percent of KV cache and slots beyond which nothing of it starts,
--    age       microseconds without a turn after which the next turn is its own (0: never),
--    patience  longest wait in microseconds]
-- and, fifth, between how many percent of a request's expected output its KV reservation moves: [least,
-- most]. Without that key all there is is rank.

local CLASSES = {'system', 'interactive', 'default', 'batch'}
local RANK = {system = 1, interactive = 2, default = 3, batch = 4}
local ALL = 100
local NO_RULE = {0, ALL, 0, 2 ^ 52}
local RESERVE = {40, 200}

local RULES
local function rule_of(class)
  if not RULES then
    local held = call('GET', P .. 'rules')
    RULES = held and cmsgpack.unpack(held) or {NO_RULE, NO_RULE, NO_RULE, NO_RULE}
  end
  return RULES[class]
end
local function reserve_rule() return rule_of(5) or RESERVE end

-- The class a request runs in: what it asks for, `default` where it does not say, but never above
-- the ceilings of its key and tenant, `interactive` where they have none.
local function class_of(asked, key, tenant)
  local class = RANK[asked] or RANK.default
  class = math.max(class, RANK[key.class] or RANK.interactive)
  return math.max(class, RANK[tenant.class] or 1)
end

-- Fields of the pool's record by class: requests and KV tokens waiting, KV tokens running, virtual
-- clock, time of the last turn or of the first arrival since, weights of the tenants that wait.
local WAITING, NEED, HELD = {'w1', 'w2', 'w3', 'w4'}, {'n1', 'n2', 'n3', 'n4'}, {'k1', 'k2', 'k3', 'k4'}
local CLOCK, TURN, WEIGHT = {'v1', 'v2', 'v3', 'v4'}, {'s1', 's2', 's3', 's4'}, {'h1', 'h2', 'h3', 'h4'}

-- Whose turn it is, and up to which percent of everything that class may go; `newcomer` (a class, or
-- nil) is taken to wait as well. Nil when nobody waits.
--   1. the class that has gone longest beyond its age without a turn
--   2. the highest below its share
--   3. the highest
local function turn(newcomer)
  local overdue, longest = nil, -1
  for class = 1, 4 do
    local age = pool[WAITING[class]] > 0 and rule_of(class)[3] or 0
    local over = now - pool[TURN[class]] - age
    if age > 0 and over >= 0 and over > longest then overdue, longest = class, over end
  end
  if overdue then return overdue, ALL end
  local highest
  for class = 1, 4 do
    if pool[WAITING[class]] > 0 or class == newcomer then
      local rule = rule_of(class)
      if pool[HELD[class]] * 100 < rule[1] * pool.ktot then return class, ALL end
      highest = highest or class
    end
  end
  if highest then return highest, rule_of(highest)[2] end
end
