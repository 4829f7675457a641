// What each source file offers to the Python module (see bindings.cpp).

#pragma once

#include <pybind11/pybind11.h>

void bind_linear(pybind11::module_& module);
