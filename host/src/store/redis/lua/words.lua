-- What every script of the store knows: its keys, topics, partitions, groups, and how a message's delivery begins and ends.
-- Invariant: whatever a script changes it changes before it answers, and a script that refuses has changed nothing but what
-- had aged. Should it end in its midst all the same, each message is still where it is looked for: it goes to its next place before it
-- leaves the one before. Keys are named here, below the one key that a script is given: all have its hash tag, and so lie on one node.
--
-- m       hash: the last epoch, the version of all settings, what the store was born as, whether an erasure waits for a rewrite;
--         which run of which server has it, and when that had last saved
-- n       the stamp of the last message: the order of all appends
-- topics  set of numbers     nodes  hash: epoch -> broker     seen  sorted set: broker, by when it was there last     w  hash: topic -> how often something became leasable
-- due     sorted set: topic:group, by when a lease or a wait ends next      aging  sorted set: topic, by when its next key ages out
-- t:T     hash: settings and totals      t:T:d, :da  keys with their outcomes; by when they came
--         t:T:i  id -> place      t:T:o  id of an original -> places of its dead letters      t:T:g  set of groups
-- t:T:P   hash: next and first sequence, time of the last message, pipeline revision, the server's run that appended last, gaps
--         t:T:P:s  stream of messages
--         t:T:P:x  sequences that were erased      t:T:P:tg, :tg:G  those for one group alone
-- t:T:g:G hash: settings, totals, a cursor a partition      :E:P all open below the cursor, of these :R:P may go now
--         :S:P  ranges settled above the cursor      :L held, by deadline      :W waiting, by time      :D to be buried, by when that is tried
--         :H  what is held: attempt epoch grant id holder      :A attempts before      :F failures      :N snapshots
local P = string.sub(KEYS[1], 1, -2)
local call = redis.call
local given = 0
local function arg() given = given + 1 return ARGV[given] end
local function num() return tonumber(arg()) end

-- The time: the server's, which is the same for all brokers, moved as far as the broker's was; or one that a test has stopped.
local function clock()
  local word = arg()
  if string.sub(word, 1, 1) == '@' then return tonumber(string.sub(word, 2)) end
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(word)
end

local topics, parts, groups, woken, touched = {}, {}, {}, {}, {}

local function topic(id)
  local found = topics[id]
  if found == nil then
    local key = P .. 't:' .. id
    local v = call('HMGET', key, 'parts', 'keep', 'room', 'window', 'keys', 'dead', 'dead_expired', 'bytes',
      'dead_payload')
    found = false
    if v[1] then
      found = { id = id, key = key, parts = tonumber(v[1]), keep = tonumber(v[2]), room = tonumber(v[3]),
        window = tonumber(v[4]), keys = tonumber(v[5]), dead = v[6] ~= '' and v[6] or nil, dead_expired = v[7] == '1',
        bytes = tonumber(v[8] or '0'), dead_payload = tonumber(v[9]), appended = 0, removed = 0 }
    end
    topics[id] = found
  end
  return found
end

-- The topic that takes a topic's dead letters, if it is there.
local function grave(t) return t.dead and topic(t.dead) or nil end

