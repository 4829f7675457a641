-- uses: common
-- DROP <now> <name> <claim>: the claim ends without a reply to keep; whoever asks next may run it.

local key = P .. 'idem:' .. ARGV[2]
local held = load(key)
if held.claim ~= ARGV[3] or held.state ~= 'runs' then return 0 end
call('DEL', key)
return 1
