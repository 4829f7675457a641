-- uses: common
-- RULES <now> <version> <json>: what is so in each class (classes.lua, whose list this is), by a
-- configuration of that version; an older one than the one held changes nothing. Returns the version
-- in force. It is kept as the list's last element.

local version = tonumber(ARGV[2])
local packed = call('GET', P .. 'rules')
local held = packed and cmsgpack.unpack(packed) or {}
local running = num(held[#held])
if version < running then return running end
local rules = cjson.decode(ARGV[3])
rules[#rules + 1] = version
call('SET', P .. 'rules', cmsgpack.pack(rules))
return version