local function part(t, p)
  local key = t.key .. ':' .. p
  local found = parts[key]
  if not found then
    local v = call('HMGET', key, 'head', 'start', 'at', 'rev', 'run', 'gaps')
    found = { key = key, s = key .. ':s', p = p, head = tonumber(v[1] or '0'), start = tonumber(v[2] or '0'),
      at = tonumber(v[3] or '0'), rev = tonumber(v[4] or '0'), run = v[5], gaps = {} }
    for from, till in string.gmatch(v[6] or '', '(%d+):(%d+)') do
      found.gaps[#found.gaps + 1] = { tonumber(from), tonumber(till) }
    end
    parts[key] = found
  end
  return found
end

local function group(t, id)
  local key = t.key .. ':g:' .. id
  local found = groups[key]
  if found == nil then
    local v = call('HMGET', key, 'name', 'max')
    found = v[2] and { id = id, key = key, topic = t, name = v[1], max = tonumber(v[2]), nexts = {}, totals = {} } or false
    groups[key] = found
  end
  return found
end

local function groups_of(t)
  local all = {}
  for _, id in ipairs(call('SMEMBERS', t.key .. ':g')) do
    local g = group(t, id)
    if g then all[#all + 1] = g end
  end
  return all
end

-- The first sequence that a group has not come to.
local function cursor(g, q)
  local next = g.nexts[q.p]
  if not next then
    next = tonumber(call('HGET', g.key, 'next:' .. q.p) or '0')
    g.nexts[q.p] = next
  end
  next = math.max(next, q.start)
  for _, gap in ipairs(q.gaps) do if next >= gap[1] and next < gap[2] then next = gap[2] end end
  return next
end

local function move(g, q, next)
  g.nexts[q.p] = next
  g.moved = g.moved or {}
  g.moved[q.p] = next
end

local function count(g, total, by) g.totals[total] = (g.totals[total] or 0) + by end
local function wake(t) woken[t.id] = true end
local function touch(g) touched[g.topic.id .. ':' .. g.id] = g end

-- A message as the stream has it.
local function entry(raw)
  local head = raw[2][2]
  local at, stamp, expires, target, cost, plen, id, orig =
    string.match(head, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
  return { seq = tonumber(string.match(raw[1], '^%d+')) - 1, at = tonumber(at), stamp = tonumber(stamp),
    expires = tonumber(expires), target = target ~= '-' and target or nil, cost = tonumber(cost), plen = tonumber(plen),
    id = id, orig = orig ~= '-' and orig or nil, head = head, body = raw[2][4] }
end

local function entries(q, from, most)
  local raw = call('XRANGE', q.s, from + 1, '+', 'COUNT', most)
  for n = 1, #raw do raw[n] = entry(raw[n]) end
  return raw
end

local function read(q, seq)
  local raw = call('XRANGE', q.s, seq + 1, seq + 1)
  return raw[1] and entry(raw[1]) or nil
end

-- The first sequence whose time or stamp is not below a value: both rise with it.
local function first(q, what, value)
  local low, high = q.start, q.head
  while low < high do
    local middle = math.floor((low + high) / 2)
    local found = entries(q, middle, 1)[1]
    if not found or found.seq >= high or found[what] >= value then high = middle else low = found.seq + 1 end
  end
  return low
end

-- Where the range ends that a sequence is settled in, above its group's cursor.
local function settled_until(g, q, seq)
  local found = call('ZREVRANGEBYSCORE', g.key .. ':S:' .. q.p, seq, '-inf', 'LIMIT', 0, 1)[1]
  local till = found and tonumber(string.match(found, ':(%d+)$'))
  return till and till > seq and till or nil
end

-- A range is one with those that it touches.
local function settle_range(g, q, from, till)
  local key = g.key .. ':S:' .. q.p
  local function join(found)
    local first, last = string.match(found or '', '^(%d+):(%d+)$')
    if not first or tonumber(last) < from then return false end
    call('ZREM', key, found)
    from, till = math.min(from, tonumber(first)), math.max(till, tonumber(last))
    return true
  end
  join(call('ZREVRANGEBYSCORE', key, from, '-inf', 'LIMIT', 0, 1)[1])
  while join(call('ZRANGEBYSCORE', key, from, till, 'LIMIT', 0, 1)[1]) do end
  call('ZADD', key, from, from .. ':' .. till)
end

-- What a cursor has come past needs no range.
local function drop_ranges(g, q, next)
  local key = g.key .. ':S:' .. q.p
  while true do
    local found = call('ZRANGE', key, 0, 0)[1]
    if not found then return end
    local from, till = string.match(found, '^(%d+):(%d+)$')
    if tonumber(till) > next then return end
    call('ZREM', key, found)
  end
end

-- Failed attempts that are remembered, the latest eight: each with its number, and as whoever reads it has written it.
local function failures(g, m)
  local raw = call('HGET', g.key .. ':F', m)
  return raw and cmsgpack.unpack(raw) or {}
end

local function remember(g, m, attempt, failure)
  local all = failures(g, m)
  all[#all + 1] = attempt
  all[#all + 1] = failure
  if #all > 16 then
    table.remove(all, 1)
    table.remove(all, 1)
  end
  call('HSET', g.key .. ':F', m, cmsgpack.pack(all))
end

local function forget(g, p, seq)
  local m = p .. ':' .. seq
  call('ZREM', g.key .. ':E:' .. p, seq)
  call('ZREM', g.key .. ':R:' .. p, seq)
  for _, what in ipairs({ ':L', ':W', ':D' }) do call('ZREM', g.key .. what, m) end
  call('HDEL', g.key .. ':H', m)
  call('HDEL', g.key .. ':A', m)
  call('HDEL', g.key .. ':F', m)
end

-- A lease ends, and its message waits: for so long, or not at all.
local function again(g, p, seq, attempts, at)
  local m = p .. ':' .. seq
  if attempts > 0 then call('HSET', g.key .. ':A', m, attempts) else call('HDEL', g.key .. ':A', m) end
  if at then
    call('ZADD', g.key .. ':W', at, m)
  else
    call('ZADD', g.key .. ':R:' .. p, seq, seq)
    wake(g.topic)
  end
  call('ZREM', g.key .. ':L', m)
  call('HDEL', g.key .. ':H', m)
end

local function place_of(m)
  local p, seq = string.match(m, '^(%d+):(%d+)$')
  return p, tonumber(seq)
end

-- What has waited long enough may go.
local function ready(g, now, most)
  local due = call('ZRANGEBYSCORE', g.key .. ':W', '-inf', now, 'LIMIT', 0, most)
  for _, m in ipairs(due) do
    local p, seq = place_of(m)
    call('ZADD', g.key .. ':R:' .. p, seq, seq)
    call('ZREM', g.key .. ':W', m)
    wake(g.topic)
  end
  if #due > 0 then touch(g) end
  return #due >= most
end

-- Keys whose window has passed go.
local function age(t, now, most)
  local key = t.key .. ':da'
  local old = call('ZRANGEBYSCORE', key, '-inf', now - t.window, 'LIMIT', 0, most)
  for _, name in ipairs(old) do
    call('HDEL', t.key .. ':d', name)
    call('ZREM', key, name)
  end
  return #old
end

local function touch_keys(t)
  local oldest = call('ZRANGE', t.key .. ':da', 0, 0, 'WITHSCORES')
  if oldest[2] then call('ZADD', P .. 'aging', tonumber(oldest[2]) + t.window, t.id) else call('ZREM', P .. 'aging', t.id) end
end

local stamp
-- What is known of a message beside its place.
local function list(t, q, e)
  local m = q.p .. ':' .. e.seq
  call('HSET', t.key .. ':i', e.id, m)
  if e.orig then
    local known = call('HGET', t.key .. ':o', e.orig)
    call('HSET', t.key .. ':o', e.orig, (known and known .. ',' or '') .. m)
  end
  if e.target then
    call('ZADD', q.key .. ':tg', e.seq, e.seq)
    call('ZADD', q.key .. ':tg:' .. e.target, e.seq, e.seq)
  end
  q.head, q.at, q.changed = e.seq + 1, math.max(q.at, e.at), true
  t.bytes, t.appended, t.changed = t.bytes + e.cost, t.appended + 1, true
  wake(t)
end

-- A script that ended in its midst (its Cluster moved the slot) has left messages above what the partition knows of: they are
-- in the log, and it goes on after them. They are what one script adds, at most.
local function catch_up(t, q)
  local about, last = call('XINFO', 'STREAM', q.s), nil
  for n = 1, #about, 2 do
    if about[n] == 'last-generated-id' then last = tonumber(string.match(about[n + 1], '^%d+')) end
  end
  q.head = math.max(q.head, q.start)
  while q.head < last do
    local found = entries(q, q.head, 16)
    for _, e in ipairs(found) do
      for seq = q.head, math.min(e.seq, q.head + 10000) - 1 do call('ZADD', q.key .. ':x', seq, seq) end
      stamp = math.max(stamp, e.stamp)
      list(t, q, e)
    end
    if #found == 0 then
      for seq = q.head, math.min(last, q.head + 10000) - 1 do call('ZADD', q.key .. ':x', seq, seq) end
      q.head, q.changed = last, true
    end
  end
end

-- Which run of which server this is. It is looked for where the server's last save is another one than it was, as after each start
-- and each fail-over; brokers forget that time (`saved`) when they connect, and before they give a server its scripts. Who may not ask for
-- it (`LASTSAVE`) looks each time.
local running
local function run()
  if running then return running end
  local saved, known = redis.pcall('LASTSAVE'), call('HMGET', KEYS[1], 'saved', 'run')
  running = known[2]
  if not running or type(saved) == 'table' or known[1] ~= tostring(saved) then
    running = string.match(call('INFO', 'server'), 'run_id:(%x+)') or ''
    call('HSET', KEYS[1], 'saved', tostring(saved), 'run', running)
  end
  return running
end

local function gaps_of(q)
  local words = {}
  for n, gap in ipairs(q.gaps) do words[n] = gap[1] .. ':' .. gap[2] end
  return table.concat(words, ',')
end

-- A sequence above all that were given: a hundred a millisecond since 2020, which is what scripts can add at most. Fourteen digits
-- are what a number has here as a word.
local function above(head, now) return math.max(head, (now - 1577836800000) * 100) end

-- A server that was started, or has taken over, may have less than was given before: what its predecessor had not written yet, or
-- all since a backup. An offset stands for one message, so the partition goes on above them, and the gap is remembered.
local function begin_anew(t, q, now)
  if call('EXISTS', q.s) == 1 then catch_up(t, q) end
  local from = above(q.head, now)
  if q.head == q.start then
    q.start = from
  elseif from > q.head then
    q.gaps[#q.gaps + 1] = { q.head, from }
  end
  q.head, q.run = from, run()
  call('HSET', q.key, 'head', q.head, 'start', q.start, 'run', q.run, 'gaps', gaps_of(q))
end

-- Adds a message; `head` lacks what only this knows: when it came, and its place in the order of all.
local function push(t, p, now, head, body)
  local q = part(t, p)
  local target, cost, id, orig = string.match(head, '^%S+ (%S+) (%S+) %S+ (%S+) (%S+)')
  stamp = stamp or tonumber(call('GET', P .. 'n') or '0')
  if q.run ~= run() then begin_anew(t, q, now) end
  local at
  local function add()
    at, stamp = math.max(now, q.at), stamp + 1
    return redis.pcall('XADD', q.s, (q.head + 1) .. '-0', 'h', at .. ' ' .. stamp .. ' ' .. head, 'b', body)
  end
  local added = add()
  if type(added) == 'table' and string.find(added.err, 'equal or smaller', 1, true) then
    catch_up(t, q)
    added = add()
  end
  if type(added) == 'table' then error(added) end
  local seq = q.head
  list(t, q, { seq = seq, at = at, id = id, cost = tonumber(cost), target = target ~= '-' and target or nil,
    orig = orig ~= '-' and orig or nil })
  return seq, at
end

-- What is known of a message beside its place goes.
local function unlist(t, q, e)
  call('HDEL', t.key .. ':i', e.id)
  if e.orig then
    local left = {}
    for place in string.gmatch(call('HGET', t.key .. ':o', e.orig) or '', '[^,]+') do
      if place ~= q.p .. ':' .. e.seq then left[#left + 1] = place end
    end
    if #left > 0 then call('HSET', t.key .. ':o', e.orig, table.concat(left, ',')) else call('HDEL', t.key .. ':o', e.orig) end
  end
  if e.target then
    call('ZREM', q.key .. ':tg', e.seq)
    call('ZREM', q.key .. ':tg:' .. e.target, e.seq)
  end
  t.bytes, t.changed = t.bytes - e.cost, true
end

-- How many of a stretch are not there, or for others alone.
local function absent(g, q, from, till)
  local below = '(' .. till
  local none = call('ZCOUNT', q.key .. ':x', from, below) + call('ZCOUNT', q.key .. ':tg', from, below)
    - call('ZCOUNT', q.key .. ':tg:' .. g.id, from, below)
  for _, gap in ipairs(q.gaps) do none = none + math.max(math.min(gap[2], till) - math.max(gap[1], from), 0) end
  return none
end

-- How many a group has not come to.
local function fresh(g, q)
  local next = cursor(g, q)
  local waits = q.head - next - absent(g, q, next, q.head)
  for _, range in ipairs(call('ZRANGE', g.key .. ':S:' .. q.p, 0, -1)) do
    local from, till = string.match(range, '^(%d+):(%d+)$')
    from, till = math.max(tonumber(from), next), math.min(tonumber(till), q.head)
    if from < till then waits = waits - (till - from - absent(g, q, from, till)) end
  end
  return waits
end

-- Whether a group has yet to be done with a message.
local function is_open(g, q, seq)
  if seq < q.start or seq >= q.head or call('ZSCORE', q.key .. ':x', seq) then return false end
  for _, gap in ipairs(q.gaps) do if seq >= gap[1] and seq < gap[2] then return false end end
  if call('ZSCORE', g.key .. ':E:' .. q.p, seq) then return true end
  return seq >= cursor(g, q) and not settled_until(g, q, seq)
end

-- The next sequence from one on that is not settled, erased, or in a gap.
local function unsettled(g, q, seq)
  while true do
    local till = settled_until(g, q, seq)
    if not till and call('ZSCORE', q.key .. ':x', seq) then till = seq + 1 end
    for _, gap in ipairs(q.gaps) do if seq >= gap[1] and seq < gap[2] then till = gap[2] end end
    if not till then return seq end
    seq = till
  end
end

-- A group is done with a message, leased or not; false if it was before.
local function discard(g, q, seq)
  if not is_open(g, q, seq) then return false end
  local next = unsettled(g, q, cursor(g, q))
  if seq < next then
    forget(g, q.p, seq)
    touch(g)
    return true
  end
  if seq == next then
    next = unsettled(g, q, seq + 1)
  else
    settle_range(g, q, seq, seq + 1)
  end
  move(g, q, next)
  drop_ranges(g, q, next)
  return true
end

-- A partition of a group has no exceptions any more, but for what is a dead letter already, waits for its copy alone, and does not
-- come again by where the cursor goes.
local function clear(g, q, next)
  for _, seq in ipairs(call('ZRANGE', g.key .. ':E:' .. q.p, 0, -1)) do
    local is_dead = string.match(call('HGET', g.key .. ':H', q.p .. ':' .. seq) or '', '^F ')
    if not is_dead or tonumber(seq) >= next then forget(g, q.p, seq) end
  end
  call('UNLINK', g.key .. ':R:' .. q.p, g.key .. ':S:' .. q.p)
  touch(g)
end

-- Where a cursor goes, as the arguments say: partition -> sequence, for those that it goes in. A word, if it cannot.
local function places(t)
  local to, found = arg(), {}
  local p, value = arg(), num()
  if to == 'offset' or to == 'elsewhere' then
    if tonumber(p) >= t.parts then return nil, 'the topic has no partition ' .. p end
    -- In a lane that has nothing, and never will.
    if to == 'elsewhere' then return found end
    local q = part(t, p)
    found[p] = math.min(math.max(value, q.start), q.head)
    return found
  end
  for n = 0, t.parts - 1 do
    local q = part(t, tostring(n))
    if to == 'earliest' then found[q.p] = q.start
    elseif to == 'latest' then found[q.p] = q.head
    else found[q.p] = first(q, 'at', value) end
  end
  return found
end

-- Writes what was counted and moved; every script that changes something ends with it.
local function flush()
  for _, q in pairs(parts) do
    if q.changed then
      -- What is trimmed has no gaps.
      while q.gaps[1] and q.gaps[1][2] <= q.start do table.remove(q.gaps, 1) end
      call('HSET', q.key, 'head', q.head, 'start', q.start, 'at', q.at, 'rev', q.rev, 'gaps', gaps_of(q))
    end
  end
  for _, t in pairs(topics) do
    if t and t.changed then
      call('HSET', t.key, 'bytes', t.bytes)
      if t.appended > 0 then call('HINCRBY', t.key, 'appended', t.appended) end
      if t.removed > 0 then call('HINCRBY', t.key, 'removed', t.removed) end
    end
  end
  for _, g in pairs(groups) do
    if g then
      for p, next in pairs(g.moved or {}) do call('HSET', g.key, 'next:' .. p, next) end
      for total, by in pairs(g.totals) do if by ~= 0 then call('HINCRBY', g.key, total, by) end end
    end
  end
  for name, g in pairs(touched) do
    local held = call('ZRANGE', g.key .. ':L', 0, 0, 'WITHSCORES')[2]
    local waits = call('ZRANGE', g.key .. ':W', 0, 0, 'WITHSCORES')[2]
    local doomed = tonumber(call('ZRANGE', g.key .. ':D', 0, 0, 'WITHSCORES')[2])
    -- What cannot be buried keeps nobody from all else that is due.
    if doomed then doomed = math.max(doomed, tonumber(call('HGET', g.key, 'bury_at') or '0')) end
    local due = math.min(tonumber(held) or math.huge, tonumber(waits) or math.huge, doomed or math.huge)
    if due < math.huge then call('ZADD', P .. 'due', due, name) else call('ZREM', P .. 'due', name) end
  end
  if stamp then call('SET', P .. 'n', stamp) end
  local news = {}
  for id in pairs(woken) do
    call('HINCRBY', P .. 'w', id, 1)
    news[#news + 1] = id
  end
  return news
end
