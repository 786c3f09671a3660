-- Makes a topic or changes its settings.
local id, count_of, spec = arg(), arg(), arg()
local t = topic(id)
if t and t.parts ~= tonumber(count_of) then return { 'invalid', "a topic's partition count cannot change" } end
local key = P .. 't:' .. id
call('HSET', key, 'parts', count_of, 'spec', spec)
for _, field in ipairs({ 'keep', 'room', 'window', 'keys', 'dead', 'dead_expired', 'dead_payload' }) do call('HSET', key, field, arg()) end
call('SADD', P .. 'topics', id)
call('HINCRBY', KEYS[1], 'settings', 1)
topics[id] = nil
touch_keys(topic(id))
return { 'ok' }
