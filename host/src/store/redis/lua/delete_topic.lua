-- Removes a topic whose groups are gone. What is freed is freed aside.
local t = topic(arg())
if not t then return { 'ok' } end
if call('SCARD', t.key .. ':g') > 0 then return { 'groups' } end
for n = 0, t.parts - 1 do
  local q = part(t, tostring(n))
  for _, seq in ipairs(call('ZRANGE', q.key .. ':tg', 0, -1)) do
    local e = read(q, tonumber(seq))
    if e and e.target then call('UNLINK', q.key .. ':tg:' .. e.target) end
  end
  call('UNLINK', q.key, q.s, q.key .. ':x', q.key .. ':tg')
end
for _, what in ipairs({ '', ':d', ':da', ':i', ':o', ':g' }) do call('UNLINK', t.key .. what) end
call('SREM', P .. 'topics', t.id)
call('ZREM', P .. 'aging', t.id)
call('HDEL', P .. 'w', t.id)
call('HINCRBY', KEYS[1], 'settings', 1)
return { 'ok' }
