-- Makes a group with its cursor, or changes the settings of one that is there.
local t = topic(arg())
if not t then return { 'no_topic' } end
local id, name, max, spec = arg(), arg(), arg(), arg()
local known = group(t, id)
local found, fault = places(t)
if not found and not known then return { 'invalid', fault } end
local key = t.key .. ':g:' .. id
call('HSET', key, 'name', name, 'max', max, 'spec', spec)
call('SADD', t.key .. ':g', id)
call('HINCRBY', KEYS[1], 'settings', 1)
if not known then
  groups[key] = nil
  local g = group(t, id)
  for n = 0, t.parts - 1 do
    local q = part(t, tostring(n))
    move(g, q, found[q.p] or q.start)
  end
end
flush()
return { 'ok' }
