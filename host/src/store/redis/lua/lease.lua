-- Grants messages that wait for a group: first those of a partition that come again, which are the older ones.
local t = topic(arg())
if not t then return { 'no_topic' } end
local g = group(t, arg())
if not g then return { 'no_group' } end
local now, left, bytes_max, duration, epoch, grant, holder = clock(), num(), num(), num(), arg(), num(), arg()
-- Looks at so many more than it grants, and at so many bytes: what it does not come to waits for the next call.
local looks, weight = left + 1000, 64 * 1024 * 1024
local granted, bytes, deadline, full, buries = {}, 0, now + duration, false, 0
ready(g, now, 1000)

local function open(p, seq, score, record)
  local m = p .. ':' .. seq
  call('ZADD', g.key .. ':E:' .. p, seq, seq)
  call('HSET', g.key .. ':H', m, record)
  call('ZADD', g.key .. ':L', score, m)
  call('ZREM', g.key .. ':R:' .. p, seq)
end

-- Whether a message was dealt with: granted, or passed over for good.
local function take(q, e, attempts)
  looks, weight = looks - 1, weight - e.cost
  if e.at <= now - t.keep then
    count(g, 'expired', 1)
    if attempts then forget(g, q.p, e.seq) end
  elseif e.expires and e.expires <= now then
    if t.dead_expired and grave(t) then
      -- Its copy is made by who can read it, and until then nobody gets it.
      open(q.p, e.seq, 0, 'X ' .. (attempts or 0))
      buries = buries + 1
    else
      count(g, 'expired', 1)
      if attempts then forget(g, q.p, e.seq) end
    end
  elseif left < 1 or (#granted > 0 and bytes + e.plen > bytes_max) then
    full = true
    return false
  else
    local attempt = (attempts or 0) + 1
    open(q.p, e.seq, deadline, attempt .. ' ' .. epoch .. ' ' .. grant .. ' ' .. e.id .. ' ' .. holder)
    granted[#granted + 1] = { q.p, e.seq, attempt, grant, e.head, e.body }
    grant, left, bytes = grant + 1, left - 1, bytes + e.plen
  end
  full = full or looks < 1 or weight < 1
  return true
end

local function take_again(q)
  while not full do
    local seqs = call('ZRANGE', g.key .. ':R:' .. q.p, 0, 15)
    if #seqs == 0 then return end
    for _, seq in ipairs(seqs) do
      local e = read(q, tonumber(seq))
      if not e then
        forget(g, q.p, seq)
      elseif not take(q, e, tonumber(call('HGET', g.key .. ':A', q.p .. ':' .. seq) or '0')) or full then
        return
      end
    end
  end
end

local function take_fresh(q)
  local next = cursor(g, q)
  local before = next
  while not full and next < q.head do
    local found = entries(q, next, 16)
    if #found == 0 then next = q.head end
    for _, e in ipairs(found) do
      local till = settled_until(g, q, e.seq)
      if till then
        -- What is passed over counts as a look, too: no call goes through all of a backlog.
        looks = looks - 1
        full = full or looks < 1
        next = math.min(till, q.head)
        break
      elseif e.target and e.target ~= g.id then
        looks, weight = looks - 1, weight - e.cost
        full = full or looks < 1 or weight < 1
      elseif not take(q, e) then
        next = e.seq
        break
      end
      next = e.seq + 1
      if full then break end
    end
  end
  if next > before then
    move(g, q, next)
    drop_ranges(g, q, next)
  end
end

-- Each call begins with another partition, so that none waits for another.
local turn = call('HINCRBY', g.key, 'turn', 1)
local more = false
for n = 0, t.parts - 1 do
  local q = part(t, tostring((turn + n) % t.parts))
  if not full then take_again(q) end
  if not full then take_fresh(q) end
  more = more or cursor(g, q) < q.head or call('ZCARD', g.key .. ':R:' .. q.p) > 0
end
more = more or #call('ZRANGEBYSCORE', g.key .. ':W', '-inf', now, 'LIMIT', 0, 1) > 0
count(g, 'delivered', #granted)
if #granted > 0 or buries > 0 then touch(g) end
flush()
return { 'ok', more and 1 or 0, buries, deadline, granted }
