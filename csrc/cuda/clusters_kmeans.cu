// Lloyd's iterations. Each assigns the rows by the search that serves selections; what the device
// finds out, that the means no longer move, makes all later launches return at once.
#include "clusters_kmeans.h"
#include "clusters_kmeans_members.cuh"
#include "clusters_means.h"
#include "clusters_rows.cuh"
#include "neighbors_search.cuh"

namespace dmlfast::cuda {

namespace {

// From this iteration on centres lie among the rows, or where they were: the scale stays.
constexpr int64_t kSettledScale = 2;

struct KMeansMemory {
  MembersTask task;
  uint8_t* is_finite;   // (rows,)
  int64_t* members[2];  // of the iterations in turns
  int64_t* labels;      // one class for the rows, another for the centres
  int64_t* order;       // as they are
  unsigned char* means;
  unsigned char* exact;
  PackPairMemory packed;
  SearchMemory search;

  template <class T>
  static KMeansMemory take(Workspace& workspace, const SelectArguments<T>& select,
                           const ClusterMeans& means, bool is_searched) {
    const int64_t rows = select.x.rows;
    const int64_t clusters = select.references.rows;
    KMeansMemory memory{};
    memory.task = MembersTask::take(workspace, rows, clusters);
    memory.is_finite = workspace.take<uint8_t>(rows);
    memory.members[0] = workspace.take<int64_t>(rows);
    memory.members[1] = workspace.take<int64_t>(rows);
    memory.labels = workspace.take<int64_t>(rows + clusters);
    memory.order = workspace.take<int64_t>(rows + clusters);
    memory.means = workspace.take<unsigned char>(cluster_means_bytes(means));
    memory.exact = workspace.take<unsigned char>(exact_workspace_bytes(all_queries(rows)));
    if (is_searched) {
      memory.packed = PackPairMemory::take(workspace, rows, clusters, select.x.columns, false);
      memory.search = SearchMemory::take(workspace, select);
    }
    return memory;
  }
};

// Rows are of one class, centres of another, so that each row selects among all centres.
__global__ void label_kernel(int64_t rows, int64_t clusters, int64_t* labels, int64_t* order) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows + clusters;
       i += int64_t{gridDim.x} * blockDim.x) {
    labels[i] = i < rows ? 0 : 1;
    order[i] = i < rows ? i : i - rows;
  }
}

// Before the centres are packed anew at the same scale.
__global__ void forget_references_kernel(PackScale* scale) {
  scale->has_infinite = 0;
  scale->greatest = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
}

template <class T>
class Lloyd {
 public:
  explicit Lloyd(const KMeans& a, void* workspace_address = nullptr, cudaStream_t stream = {})
      : a_(a), stream_(stream) {
    select_.x = a.x.as<T>();
    select_.references = {static_cast<const T*>(a.centers), a.clusters, a.x.columns, a.x.columns,
                          1};
    select_.thresholds = 1;
    select_.metric = Metric::sqeuclidean;
    select_.index = a.index;
    means_.x = a.x;
    means_.clusters = a.clusters;
    means_.means = {a.centers, a.x.type, a.x.columns};
    means_.keeps_empty = true;
    is_searched_ = a.x.rows * a.clusters >= kSearchedPairs;
    Workspace workspace(workspace_address);
    memory_ = KMeansMemory::take(workspace, select_, means_, is_searched_);
    bytes_ = workspace.bytes();
    memory_.task.is_finite = memory_.is_finite;
    memory_.task.index = a.index;
    select_.labels = memory_.labels;
    select_.order = memory_.order;
    select_.reference_labels = memory_.labels + a.x.rows;
    select_.reference_order = memory_.order + a.x.rows;
    select_.distance = memory_.task.values;
  }

  int64_t bytes() const { return bytes_; }

  void run() {
    DMLFAST_LAUNCH(label_kernel, element_blocks(a_.x.rows + a_.clusters), kElementThreads, stream_,
                   a_.x.rows, a_.clusters, memory_.labels, memory_.order);
    launch_finite_rows(a_.x, memory_.is_finite, stream_);
    if (is_searched_) {
      launch_query_classes(select_, memory_.search, nullptr, stream_);
    }
    for (int64_t step = 0;; ++step) {
      MembersTask task = memory_.task;
      task.members = memory_.members[step % 2];
      task.previous = step > 0 ? memory_.members[(step + 1) % 2] : nullptr;
      launch_begin_iteration(task, step == 0, stream_);
      assign(step);
      launch_inertia(task, a_.history, step, stream_);
      if (step == a_.iterations) {
        return;
      }
      launch_members(task, stream_);
      ClusterMeans means = means_;
      means.index = task.members;
      means.wanted = &memory_.task.state->changed;
      launch_cluster_means(means, memory_.means, stream_);
    }
  }

 private:
  // The nearest centre of each row and the float64 square of its distance.
  void assign(int64_t step) {
    Queries queries = all_queries(a_.x.rows);
    queries.count = &memory_.task.state->active;
    if (is_searched_) {
      const PackedPair pair = pack(step);
      launch_search_numbers(select_, pair, PackGroups{}, memory_.search, queries.count, stream_);
      queries = launch_search_levels<T, double>(select_, pair, memory_.search, queries,
                                                a_.shared_bytes, stream_);
    }
    launch_exact_select<T, double>(select_, queries, memory_.exact, stream_);
  }

  // Rows lie around their mean, and so do all centres but, at first, the initial ones.
  PackedPair pack(int64_t step) {
    const PackPairMemory& memory = memory_.packed;
    PackCentre centre{};
    centre.common = memory.centre;
    centre.wanted = &memory_.task.state->active;
    if (step < kSettledScale) {
      launch_column_means(select_.x, true, memory.sums, memory.centre, memory.scale, stream_);
      return launch_pack_centred(select_.x, select_.order, centre, select_.references,
                                 select_.reference_order, centre, false, select_.metric, memory,
                                 stream_);
    }
    DMLFAST_LAUNCH(forget_references_kernel, dim3{1}, 1, stream_, memory.scale);
    return {memory.x.view(a_.x.rows, a_.x.columns),
            launch_pack(select_.references, select_.reference_order, centre, memory.scale,
                        select_.metric, true, memory.y, stream_),
            memory.scale};
  }

  const KMeans a_;
  const cudaStream_t stream_;
  SelectArguments<T> select_{};
  ClusterMeans means_{};
  KMeansMemory memory_;
  bool is_searched_;
  int64_t bytes_;
};

template <class F>
auto with_lloyd(const KMeans& a, void* workspace, cudaStream_t stream, const F& f) {
  if (a.x.type == ElementType::float64) {
    return f(Lloyd<double>(a, workspace, stream));
  }
  return f(Lloyd<float>(a, workspace, stream));
}

}  // namespace

int64_t kmeans_bytes(const KMeans& a) {
  return with_lloyd(a, nullptr, {}, [](const auto& lloyd) { return lloyd.bytes(); });
}

void launch_kmeans(const KMeans& a, void* workspace, cudaStream_t stream) {
  with_lloyd(a, workspace, stream, [](auto lloyd) { lloyd.run(); });
}

}  // namespace dmlfast::cuda
