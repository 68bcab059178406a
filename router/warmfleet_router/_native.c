// What Python sees of _presence.h. The owner's thread keeps the GIL throughout, and no Python code
// runs while the structures are in use: arguments are turned into memory before, answers after.
// And the inner loops of a placement, _offers.h and _ring.h, which are all about Python's objects; and the hashing of
// prompts, _chain.h, where the processor can.

#define Py_LIMITED_API 0x030B0000
#include "_lookup.h"

#include <stddef.h>
#include <structmember.h>

static PyObject *attribute(const char *from, const char *name) {
    PyObject *imported = PyImport_ImportModule(from);
    PyObject *found = imported ? PyObject_GetAttrString(imported, name) : NULL;
    Py_XDECREF(imported);
    return found;
}

#include "_chain.h"
#include "_offers.h"
#include "_ring.h"

typedef struct {
    PyObject_HEAD
    Presence presence;
} Object;

static PyObject *doubles;  // array.array

// ---- arguments ---------------------------------------------------------------------------------

static int32_t column_of(const Object *self, long worker) {
    const Presence *x = &self->presence;
    if (worker >= 0 && worker < MAX_WORKERS && x->column[worker] >= 0) return x->column[worker];
    if (!PyErr_Occurred()) PyErr_Format(PyExc_IndexError, "no worker %ld", worker);
    return -1;
}

static bool packed(const Py_buffer *keys) {
    if (keys->len % 8 == 0 && keys->len / 8 < NONE) return true;
    PyErr_Format(PyExc_ValueError, "keys must be packed 8-byte keys, not %zd bytes", keys->len);
    return false;
}

// A buffer of doubles: as it is, or by way of an array.
static bool buffer_of(PyObject *loads, Py_buffer *view) {
    if (PyObject_CheckBuffer(loads) && !PyObject_GetBuffer(loads, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)) {
        if (view->format && !strcmp(view->format, "d")) return true;
        PyBuffer_Release(view);
    }
    PyErr_Clear();
    PyObject *copy = PyObject_CallFunction(doubles, "sO", "d", loads);
    bool done = copy && !PyObject_GetBuffer(copy, view, PyBUF_C_CONTIGUOUS);
    Py_XDECREF(copy);
    return done;
}

// ---- methods -----------------------------------------------------------------------------------

