// Who holds most of a chain, and who has least to do: index_python.Presence.leading defines it.
//
// Blocks that were stored together lie together and share a set: where they do, a row of them is
// compared at once. A match that leaps over such rows answers the same as one that goes block by block.
// It writes down who drops out where, a word of columns at a time, and not what each worker holds: that is
// told of the few who are picked, by the runs.

#include "_presence.h"

typedef struct { double load; uint32_t worker; } Claim;

typedef uint64_t Wide __attribute__((vector_size(16)));

typedef struct {
    uint32_t set, runs, words, drops, end;
    uint64_t alive[WORDS];  // the columns that hold all so far: not empty, of these words of a set
    uint16_t word[WORDS];
} Match;

static inline uint32_t touch(Presence *x, uint32_t id) {
    if (id == NONE) return 0;
    if (x->status[id].age != TOUCHED) x->status[id].age = TOUCHED;  // what is not written stays clean
    return x->status[id].set;
}

// Whether anybody who holds all blocks below `at` holds that one too, which is in slot id.
static inline bool advance(Presence *x, Match *m, size_t at, uint32_t id) {
    uint32_t set = touch(x, id), left = 0;
    if (set && set == m->set) return true;
    const Set *s = x->sets[set].set;
    for (uint32_t i = 0; i < m->words; i++) {
        uint32_t w = m->word[i];
        uint64_t still = m->alive[i] & any_tier(s, w), gone = m->alive[i] & ~still;
        if (gone) x->drops[m->drops++] = (Drop){(uint32_t)at, w, gone};
        m->alive[left] = still, m->word[left] = (uint16_t)w;
        left += still != 0;
    }
    m->words = left;
    m->set = set;
    if (left) x->runs[m->runs++] = (Run){(uint32_t)at, set};
    return left;
}

static inline Wide wide(const void *memory) {
    Wide made;
    memcpy(&made, memory, sizeof made);
    return made;
}

static inline Wide four(Status status) { return wide((Status[]){status, status, status, status}); }

// How many of the keys lie one after the other in the slots from id on and in this set. Each is compared, and
// touched: a row at once while all is as expected, then one by one. Beyond the last slot there is no set.
static uint32_t alike(Presence *x, const uint8_t *keys, size_t count, uint32_t id, uint32_t set) {
    const Wide expected = four((Status){set, TOUCHED}), sets = four((Status){.set = NONE >> 2});
    const uint64_t *key = x->keys + id;
    Status *status = x->status + id;
    size_t n = 0;
    for (; n + ROW <= count; n += ROW) {
        Wide other_keys = {0, 0}, others = {0, 0};
        __builtin_prefetch(key + n + AHEAD), __builtin_prefetch(key + n + AHEAD + ROW / 2);
        __builtin_prefetch(status + n + AHEAD);  // three cache lines
        for (size_t j = n; j < n + ROW; j += 2) other_keys |= wide(key + j) ^ wide(keys + j * sizeof *key);
        for (size_t j = n; j < n + ROW; j += 4) others |= wide(status + j) ^ expected;
        other_keys |= others & sets;
        if (other_keys[0] | other_keys[1]) break;
        for (size_t j = n; (others[0] | others[1]) && j < n + ROW; j++) status[j].age = TOUCHED;
    }
    for (; n < count && key[n] == key_at(keys, n) && status[n].set == set; n++) touch(x, id + (uint32_t)n);
    return (uint32_t)n;
}

// Fills the drops and the runs: who holds how much of the keys, and what was seen from where on.
static Match match(Presence *x, const uint8_t *keys, size_t count, bool leap) {
    Cursor c = {.keys = keys, .count = count, .last = NONE, .by = 1, .batch = 1};
    Match m = {0};
    size_t at = 0, more;
    for (uint32_t w = 0; w < x->words; w++)
        if (x->live[w]) m.alive[m.words] = x->live[w], m.word[m.words++] = (uint16_t)w;
    for (; at < count && advance(x, &m, at, locate(x, &c, at)); at += 1 + more) {
        const uint8_t *rest = keys + (at + 1) * sizeof(uint64_t);
        more = leap ? alike(x, rest, count - at - 1, c.last + 1, m.set) : 0;
        if (more) c.last += (uint32_t)more, c.by = 1;
    }
    m.end = (uint32_t)at;
    for (uint32_t i = 0; i < m.words; i++) x->drops[m.drops++] = (Drop){m.end, m.word[i], m.alive[i]};
    return m;
}

