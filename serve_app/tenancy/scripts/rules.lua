-- uses: common
-- RULES <now> <version> <json>: what is so in each class (classes.lua, whose list this is), by a
-- configuration of that version; an older one than the one held changes nothing. Returns the version
-- in force. It is kept as the list's last element.

local version = tonumber(ARGV[2])
local held = call('GET', P .. 'rules')
local running = held and num(cmsgpack.unpack(held)[5]) or 0
if version < running then return running end
local rules = cjson.decode(ARGV[3])
rules[5] = version
call('SET', P .. 'rules', cmsgpack.pack(rules))
return version
