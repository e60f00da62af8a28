// Every operator of dmlfast: the table of contents. x is (N, d), references (M, d); labels and
// orders are int64, an order being the stable permutation that sorts the labels. fast allows what
// torch.set_float32_matmul_precision("high") does: products of less than float32; on CUDA alone.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(dmlfast, m) {
  // neighbors: per anchor (and threshold) the best reference under a label rule, -1 for none.
  // beyond is (N, T) float64, contiguous; distance and index are (N, T), T = 1 without beyond.
  m.def(
      "neighbors_select(Tensor x, Tensor labels, Tensor order, Tensor references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, Tensor? beyond, "
      "str metric, bool same_class, bool farthest) -> (Tensor distance, Tensor index)");
  // For benchmarks, on CUDA alone: of the selections of another class, how many a search left
  // undecided at half precision, and how many at split precision; (2,) int32.
  m.def(
      "neighbors_search_counts(Tensor x, Tensor labels, Tensor order, Tensor references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, Tensor? beyond, "
      "str metric) -> Tensor");
  // Per anchor the k nearest references, ascending; candidates is "all", "positives" or
  // "negatives". Its gradients are those of neighbors_select, too.
  m.def(
      "neighbors_top(Tensor x, Tensor labels, Tensor order, Tensor references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, SymInt k, "
      "str candidates, str metric) -> (Tensor distance, Tensor index)");
  // Per anchor a reference of another class, (N, 1): the fallback, a row or -1 for none; where
  // weighted, one in proportion to its distance weight, by inversion of the (N,) float64 uniform
  // numbers, unless all weights are 0. Its gradients are those of neighbors_select, too.
  m.def(
      "neighbors_sample(Tensor x, Tensor labels, Tensor order, Tensor references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, Tensor uniform, "
      "Tensor fallback, bool weighted, float cutoff, float nonzero_loss_cutoff, str metric) "
      "-> (Tensor distance, Tensor index)");
  // Gradients of distance(x[i], references[index[i, t]]) for an (N, T) upstream gradient.
  // slot_order is the stable permutation that sorts the flattened index.
  m.def(
      "neighbors_select_backward(Tensor grad, Tensor x, Tensor references, Tensor index, "
      "Tensor slot_order, str metric) -> (Tensor grad_x, Tensor grad_references)");

  // contrast: per anchor the sum of its active triplets' losses and their number, over all
  // positives or one and all negatives, the hardest or the semi-hard one.
  m.def(
      "contrast_triplet(Tensor x, Tensor labels, Tensor order, Tensor references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, str metric, "
      "str positives, str negatives, float margin, bool fast) -> (Tensor loss, Tensor active)");
  // Gradients of the sums for an (N,) upstream gradient; recomputes the pairs.
  m.def(
      "contrast_triplet_backward(Tensor grad, Tensor x, Tensor labels, Tensor order, "
      "Tensor references, Tensor reference_labels, Tensor reference_order, Tensor? self_index, "
      "str metric, str positives, str negatives, float margin, bool fast) "
      "-> (Tensor grad_x, Tensor grad_references)");
  // contrast: per anchor a sum over its positives and one over its negatives, each of a form of
  // its own, and the numbers of partners summed. Without references the batch is its own.
  m.def(
      "contrast_sums(Tensor x, Tensor labels, Tensor order, Tensor? references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, "
      "Tensor? positive_bound, Tensor? negative_bound, str metric, str positive_form, "
      "float positive_scale, str negative_form, float negative_scale, bool fast) "
      "-> (Tensor positive, Tensor negative, Tensor positive_count, Tensor negative_count)");
  // Gradients of the sums for (N,) upstream gradients; recomputes the pairs. Without references
  // grad_x is the whole gradient and grad_references has no rows.
  m.def(
      "contrast_sums_backward(Tensor grad_positive, Tensor grad_negative, Tensor positive, "
      "Tensor negative, Tensor x, Tensor labels, Tensor order, Tensor? references, "
      "Tensor reference_labels, Tensor reference_order, Tensor? self_index, "
      "Tensor? positive_bound, Tensor? negative_bound, str metric, str positive_form, "
      "float positive_scale, str negative_form, float negative_scale, bool fast) "
      "-> (Tensor grad_x, Tensor grad_references, Tensor grad_positive_bound, "
      "Tensor grad_negative_bound)");

  // pairwise: all distances, (N, M). Without references the batch is its own, also below: then
  // grad_x is the whole gradient and grad_references has no rows. A pair with a row that is not
  // finite has distance NaN, and gradient NaN to both rows unless its upstream gradient is 0.
  m.def("pairwise_distance(Tensor x, Tensor? references, str metric, bool fast) -> Tensor");
  m.def(
      "pairwise_distance_backward(Tensor grad, Tensor distance, Tensor x, Tensor? references, "
      "str metric, bool fast) -> (Tensor grad_x, Tensor grad_references)");
  // pairwise: per anchor the float64 sums of D - centre and of its square over the references
  // without self, which within a batch is the anchor's own row. centre is (1,) float64.
  m.def(
      "pairwise_moments(Tensor x, Tensor? references, Tensor? self_index, Tensor centre, "
      "str metric, bool fast) -> (Tensor first, Tensor second)");
  // Gradients of the sums for (N,) upstream gradients; recomputes the pairs.
  m.def(
      "pairwise_moments_backward(Tensor grad_first, Tensor grad_second, Tensor x, "
      "Tensor? references, Tensor? self_index, Tensor centre, str metric, bool fast) "
      "-> (Tensor grad_x, Tensor grad_references)");

  // ranking: per row of (B, J) similarities log(1 + sum exp(scale (s_k - s_j + margin))) / scale
  // over pairs of columns j < k; pairs is "all", "adjacent" or "band". NaN for a row that is not
  // finite.
  m.def("ranking_loss(Tensor similarities, float margin, float scale, str pairs) -> Tensor");
  // Gradient for a (B,) upstream gradient; recomputes the sums.
  m.def(
      "ranking_loss_backward(Tensor grad, Tensor similarities, float margin, float scale, "
      "str pairs) -> Tensor");
  // ranking: <relu(v / |v|), t_i> of v = projected_i + shifts_j, (B, J), with rows of targets, or
  // relu(projected_i / |projected_i|) without, as t_i; 0 / |0| is 0.
  m.def("synthesis_similarity(Tensor projected, Tensor shifts, Tensor? targets) -> Tensor");
  // Gradients for a (B, J) upstream gradient; grad_targets has no rows without targets.
  m.def(
      "synthesis_similarity_backward(Tensor grad, Tensor projected, Tensor shifts, "
      "Tensor? targets) -> (Tensor grad_projected, Tensor grad_shifts, Tensor grad_targets)");

  // structure: (N, M) distances sqrt(sum_k w_ik (e_ik - y_jk)^2), or their squares, of embeddings
  // e (N, d) with weights w (N, d) to references y, or to themselves. A row of embeddings that is
  // not finite, and an anchor with a weight that is not or is negative, is lost: distance NaN, and
  // gradient NaN to the anchor, its weights and the reference, unless the upstream gradient is 0.
  // Without references grad_e is the whole gradient and grad_references has no rows.
  m.def("structure_distance(Tensor e, Tensor w, Tensor? references, bool squared) -> Tensor");
  m.def(
      "structure_distance_backward(Tensor grad, Tensor distance, Tensor e, Tensor w, "
      "Tensor? references, bool squared) "
      "-> (Tensor grad_e, Tensor grad_w, Tensor grad_references)");
  // structure: per anchor, over the others of the batch, the float64 sums of c_k |D - target_k|,
  // (N,), and, where ordered, of c_k and of c_k D, (N, K), else (0, K). c is the softmax over the
  // (K,) float64 targets of -sharpness |D - target_k|. NaN where a pair is lost, or a target is not
  // finite.
  m.def(
      "structure_clusters(Tensor e, Tensor w, Tensor targets, float sharpness, bool ordered) "
      "-> (Tensor loss, Tensor mass, Tensor moment)");
  // Gradients of the sums for upstream gradients of their shapes; recomputes the pairs.
  m.def(
      "structure_clusters_backward(Tensor grad_loss, Tensor grad_mass, Tensor grad_moment, "
      "Tensor e, Tensor w, Tensor targets, float sharpness, bool ordered) "
      "-> (Tensor grad_e, Tensor grad_w)");

  // clusters: (K, d) means of the rows that an (N,) index hands to K clusters, -1 to none, and
  // their number, (K,); 0 and 0 for an empty cluster. float64 for float64 rows, else float32.
  m.def("clusters_means(Tensor x, Tensor index, SymInt clusters) -> (Tensor means, Tensor count)");
  // Rows drawn as k-means++ does by (K,) float64 numbers from [0, 1); -1 without a finite row.
  m.def("clusters_seeds(Tensor x, Tensor uniform) -> Tensor");
  // Lloyd's iterations from (K, d) centres: these, the (N,) nearest of them, -1 for a row that is
  // not finite, and the sums of squared distances before each iteration and at the end.
  m.def(
      "clusters_kmeans(Tensor x, Tensor initial, SymInt iterations) "
      "-> (Tensor centers, Tensor index, Tensor history)");
  // Per row, over the (K, d) centres of its class, with p the softmax of -D / temperature: the soft
  // minimum -temperature * log sum exp(-D / temperature) and the mean sum p D of the distances,
  // (N,) float64; +inf without a centre, NaN for a row that is not finite. And the mass
  // sum exp(-(D - min D) / temperature), (N,) float64, 0 where the others are not finite: by it the
  // gradient finds min D again, without which a small temperature would magnify rounding.
  m.def(
      "clusters_soft(Tensor x, Tensor labels, Tensor order, Tensor centers, Tensor center_labels, "
      "Tensor center_order, str metric, float temperature, bool fast) "
      "-> (Tensor minimum, Tensor mean, Tensor mass)");
  // Gradients for (N,) upstream gradients; recomputes the pairs.
  m.def(
      "clusters_soft_backward(Tensor grad_minimum, Tensor grad_mean, Tensor minimum, Tensor mean, "
      "Tensor mass, Tensor x, Tensor labels, Tensor order, Tensor centers, Tensor center_labels, "
      "Tensor center_order, str metric, float temperature, bool fast) "
      "-> (Tensor grad_x, Tensor grad_centers)");
}