// What a worker holds of the keys.
static Pick weigh(const Presence *x, const Match *m, uint32_t worker) {
    Pick p = {.worker = worker};
    uint32_t tier, column = (uint32_t)x->column[worker];
    for (uint32_t i = 0; i < m->runs; i++) {
        if ((tier = best_tier(x->sets[x->runs[i].set].set, column)) == TIERS) break;
        p.blocks = i + 1 < m->runs ? x->runs[i + 1].start : m->end;
        if (tier) p.lower += p.blocks - x->runs[i].start;
    }
    return p;
}

static inline bool before(Claim a, Claim b) { return a.load != b.load ? a.load < b.load : a.worker < b.worker; }

// Adds a worker to the n least booked, which are in order and at most `top`. Returns how many they are.
static uint32_t claim(Claim *least, uint32_t n, uint32_t top, double load, uint32_t worker) {
    Claim made = {isnan(load) ? INFINITY : load, worker};
    if (n == top && !before(made, least[top - 1])) return n;
    uint32_t i = n < top ? n++ : top - 1;
    for (; i && before(made, least[i - 1]); i--) least[i] = least[i - 1];
    least[i] = made;
    return n;
}

// The top least booked of all workers.
static uint32_t idlest(const Presence *x, const double *booked, uint32_t top, Claim *least) {
    uint32_t n = 0;
    for (uint32_t worker = 0; worker < x->workers; worker++) {
        if (n == top && booked[worker] >= least[top - 1].load) continue;  // most of a large fleet
        if (x->column[worker] >= 0) n = claim(least, n, top, booked[worker], worker);
    }
    return n;
}

// The picks of the least booked in the drops from `from` to `until`, who hold equally many blocks.
static void pick_equals(const Presence *x, const Match *m, const double *booked, uint32_t from, uint32_t until,
                        uint32_t top, Pick *picks) {
    Claim least[MAX_TOP];
    uint32_t column, n = 0;
    for (; from < until; from++)
        EACH_COLUMN(column, x->drops[from].word, x->drops[from].bits) {
            uint32_t worker = (uint32_t)x->worker[column];
            n = claim(least, n, top, booked[worker], worker);
        }
    for (uint32_t i = 0; i < n; i++) picks[i] = weigh(x, m, least[i].worker);
}

// The top with most blocks, given the idlest of all. Returns how many.
static uint32_t pick_most(const Presence *x, const Match *m, const double *booked, uint32_t top,
                          const Pick *idle, uint32_t idles, Pick *picks) {
    uint32_t found = 0;
    for (uint32_t until = m->drops, from = until; until && found < top; until = from) {
        uint32_t blocks = x->drops[until - 1].at, size = 0, seen = 0;
        for (; from && x->drops[from - 1].at == blocks; from--)
            size += (uint32_t)__builtin_popcountll(x->drops[from - 1].bits);
        uint32_t wanted = size < top - found ? size : top - found;
        // The idlest of all are the idlest of these too. Most have just the root that everybody holds: there
        // are enough of them among those, and nobody else is asked.
        for (uint32_t i = 0; i < idles && seen < wanted; i++)
            if (idle[i].blocks == blocks) picks[found + seen++] = idle[i];
        if (seen < wanted) pick_equals(x, m, booked, from, until, wanted, picks + found);
        found += wanted;
    }
    return found;
}

// The top with most blocks and after them the top least booked; loads are by worker. Returns how many.
static uint32_t choose(const Presence *x, const Match *m, const double *booked, uint32_t top, Pick *picks) {
    Claim least[MAX_TOP];
    Pick idle[MAX_TOP];
    uint32_t idles = idlest(x, booked, top, least), j;
    for (uint32_t i = 0; i < idles; i++) idle[i] = weigh(x, m, least[i].worker);
    uint32_t holders = pick_most(x, m, booked, top, idle, idles, picks), found = holders;
    for (uint32_t i = 0; i < idles; i++) {
        for (j = 0; j < holders && picks[j].worker != idle[i].worker;) j++;
        if (j == holders) picks[found++] = idle[i];
    }
    return found;
}

// The picks have room for twice the top. Returns how many they are; NONE with an error set.
static uint32_t look(Presence *x, const uint8_t *keys, size_t count, const double *booked, size_t loads,
                     uint32_t top, bool leap, Pick *picks) {
    if (loads < x->workers) {
        PyErr_SetString(PyExc_ValueError, "booked needs a load for every worker");
        return NONE;
    }
    if (count > x->runs_size) {
        Run *grown = PyMem_Realloc(x->runs, count * sizeof *grown);
        if (!grown) return PyErr_NoMemory(), NONE;
        x->bytes += (count - x->runs_size) * sizeof *grown;
        x->runs = grown;
        x->runs_size = count;
    }
    Match m = match(x, keys, count, leap);
    return choose(x, &m, booked, top, picks);
}
