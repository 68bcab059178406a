// Who holds most of a chain, and who has least to do: index_python.Presence.lookup defines it.
//
// Blocks that were stored together lie together and share a set: where they do, a row of them is
// compared at once. A match that leaps over such rows answers the same as one that goes block by block.

#include "_presence.h"

typedef struct { double load; uint32_t blocks, worker; } Claim;
typedef uint64_t Wide __attribute__((vector_size(sizeof(Block))));

typedef struct {
    uint32_t set, runs, words;
    uint64_t alive[WORDS];  // the columns that hold all so far: not empty, of these words of a set
    uint16_t word[WORDS];
} Match;

static inline uint32_t touch(Presence *x, uint32_t id) {
    if (id == NONE) return 0;
    if (x->blocks[id].age != TOUCHED) x->blocks[id].age = TOUCHED;  // what is not written stays clean
    return x->blocks[id].set;
}

// Whether anybody who holds all blocks below `at` holds that one too, which is in slot id.
static inline bool advance(Presence *x, Match *m, size_t at, uint32_t id) {
    uint32_t set = touch(x, id), column, left = 0;
    if (set && set == m->set) return true;
    const Set *s = x->sets[set].set;
    for (uint32_t i = 0; i < m->words; i++) {
        uint32_t w = m->word[i];
        uint64_t still = m->alive[i] & any_tier(s, w);
        EACH_COLUMN(column, w, at ? m->alive[i] & ~still : 0) x->blocks_of[column] = (uint32_t)at;
        m->alive[left] = still, m->word[left] = (uint16_t)w;
        left += still != 0;
    }
    m->words = left;
    m->set = set;
    if (left) x->runs[m->runs++] = (Run){(uint32_t)at, set};
    return left;
}

static inline Wide wide(Block block) {
    Wide made;
    memcpy(&made, &block, sizeof made);
    return made;
}

// How many of the keys, in whole rows, lie in the slots from id on and in this set. Each is compared,
// and touched.
static uint32_t alike(Presence *x, const uint8_t *keys, size_t count, uint32_t id, uint32_t set) {
    const Wide same = wide((Block){.key = UINT64_MAX, .set = UINT32_MAX}), touched = wide((Block){.age = TOUCHED});
    const uint64_t high = wide((Block){.set = set})[1];
    uint32_t n = 0;
    for (; n + ROW <= count && id + n + ROW <= x->used; n += ROW) {
        Block *b = &x->blocks[id + n];
        Wide odd = {0, 0}, all = touched;
        __builtin_prefetch(b + AHEAD), __builtin_prefetch(b + AHEAD + ROW / 2);  // each a cache line
        for (uint32_t j = 0; j < ROW; j++) {
            odd |= wide(b[j]) ^ (Wide){key_at(keys, n + j), high};
            all &= wide(b[j]);
        }
        odd &= same, all ^= touched;
        if (odd[0] | odd[1]) break;
        for (uint32_t j = 0; (all[0] | all[1]) && j < ROW; j++) b[j].age = TOUCHED;
    }
    return n;
}

// Fills blocks_of and runs: what was seen from where on. Returns how many runs.
static uint32_t match(Presence *x, const uint8_t *keys, size_t count, bool leap) {
    Cursor c = {.keys = keys, .count = count, .last = NONE, .by = 1, .batch = 1};
    Match m = {0};
    uint32_t column, more;
    bool any = true;
    for (uint32_t w = 0; w < x->words; w++)
        if (x->live[w]) m.alive[m.words] = x->live[w], m.word[m.words++] = (uint16_t)w;
    memset(x->blocks_of, 0, x->words * 64 * sizeof *x->blocks_of);
    for (size_t at = 0; at < count && (any = advance(x, &m, at, locate(x, &c, at))); at += 1 + more) {
        const uint8_t *rest = keys + (at + 1) * sizeof(uint64_t);
        more = leap ? alike(x, rest, count - at - 1, c.last + 1, m.set) : 0;
        if (more) c.last += more, c.by = 1;
    }
    for (uint32_t i = 0; any && i < m.words; i++)
        EACH_COLUMN(column, m.word[i], m.alive[i]) x->blocks_of[column] = (uint32_t)count;
    return m.runs;
}

