-- fleet: the roster KEYS[1] and the ledger of versions KEYS[2], as they are at one moment: who sends or deals reads both at
-- each news.
return { redis.call('GET', KEYS[1]), redis.call('HGETALL', KEYS[2]) }
