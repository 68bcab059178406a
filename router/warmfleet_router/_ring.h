// The homes of keys on a ring of points: policy/ring defines them.

// The owner of the first point from `at` on, and round, who is a member and has at most `most` in flight, else
// of the first member's; None: there is none. A new reference.
static PyObject *home_from(Py_ssize_t at, PyObject *owners, PyObject *members, double most) {
    PyObject *first = Py_None;
    for (Py_ssize_t i = 0, count = PyList_Size(owners); i < count; i++) {
        PyObject *worker = PyList_GetItem(owners, at + i < count ? at + i : at + i - count);
        int member = PySequence_Contains(members, worker);
        if (member < 0) return NULL;
        if (!member) continue;
        double busy = figure(worker, FLYING);
        if (PyErr_Occurred()) return NULL;
        if (busy <= most) return Py_NewRef(worker);
        if (first == Py_None) first = worker;
    }
    return Py_NewRef(first);
}

static Py_ssize_t first_from(const uint64_t *points, Py_ssize_t count, uint64_t key) {
    Py_ssize_t low = 0;
    while (low < count) {
        Py_ssize_t middle = (low + count) / 2;
        if (points[middle] < key) low = middle + 1;
        else count = middle;
    }
    return low;
}

static PyObject *homes_of(const Py_buffer *points, PyObject *owners, PyObject *keys, PyObject *members,
                          double most) {
    Py_ssize_t count = points->len / (Py_ssize_t)sizeof(uint64_t), wanted = PyList_Size(keys);
    if (count != PyList_Size(owners))
        return PyErr_Format(PyExc_ValueError, "%zd points are not all owned", count);
    PyObject *homes = PyList_New(wanted);
    for (Py_ssize_t i = 0; homes && i < wanted; i++) {
        uint64_t key = PyLong_AsUnsignedLongLong(PyList_GetItem(keys, i));
        PyObject *home =
            PyErr_Occurred() ? NULL : home_from(first_from(points->buf, count, key), owners, members, most);
        if (!home || PyList_SetItem(homes, i, home)) Py_CLEAR(homes);
    }
    return homes;
}

static PyObject *native_homes(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer points;
    PyObject *owners, *keys, *members;
    double most;
    if (!sequence_type && !offers_init()) return NULL;
    if (!PyArg_ParseTuple(args, "y*O!O!Od:homes", &points, &PyList_Type, &owners, &PyList_Type, &keys, &members,
                          &most))
        return NULL;
    PyObject *homes = homes_of(&points, owners, keys, members, most);
    PyBuffer_Release(&points);
    return homes;
}
