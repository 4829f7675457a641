// The one Python module of the compiled kernels.
//
// Owns the list of what is bound; each source file binds its own functions. Every kernel checks at
// run time which instructions this CPU has, so one build serves every x86-64 machine.

#include <pybind11/pybind11.h>

#include "bindings.h"

PYBIND11_MODULE(_native, module) {
  bind_activation(module);
  bind_attention(module);
  bind_linear(module);
  bind_linear_float32(module);
  bind_linear_int8(module);
  bind_logits(module);
  bind_norm(module);
  bind_shm(module);
}
