-- uses: common meter classes capacity
-- SEEN <now> <ingress> then for each rid (at most 64): <rid> <output tokens so far>
-- What running requests have produced: for the day that nobody settles them, and so that who outgrows
-- what it reserved holds more, an eighth ahead of what is known. Returns how many of them the ingress
-- holds.

local ingress, held, grown = ARGV[2], {}, false

local function grow(rid, output)
  local r = read_request(rid)
  if r.state ~= 'r' or r.input + output <= r.kv then return end
  local more = kv_need(r.input + output + divide_down(output, 8)) - r.kv
  if more <= 0 then return end
  r.kv = r.kv + more
  write_request(rid, r)
  local class = HELD[r.rank]
  pool.committed, pool[class] = pool.committed + more, pool[class] + more
  if r.replica ~= '' then call('ZADD', P .. 'room', 'XX', 'INCR', 0 - more, r.replica) end
  grown = true
end

for i = 3, math.min(#ARGV, 2 + 64 * 2), 2 do
  local rid, output = ARGV[i], ARGV[i + 1]
  if call('SISMEMBER', P .. 'in:' .. ingress, rid) == 1 then
    held[#held + 1] = rid
    held[#held + 1] = output
    grow(rid, tonumber(output))
  end
end
if #held > 0 then call('HSET', P .. 'out:' .. ingress, unpack(held)) end
if grown then save_pool() end
return #held / 2
