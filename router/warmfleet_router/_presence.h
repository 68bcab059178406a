// The index's blocks in C: the same answers as index_python.py, which defines them. Read that first.
//
// What differs is how they are held. A block is 16 bytes in three arrays by slot, of which a scan reads
// only its key and four bytes more; a table of 8-byte entries leads from its key to its slot. What is
// held of a block is a *set*: a bit a column in one plane when all of it is in device memory, else in
// three. Equal sets exist once and are counted: the blocks of a chain share one, and a scan compares
// numbers.
//
// - The table is split into segments of about a thousand blocks, each growing by itself: nothing
//   waits for more than the move of one segment (some microseconds).
// - Blocks stored together lie together: a scan first tries the slot that the last step predicts
//   (memory in sequence), and only then the table, for BATCH keys at a time so that misses overlap.
// - The system provides the pages of the arrays of blocks and sets when they are first touched.
//
// No Python here but its allocator and its errors; _native.c shows this to Python.

#include <Python.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// As in seats.py and index_python.py.
enum { MAX_WORKERS = 4096, MAX_COLUMNS = 2 * MAX_WORKERS, TIERS = 3, MAX_CAP = 1 << 29, MAX_TOP = 64 };
enum { WINDOW = 16, NEW = 1, TOUCHED = 3, MAX_DEPTH = (1 << 24) - 1 };

enum { WORDS = MAX_COLUMNS / 64, SEGMENT = 1024, BATCH = 16, NEAR = 64, ROW = 16, AHEAD = 256, MEMOS = 16 };
#define NONE UINT32_MAX
// For every bit that is set: c is its column.
#define EACH_COLUMN(c, word, bits) \
    for (uint64_t b_ = (bits); b_ && (c = (word) * 64 + (uint32_t)__builtin_ctzll(b_), true); b_ &= b_ - 1)

typedef struct { uint32_t set : 30, age : 2; } Status;
typedef struct { uint64_t hash; uint32_t refs; uint16_t words, planes; uint64_t bits[]; } Set;
typedef union { Set *set; uintptr_t free; } SetSlot;  // free: twice the next free one, plus 1
typedef struct { uint64_t *slots; uint32_t size, count; } Segment;  // low half: the hash's; high: id + 1
typedef struct { Segment *segments; uint64_t mask; } Table;
typedef struct { uint32_t start, set; } Run;
typedef struct { uint32_t at, word; uint64_t bits; } Drop;  // columns of a word that hold just `at` blocks
typedef struct { uint32_t worker, blocks, lower; } Pick;  // leading blocks; of those, in lower tiers alone

typedef struct {
    uint32_t cap, count, used, free, hand, sets_used, sets_free;
    uint32_t words, workers;  // of a bit a column; one more than the highest worker
    unsigned long long gaps;
    size_t bytes, runs_size;
    uint64_t seed, live[WORDS], draft[TIERS * WORDS];  // draft: planes of a set being made
    uint64_t *keys;  // by slot, as the next two; of a free one, which has no set, the next free slot
    Status *status;
    uint32_t *depths;
    SetSlot *sets;  // number 0 is the empty set
    Table by_key, by_bits;
    Run *runs;
    int32_t column[MAX_WORKERS], worker[MAX_COLUMNS];  // -1: none
    uint32_t held[MAX_COLUMNS];
    Drop drops[MAX_COLUMNS];  // of a match, in order
} Presence;

static void *take(Presence *x, size_t bytes) {
    void *memory = PyMem_Calloc(1, bytes);
    if (memory) x->bytes += bytes;
    return memory;
}

static void give(Presence *x, void *memory, size_t bytes) {
    if (memory) x->bytes -= bytes;
    PyMem_Free(memory);
}

static inline uint64_t mix(uint64_t v) {
    v *= 0x9E3779B97F4A7C15u;
    v ^= v >> 32;
    v *= 0xD6E8FEB86659FD93u;
    return v ^ v >> 32;
}

static inline uint64_t key_at(const uint8_t *keys, size_t i) {
    uint64_t key;
    memcpy(&key, keys + i * sizeof key, sizeof key);
    return key;
}

// ---- table: hash -> id; the caller tells apart ids of equal hashes ------------------------------

static bool table_init(Presence *x, Table *t) {
    uint64_t segments = 1;
    while (x->cap / segments > SEGMENT) segments *= 2;
    t->mask = segments - 1;
    t->segments = take(x, segments * sizeof *t->segments);
    return t->segments;
}

