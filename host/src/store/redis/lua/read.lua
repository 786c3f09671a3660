-- A page of the log, or of what waits for the one group of a dead-letter topic, in the order of appending.
local t = topic(arg())
local now, limit, bytes_max, listed = clock(), num(), num(), arg() == '1'
local only, from = arg(), arg()
local wanted = {}
for _ = 1, num() do
  local p = arg()
  wanted[p] = num()
end
if not t then return { 'no_topic' } end
if only ~= '' and tonumber(only) >= t.parts then return { 'invalid', 'the topic has no such partition' } end
local cutoff, sources, page = now - t.keep, {}, {}
local g = listed and group(t, '0')
if listed and not g then return { 'ok', 0, {}, {} } end

-- The next message of a partition from a place on.
local function following(q)
  local source = { q = q, next = 0, kept = {} }
  function source.peek()
    while true do
      local e
      if g and source.next < cursor(g, q) then
        source.kept = {}
        local seq = call('ZRANGEBYSCORE', g.key .. ':E:' .. q.p, source.next, '+inf', 'LIMIT', 0, 1)[1]
        if seq then e = read(q, tonumber(seq)) end
        if not seq then
          source.next = cursor(g, q)
        elseif not e then
          source.next = tonumber(seq) + 1
        end
      else
        if #source.kept == 0 then source.kept = entries(q, source.next, 16) end
        e = source.kept[1]
        if not e then return nil end
      end
      if e then
        local till = g and e.seq >= cursor(g, q) and settled_until(g, q, e.seq)
        local foreign = g and e.target and e.target ~= g.id
        if e.at > cutoff and not till and not foreign then return e end
        source.pass(e)
      end
    end
  end
  function source.pass(e)
    source.next = e.seq + 1
    if source.kept[1] == e then table.remove(source.kept, 1) end
  end
  return source
end

local stamp_from
if from == 'offset' or from == 'after' then
  local q = part(t, only ~= '' and only or next(wanted))
  local seq = wanted[q.p]
  local e = entries(q, math.max(seq, q.start), 1)[1]
  stamp_from = e and (from == 'after' and e.seq == seq and e.stamp + 1 or e.stamp) or math.huge
end
for n = 0, t.parts - 1 do
  local q = part(t, tostring(n))
  if only == '' or only == q.p then
    local source = following(q)
    if from == 'earliest' then source.next = q.start
    elseif from == 'latest' then source.next = q.head
    elseif from == 'time' then source.next = first(q, 'at', wanted['0'])
    elseif stamp_from then source.next = stamp_from == math.huge and q.head or first(q, 'stamp', stamp_from)
    else source.next = math.min(math.max(wanted[q.p] or q.start, q.start), q.head) end
    sources[#sources + 1] = source
  end
end
local bytes, more = 0, false
while true do
  local best, e
  for _, source in ipairs(sources) do
    local ahead = source.peek()
    if ahead and (not e or ahead.stamp < e.stamp) then best, e = source, ahead end
  end
  if not e then break end
  if #page >= limit or (#page > 0 and bytes + e.plen > bytes_max) then
    more = true
    break
  end
  bytes = bytes + e.plen
  page[#page + 1] = { best.q.p, e.seq, e.head, e.body }
  best.pass(e)
end
local reached = {}
for _, source in ipairs(sources) do
  reached[#reached + 1] = source.q.p
  reached[#reached + 1] = more and source.next or source.q.head
end
return { 'ok', more and 1 or 0, reached, page }
