-- Whether the append-only file is to be written anew for an erasure: asked for once a minute at most.
local now = clock()
local since = tonumber(call('HGET', KEYS[1], 'rewrite') or '')
if not since then return { 'ok', 0 } end
local last = tonumber(call('HGET', KEYS[1], 'rewritten') or '0')
if last + 60000 > now and last <= now then return { 'ok', 0 } end
call('HDEL', KEYS[1], 'rewrite')
call('HSET', KEYS[1], 'rewritten', now)
return { 'ok', 1 }
