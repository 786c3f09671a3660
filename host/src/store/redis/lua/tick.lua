-- What time alone brings: leases that end, waits that end, keys that age out. Says what is to be buried, when there is next
-- something to do, and what became leasable in the topics that somebody waits for. No body is read that is not told; what is told is
-- told again after a second, if it is still there. Without memory for copies (`may_bury`) all else ends in its time.
local now, only, may_bury, buried, bytes = clock(), arg(), arg() == '1', {}, 0
local full, later = false, now + 1000

local function bury(t, g)
  local room = 64 - #buried
  local doomed = call('ZRANGEBYSCORE', g.key .. ':D', '-inf', now, 'LIMIT', 0, room + 1)
  if #doomed > 0 and not may_bury then call('HSET', g.key, 'bury_at', later) end
  if not may_bury then return end
  full = full or #doomed > room
  for n = 1, math.min(#doomed, room) do
    local m = doomed[n]
    local p, seq = place_of(m)
    local record = call('HGET', g.key .. ':H', m)
    if not record then
      -- Of a script that ended in its midst.
      record = 'X 0'
      call('HSET', g.key .. ':H', m, record)
    end
    local e = grave(t) and read(part(t, p), seq)
    if not e then
      forget(g, p, seq)
      count(g, string.match(record, '^X') and 'expired' or 'dead', 1)
    elseif bytes > 0 and bytes + e.cost > 8 * 1024 * 1024 then
      full = true
      return
    else
      bytes = bytes + e.cost
      call('ZADD', g.key .. ':D', later, m)
      buried[#buried + 1] = { t.id, g.id, m, record, t.dead, t.dead_payload, g.name, failures(g, m), e.head, e.body }
    end
  end
end

local names = only ~= '' and { only } or call('ZRANGEBYSCORE', P .. 'due', '-inf', now, 'LIMIT', 0, 32)
for _, name in ipairs(names) do
  local tid, gid = string.match(name, '^(%d+):(%d+)$')
  local t = topic(tid)
  local g = t and group(t, gid)
  if not g then
    call('ZREM', P .. 'due', name)
  else
    touch(g)
    full = ready(g, now, 1000) or full
    local over = call('ZRANGEBYSCORE', g.key .. ':L', '-inf', now, 'LIMIT', 0, 1000)
    full = full or #over >= 1000
    for _, m in ipairs(over) do
      local p, seq = place_of(m)
      local record = call('HGET', g.key .. ':H', m) or 'X 0'
      local attempt = tonumber(string.match(record, '^%d+'))
      if attempt and attempt < g.max then
        again(g, p, seq, attempt, nil)
      else
        call('ZADD', g.key .. ':D', now, m)
        call('ZREM', g.key .. ':L', m)
      end
    end
    bury(t, g)
  end
end
full = full or (only == '' and #names >= 32)
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'aging', '-inf', now, 'LIMIT', 0, 16)) do
  local t = topic(id)
  if t then
    full = age(t, now, 1000) >= 1000 or full
    touch_keys(t)
  else
    call('ZREM', P .. 'aging', id)
  end
end
local waited, heard = {}, {}
for n = 1, num() do waited[n] = arg() end
local news = flush()
for n, id in ipairs(waited) do heard[n] = call('HGET', P .. 'w', id) or '0' end
local next = call('ZRANGE', P .. 'due', 0, 0, 'WITHSCORES')[2]
local about = call('HMGET', KEYS[1], 'born', 'settings')
return { 'ok', full and 1 or 0, next or '', about[1] or '', about[2] or '0', buried, news, heard, now }
