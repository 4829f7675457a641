// What each source file offers to the Python module (see bindings.cpp).

#pragma once

#include <pybind11/pybind11.h>

void bind_activation(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_linear_float32(pybind11::module_& module);
void bind_linear_int8(pybind11::module_& module);
void bind_logits(pybind11::module_& module);
void bind_norm(pybind11::module_& module);
void bind_shm(pybind11::module_& module);