static inline Segment *segment_of(const Table *t, uint64_t hash) {
    return &t->segments[hash >> 32 & t->mask];
}

static inline uint32_t home(const Segment *s, uint64_t hash) {
    return (uint32_t)((hash & NONE) * s->size >> 32);
}

static inline uint32_t after(const Segment *s, uint32_t i) { return i + 1 == s->size ? 0 : i + 1; }
static inline uint64_t entry(uint64_t hash, uint32_t id) { return (uint64_t)(id + 1) << 32 | (uint32_t)hash; }

// The first id from *i on whose low half of the hash is the same.
static inline uint32_t candidate(const Segment *s, uint64_t hash, uint32_t *i) {
    for (; s->size && s->slots[*i]; *i = after(s, *i))
        if ((uint32_t)s->slots[*i] == (uint32_t)hash) return (uint32_t)(s->slots[*i] >> 32) - 1;
    return NONE;
}

static void put(Segment *s, uint64_t slot) {
    uint32_t i = home(s, slot);
    while (s->slots[i]) i = after(s, i);
    s->slots[i] = slot;
}

static bool table_insert(Presence *x, Table *t, uint64_t hash, uint32_t id) {
    Segment *s = segment_of(t, hash);
    if ((s->count + 1) * 4 > s->size * 3) {  // by 1.25 to 1.75, so that segments do not grow in step
        Segment grown = {NULL, 8 + s->size + s->size / 4 + (uint32_t)hash % (s->size / 2 + 1), s->count};
        if (!(grown.slots = take(x, grown.size * sizeof *grown.slots))) return false;
        for (uint32_t i = 0; i < s->size; i++)
            if (s->slots[i]) put(&grown, s->slots[i]);
        give(x, s->slots, s->size * sizeof *s->slots);
        *s = grown;
    }
    put(s, entry(hash, id));
    s->count++;
    return true;
}

static void table_remove(Table *t, uint64_t hash, uint32_t id) {
    Segment *s = segment_of(t, hash);
    uint32_t hole = home(s, hash);
    while (s->slots[hole] != entry(hash, id)) hole = after(s, hole);
    for (uint32_t i = after(s, hole); s->slots[i]; i = after(s, i)) {
        uint32_t from = home(s, s->slots[i]);  // an entry at home between hole and i stays
        if (hole <= i ? hole < from && from <= i : hole < from || from <= i) continue;
        s->slots[hole] = s->slots[i];
        hole = i;
    }
    s->slots[hole] = 0;
    s->count--;
}

static void table_free(Table *t) {
    for (uint64_t i = 0; t->segments && i <= t->mask; i++) PyMem_Free(t->segments[i].slots);
    PyMem_Free(t->segments);
}

// ---- sets --------------------------------------------------------------------------------------

static inline uint64_t any_tier(const Set *s, uint32_t word) {
    if (word >= s->words) return 0;
    uint64_t bits = s->bits[word];
    for (uint32_t p = 1; p < s->planes; p++) bits |= s->bits[p * s->words + word];
    return bits;
}

// 0 to 2, or 3 for none.
static inline uint32_t best_tier(const Set *s, uint32_t column) {
    for (uint32_t p = 0; p < s->planes && column / 64 < s->words; p++)
        if (s->bits[p * s->words + column / 64] >> column % 64 & 1) return p;
    return TIERS;
}

static void release(Presence *x, uint32_t id) {
    Set *s = x->sets[id].set;
    if (!id || --s->refs) return;
    table_remove(&x->by_bits, s->hash, id);
    give(x, s, sizeof *s + (size_t)s->words * s->planes * 8);
    x->sets[id].free = (uintptr_t)x->sets_free << 1 | 1;
    x->sets_free = id;
}

static void retain(Presence *x, uint32_t id) {
    if (id) x->sets[id].set->refs++;
}

