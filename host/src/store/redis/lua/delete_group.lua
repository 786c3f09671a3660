-- Removes a group; its leases end.
local t = topic(arg())
local g = t and group(t, arg())
if not g then return { 'ok' } end
for n = 0, t.parts - 1 do
  for _, what in ipairs({ ':E:', ':R:', ':S:' }) do call('UNLINK', g.key .. what .. n) end
end
for _, what in ipairs({ '', ':L', ':W', ':D', ':H', ':A', ':F', ':N' }) do call('UNLINK', g.key .. what) end
call('SREM', t.key .. ':g', g.id)
call('ZREM', P .. 'due', t.id .. ':' .. g.id)
call('HINCRBY', KEYS[1], 'settings', 1)
return { 'ok' }
