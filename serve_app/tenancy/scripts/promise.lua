-- Promises: who is refused because too many wait is told a time of his own to come back, and finds room
-- then. A tenant's promises in a class follow each other as fast as its requests are served, so that
-- nobody gains by asking often, and never reach further than LONGEST. While some are out, half the
-- places and the last quarter of its patience are for those of the tenant who come as told. What is not taken up
-- lapses and keeps nothing idle; the more of them lapse, the closer the next ones follow.
-- `back:<mark>` has the times promised to what is known again by its mark.

local PR = P .. 'pr'
local SOONEST, LONGEST, EARLY, LATE = 1000000, 110000000, 250000, 5000000
local LAPSE = 60000000  -- after a promise's time it keeps nothing any more, but who comes is still known
local WINDOW, WINDOWS = 8000000, 16  -- more than LONGEST and LATE reach

-- One window of a tenant's promises, by when they fell due: m made, k kept, b broken (no room after
-- all). `show`: percent of them that come; `slow`: percent of the reckoned time that a place takes.
local function judge(line, window)
  local i = window % WINDOWS
  local made, kept, broken = num(line['m' .. i]), num(line['k' .. i]), num(line['b' .. i])
  if made > 0 then
    local came = math.min(made, kept + broken)
    line.show = math.max(10, divide_down(3 * line.show * made + 100 * came, 4 * made))
    if broken * 20 > came then
      line.slow = math.min(400, divide_down(line.slow * 5, 4))
    else
      line.slow = math.max(110, line.slow - divide_down(line.slow, 16))
    end
  end
  line['m' .. i], line['k' .. i], line['b' .. i] = nil, nil, nil
end

-- A tenant's line in a class: the figures above, where its promises end (`last`; `owed` of those that
-- make good a broken one), `out` the latest time promised, `at` the first window not judged.
local function line_of(class, tenant)
  local packed = call('HGET', PR, field_of(class, tenant))
  local line = packed and cmsgpack.unpack(packed) or {last = 0, owed = 0, out = 0, at = 0, show = 100, slow = 110}
  local over = divide_down(math.max(0, now - LATE), WINDOW)
  for window = math.max(line.at, over - WINDOWS), over - 1 do judge(line, window) end
  line.at = math.max(line.at, over)
  return line
end

local function save_line(class, tenant, line)
  call('HSET', PR, field_of(class, tenant), cmsgpack.pack(line))
end

local function count_promise(line, kind, due)
  if due + LATE < now then return end  -- judged
  local field = kind .. (divide_down(due, WINDOW) % WINDOWS)
  line[field] = num(line[field]) + 1
end

-- The first time promised to `mark`, if it is due, hereby taken up; or nil. What lapsed is forgotten.
local function take_up(mark)
  local times = P .. 'back:' .. mark
  call('ZREMRANGEBYSCORE', times, '-inf', now - LAPSE)
  local due = tonumber(call('ZRANGE', times, 0, 0)[1])
  if not due or due > now + EARLY then return nil end
  call('ZREM', times, int(due))
  return due
end

-- Promises `mark` a time, `place` microseconds behind the last of its line and not before `lead` is
-- over; `broken`: one was broken, and is made good before others are. Returns milliseconds from now;
-- where nothing can be promised, the longest there is.
local function promise(line, mark, place, lead, broken)
  local step = math.max(1, divide_down(place * line.slow * line.show, 10000))
  local behind = math.max(line.last, now + SOONEST) + step
  local owed = math.max(line.owed, now + SOONEST) + step
  local due = math.max(broken and owed or behind, now + lead)
  if due > now + LONGEST then return LONGEST / 1000 end
  line.last, line.owed = behind, broken and owed or line.owed
  line.out = math.max(line.out, due)
  pool.prom = math.max(pool.prom, due)
  count_promise(line, 'm', due)
  if mark ~= '' then
    call('ZADD', P .. 'back:' .. mark, due, int(due))
    call('PEXPIRE', P .. 'back:' .. mark, divide_up(due + LAPSE - now, 1000))
  end
  return divide_up(due - now, 1000)
end
