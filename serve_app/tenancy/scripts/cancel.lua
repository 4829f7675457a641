-- uses: common meter price budget classes capacity fair promise request grant
-- CANCEL <now> <rid...> (at most 64): gives back everything but the request itself.
-- Returns how many of them were still known.

local known = 0
for i = 2, math.min(#ARGV, 65) do
  local r = read_request(ARGV[i])
  if r then
    release(ARGV[i], r, 'cancel', UNUSED)
    known = known + 1
  end
end
if known > 0 then
  grant()
  save_pool()
end
return known
