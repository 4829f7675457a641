// Paged attention as torch sees it: one object per step, one call per layer.
//
// Owns the checks that keep every read and write inside its tensor, and the one parallel region of
// a call: turn and store, attend, merge.
#include "attention.h"

#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention_schedule.h"
#include "bindings.h"
#include "instructions.h"
#include "row_kernel.h"
#include "rows.h"

namespace deeprequest {
namespace {

// Aligned floats of the calling thread, kept from call to call.
class ThreadMemory {
 public:
  float* take(int64_t floats) {
    if (floats > size_) {
      memory_.reset(static_cast<float*>(::operator new(floats * 4, std::align_val_t{64})));
      size_ = floats;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

thread_local ThreadMemory scratch_memory;
thread_local ThreadMemory partial_memory;

// Over a bfloat16 cache, the one that every CPU has first.
const std::vector<const AttentionKernel*>& bf16_kernels() {
  static const auto found = [] {
    std::vector<const AttentionKernel*> kernels;
    if (has_avx2()) kernels.push_back(has_avx512() ? &ATTENTION_BF16_AVX512 : &ATTENTION_BF16_AVX2);
    if (has_avx512() && __builtin_cpu_supports("avx512bf16"))
      kernels.push_back(&ATTENTION_BF16_DOT);
    if (attention_engine_supported()) kernels.push_back(&ATTENTION_BF16_ENGINE);
    return kernels;
  }();
  return found;
}

std::vector<std::string> attention_variants() {
  std::vector<std::string> names;
  for (const AttentionKernel* kernel : bf16_kernels()) names.emplace_back(kernel->name);
  return names;
}

const AttentionKernel& kernel_of(at::ScalarType dtype, int64_t variant) {
  if (dtype != at::kFloat) return *bf16_kernels()[variant];
  return has_avx512() ? ATTENTION_FLOAT_AVX512 : ATTENTION_FLOAT_AVX2;
}

at::Tensor checked(const at::Tensor& tensor, at::ScalarType dtype, int64_t dim, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.dim() == dim && tensor.device().is_cpu(),
              name, " must be ", dtype, " with ", dim, " dimensions, on the CPU");
  return tensor.contiguous();
}

void check_range(const int64_t* values, int64_t count, int64_t limit, const char* name) {
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK(values[i] >= 0 && values[i] < limit, name, " ", values[i], " is outside ", limit);
}

class PagedAttention {
 public:
  // int32 cu_seqlens_q [B + 1], seq_lens_k [B], block_table [B, P]; int64 positions, slots [T].
  PagedAttention(const at::Tensor& cu_seqlens_q, const at::Tensor& seq_lens_k,
                 const at::Tensor& block_table, const at::Tensor& positions,
                 const at::Tensor& slots, int64_t block_size, int64_t variant)
      : borders_(checked(cu_seqlens_q, at::kInt, 1, "cu_seqlens_q")),
        lengths_(checked(seq_lens_k, at::kInt, 1, "seq_lens_k")),
        blocks_(checked(block_table, at::kInt, 2, "block_table")),
        positions_(checked(positions, at::kLong, 1, "positions")),
        slots_(checked(slots, at::kLong, 1, "slots")),
        block_size_(block_size),
        variant_(variant) {
    TORCH_CHECK(std::has_single_bit(static_cast<uint64_t>(block_size)),
                "the block size must be a power of two, not ", block_size);
    TORCH_CHECK(variant >= 0 && variant < static_cast<int64_t>(bf16_kernels().size()),
                "this CPU has no attention variant ", variant);
    check_requests();
  }

  // Turns and stores qkv [T, N + 2K, H] (overwritten), then attends: [T, N, H]. With `wanted`
  // (int64, indices into T) rows before a request's first wanted one are left unfilled.
  at::Tensor attend(const at::Tensor& kv_layer, const at::Tensor& qkv, const at::Tensor& cos,
                    const at::Tensor& sin, const std::optional<at::Tensor>& wanted) {
    check_layer(kv_layer, qkv, cos, sin);
    prepare(kv_layer, qkv, cos);
    const int64_t heads = shape_.num_kv_heads * shape_.group;
    at::Tensor out = at::empty({qkv.size(0), heads, shape_.head_dim}, qkv.options());
    const bool all = !wanted.has_value() || wanted->size(0) >= positions_.size(0);
    const AttentionSchedule narrowed = all ? AttentionSchedule{} : cut(firsts_of(*wanted).data());
    with_element(qkv, [&](auto element) {
      run<decltype(element)>(all ? schedule_ : narrowed, kv_layer, qkv, data<float>(cos),
                             data<float>(sin), out);
    });
    return out;
  }

 private:
  void check_requests() const {
    const int64_t requests = lengths_.size(0);
    TORCH_CHECK(borders_.size(0) == requests + 1 && blocks_.size(0) == requests,
                "cu_seqlens_q, seq_lens_k and block_table disagree on the number of requests");
    TORCH_CHECK(positions_.size(0) == slots_.size(0), "a position and a slot per token");
    const int32_t* borders = data<int32_t>(borders_);
    const int32_t* lengths = data<int32_t>(lengths_);
    TORCH_CHECK(borders[0] == 0 && borders[requests] == positions_.size(0),
                "cu_seqlens_q does not span the tokens");
    for (int64_t b = 0; b < requests; ++b) {
      const int32_t queries = borders[b + 1] - borders[b];
      TORCH_CHECK(queries >= 0 && queries <= lengths[b] &&
                      lengths[b] <= blocks_.size(1) * block_size_,
                  "request ", b, ": ", queries, " queries, ", lengths[b], " tokens and ",
                  blocks_.size(1), " blocks do not fit each other");
    }
  }

  void check_layer(const at::Tensor& kv_layer, const at::Tensor& qkv, const at::Tensor& cos,
                   const at::Tensor& sin) const {
    TORCH_CHECK(kv_layer.dim() == 5 && kv_layer.is_contiguous() &&
                    kv_layer.size(2) == block_size_ && kv_layer.scalar_type() == qkv.scalar_type(),
                "kv_layer must be [2, blocks, ", block_size_, ", K, H] in the dtype of qkv");
    TORCH_CHECK(qkv.dim() == 3 && qkv.stride(2) == 1 && qkv.stride(1) == qkv.size(2) &&
                    qkv.size(0) == positions_.size(0),
                "qkv must be [", positions_.size(0), ", N + 2K, H] without gaps within a token");
    TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && cos.sizes() == sin.sizes() &&
                    cos.dim() == 2 && cos.scalar_type() == at::kFloat &&
                    sin.scalar_type() == at::kFloat,
                "the rotary tables must be contiguous float32 [positions, H / 2]");
  }

  // The schedule, and the checks of indices, once per step: layers do not differ.
  void prepare(const at::Tensor& kv_layer, const at::Tensor& qkv, const at::Tensor& cos) {
    const HeadShape shape = shape_of(kv_layer, qkv);
    const int threads = at::get_num_threads();
    const std::vector<int64_t> key = {kv_layer.size(1), shape.num_kv_heads, shape.group,
                                      shape.head_dim,   cos.size(0),        threads};
    if (key == prepared_for_) return;
    TORCH_CHECK(cos.size(1) * 2 == shape.head_dim, "the rotary tables are of another head size");
    check_range(data<int64_t>(positions_), positions_.size(0), cos.size(0), "position");
    check_range(data<int64_t>(slots_), slots_.size(0), kv_layer.size(1) * block_size_, "slot");
    check_blocks(kv_layer.size(1));
    shape_ = shape;
    schedule_ = cut(data<int32_t>(borders_));
    prepared_for_ = key;
  }

  AttentionSchedule cut(const int32_t* firsts) const {
    const AttentionBatch batch{lengths_.size(0),
                               data<int32_t>(borders_),
                               firsts,
                               data<int32_t>(lengths_),
                               data<int32_t>(blocks_),
                               blocks_.size(1),
                               std::countr_zero(static_cast<uint32_t>(block_size_))};
    return cut_attention(batch, shape_, at::get_num_threads());
  }

  // By request, its first wanted query; its end where there is none.
  std::vector<int32_t> firsts_of(const at::Tensor& wanted) const {
    const at::Tensor rows = checked(wanted, at::kLong, 1, "wanted");
    const int64_t* row = data<int64_t>(rows);
    check_range(row, rows.size(0), positions_.size(0), "wanted row");
    const int32_t* borders = data<int32_t>(borders_);
    const int32_t* ends = borders + 1;
    std::vector<int32_t> firsts(ends, ends + lengths_.size(0));
    for (int64_t i = 0; i < rows.size(0); ++i) {
      const auto request = std::upper_bound(ends, ends + firsts.size(), row[i]) - ends;
      firsts[request] = std::min(firsts[request], static_cast<int32_t>(row[i]));
    }
    return firsts;
  }

  static HeadShape shape_of(const at::Tensor& kv_layer, const at::Tensor& qkv) {
    const int64_t kv_heads = kv_layer.size(3), head_dim = kv_layer.size(4);
    const int64_t heads = qkv.size(1) - 2 * kv_heads;
    TORCH_CHECK(qkv.size(2) == head_dim && head_dim % 2 == 0 && kv_heads > 0 && heads > 0 &&
                    heads % kv_heads == 0,
                "qkv and kv_layer disagree on heads");
    return {kv_heads, heads / kv_heads, head_dim};
  }

  void check_blocks(int64_t num_blocks) const {
    const int32_t* lengths = data<int32_t>(lengths_);
    for (int64_t b = 0; b < lengths_.size(0); ++b) {
      const int32_t* row = data<int32_t>(blocks_) + b * blocks_.size(1);
      const int64_t used = (lengths[b] + block_size_ - 1) / block_size_;
      for (int64_t i = 0; i < used; ++i)
        TORCH_CHECK(row[i] >= 0 && row[i] < num_blocks, "block ", row[i], " does not exist");
    }
  }

  template <class T>
  void run(const AttentionSchedule& schedule, const at::Tensor& kv_layer, const at::Tensor& qkv,
           const float* cos, const float* sin, const at::Tensor& out) {
    T* keys = data<T>(kv_layer);
    T* values = keys + kv_layer.numel() / 2;
    const AttentionKernel& kernel = kernel_of(qkv.scalar_type(), variant_);
    const AttentionCall call{
        qkv.data_ptr(),
        qkv.stride(0),
        out.data_ptr(),
        keys,
        values,
        shape_.num_kv_heads,
        shape_.group,
        shape_.head_dim,
        static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape_.head_dim))),
        partial_memory.take(schedule.partial_floats)};
    const RopeShape rope{shape_.num_kv_heads * shape_.group, shape_.num_kv_heads, shape_.head_dim};
    const int64_t* positions = data<int64_t>(positions_);
    const int64_t* slots = data<int64_t>(slots_);
    const int64_t half = rope.head_dim / 2, width = rope.num_kv_heads * rope.head_dim;
    in_order(
        schedule, kernel, call,
        [&](int64_t token) {
          row_kernel<T>().rope_and_store(data<T>(qkv) + token * call.query_stride,
                               cos + positions[token] * half, sin + positions[token] * half,
                               keys + slots[token] * width, values + slots[token] * width, rope);
        });
  }

