-- uses: common
-- SEEN <now> <ingress> then for each rid (at most 64): <rid> <output tokens so far>
-- What running requests have produced, for the day that nobody settles them. Returns how many of
-- them the ingress holds.

local key, held = P .. 'in:' .. ARGV[2], {}
for i = 3, math.min(#ARGV, 2 + 64 * 2), 2 do
  if call('SISMEMBER', key, ARGV[i]) == 1 then
    held[#held + 1] = ARGV[i]
    held[#held + 1] = ARGV[i + 1]
  end
end
if #held > 0 then call('HSET', P .. 'out:' .. ARGV[2], unpack(held)) end
return #held / 2
