-- uses: common
-- REFUSED <now> <digest...> (at most 64): those whose key was revoked, or is gone from the file. Not
-- those that Redis does not know: it may have lost them.

local refused = {}
for i = 2, math.min(#ARGV, 65) do
  local status = load(P .. 'key:' .. ARGV[i]).status
  if status ~= 0 and status ~= 'active' then refused[#refused + 1] = ARGV[i] end
end
return refused
