// Makes petkit._C importable; importing it registers the operators. Its functions serve `petkit
// doctor` and the choice of kernels. Written against the limited C API, so that one build serves
// every Python from 3.10.
#include <Python.h>
#include <torch/headeronly/version.h>

#include "petkit/kernels.h"

namespace {

#if defined(__clang__)
constexpr const char* compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* compiler = "gcc " __VERSION__;
#else
constexpr const char* compiler = "unknown";
#endif

PyObject* build_facts(PyObject*, PyObject*) {
#if defined(__x86_64__)
  PyObject* sets = Py_BuildValue("[sss]", "avx512", "avx2", "scalar");
#elif defined(__aarch64__)
  PyObject* sets = Py_BuildValue("[ss]", "neon", "scalar");
#else
  PyObject* sets = Py_BuildValue("[s]", "scalar");
#endif
  if (!sets)
    return nullptr;
  return Py_BuildValue("{s:s,s:s,s:N}", "compiler", compiler, "torch", TORCH_VERSION,
                       "instruction_sets", sets);
}

PyObject* available_kernels(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const petkit::Kernels* const* k = petkit::available_kernels(); names && *k; ++k) {
    PyObject* name = PyUnicode_FromString((*k)->name);
    if (!name || PyList_Append(names, name) != 0)
      Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* current_kernels(PyObject*, PyObject*) {
  return PyUnicode_FromString(petkit::kernels().name);
}

PyObject* use_kernels(PyObject*, PyObject* arguments) {
  const char* name = nullptr;
  if (!PyArg_ParseTuple(arguments, "s", &name))
    return nullptr;
  if (!petkit::use_kernels(name)) {
    PyErr_Format(PyExc_ValueError, "kernels '%s' do not run on this machine", name);
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"build_facts", build_facts, METH_NOARGS,
     "Compiler, torch version and instruction sets of the build."},
    {"available_kernels", available_kernels, METH_NOARGS,
     "Kernels that run here, the preferred ones first."},
    {"current_kernels", current_kernels, METH_NOARGS, "Name of the kernels in use."},
    {"use_kernels", use_kernels, METH_VARARGS, "Switch to the kernels of a name."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "CPU kernels of petkit's operators.", -1,
                          methods};

} // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
