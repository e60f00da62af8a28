#include "neighbors_search_isa.h"

#include "engine/tile_product.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

class Search {
 public:
  Search(const SearchTask& task, const SearchWindows& windows) : task_(task), windows_(windows) {}

  void walk(int64_t group) const {
    const SearchRows& x = task_.x;
    const SearchRows& y = task_.y;
    const int64_t first_panel = group * kSearchGroup;
    const int64_t end_panel =
        first_panel + kSearchGroup < x.panel_count ? first_panel + kSearchGroup : x.panel_count;
    // A few panels of y meet all anchors of the group, which stay in the cache meanwhile.
    for (int64_t column = task_.symmetric ? first_panel : 0; column < y.panel_count;
         column += kTilePanels) {
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        for (int64_t row = 0; row < kSearchPanelRows; row += kTileRows) {
          if (panel * kSearchPanelRows + row < x.rows) {
            tile(panel, row, column);
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
    if (task_.same_class) {
      return x[first] <= y_last && y[0] <= x[last];
    }
    return x[first] != x[last] || y[0] != y_last || x[first] != y[0];
  }

  void tile(int64_t panel, int64_t row, int64_t column) const {
    const SearchRows& x = task_.x;
    const SearchRows& y = task_.y;
    const int64_t first = panel * kSearchPanelRows + row;
    // The lower triangle of a symmetric product is left to the tiles across the diagonal.
    const int64_t left = y.panel_count - column;
    const int64_t panels = left < kTilePanels ? left : kTilePanels;
    bool wanted = false;
    const float* columns[kTilePanels];
    for (int64_t p = 0; p < kTilePanels; ++p) {
      const int64_t own = column + (p < panels ? p : panels - 1);
      columns[p] = search_panel_of(y, own);
      wanted |=
          (!task_.symmetric || own >= panel) && has_candidates(first, first + kTileRows - 1, own);
    }
    if (!wanted) {
      return;
    }
    Part products[kTileRows][kParts];
    multiply(search_panel_of(x, panel) + row, columns, x.dimensions, products);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t own = column + p;
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
        const int64_t position = first + r;
        const Part keys = addends + task_.factor * products[r][part + q];
        const MaskPart mask = (keys <= windows_.limits[position]) & (keys >= task_.least[position]);
        if (__builtin_expect(any(mask), 0)) {
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            if (mask[lane]) {
              offer(position, column + lane, keys[lane]);
            }
          }
        }
      }
    }
  }

  void serve_columns(int64_t first, int64_t panel, const Part (&products)[kTileRows][kParts],
                     int64_t part) const {
    for (int64_t q = 0; q < kPanelParts; ++q) {
      const int64_t column = panel * kSearchPanelRows + q * kLanes;
      const Part limits = load(windows_.limits + column);
      const Part least = load(task_.least + column);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const Part keys = task_.x.addends[first + r] + task_.factor * products[r][part + q];
        const MaskPart mask = (keys <= limits) & (keys >= least);
        if (__builtin_expect(any(mask), 0)) {
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            if (mask[lane]) {
              offer(column + lane, first + r, keys[lane]);
            }
          }
        }
      }
    }
  }

  void offer(int64_t position, int64_t candidate, float key) const {
    if (position >= task_.x.rows || key > windows_.limits[position] ||
        (task_.x.labels[position] == task_.y.labels[candidate]) != task_.same_class ||
        task_.self[position] == candidate) {
      return;
    }
    if (key >= task_.surely[position]) {
      const float limit = key + task_.twice_error[position];
      if (limit < windows_.limits[position]) {
        windows_.limits[position] = limit;
      }
    }
    int32_t& count = windows_.counts[position];
    if (count == kWindow) {
      prune(position);
    }
    if (count == kWindow) {
      if (key < windows_.lost[position]) {
        windows_.lost[position] = key;
      }
      return;
    }
    windows_.keys[position * kWindow + count] = key;
    windows_.positions[position * kWindow + count] = static_cast<int32_t>(candidate);
    ++count;
  }

  void prune(int64_t position) const {
    float* keys = windows_.keys + position * kWindow;
    int32_t* positions = windows_.positions + position * kWindow;
    int32_t kept = 0;
    for (int32_t i = 0; i < windows_.counts[position]; ++i) {
      if (keys[i] <= windows_.limits[position]) {
        keys[kept] = keys[i];
        positions[kept] = positions[i];
        ++kept;
      }
    }
    windows_.counts[position] = kept;
  }

  const SearchTask& task_;
  const SearchWindows& windows_;
};

}  // namespace

void search(const SearchTask& task, const SearchWindows& windows, int64_t group) {
  Search(task, windows).walk(group);
}

}  // namespace dmlfast::cpu::DMLFAST_ISA
