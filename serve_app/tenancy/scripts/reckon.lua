-- uses: common meter price budget
-- RECKON <now> <epoch> <settled> <day> <mend 0|1> then for each scope (at most 64):
--   <k:key or t:tenant> <tokens of the day> <money of it> <tokens of the month> <money of it>
-- What budgets have counted, held against the ledger's sums. Those are of the moment when the pool had
-- that epoch, so many settled requests, and that day; `moved` when it has not, and nothing is done: read
-- them again. Without scopes: the moment. Replies `ok epoch settled day`, then for each scope what is
-- counted and what should be (the ledger, and what is reserved for requests in flight), day first;
-- -1 throughout while more than 4000 are in flight, and nothing is done. `mend` sets what differs;
-- without scopes it marks the epoch as reckoned up.

local MOST = 4000
local reply = {'ok', pool.epoch, pool.nset, TODAY}
local asked, mend = ARGV[2] ~= '', ARGV[5] == '1'
if asked and (ARGV[2] ~= pool.epoch or tonumber(ARGV[3]) ~= pool.nset or tonumber(ARGV[4]) ~= TODAY) then
  return {'moved'}
end

-- What requests in flight have reserved in each period, by scope.
local reserved = setmetatable({}, {__index = function(all, name)
  all[name] = {0, 0, 0, 0}
  return rawget(all, name)
end})

local MONTH = month_of(TODAY)

local function add_up(r)
  local tokens, money = r.input + r.output, cost_of(r.price, r.input, 0, r.output)
  for _, name in ipairs({'k:' .. r.key, 't:' .. r.tenant}) do
    local sums = reserved[name]
    if r.day == TODAY then sums[1], sums[2] = sums[1] + tokens, sums[2] + money end
    if month_of(r.day) == MONTH then sums[3], sums[4] = sums[3] + tokens, sums[4] + money end
  end
end

local function add_up_all()
  for _, ingress in ipairs(call('ZRANGE', P .. 'ls', 0, -1)) do
    for _, rid in ipairs(call('SMEMBERS', P .. 'in:' .. ingress)) do add_up(read_request(rid)) end
  end
end

local function reckon(name, should)
  local m = read_meter(name)
  for j = 1, 4 do should[j] = should[j] + reserved[name][j] end
  local counted = {spent_of(m)}
  if mend then
    m.dno, m.mno = TODAY, MONTH
    m.dsp, m.dmo, m.msp, m.mmo = unpack(should)
    call('SET', P .. 'mt:' .. name, pack_meter(m))
  end
  return counted, should
end

local countable = pool.running + pool.waiting <= MOST
if countable and #ARGV > 5 then add_up_all() end
for i = 6, math.min(#ARGV, 5 + 64 * 5), 5 do
  local counted, should = {-1, -1, -1, -1}, {-1, -1, -1, -1}
  if countable then
    local told = {}
    for j = 1, 4 do told[j] = tonumber(ARGV[i + j]) end
    counted, should = reckon(ARGV[i], told)
  end
  for j = 1, 4 do reply[#reply + 1] = counted[j] end
  for j = 1, 4 do reply[#reply + 1] = should[j] end
end
if mend and #ARGV == 5 then
  pool.paid = pool.epoch
  save_pool()
end
return reply