// The number of the one set that equals the draft, not yet counted; NONE without memory.
static uint32_t intern(Presence *x) {
    uint64_t hash = x->seed, in[TIERS] = {0};
    for (uint32_t i = 0; i < TIERS * x->words; i++) in[i / x->words] |= x->draft[i];
    if (!(in[0] | in[1] | in[2])) return 0;
    uint32_t planes = in[1] | in[2] ? TIERS : 1;
    size_t bytes = (size_t)planes * x->words * 8;
    for (uint32_t i = 0; i < planes * x->words; i++) hash = mix(hash ^ x->draft[i]);
    const Segment *s = segment_of(&x->by_bits, hash);
    for (uint32_t id, at = home(s, hash); (id = candidate(s, hash, &at)) != NONE; at = after(s, at)) {
        const Set *old = x->sets[id].set;
        if (old->words == x->words && old->planes == planes && !memcmp(old->bits, x->draft, bytes)) return id;
    }
    Set *set = take(x, sizeof *set + bytes);
    uint32_t id = x->sets_free ? x->sets_free : x->sets_used;
    if (!set || !table_insert(x, &x->by_bits, hash, id)) {
        give(x, set, sizeof *set + bytes);
        return NONE;
    }
    if (x->sets_free) x->sets_free = (uint32_t)(x->sets[id].free >> 1);
    else x->sets_used++;
    *set = (Set){.hash = hash, .words = (uint16_t)x->words, .planes = (uint16_t)planes};
    memcpy(set->bits, x->draft, bytes);
    x->sets[id].set = set;
    return id;
}

// ---- changes: one step applied to many blocks, remembered by the set that it started from -------

typedef enum { ADD, DROP, SWEEP } Kind;
typedef struct { uint32_t from, to, held; } Memo;
typedef struct { Kind kind; uint32_t column, tier; const uint64_t *departed; Memo memo[MEMOS]; } Change;

static void change_end(Presence *x, Change *c) {
    for (int i = 0; i < MEMOS; i++) release(x, c->memo[i].from), release(x, c->memo[i].to);
}

static const Memo *step(Presence *x, Change *c, uint32_t from) {
    Memo *m = &c->memo[from % MEMOS];
    if (m->from == from && (m->from || m->to)) return m;
    const Set *s = x->sets[from].set;
    memset(x->draft, 0, TIERS * x->words * 8);
    for (uint32_t p = 0; p < s->planes; p++)
        memcpy(x->draft + p * x->words, s->bits + p * s->words, s->words * sizeof *s->bits);
    uint64_t *word = &x->draft[c->tier * x->words + c->column / 64], bit = 1ull << c->column % 64;
    if (c->kind == ADD) *word |= bit;
    if (c->kind == DROP) *word &= ~bit;
    for (uint32_t i = 0; c->kind == SWEEP && i < TIERS * x->words; i++)
        x->draft[i] &= ~c->departed[i % x->words];
    uint32_t to = intern(x);
    if (to == NONE) return NULL;
    uint32_t was = best_tier(s, c->column) < TIERS, is = best_tier(x->sets[to].set, c->column) < TIERS;
    retain(x, from), retain(x, to);
    release(x, m->from), release(x, m->to);
    *m = (Memo){from, to, c->kind == SWEEP ? 0 : is - was};
    return m;
}

static void discard(Presence *x, uint32_t id) {
    table_remove(&x->by_key, mix(x->keys[id] ^ x->seed), id);
    x->keys[id] = x->free;
    x->status[id] = (Status){0};
    x->free = id;
    x->count--;
}

static bool change(Presence *x, Change *c, uint32_t id) {
    uint32_t from = x->status[id].set;
    const Memo *m = step(x, c, from);
    if (m && m->to != from) {
        retain(x, m->to), release(x, from);
        x->status[id].set = m->to;
        x->held[c->column] += m->held;
    }
    if (!x->status[id].set) discard(x, id);
    return m;
}

// ---- finding blocks ----------------------------------------------------------------------------

typedef struct {
    const uint8_t *keys;
    size_t count, from, until;      // the ids of the keys from `from` to `until` are known
    uint32_t last, by, ids[BATCH];  // the last id, and by how much it was above the one before
    uint32_t batch;                 // keys to look up at once when the guess is wrong again
} Cursor;

static uint32_t find(const Presence *x, uint64_t key) {
    uint64_t hash = mix(key ^ x->seed);
    const Segment *s = segment_of(&x->by_key, hash);
    for (uint32_t id, at = home(s, hash); (id = candidate(s, hash, &at)) != NONE; at = after(s, at))
        if (x->keys[id] == key) return id;
    return NONE;
}