  // store(token) for every token, then every piece, then every merge, over the same threads.
  template <class Store>
  void in_order(const AttentionSchedule& schedule, const AttentionKernel& kernel,
                const AttentionCall& call, Store store) {
    const int64_t tokens = positions_.size(0);
    const int64_t pieces = static_cast<int64_t>(schedule.pieces.size());
    const int64_t words =
        kernel.scratch(schedule.most_rows, shape_.num_kv_heads, shape_.head_dim);
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(schedule.threads) if (schedule.threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t token = 0; token < tokens; ++token) store(token);
      float* scratch = scratch_memory.take(words);
      bool warm = false;
      for (int64_t piece = next++; piece < pieces; warm = true) {
        const int64_t following = next++;
        kernel.run(call, schedule.pieces[piece],
                   following < pieces ? &schedule.pieces[following] : nullptr, warm, scratch);
        piece = following;
      }
#pragma omp barrier
      merge(schedule, kernel, call, scratch);
    }
  }

  void merge(const AttentionSchedule& schedule, const AttentionKernel& kernel,
             const AttentionCall& call, float* scratch) const {
    const int64_t heads = shape_.num_kv_heads * shape_.group;
    for (const AttentionMerge& merge : schedule.merges) {
      const int64_t rows = merge.num_queries * shape_.group;
      const int64_t stride = partial_stride(shape_.head_dim);
      const int64_t tile_stride = shape_.num_kv_heads * rows * stride;
#pragma omp for schedule(static) nowait
      for (int64_t at = 0; at < merge.num_queries * heads; ++at) {
        const int64_t query = at / heads, head = at % heads;
        const int64_t kv_head = head / shape_.group;
        const int64_t row = query * shape_.group + head % shape_.group;
        const int64_t tiles = (merge.first_position + query) / TILE_KEYS + 1;
        const float* first =
            call.partials + merge.first_partial + (kv_head * rows + row) * stride;
        kernel.merge(call, first, tile_stride, tiles, merge.first_query + query, head, scratch);
      }
    }
  }

  const at::Tensor borders_, lengths_, blocks_, positions_, slots_;
  const int64_t block_size_;
  const int64_t variant_;
  HeadShape shape_{};
  AttentionSchedule schedule_;
  std::vector<int64_t> prepared_for_;
};

}  // namespace
}  // namespace deeprequest

void bind_attention(pybind11::module_& module) {
  using Free = pybind11::call_guard<pybind11::gil_scoped_release>;
  using deeprequest::PagedAttention;
  using at::Tensor;
  namespace py = pybind11;
  module.def("attention_variants", &deeprequest::attention_variants);
  pybind11::class_<PagedAttention>(module, "PagedAttention")
      .def(pybind11::init<const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor&, int64_t, int64_t>(),
           Free())
      .def("attend", &PagedAttention::attend, py::arg("kv_layer"), py::arg("qkv"), py::arg("cos"),
           py::arg("sin"), py::arg("wanted") = py::none(), Free());
}
