#include "neighbors_top_search_isa.h"

#include "engine/tile_product.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

class TopSearch {
 public:
  explicit TopSearch(const TopSearchTask& task) : task_(task) {}

  void walk(int64_t group, int64_t panel_begin, int64_t panel_end) const {
    const SearchRows& x = task_.x;
    const int64_t first_panel = group * kTopSearchGroup;
    const int64_t end_panel = first_panel + kTopSearchGroup < x.panel_count
                                  ? first_panel + kTopSearchGroup
                                  : x.panel_count;
    // A few panels of y meet all anchors of the group, which stay in the cache meanwhile.
    for (int64_t column = panel_begin; column < panel_end; column += kTilePanels) {
      const int64_t left = panel_end - column;
      const int64_t panels = left < kTilePanels ? left : kTilePanels;
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        for (int64_t row = 0; row < kSearchPanelRows; row += kTileRows) {
          if (panel * kSearchPanelRows + row < x.rows) {
            tile(panel, row, column, panels);
          }
        }
      }
    }
  }

 private:
  // Whether some pair of the rows [first, last] and a panel of y obeys the label rule.
  bool has_candidates(int64_t first, int64_t last, int64_t panel) const {
    const int64_t* x = task_.x.labels;
    const int64_t* y = task_.y.labels + panel * kSearchPanelRows;
    const int64_t y_last = y[kSearchPanelRows - 1];
    switch (task_.rule) {
      case LabelRule::same_class:
        return x[first] <= y_last && y[0] <= x[last];
      case LabelRule::other_class:
        return x[first] != x[last] || y[0] != y_last || x[first] != y[0];
      default:
        return true;
    }
  }

  void tile(int64_t panel, int64_t row, int64_t column, int64_t panels) const {
    const int64_t first = panel * kSearchPanelRows + row;
    bool wanted = false;
    const float* columns[kTilePanels];
    for (int64_t p = 0; p < kTilePanels; ++p) {
      const int64_t own = column + (p < panels ? p : panels - 1);
      columns[p] = search_panel_of(task_.y, own);
      wanted |=
          (!task_.symmetric || own >= panel) && has_candidates(first, first + kTileRows - 1, own);
    }
    if (!wanted) {
      return;
    }
    Part products[kTileRows][kParts];
    multiply(search_panel_of(task_.x, panel) + row, columns, task_.x.dimensions, products);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t own = column + p;
      // The lower triangle of a symmetric product is left to the tiles across the diagonal.
      if (task_.symmetric && own < panel) {
        continue;
      }
      serve_rows(first, own, products, p * kPanelParts);
      if (task_.symmetric && own > panel) {
        serve_columns(first, own, products, p * kPanelParts);
      }
    }
  }

  void serve_rows(int64_t first, int64_t panel, const Part (&products)[kTileRows][kParts],
                  int64_t part) const {
    for (int64_t q = 0; q < kPanelParts; ++q) {
      const int64_t column = panel * kSearchPanelRows + q * kLanes;
      const Part addends = load(task_.y.addends + column);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const Part keys = addends + task_.factor * products[r][part + q];
        const MaskPart mask = keys <= task_.limits[first + r];
        if (__builtin_expect(any(mask), 0)) {
          for (uint32_t lanes = bits(mask); lanes != 0; lanes &= lanes - 1) {
            const int64_t lane = __builtin_ctz(lanes);
            offer(first + r, column + lane, keys[lane]);
          }
        }
      }
    }
  }

  void serve_columns(int64_t first, int64_t panel, const Part (&products)[kTileRows][kParts],
                     int64_t part) const {
    for (int64_t q = 0; q < kPanelParts; ++q) {
      const int64_t column = panel * kSearchPanelRows + q * kLanes;
      const Part limits = load(task_.limits + column);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const Part keys = task_.x.addends[first + r] + task_.factor * products[r][part + q];
        const MaskPart mask = keys <= limits;
        if (__builtin_expect(any(mask), 0)) {
          for (uint32_t lanes = bits(mask); lanes != 0; lanes &= lanes - 1) {
            const int64_t lane = __builtin_ctz(lanes);
            offer(column + lane, first + r, keys[lane]);
          }
        }
      }
    }
  }

  void offer(int64_t position, int64_t candidate, float key) const {
    if (task_.self[position] == candidate ||
        !obeys(task_.rule, task_.x.labels[position], task_.y.labels[candidate])) {
      return;
    }
    int64_t& count = task_.counts[position];
    if (count == task_.capacity) {
      task_.make_room(task_, position);
    }
    if (key <= task_.limits[position]) {
      task_.near[position * task_.capacity + count] = {key, static_cast<int32_t>(candidate)};
      ++count;
    }
  }

  const TopSearchTask& task_;
};

}  // namespace

void search_top(const TopSearchTask& task, int64_t group, int64_t panel_begin, int64_t panel_end) {
  TopSearch(task).walk(group, panel_begin, panel_end);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
