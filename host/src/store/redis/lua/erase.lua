-- Removes a message, and the dead letters that are copies of it.
local t = topic(arg())
local id, now = arg(), clock()
if not t then return { 'ok', 0, {} } end
local found = 0
local function erase(of, m)
  local p, seq = place_of(m)
  local q = part(of, p)
  local e = read(q, seq)
  if not e then return end
  found = found + 1
  call('XDEL', q.s, seq + 1)
  unlist(of, q, e)
  call('ZADD', q.key .. ':x', seq, seq)
  for _, g in ipairs(groups_of(of)) do
    if call('ZSCORE', g.key .. ':E:' .. p, seq) then
      forget(g, p, seq)
      touch(g)
    end
  end
  wake(of)
end
local own = call('HGET', t.key .. ':i', id)
if own then erase(t, own) end
local dead = grave(t)
for m in string.gmatch(dead and call('HGET', dead.key .. ':o', id) or '', '[^,]+') do erase(dead, m) end
-- The append-only file has the bytes until it is written anew.
if found > 0 then call('HSETNX', KEYS[1], 'rewrite', now) end
return { 'ok', found > 0 and 1 or 0, flush() }
