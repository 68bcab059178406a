// The inner loops of a placement: offers_python defines them. The same operations on doubles in the same
// order, so the results are equal to the last bit. What is rare is asked of Python.

enum { GUESS, QUEUE_UNTIL, REST, CROWD, FULL_AT, REPORT, RATES, ROOM, FREEING, FLYING, FREE_BLOCKS, COMPLETION,
       PREFILL, SPAN, COEFFICIENTS, NAMES };
#define FLEET "warmfleet_router.fleet.worker"
static const char *const spelled[NAMES][3] = {
    {FLEET, "Worker", "guess"},        {FLEET, "Worker", "queue_until"},
    {FLEET, "Worker", "rest_s"},       {FLEET, "Worker", "crowd_s"},
    {FLEET, "Worker", "full_at"},      {FLEET, "Worker", "report"},
    {FLEET, "Worker", "rates"},        {FLEET, "Worker", "room"},
    {FLEET, "Worker", "freeing_s"},    {FLEET, "Worker", "flying"},
    {FLEET, "Report", "free_blocks"},  {"warmfleet_router.prices.pricing", "Rates", "completion"},
    {"warmfleet_router.prices.pricing", "Rates", "prefill"},
    {"warmfleet_router.prices.pricing", "Rates", "span"},
    {"warmfleet_router.prices.rates", "Line", "coefficients"}};
enum { WORKER, OVERLAP, WAIT, BRING, PREFILL_S, DECODE, SLOW, NOMINATED, EVICTION, PULL, FIELDS };

// The classes' own descriptors: asking them takes half of what looking their names up takes.
static struct { PyObject *descriptor; descrgetfunc get; } named[NAMES];
static PyTypeObject *candidate_type, *offers_type;  // policy.base.Candidate, offers_python.Offers
static PyTypeObject *sequence_type;                 // Offers, below
static double shortest_wait;  // traffic.SHORTEST_S

// What all offers of a placement have in common.
typedef struct {
    PyObject *bring;  // None: nothing can be brought
    PyObject *line;   // of the worker before, with its coefficients: most share theirs
    double base, token, pair;
    long long prompt, block_size, longest, shared;
    double reuse, now;
} Wanted;

// A Candidate's fields.
typedef struct {
    PyObject *worker, *pull;  // owned
    long long overlap, rank;
    double wait, bring, prefill, decode, weight, eviction;
    bool pulls;
} Offer;

typedef struct { double span, completion; } Pace;

static PyObject *new_of(PyTypeObject *type, Py_ssize_t size) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, size);
}

// ---- reading ------------------------------------------------------------------------------------

static inline double double_of(PyObject *number) {  // steals; -1 with an error set
    double value = number ? PyFloat_AsDouble(number) : -1.0;
    Py_XDECREF(number);
    return value;
}

static inline PyObject *part(PyObject *of, int name) { return named[name].get(named[name].descriptor, of, NULL); }

static inline double figure(PyObject *of, int name) { return double_of(part(of, name)); }

static inline double field(PyObject *tuple, Py_ssize_t i) { return PyFloat_AsDouble(PyTuple_GetItem(tuple, i)); }