static inline bool before(Claim a, Claim b) {
    if (a.blocks != b.blocks) return a.blocks > b.blocks;
    return a.load != b.load ? a.load < b.load : a.worker < b.worker;
}

// Keeps the best in order; the rest of the places hold what any claim comes before.
static void insert_claim(Claim *best, uint32_t top, Claim claim) {
    uint32_t i = top - 1;
    for (; i && before(claim, best[i - 1]); i--) best[i] = best[i - 1];
    best[i] = claim;
}

static Pick pick(const Presence *x, uint32_t worker) {
    uint32_t column = (uint32_t)x->column[worker];
    return (Pick){.column = column, .worker = worker, .blocks = x->blocks_of[column]};
}

// The top with most blocks and after them the top least booked; loads are by worker. Returns how many.
static uint32_t choose(const Presence *x, const double *booked, size_t loads, uint32_t top, Pick *picks) {
    Claim most[MAX_TOP], idle[MAX_TOP], last = {INFINITY, 0, NONE}, last_idle = last;
    uint32_t column, found = 0, j;
    for (uint32_t i = 0; i < top; i++) most[i] = idle[i] = last;
    for (uint32_t w = 0; w < x->words; w++)
        EACH_COLUMN(column, w, x->live[w]) {
            Claim claim = {0, x->blocks_of[column], (uint32_t)x->worker[column]};
            if (claim.worker >= loads) return NONE;
            claim.load = booked[claim.worker];
            bool fewer = claim.blocks < last.blocks || (claim.blocks == last.blocks && claim.load > last.load);
            if (fewer && claim.load > last_idle.load) continue;  // most of a large fleet
            if (isnan(claim.load)) claim.load = INFINITY;
            if (claim.blocks && before(claim, last)) insert_claim(most, top, claim);
            claim.blocks = 0;
            if (before(claim, last_idle)) insert_claim(idle, top, claim);
            last = most[top - 1], last_idle = idle[top - 1];
        }
    for (; found < top && most[found].worker != NONE; found++) picks[found] = pick(x, most[found].worker);
    uint32_t holders = found;
    for (uint32_t i = 0; i < top && idle[i].worker != NONE; i++) {
        for (j = 0; j < holders && most[j].worker != idle[i].worker;) j++;
        if (j == holders) picks[found++] = pick(x, idle[i].worker);
    }
    return found;
}

static void count_tiers(const Presence *x, uint32_t runs, Pick *p) {
    for (uint32_t i = 0; i < runs && x->runs[i].start < p->blocks; i++) {
        uint32_t end = i + 1 < runs && x->runs[i + 1].start < p->blocks ? x->runs[i + 1].start : p->blocks;
        p->tier[best_tier(x->sets[x->runs[i].set].set, p->column)] += end - x->runs[i].start;
    }
}

// The picks have room for twice the top. Returns how many they are; NONE with an error set.
static uint32_t look(Presence *x, const uint8_t *keys, size_t count, const double *booked, size_t loads,
                     uint32_t top, bool leap, Pick *picks) {
    if (count > x->runs_size) {
        Run *grown = PyMem_Realloc(x->runs, count * sizeof *grown);
        if (!grown) return PyErr_NoMemory(), NONE;
        x->bytes += (count - x->runs_size) * sizeof *grown;
        x->runs = grown;
        x->runs_size = count;
    }
    uint32_t runs = match(x, keys, count, leap), found = choose(x, booked, loads, top, picks);
    if (found == NONE) return PyErr_SetString(PyExc_ValueError, "booked needs a load for every worker"), NONE;
    for (uint32_t i = 0; i < found; i++) count_tiers(x, runs, &picks[i]);
    return found;
}
