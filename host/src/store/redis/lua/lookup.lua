-- The outcome under a key, in its window.
local t = topic(arg())
local key = arg()
local value = t and call('HGET', t.key .. ':d', key)
local now = clock()
if not value or tonumber(string.match(value, '^%S+ (%S+)')) + t.window <= now then return { 'none' } end
return { 'ok', value }