static bool line_of(PyObject *rates, Wanted *w) {
    PyObject *line = part(rates, PREFILL);
    if (line == w->line) {
        Py_XDECREF(line);
        return line;
    }
    PyObject *list = line ? part(line, COEFFICIENTS) : NULL;
    if (list && PyList_Size(list) == 3) {
        w->base = PyFloat_AsDouble(PyList_GetItem(list, 0));
        w->token = PyFloat_AsDouble(PyList_GetItem(list, 1));
        w->pair = PyFloat_AsDouble(PyList_GetItem(list, 2));
    } else if (list && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a line has three coefficients");
    Py_XDECREF(list);
    Py_XDECREF(w->line);
    w->line = line;
    return !PyErr_Occurred();
}

static bool pace_of(PyObject *worker, Wanted *w, Pace *p) {
    PyObject *rates = part(worker, RATES);
    if (rates && line_of(rates, w)) {
        p->completion = figure(rates, COMPLETION);
        p->span = w->reuse != 0.0 ? figure(rates, SPAN) : 0.0;
    }
    Py_XDECREF(rates);
    return !PyErr_Occurred();
}

static double free_blocks(PyObject *worker) {
    PyObject *report = part(worker, REPORT);
    double blocks = report ? figure(report, FREE_BLOCKS) : -1.0;
    Py_XDECREF(report);
    return blocks;
}

// ---- one worker ---------------------------------------------------------------------------------

static double weight_of(PyObject *worker, double now) {
    if (now >= figure(worker, FULL_AT)) return 1.0;
    if (PyErr_Occurred()) return -1.0;
    return double_of(PyObject_CallMethod(worker, "weight", "d", now));
}

// Of what a worker is taken to hold that announces nothing.
static bool guessed(PyObject *worker, Offer *o) {
    PyObject *guess = part(worker, GUESS);
    if (guess && guess != Py_None)
        o->overlap = (long long)((double)o->overlap * double_of(PyObject_GetAttrString(guess, "confidence")));
    Py_XDECREF(guess);
    return !PyErr_Occurred();
}

static bool brought(PyObject *worker, const Wanted *w, Offer *o) {
    if (w->bring == Py_None) return true;
    double ready = 0.0;
    PyObject *made = PyObject_CallFunction(w->bring, "OLd", worker, o->overlap, o->wait), *pull;
    bool done = made && PyArg_ParseTuple(made, "LdO:bring", &o->overlap, &ready, &pull);
    if (done) Py_DECREF(o->pull), o->pull = Py_NewRef(pull), o->pulls = pull != Py_None;
    if (done && ready > o->wait) o->bring = ready - o->wait;
    Py_XDECREF(made);
    return done;
}

static double evicting(PyObject *worker, const Wanted *w, const Offer *o, const Pace *p) {
    double displaced = (double)(w->prompt - o->overlap) - free_blocks(worker) * (double)w->block_size;
    return displaced > 0.0 ? w->reuse * (w->base + displaced * (w->token + w->pair * p->span)) : 0.0;
}

// The overlap is the blocks that it holds, in tokens.
static bool offer_of(PyObject *worker, Wanted *w, Offer *o) {
    Pace p = {0};
    if (!guessed(worker, o) || !pace_of(worker, w, &p)) return false;
    if (o->overlap >= w->prompt) o->overlap = w->prompt - 1;
    double queue = figure(worker, QUEUE_UNTIL) - w->now, rest = figure(worker, REST);
    o->wait = queue > 0.0 ? rest + queue : rest;
    double lacking = (double)(w->prompt - o->overlap) - figure(worker, ROOM);
    if (lacking > 0.0) o->wait += lacking * figure(worker, FREEING);
    o->eviction = w->reuse != 0.0 ? evicting(worker, w, o, &p) : 0.0;
    if (PyErr_Occurred() || !brought(worker, w, o)) return false;
    double uncached = (double)(w->prompt - o->overlap);
    o->prefill = w->base + uncached * (w->token + w->pair * ((double)o->overlap + 0.5 * uncached));
    double completion = p.completion < (double)w->longest ? p.completion : (double)w->longest;
    o->decode = figure(worker, CROWD) * completion;
    o->weight = weight_of(worker, w->now);
    return !PyErr_Occurred();
}

// ---- all of them --------------------------------------------------------------------------------

// A sequence of Candidates, each of which is made when somebody looks at it: most are only compared.
typedef struct {
    PyObject_VAR_HEAD
    Offer offers[];
} Offers;

static void offers_dealloc(Offers *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (Py_ssize_t i = 0; i < Py_SIZE((PyObject *)self); i++) {
        Py_XDECREF(self->offers[i].worker);
        Py_XDECREF(self->offers[i].pull);
    }
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static Py_ssize_t offers_len(PyObject *self) { return Py_SIZE(self); }

// Puts a new object, or NULL, in its place.
static inline bool set_item(PyObject *tuple, Py_ssize_t i, PyObject *made) {
    return made && !PyTuple_SetItem(tuple, i, made);
}

static inline bool set_double(PyObject *tuple, Py_ssize_t i, double value) {
    return set_item(tuple, i, PyFloat_FromDouble(value));
}

static PyObject *offers_item(Offers *self, Py_ssize_t i) {
    if (i < 0 || i >= Py_SIZE((PyObject *)self)) return PyErr_Format(PyExc_IndexError, "no candidate %zd", i);
    const Offer *o = &self->offers[i];
    PyObject *t = new_of(candidate_type, FIELDS);
    bool done = t && set_item(t, WORKER, Py_NewRef(o->worker)) &&
                set_item(t, OVERLAP, PyLong_FromLongLong(o->overlap)) && set_double(t, WAIT, o->wait) &&
                set_double(t, BRING, o->bring) && set_double(t, PREFILL_S, o->prefill) &&
                set_double(t, DECODE, o->decode) && set_double(t, SLOW, o->weight) &&
                set_item(t, NOMINATED, PyLong_FromLongLong(o->rank)) && set_double(t, EVICTION, o->eviction) &&
                set_item(t, PULL, Py_NewRef(o->pull));
    if (!done) Py_CLEAR(t);
    return t;
}

static PyObject *summed(const Offers *made, const Wanted *w) {
    double shortest = INFINITY, soonest = INFINITY, least = INFINITY, holder = INFINITY, other = INFINITY;
    double visits = 0.0;
    Py_ssize_t count = Py_SIZE((PyObject *)made), holders = 0;
    for (const Offer *o = made->offers; o < made->offers + count; o++) {
        double own = o->wait + o->bring + o->prefill;
        visits += 1.0 / (o->wait + shortest_wait);
        if (o->wait < shortest) shortest = o->wait;
        if (own < soonest) soonest = own;
        if (o->prefill < least) least = o->prefill;
        double *best = o->overlap >= w->shared ? &holder : &other;
        if (o->prefill < *best) *best = o->prefill;
        holders += o->overlap >= w->shared;
    }
    PyObject *t = new_of(offers_type, 8);
    bool done = t && set_item(t, 0, Py_NewRef((PyObject *)made)) && set_double(t, 1, shortest) &&
                set_double(t, 2, (double)count / visits - shortest_wait) && set_double(t, 3, soonest) &&
                set_double(t, 4, least) && set_item(t, 5, PyLong_FromSsize_t(holders)) &&
                set_double(t, 6, holders ? holder : 0.0) && set_double(t, 7, holders < count ? other : 0.0);
    if (!done) Py_CLEAR(t);
    return t;
}

// Adds the offer of the worker in a slot, if it is a member.
static bool offered(Offers *made, PyObject *slot, PyObject *held, PyObject *workers, PyObject *members,
                    PyObject *ranks, Wanted *w) {
    Offer o = {.overlap = PyLong_AsLongLong(held) * w->block_size};
    PyObject *rank = PyDict_GetItemWithError(ranks, slot);
    if (rank) o.rank = PyLong_AsLongLong(rank);
    PyObject *worker = PyErr_Occurred() ? NULL : PyObject_GetItem(workers, slot);
    int member = worker ? PySequence_Contains(members, worker) : -1;
    if (member == 1) {
        o.worker = worker, o.pull = Py_NewRef(Py_None);
        bool done = offer_of(worker, w, &o);
        made->offers[Py_SIZE((PyObject *)made)] = o;
        Py_SET_SIZE((PyVarObject *)made, Py_SIZE((PyObject *)made) + 1);
        return done;
    }
    Py_XDECREF(worker);
    return !member;
}

static bool offers_init(void);

static PyObject *native_offers(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *workers, *members, *blocks, *ranks, *slot, *held;
    Wanted w = {.line = NULL};
    if (!sequence_type && !offers_init()) return NULL;
    if (!PyArg_ParseTuple(args, "O!OO!O!OLLLLdd:offers", &PyDict_Type, &workers, &members, &PyDict_Type, &blocks,
                          &PyDict_Type, &ranks, &w.bring, &w.prompt, &w.block_size, &w.longest, &w.shared,
                          &w.reuse, &w.now))
        return NULL;
    Py_ssize_t most = PyDict_Size(blocks), at = 0;
    PyObject *made = new_of(sequence_type, most);
    if (made) Py_SET_SIZE((PyVarObject *)made, 0);
    bool done = made;
    while (done && Py_SIZE(made) < most && PyDict_Next(blocks, &at, &slot, &held))
        done = offered((Offers *)made, slot, held, workers, members, ranks, &w);
    if (done && !Py_SIZE(made)) PyErr_SetString(PyExc_ValueError, "nobody offers anything");
    PyObject *result = PyErr_Occurred() ? NULL : summed((Offers *)made, &w);
    Py_XDECREF(w.line);
    Py_XDECREF(made);
    return result;
}

// ---- the cheapest -------------------------------------------------------------------------------

typedef struct { double soonest, late, following, outgrown, pace, most, share, least; } Market;

// What a candidate says, however it is held.
static Offer offer_at(PyObject *candidates, Py_ssize_t i) {
    if (Py_TYPE(candidates) == sequence_type) return ((Offers *)candidates)->offers[i];
    PyObject *t = PySequence_GetItem(candidates, i);
    Offer o = {0};
    if (t) {
        o.wait = field(t, WAIT), o.bring = field(t, BRING), o.prefill = field(t, PREFILL_S);
        o.decode = field(t, DECODE), o.weight = field(t, SLOW), o.eviction = field(t, EVICTION);
        o.pulls = PyTuple_GetItem(t, PULL) != Py_None;
    }
    Py_XDECREF(t);
    return o;
}

static double price_of(const Offer *o, const Market *m) {
    double own = o->wait + o->bring + o->prefill, factor = m->following, here = m->pace * o->wait;
    if (m->outgrown != 0.0) factor += m->outgrown * ((m->most < here ? m->most : here) - m->following);
    double late = own - m->soonest, eviction = o->pulls ? o->eviction * (1.0 + factor) : o->eviction;
    return (own + factor * o->prefill + eviction + o->decode + late * late / m->late) / o->weight;
}

static bool near_of(PyObject *candidates, Py_ssize_t count, const Market *m, double *prices, PyObject *near) {
    double limit = -INFINITY, least = INFINITY;
    for (Py_ssize_t i = 0; i < count; i++) {
        Offer o = offer_at(candidates, i);
        prices[i] = price_of(&o, m);
        if (i && prices[i] >= least) continue;
        double close = m->share * (o.wait + o.bring + o.prefill);
        least = prices[i], limit = least + (m->least > close ? m->least : close);
    }
    bool done = !PyErr_Occurred();
    for (Py_ssize_t i = 0; done && i < count; i++) {
        PyObject *t = prices[i] <= limit ? PySequence_GetItem(candidates, i) : NULL;
        done = t ? !PyList_Append(near, t) : !PyErr_Occurred();
        Py_XDECREF(t);
    }
    return done;
}

static PyObject *native_nearest(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *candidates;
    Market m;
    if (!PyArg_ParseTuple(args, "Odddddddd:nearest", &candidates, &m.soonest, &m.late, &m.following, &m.outgrown,
                          &m.pace, &m.most, &m.share, &m.least))
        return NULL;
    Py_ssize_t count = PySequence_Size(candidates);
    if (count < 0) return NULL;
    double *prices = PyMem_Malloc((size_t)count * sizeof *prices);
    PyObject *near = prices ? PyList_New(0) : PyErr_NoMemory();
    if (near && !near_of(candidates, count, &m, prices, near)) Py_CLEAR(near);
    PyMem_Free(prices);
    return near;
}

static PyType_Slot sequence_slots[] = {
    {Py_tp_dealloc, offers_dealloc}, {Py_sq_length, offers_len}, {Py_sq_item, offers_item}, {0, NULL},
};

static PyType_Spec sequence_spec = {
    .name = "warmfleet_router._native.Candidates",
    .basicsize = sizeof(Offers),
    .itemsize = sizeof(Offer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sequence_slots,
};

static bool named_of(int name) {
    PyObject *class = attribute(spelled[name][0], spelled[name][1]);
    PyObject *found = class ? PyObject_GetAttrString(class, spelled[name][2]) : NULL;
    Py_XDECREF(class);
    if (found) named[name].get = (descrgetfunc)PyType_GetSlot(Py_TYPE(found), Py_tp_descr_get);
    if (found && !named[name].get)
        PyErr_Format(PyExc_TypeError, "%s.%s is none of its slots", spelled[name][1], spelled[name][2]);
    named[name].descriptor = found;
    return named[name].get;
}

// When offers are first asked for: who has the index alone need not have what placements import.
static bool offers_init(void) {
    for (int i = 0; i < NAMES; i++)
        if (!named_of(i)) return false;
    candidate_type = (PyTypeObject *)attribute("warmfleet_router.policy.base", "Candidate");
    offers_type = candidate_type ? (PyTypeObject *)attribute("warmfleet_router.offers_python", "Offers") : NULL;
    shortest_wait = offers_type ? double_of(attribute("warmfleet_router.prices.traffic", "SHORTEST_S")) : 0.0;
    if (!PyErr_Occurred()) sequence_type = (PyTypeObject *)PyType_FromSpec(&sequence_spec);
    return sequence_type;
}
