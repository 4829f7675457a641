// The group of ranks as Python sees it. Owns the checks; addresses are those of contiguous tensors.
// Everything that may wait runs without the interpreter's lock.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "shm_group.h"

namespace py = pybind11;

namespace {

using Released = py::call_guard<py::gil_scoped_release>;

void reduce_float(shm::Group& group, std::uintptr_t values, std::size_t count) {
  group.all_reduce(reinterpret_cast<float*>(values), count);
}

void reduce_bfloat16(shm::Group& group, std::uintptr_t values, std::size_t count) {
  group.all_reduce(reinterpret_cast<std::uint16_t*>(values), count);
}

void gather(shm::Group& group, std::uintptr_t part, std::uintptr_t out, std::size_t bytes) {
  group.all_gather(reinterpret_cast<const char*>(part), reinterpret_cast<char*>(out), bytes);
}

}  // namespace

void bind_shm(py::module_& module) {
  module.attr("SHM_TOKEN_BYTES") = shm::kTokenBytes;
  module.attr("SHM_MAX_RANKS") = shm::kMaxRanks;
  module.def("shm_segment_bytes", &shm::segment_bytes);
  py::class_<shm::Group>(module, "ShmGroup")
      .def(py::init<int, int, int, std::size_t, const std::vector<int>&, double, int>(),
           py::arg("file"), py::arg("rank"), py::arg("ranks"), py::arg("slot_bytes"),
           py::arg("watched"), py::arg("timeout_s"), py::arg("spins"))
      .def("all_reduce_float32", &reduce_float, Released())
      .def("all_reduce_bfloat16", &reduce_bfloat16, Released())
      .def("all_gather", &gather, Released())
      .def("leave", &shm::Group::leave);
}
