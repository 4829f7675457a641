-- What every script starts with: the key prefix, the clock, exact integers, records, the pool.
-- KEYS[1] is `dr:2:{<pool>}:pool`; ARGV[1] is '' (Redis's own clock) or, in tests, microseconds.
-- Lua doubles are exact to 2^53. A command is told a number in full, but tostring keeps 14 digits: inside
-- of strings numbers that may be longer are written with `int`. What is always read and written as a whole is
-- one string: pool, req:* and mt:*, which are written all the time, as records with a layout (records.py),
-- key:* and ten:* as MessagePack, whose absent fields are 0. That costs a third of a hash of its size.

local P = string.sub(KEYS[1], 1, -5)
local call = redis.call

local now
if ARGV[1] == '' then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end

local function int(x) return string.format('%.0f', x + 0) end  -- + 0: never '-0'
local function num(x) return tonumber(x) or 0 end

local ABSENT = {__index = function() return 0 end}
local function load(key)
  local packed = call('GET', key)
  return setmetatable(packed and cmsgpack.unpack(packed) or {}, ABSENT)
end
local function save(key, record) call('SET', key, cmsgpack.pack(record)) end

-- The pool's record:
-- epoch                           '' in an empty Redis: the keys have to be loaded first
-- conf nconf                      newest version of the keys; how often they changed
-- fence arr tick                  grants made; time of the last arrival, of the last TICK
-- committed running waiting wneed KV tokens and requests running; requests and KV tokens waiting
-- gb g0..g3                       KV tokens granted lately, by quarter second (gb: newest quarter)
-- w1..4 n1..4 k1..4 v1..4 s1..4 h1..4  the same and more by class (classes.lua)
-- ready ktot kmost kbrake kref maxrun maxneed block  what the ready replicas offer together
-- ew ewn ewd                      means of output length, their count, of service time (x 256)
-- q qat qset                      percent of expected output that is reserved, last change of it, requests
--                                 settled then; 0 while nobody was preempted (capacity.lua)
-- eww ewk                         KV x ms and KV of finished requests, fading
-- cold emptyat                    cold start in microseconds; since when no replica is ready
-- due                             before then no lease and no replica's heartbeat can be over
-- gone                            until then some `paid:<rid>` may be held
-- prom                            latest time promised to anybody refused (promise.lua)
-- nadm nset ncan                  requests admitted, settled, cancelled before they ran
-- ndrop paid                      ledger entries dropped before they were stored; the epoch whose
--                                 budgets were reckoned up from the ledger
-- rest                            how often nobody was left running or waiting
local read_pool, pack_pool = record [[
  epoch=s paid=s
  conf nconf fence arr tick committed running waiting wneed gb g0 g1 g2 g3
  w1 w2 w3 w4 n1 n2 n3 n4 k1 k2 k3 k4 v1 v2 v3 v4 s1 s2 s3 s4 h1 h2 h3 h4
  ready ktot kmost kbrake kref maxrun maxneed block ew ewn ewd q qat qset eww ewk cold emptyat
  due gone prom nadm nset ncan ndrop rest
]]
local pool = read_pool(call('GET', KEYS[1]))
local function save_pool() call('SET', KEYS[1], pack_pool(pool)) end

-- A request's record: state (q waiting, r running), digest key tenant weight rank ingress, input
-- output (reserved of limits), most (it may produce), kv (KV tokens reserved), enq beg mx (arrival,
-- start, longest run), day (that budgets count it in), model, price (scripts/price.lua),
-- mark (promise.lua), replica fence vc (charged time).
local read_request_record, pack_request = record [[
  state=s digest=s key=s tenant=s ingress=s model=s price=s mark=s replica=s
  rank weight input output most kv enq beg mx day fence vc
]]
local function request_key(rid) return P .. 'req:' .. rid end
local function read_request(rid)
  local packed = call('GET', request_key(rid))
  return packed and read_request_record(packed)
end
local function write_request(rid, r) call('SET', request_key(rid), pack_request(r)) end
