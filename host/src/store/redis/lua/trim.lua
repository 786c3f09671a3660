-- Removes messages from the beginning of a topic: those that are too old, or, as far as room is needed, those that every group
-- has settled. So many in one call; says whether there is more to do.
local t = topic(arg())
if not t then return { 'no_topic' } end
local now, need = clock(), num()
local visits, weight = 2000, 8 * 1024 * 1024
local cutoff, freed, removed, expired, more = now - t.keep, 0, 0, 0, false
local all = groups_of(t)

-- Up to where a partition may be trimmed for room.
local function floor_of(q)
  local floor = q.head
  for _, g in ipairs(all) do
    local open = call('ZRANGE', g.key .. ':E:' .. q.p, 0, 0)[1]
    floor = math.min(floor, cursor(g, q), tonumber(open) or q.head)
  end
  return floor
end

for n = 0, t.parts - 1 do
  local q = part(t, tostring(n))
  local floor = need > 0 and floor_of(q) or q.head
  local till, going, ended = q.start, {}, false
  while not ended do
    local found = entries(q, till, 16)
    if #found == 0 then
      if need == 0 or floor >= q.head then till = math.max(till, math.min(floor, q.head)) end
      ended = true
    end
    for _, e in ipairs(found) do
      if need > 0 then ended = e.seq >= floor or freed >= need else ended = e.at > cutoff end
      if not ended and (visits < 1 or weight < 1) then ended, more = true, true end
      if ended then break end
      going[#going + 1] = e
      till, visits, weight, freed = e.seq + 1, visits - 1, weight - e.cost, freed + e.cost
    end
  end
  if till > q.start then
    for _, g in ipairs(all) do
      local next, lost = cursor(g, q), 0
      for _, seq in ipairs(call('ZRANGEBYSCORE', g.key .. ':E:' .. q.p, '-inf', '(' .. till)) do
        forget(g, q.p, seq)
        touch(g)
        lost = lost + 1
      end
      if next < till then
        for _, e in ipairs(going) do
          if e.seq >= next and (not e.target or e.target == g.id) and not settled_until(g, q, e.seq) then lost = lost + 1 end
        end
        move(g, q, till)
        drop_ranges(g, q, till)
      end
      count(g, 'expired', lost)
      expired = expired + lost
    end
    for _, e in ipairs(going) do unlist(t, q, e) end
    call('XTRIM', q.s, 'MINID', till + 1)
    call('ZREMRANGEBYSCORE', q.key .. ':x', '-inf', '(' .. till)
    q.start, q.changed = till, true
    removed = removed + #going
    t.removed, t.changed = t.removed + #going, true
  end
end
if removed > 0 then wake(t) end
return { 'ok', removed, expired, freed, more and 1 or 0, flush() }