static PyObject *changed(Object *self, Kind kind, int worker, int tier, long long depth,
                         const Py_buffer *keys) {
    int32_t column = column_of(self, worker);
    if (column < 0 || !packed(keys)) return NULL;
    if (tier < 1 || tier > TIERS)
        return PyErr_Format(PyExc_ValueError, "tier must be from 1 to %d, not %d", TIERS, tier);
    if (depth < 0) return PyErr_Format(PyExc_ValueError, "depth must not be negative");
    Change c = {.kind = kind, .column = (uint32_t)column, .tier = (uint32_t)tier - 1};
    bool done = update(&self->presence, &c, keys->buf, (size_t)keys->len / 8, (uint64_t)depth);
    change_end(&self->presence, &c);
    return done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *index_store(Object *self, PyObject *args) {
    int worker, tier;
    long long depth;
    Py_buffer keys;
    if (!PyArg_ParseTuple(args, "iiLy*:store", &worker, &tier, &depth, &keys)) return NULL;
    PyObject *result = changed(self, ADD, worker, tier, depth, &keys);
    PyBuffer_Release(&keys);
    return result;
}

static PyObject *index_remove(Object *self, PyObject *args) {
    int worker, tier;
    Py_buffer keys;
    if (!PyArg_ParseTuple(args, "iiy*:remove", &worker, &tier, &keys)) return NULL;
    PyObject *result = changed(self, DROP, worker, tier, 0, &keys);
    PyBuffer_Release(&keys);
    return result;
}

// By worker: its leading blocks, and of those the ones in lower tiers alone, where there are any.
static PyObject *split(const Pick *picks, uint32_t found) {
    PyObject *held = PyDict_New(), *lower = PyDict_New(), *both = NULL;
    bool done = held && lower;
    for (uint32_t i = 0; done && i < found; i++) {
        const Pick *p = &picks[i];
        PyObject *worker = PyLong_FromUnsignedLong(p->worker), *blocks = PyLong_FromUnsignedLong(p->blocks);
        done = worker && blocks && !PyDict_SetItem(held, worker, blocks);
        if (done && p->lower) {
            PyObject *below = PyLong_FromUnsignedLong(p->lower);
            done = below && !PyDict_SetItem(lower, worker, below);
            Py_XDECREF(below);
        }
        Py_XDECREF(worker);
        Py_XDECREF(blocks);
    }
    if (done) both = PyTuple_Pack(2, held, lower);
    Py_XDECREF(held);
    Py_XDECREF(lower);
    return both;
}

static PyObject *index_leading(Object *self, PyObject *args) {
    Pick picks[2 * MAX_TOP];
    PyObject *booked;
    Py_buffer keys, loads;
    int top = 16, leap = true;
    uint32_t found = NONE;
    if (!PyArg_ParseTuple(args, "y*O|ip:leading", &keys, &booked, &top, &leap)) return NULL;
    if (top < 1 || top > MAX_TOP) PyErr_Format(PyExc_ValueError, "top must be from 1 to %d", MAX_TOP);
    else if (packed(&keys) && buffer_of(booked, &loads)) {
        found = look(&self->presence, keys.buf, (size_t)keys.len / 8, loads.buf,
                     (size_t)loads.len / sizeof(double), (uint32_t)top, leap, picks);
        PyBuffer_Release(&loads);
    }
    PyBuffer_Release(&keys);
    return found == NONE ? NULL : split(picks, found);
}

static PyObject *index_held(Object *self, PyObject *worker) {
    int32_t column = column_of(self, PyLong_AsLong(worker));
    return column < 0 ? NULL : PyLong_FromUnsignedLong(self->presence.held[column]);
}

static PyObject *index_seat(Object *self, PyObject *args) {
    Presence *x = &self->presence;
    int worker, column;
    if (!PyArg_ParseTuple(args, "ii", &worker, &column)) return NULL;
    if (worker < 0 || worker >= MAX_WORKERS || column < 0 || column >= MAX_COLUMNS || x->column[worker] >= 0)
        return PyErr_Format(PyExc_ValueError, "no seat %d for worker %d", column, worker);
    x->column[worker] = column;
    x->worker[column] = worker;
    x->held[column] = 0;
    x->live[column / 64] |= 1ull << column % 64;
    if (x->workers <= (uint32_t)worker) x->workers = (uint32_t)worker + 1;
    if (x->words <= (uint32_t)column / 64) x->words = (uint32_t)column / 64 + 1;
    Py_RETURN_NONE;
}

static PyObject *index_unseat(Object *self, PyObject *worker) {
    Presence *x = &self->presence;
    int32_t column = column_of(self, PyLong_AsLong(worker));
    if (column < 0) return NULL;
    x->column[x->worker[column]] = -1;
    x->live[column / 64] &= ~(1ull << column % 64);
    while (x->workers && x->column[x->workers - 1] < 0) x->workers--;
    return PyLong_FromLong(column);
}

static PyObject *index_withdraw(Object *self, PyObject *args) {
    uint64_t departed[WORDS] = {0};
    Presence *x = &self->presence;
    Py_buffer columns;
    unsigned int id, stop;
    bool done = true;
    if (!PyArg_ParseTuple(args, "y*II", &columns, &id, &stop)) return NULL;
    for (Py_ssize_t i = 0; i < columns.len && i < MAX_COLUMNS / 8; i++)
        departed[i / 8] |= (uint64_t)((uint8_t *)columns.buf)[i] << i % 8 * 8;
    PyBuffer_Release(&columns);
    Change c = {.kind = SWEEP, .departed = departed};
    for (; done && id < stop && id < x->used; id++)
        if (x->status[id].set) done = change(x, &c, id);
    change_end(x, &c);
    return done ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *index_memory(Object *self, PyObject *Py_UNUSED(none)) {
    const Presence *x = &self->presence;
    return PyLong_FromSize_t(x->bytes + x->used * (sizeof *x->keys + sizeof *x->status + sizeof *x->depths) + x->sets_used * sizeof(SetSlot));
}

static Py_ssize_t index_len(Object *self) { return self->presence.count; }

// ---- type and module ---------------------------------------------------------------------------

static bool presence_init(Presence *x, uint32_t cap) {
    static const Set empty;
    PyObject *salt = PyUnicode_FromString("warmfleet");  // its hash differs from process to process
    x->seed = salt ? (uint64_t)PyObject_Hash(salt) : 0;
    Py_XDECREF(salt);
    x->bytes = sizeof *x;
    x->cap = cap;
    x->free = NONE;
    x->sets_used = 1;
    memset(x->column, -1, sizeof x->column);
    size_t slots = (size_t)cap + AHEAD + 2 * ROW;  // rows and prefetches stay inside
    x->keys = PyMem_Calloc(slots, sizeof *x->keys);
    x->status = PyMem_Calloc(slots, sizeof *x->status);
    x->depths = PyMem_Calloc(cap, sizeof *x->depths);
    x->sets = PyMem_Calloc((size_t)cap + 3 * MEMOS, sizeof *x->sets);  // a change may hold 2 * MEMOS more
    if (x->sets) x->sets[0].set = (Set *)&empty;
    return salt && x->keys && x->status && x->depths && x->sets && table_init(x, &x->by_key) && table_init(x, &x->by_bits);
}

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"cap", NULL};
    long long cap = 1000000;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|L", names, &cap)) return NULL;
    if (cap < 1 || cap > MAX_CAP)
        return PyErr_Format(PyExc_ValueError, "cap must be from 1 to %d blocks, not %lld", MAX_CAP, cap);
    Object *self = (Object *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self && presence_init(&self->presence, (uint32_t)cap)) return (PyObject *)self;
    Py_XDECREF((PyObject *)self);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static int index_init(Object *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
    return 0;  // all is done in index_new
}

static void index_dealloc(Object *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Presence *x = &self->presence;
    for (uint32_t id = 1; x->sets && id < x->sets_used; id++)
        if (!(x->sets[id].free & 1)) PyMem_Free(x->sets[id].set);
    table_free(&x->by_key);
    table_free(&x->by_bits);
    PyMem_Free(x->keys);
    PyMem_Free(x->status);
    PyMem_Free(x->depths);
    PyMem_Free(x->sets);
    PyMem_Free(x->runs);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"store", (PyCFunction)index_store, METH_VARARGS, NULL},
    {"remove", (PyCFunction)index_remove, METH_VARARGS, NULL},
    {"leading", (PyCFunction)index_leading, METH_VARARGS, NULL},
    {"held", (PyCFunction)index_held, METH_O, NULL},
    {"memory", (PyCFunction)index_memory, METH_NOARGS, NULL},
    {"_seat", (PyCFunction)index_seat, METH_VARARGS, NULL},
    {"_unseat", (PyCFunction)index_unseat, METH_O, NULL},
    {"_withdraw", (PyCFunction)index_withdraw, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"cap", T_UINT, offsetof(Object, presence.cap), READONLY, NULL},
    {"gaps", T_ULONGLONG, offsetof(Object, presence.gaps), READONLY, NULL},
    {"_extent", T_UINT, offsetof(Object, presence.used), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, index_new},         {Py_tp_init, index_init},   {Py_tp_dealloc, index_dealloc},
    {Py_tp_methods, methods},       {Py_tp_members, members},   {Py_sq_length, index_len},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "warmfleet_router._native.Presence",
    .basicsize = sizeof(Object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

static PyMethodDef functions[] = {
    {"offers", native_offers, METH_VARARGS, NULL},
    {"nearest", native_nearest, METH_VARARGS, NULL},
    {"homes", native_homes, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) {
    doubles = attribute("array", "array");
    PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);
    bool done = doubles && made && chain_init(made) && type &&
                !PyModule_AddObjectRef(made, "Presence", type);
    Py_XDECREF(type);
    if (!done) Py_CLEAR(made);
    return made;
}
