-- uses: common
-- CONF <now> <epoch> <version> <json>: a list of [kind, name, fields], at most 128 of them, from the
-- book of that version. Kind `key` (name: digest) or `ten` (name: tenant); fields null: gone. A record
-- is taken when its print differs from the one held, with an audit entry in the same step; nothing is
-- taken from a book older than the newest seen. Sets the epoch (unless given as '') where none is set:
-- from then on Redis is no longer empty. Returns the epoch, how many records changed (-1: the book is
-- too old) and the newest version.
-- known: `<kind>:<name>` of all records. A key that is gone is held as revoked for a day, so that
-- what it runs can be ended.

local DAY_S = 86400
local UNTOLD = {print = true, op = true, by = true, at = true, version = true}

-- Who did what: an edit of the file leaves the record's own word of it as it was.
local function author(held, fields)
  if fields.gone then return 'gone', 'file' end
  if pool.epoch == '' then return 'load', fields.by end
  if fields.op == '' or held.version == fields.version then
    return held.print ~= 0 and 'edit' or 'add', 'file'
  end
  return fields.op, fields.by
end

local function audit(kind, name, held, fields, changes)
  if fields.old then return end
  local op, by = author(held, fields)
  table.sort(changes)
  call('XADD', P .. 'aud', 'MAXLEN', '~', 10000, '*', 'op', op, 'by', by, 'kind', kind,
    'name', fields.id or name, 'version', ARGV[3], 'changes', table.concat(changes, ' '))
end

-- What is held; nothing of a release that kept hashes there.
local function held_at(target)
  if call('TYPE', target).ok == 'hash' then call('DEL', target) end
  return load(target)
end

local function take(kind, name, fields)
  local target = P .. kind .. ':' .. name
  local held, record, changes = held_at(target), {}, {}
  if held.print == fields.print then return 0 end
  for field, value in pairs(fields) do
    if value ~= 0 then record[field] = value end
    if not UNTOLD[field] and held[field] ~= value
      and (held.print ~= 0 or value ~= 0 and value ~= '') then
      changes[#changes + 1] = field .. '=' .. (type(value) == 'number' and int(value) or value)
    end
  end
  save(target, record)
  call('SADD', P .. 'known', kind .. ':' .. name)
  audit(kind, name, held, fields, changes)
  return 1
end

local function drop(kind, name)
  local target = P .. kind .. ':' .. name
  if call('SREM', P .. 'known', kind .. ':' .. name) == 0 then return 0 end
  local held = held_at(target)
  if kind == 'key' then
    held.status, held.print = 'revoked', ''
    save(target, held)
    call('EXPIRE', target, DAY_S)
  else
    call('DEL', target)
  end
  audit(kind, name, held, {id = held.id ~= 0 and held.id or name, old = held.old ~= 0, gone = true}, {})
  return 1
end

local version, changed = tonumber(ARGV[3]), 0
if version < pool.conf then
  changed = -1
else
  local records = cjson.decode(ARGV[4])
  for i = 1, math.min(#records, 128) do
    local kind, name, fields = unpack(records[i])
    changed = changed + (fields ~= cjson.null and take(kind, name, fields) or drop(kind, name))
  end
  if changed > 0 then pool.nconf = pool.nconf + 1 end
end
local epoch = pool.epoch == '' and ARGV[2] or pool.epoch
if epoch ~= pool.epoch or version > pool.conf or changed > 0 then
  pool.epoch, pool.conf = epoch, math.max(pool.conf, version)
  save_pool()
end
return {pool.epoch, changed, pool.conf}
