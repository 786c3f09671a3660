-- A broker shows that it is there; epochs of those that were not for a day are forgotten (what they had leased has ended at its
-- deadlines). Says whether the append-only file is to be written anew for an erasure: once a minute at most.
local now, node = clock(), arg()
call('ZADD', P .. 'seen', now, node)
local gone = call('ZRANGEBYSCORE', P .. 'seen', '-inf', now - 86400000, 'LIMIT', 0, 100)
if #gone > 0 then
  local is_gone, all = {}, call('HGETALL', P .. 'nodes')
  for _, name in ipairs(gone) do
    is_gone[name] = true
    call('ZREM', P .. 'seen', name)
  end
  for n = 1, #all, 2 do
    if is_gone[all[n + 1]] then call('HDEL', P .. 'nodes', all[n]) end
  end
end
local since = tonumber(call('HGET', KEYS[1], 'rewrite') or '')
if not since then return { 'ok', 0 } end
local last = tonumber(call('HGET', KEYS[1], 'rewritten') or '0')
if last + 60000 > now and last <= now then return { 'ok', 0 } end
call('HDEL', KEYS[1], 'rewrite')
call('HSET', KEYS[1], 'rewritten', now)
return { 'ok', 1 }
