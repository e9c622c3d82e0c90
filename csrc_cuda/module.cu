// Makes petkit._C_cuda importable; importing it registers the operators. build_facts() serves
// `petkit doctor`.
#include <Python.h>

#ifndef __CUDA_ARCH_LIST__
#error "nvcc 11.5 or later is needed: it names the compiled architectures in __CUDA_ARCH_LIST__"
#endif

#define PETKIT_TEXT_OF(value) #value
#define PETKIT_TEXT(value) PETKIT_TEXT_OF(value)

namespace {

// Architectures as nvcc counts them: 800 is sm_80.
PyObject* build_facts(PyObject*, PyObject*) {
  constexpr int architectures[] = {__CUDA_ARCH_LIST__};
  PyObject* names = PyList_New(0);
  for (const int architecture : architectures) {
    PyObject* name = names ? PyUnicode_FromFormat("sm_%d", architecture / 10) : nullptr;
    if (!name || PyList_Append(names, name) != 0) {
      Py_XDECREF(name);
      Py_XDECREF(names);
      return nullptr;
    }
    Py_DECREF(name);
  }
  return Py_BuildValue("{s:N,s:s}", "archs", names, "cuda",
                       PETKIT_TEXT(__CUDACC_VER_MAJOR__) "." PETKIT_TEXT(__CUDACC_VER_MINOR__));
}

PyMethodDef methods[] = {
    {"build_facts", build_facts, METH_NOARGS, "What the CUDA kernels were compiled for."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", "CUDA kernels of petkit's operators.",
                          -1, methods};

} // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
