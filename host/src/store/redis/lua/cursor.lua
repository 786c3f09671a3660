-- Moves a group's cursor, empties what waits for it, or keeps it under a name.
local t = topic(arg())
if not t then return { 'no_topic' } end
local g = group(t, arg())
if not g then return { 'no_group' } end
local what, now = arg(), clock()

if what == 'seek' then
  local found, fault = places(t)
  if not found then return { 'invalid', fault } end
  for p, seq in pairs(found) do
    local q = part(t, p)
    clear(g, q, seq)
    move(g, q, seq)
  end
  wake(t)
  return { 'ok', flush() }
elseif what == 'purge' then
  local gone = 0
  for n = 0, t.parts - 1 do
    local q = part(t, tostring(n))
    gone = gone + fresh(g, q)
    for _, seq in ipairs(call('ZRANGE', g.key .. ':E:' .. q.p, 0, -1)) do
      local m = q.p .. ':' .. seq
      if not call('ZSCORE', g.key .. ':L', m) and not call('ZSCORE', g.key .. ':D', m) then
        forget(g, q.p, seq)
        gone = gone + 1
      end
    end
    call('UNLINK', g.key .. ':S:' .. q.p)
    move(g, q, q.head)
  end
  touch(g)
  wake(t)
  return { 'ok', flush(), gone }
end

local names = g.key .. ':N'
if what == 'list' then return { 'ok', {}, call('HGETALL', names) } end
local name = arg()
if what == 'forget' then return { 'ok', {}, call('HDEL', names, name) } end
if what == 'keep' then
  local most, gaps = num(), num()
  if call('HEXISTS', names, name) == 0 and call('HLEN', names) >= most then
    return { 'invalid', 'a group has at most ' .. most .. ' snapshots; delete one first' }
  end
  local marks = {}
  for n = 0, t.parts - 1 do
    local q = part(t, tostring(n))
    local next, settled, floor = cursor(g, q), {}, nil
    local from
    for _, seq in ipairs(call('ZRANGE', g.key .. ':E:' .. q.p, 0, -1)) do
      seq = tonumber(seq)
      floor = floor or seq
      if from and from < seq and gaps > 0 then
        settled[#settled + 1] = from .. ':' .. seq
        gaps = gaps - 1
      end
      from = seq + 1
    end
    if from and from < next and gaps > 0 then
      settled[#settled + 1] = from .. ':' .. next
      gaps = gaps - 1
    end
    for _, range in ipairs(call('ZRANGE', g.key .. ':S:' .. q.p, 0, -1)) do
      if gaps > 0 then settled[#settled + 1], gaps = range, gaps - 1 end
    end
    marks[#marks + 1] = q.p .. '=' .. (floor or next) .. (#settled > 0 and ',' .. table.concat(settled, ',') or '')
  end
  call('HSET', names, name, now .. ';' .. table.concat(marks, ';'))
  return { 'ok', {} }
end
-- Back to what is kept.
local kept = call('HGET', names, name)
if not kept then return { 'ok', {}, 0 } end
for mark in string.gmatch(kept, '[^;]+') do
  local p, floor, ranges = string.match(mark, '^(%d+)=(%d+)(.*)$')
  if p then
    local q = part(t, p)
    floor = math.min(math.max(tonumber(floor), q.start), q.head)
    clear(g, q, floor)
    move(g, q, floor)
    for from, till in string.gmatch(ranges, '(%d+):(%d+)') do
      from, till = math.max(tonumber(from), floor), math.min(tonumber(till), q.head)
      if from < till then settle_range(g, q, from, till) end
    end
  end
end
wake(t)
return { 'ok', flush(), 1 }
