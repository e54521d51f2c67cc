"""Scripts with one mistake each, made by replacing a piece of their text."""

from __future__ import annotations

from dataclasses import dataclass

from properties.system import genuine


@dataclass(frozen=True)
class Mutant:
    """`script` with `old` replaced by `new`: a mistake that somebody could make."""

    name: str
    script: str
    old: str
    new: str

    def text(self, name: str) -> str:
        """The scripts, this one broken. AssertionError where the piece stands there no more, or more than once."""
        text = genuine(name)
        if name != self.script:
            return text
        assert text.count(self.old) == 1, (
            f"mutant {self.name!r}: {self.old!r} is {text.count(self.old)} times in {name}"
        )
        return text.replace(self.old, self.new)


RELEASE_TO_SELF = Mutant("release to self", "finish", "group, '~released', 0,", "group, me, 0,")
FENCE_WITHOUT_COUNT = Mutant(
    "fence without the count", "finish", "p[1][2] == me and p[1][4] == item[5]", "p[1][2] == me"
)
RENEW_WITHOUT_COUNT = Mutant("renew without the count", "renew", "mine[held[i]] == held[i + 1]", "mine[held[i]]")

SUBTLE = (RELEASE_TO_SELF, FENCE_WITHOUT_COUNT, RENEW_WITHOUT_COUNT)

MUTANTS = (
    *SUBTLE,
    Mutant("fence without the owner", "finish", "p[1][2] == me and p[1][4]", "p[1][4]"),
    Mutant("no fence", "finish", "local p = redis.pcall('XPENDING', KEYS[item[2]], group, item[4], item[4], 1)",
           "if true then return true end\n  local p = {}"),
    Mutant("a release is not fenced", "finish", "function apply.released(item)\n  if not ours(item)",
           "function apply.released(item)\n  if false"),
    Mutant("a release counts as a delivery", "finish", "math.max(item[5] - 1, 0)", "item[5]"),
    Mutant("a release leaves the lease fresh", "finish", "'TIME', 0, 'RETRYCOUNT'", "'RETRYCOUNT'"),
    Mutant("effects whoever acknowledged", "finish", "item[4]) ~= 1 then return false end", "item[4]) > 1 then end"),
    Mutant("acknowledged after the effects", "finish", "  if not take(item) then return 0 end\n  for",
           "  for"),
    Mutant("a success leaves the entry", "finish",
           "if delete then call('XDEL', KEYS[item[2]], item[4]) end", ""),
    Mutant("plain successes delete what nobody was handed", "finish", "id, g[8], 'COUNT'", "id, '+', 'COUNT'"),
    Mutant("plain successes leave what is settled", "finish", "g[2] == group and ids or", "false or"),
    Mutant("successors take taken keys", "finish", "'NX', 'PX', n[8])", "'PX', n[8])"),
    Mutant("the duplicate key of a successor lasts", "finish", "n[3][2], 'NX', 'PX', n[8])", "n[3][2], 'NX')"),
    Mutant("a delayed successor is lost", "finish",
           "call('ZADD', KEYS[item[7]], string.format('%.0f', ms + n[5]), n[6])",
           ""),
    Mutant("a delayed successor is due", "finish", "ms + n[5]), n[6])", "0), n[6])"),
    Mutant("a successor's key is not looked at", "finish",
           "if error then return error end\n  end\n  if not take(item)",
           "end\n  if not take(item)"),
    Mutant("a retry is lost", "finish",
           "call('ZADD', KEYS[item[7]], string.format('%.0f', ms + item[8]), item[9])", ""),
    Mutant("a retry is due at once", "finish", "ms + item[8]), item[9])", "ms), item[9])"),
    Mutant("a dead letter is lost", "finish", "call('XADD', KEYS[item[7]], '*', 'deadLetteredAt', now, unpack(fields))",
           ""),
    Mutant("another server's entries are believed", "finish", "if not e[1] then return false end",
           "if not e[1] then return true end"),
    Mutant("counters without an end", "finish", "then call('EXPIRE', KEYS[stats], 7200) end", "then end"),
    Mutant("renew without the owner", "renew", "from, '+', 1000, me)", "from, '+', 1000)"),
    Mutant("renew counts as a delivery", "renew", "keep[#keep + 1] = 'JUSTID'", ""),
    Mutant("renew keeps nothing", "renew", "call('XCLAIM', KEYS[k], group, me, 0, unpack(keep))",
           "{unpack(keep)}"),
    Mutant("no marker", "enqueue", "KEYS[1], '', 'NX', 'PX', b[1])", "KEYS[1], '', 'PX', b[1])"),
    Mutant("a marker without an answer", "enqueue", "call('SET', KEYS[1], cmsgpack.pack(out), 'PX', b[1])",
           "call('SET', KEYS[1], cmsgpack.pack({}), 'PX', b[1])"),
    Mutant("a marker without an end", "enqueue", "cmsgpack.pack(out), 'PX', b[1])", "cmsgpack.pack(out))"),
    Mutant("no rollback of the duplicate key", "enqueue", "if dedupe then call('DEL', dedupe) end", ""),
    Mutant("the duplicate key lasts", "enqueue", "jobs[2], 'NX', 'PX', run[8])", "jobs[2], 'NX')"),
    Mutant("the duplicate key is taken over", "enqueue", "jobs[2], 'NX', 'PX', run[8])", "jobs[2], 'PX', run[8])"),
    Mutant("a delay is forgotten", "enqueue", "elseif delay > 0 then r =", "elseif delay < 0 then r ="),
    Mutant("promoted early", "promote", "'-inf', stamp,", "'-inf', '+inf',"),
    Mutant("promoted and lost", "promote", "redis.pcall('XADD', key, '*', unpack(f)) or", "'0-1' or"),
    Mutant("promoted and kept", "promote", "call('ZREM', set, member)  ", "  "),
    Mutant("reclaims what is not its own", "reclaim", "and p[3] >= idle and", "and"),
    Mutant("reclaims from other SDKs too soon", "reclaim", "or p[3] >= foreign)", "or p[3] >= idle)"),
    Mutant("reclaims its own as a crash", "reclaim", "if own then e =", "if false then e ="),
    Mutant("reclaims without counting", "reclaim", "me, 0, id); n = n + 1 end", "me, 0, id, 'RETRYCOUNT', n) end"),
    Mutant("never sees what was released", "reclaim",
           "room, '~released')) do claim(p) end", "room, '~released')) do end"),
    Mutant("recovers as a new delivery", "recover", "p[1], 'RETRYCOUNT', p[4])", "p[1])"),
    Mutant("recovers what is others'", "recover", "from, '+', 500, b[2])", "from, '+', 500)"),
    Mutant("recovers what is held", "recover", "if not held[p[1]] then", "if true then"),
    Mutant("prunes what is pending", "prune", "if d < 0 or d == 0 and pseq - seq <= 0 then past = pending[2] end", ""),
    Mutant("prunes consumers that hold something", "prune", "if info.pending == 0 and", "if"),
    Mutant("leaves with what it holds", "leave", "if pending[1] then left = left + 1\n  elseif", "if"),
    Mutant("a slot runs twice", "cron", "elseif last and slot <= last then return answer(0, last) end", "end"),
    Mutant("a dead job is put back and kept", "dead_retry", "call('XDEL', KEYS[1], id)", ""),
    Mutant("a dead job is not put back", "dead_retry", "call('XADD', KEYS[2], '*', unpack(rest))", ""),
)  # fmt: skip
