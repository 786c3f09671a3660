-- Figures of a topic and its groups.
local t = topic(arg())
local now = clock()
if not t then return { 'no_topic' } end
local totals = call('HMGET', t.key, 'appended', 'removed')
local messages, oldest, all = 0, nil, {}
for n = 0, t.parts - 1 do
  local q = part(t, tostring(n))
  messages = messages + call('XLEN', q.s)
  local e = entries(q, q.start, 1)[1]
  if e and (not oldest or e.at < oldest) then oldest = e.at end
end
for _, g in ipairs(groups_of(t)) do
  local waiting, since = 0, nil
  for n = 0, t.parts - 1 do
    local q = part(t, tostring(n))
    local open = call('ZRANGE', g.key .. ':E:' .. q.p, 0, 0)[1]
    local came = fresh(g, q)
    waiting = waiting + came + call('ZCARD', g.key .. ':R:' .. q.p)
    local from = tonumber(open)
    if not from and came > 0 then
      from = cursor(g, q)
      from = settled_until(g, q, from) or from
    end
    local e = from and entries(q, from, 1)[1]
    if e and (not since or e.at < since) then since = e.at end
  end
  local held = call('ZCOUNT', g.key .. ':L', '(' .. now, '+inf')
  local waits = call('ZCOUNT', g.key .. ':W', '(' .. now, '+inf')
  waiting = waiting + call('ZCARD', g.key .. ':L') - held + call('ZCARD', g.key .. ':W') - waits
    waiting = waiting + call('ZCARD', g.key .. ':D')
  if waiting + held + waits == 0 then since = nil end
  local v = call('HMGET', g.key, 'acked', 'dead', 'expired', 'delivered')
  all[#all + 1] = { g.id, math.max(waiting, 0), held, waits, since or '', v[1] or '0', v[2] or '0', v[3] or '0', v[4] or '0' }
end
return { 'ok', messages, t.bytes, oldest or '', totals[1] or '0', totals[2] or '0', call('ZCARD', t.key .. ':da'), all }