static void find_batch(const Presence *x, Cursor *c, size_t i) {
    uint64_t hash[BATCH];
    size_t n = c->count - i < c->batch ? c->count - i : c->batch;
    for (size_t j = 0; j < n; j++) {
        hash[j] = mix(key_at(c->keys, i + j) ^ x->seed);
        const Segment *s = segment_of(&x->by_key, hash[j]);
        __builtin_prefetch(s->slots + home(s, hash[j]));
    }
    for (size_t j = 0; j < n; j++) {
        const Segment *s = segment_of(&x->by_key, hash[j]);
        uint32_t at = home(s, hash[j]);
        if ((c->ids[j] = candidate(s, hash[j], &at)) == NONE) continue;
        __builtin_prefetch(&x->keys[c->ids[j]]), __builtin_prefetch(&x->status[c->ids[j]]);
    }
    for (size_t j = 0; j < n; j++) {
        uint64_t key = key_at(c->keys, i + j);
        if (c->ids[j] != NONE && x->keys[c->ids[j]] != key) c->ids[j] = find(x, key);
    }
    c->from = i;
    c->until = i + n;
    c->batch = c->batch < BATCH ? 2 * c->batch : BATCH;
}

static inline bool is(const Presence *x, uint32_t id, uint64_t key) {
    return id < x->used && x->keys[id] == key && x->status[id].set;
}

// The slot of keys[i], or NONE; i rises one by one.
static inline uint32_t locate(const Presence *x, Cursor *c, size_t i) {
    uint32_t id = c->last + c->by;  // a far guess would be a miss of its own
    bool near = c->by + NEAR <= 2 * NEAR;
    if (i >= c->until && near && is(x, id, key_at(c->keys, i))) c->batch = 1;
    else if (i >= c->until) find_batch(x, c, i);
    if (i < c->until && (id = c->ids[i - c->from]) == NONE) return NONE;
    c->by = id - c->last;
    return c->last = id;
}

// ---- storing, removing, eviction ---------------------------------------------------------------

static void evict(Presence *x) {  // at the cap no slot is free: the window is full of blocks
    uint32_t victim = 0, worst = 0, slot = x->hand, column, window = x->cap < WINDOW ? x->cap : WINDOW;
    for (uint32_t i = 0; i < window; i++, slot = slot + 1 == x->cap ? 0 : slot + 1) {
        Status *b = &x->status[slot];
        uint64_t live = 0;
        for (uint32_t w = 0; w < x->words; w++) live |= any_tier(x->sets[b->set].set, w) & x->live[w];
        uint32_t claim = (uint32_t)!live << 26 | (uint32_t)(TOUCHED - b->age) << 24 | x->depths[slot];
        if (!i || claim > worst) victim = slot, worst = claim;
        if (b->age) b->age--;
    }
    x->hand = (uint32_t)(((uint64_t)x->hand + WINDOW) % x->cap);
    x->gaps += !(worst >> 26);
    uint32_t set = x->status[victim].set;
    for (uint32_t w = 0; w < x->words; w++)
        EACH_COLUMN(column, w, any_tier(x->sets[set].set, w) & x->live[w]) x->held[column]--;
    discard(x, victim);
    release(x, set);
}

static uint32_t insert(Presence *x, uint64_t key, uint64_t depth) {
    if (x->count >= x->cap) evict(x);
    uint32_t id = x->free != NONE ? x->free : x->used;
    if (!table_insert(x, &x->by_key, mix(key ^ x->seed), id)) return NONE;
    if (x->free != NONE) x->free = (uint32_t)x->keys[id];
    else x->used++;
    x->count++;
    x->keys[id] = key;
    x->status[id] = (Status){.age = NEW};
    x->depths[id] = depth < MAX_DEPTH ? (uint32_t)depth : MAX_DEPTH;
    return id;
}

static bool update(Presence *x, Change *c, const uint8_t *keys, size_t count, uint64_t depth) {
    Cursor at = {.keys = keys, .count = count, .last = NONE, .by = 1, .batch = BATCH};
    bool done = true;
    for (size_t i = 0; done && i < at.count; i++, depth++) {
        uint64_t key = key_at(at.keys, i);
        uint32_t id = locate(x, &at, i);  // known for a batch: an earlier key may have moved it since
        if (!is(x, id, key)) id = find(x, key);
        if (id == NONE && c->kind == DROP) continue;
        if (id == NONE) id = insert(x, key, depth);
        else if (c->kind == ADD) x->status[id].age = TOUCHED;
        done = id != NONE && change(x, c, at.last = id);
    }
    return done;
}
