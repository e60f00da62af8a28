// Keys of pairs, a tile of registers at a time. Included only by sources that are compiled once per
// instruction set level.
#pragma once

#include <cstdint>

#include "engine/integer_product.h"
#include "engine/key_task.h"
#include "engine/span.h"
#include "engine/tile_product.h"

namespace dmlfast::cpu::DMLFAST_ISA {

namespace {

// Anchors that meet a few panels of y, one after another, while these stay in the cache.
constexpr int64_t kKeyGroupPanels = 4;

// The pairs of two spans of panels. A policy has
//   admits(keys, position)            which keys of one anchor may be candidates,
//   admitted_columns(position)        the same as a function of keys, of anchors side by side,
//   offer(position, candidate, key)   a key that was admitted, and obeys the label rule.
// Rows are packed as integers, or as float32.
template <class Policy, bool kIntegers = false>
class KeyWalk {
 public:
  KeyWalk(const KeyTask& task, Policy& policy) : task_(task), policy_(policy) {}

  void walk(Span x, Span y) {
    is_diagonal_ = task_.is_symmetric && x.begin == y.begin;
    const int64_t end_row = panels_to(x.end);
    const int64_t end_column = panels_to(y.end);
    for (int64_t group = panels_to(x.begin); group < end_row; group += kKeyGroupPanels) {
      const int64_t end_group =
          group + kKeyGroupPanels < end_row ? group + kKeyGroupPanels : end_row;
      const int64_t first = is_diagonal_ ? group : panels_to(y.begin);
      for (int64_t column = first; column < end_column; column += kTilePanels) {
        const int64_t left = end_column - column;
        const int64_t panels = left < kTilePanels ? left : kTilePanels;
        for (int64_t panel = group; panel < end_group; ++panel) {
          for (int64_t row = 0; row < kSearchPanelRows; row += kTileRows) {
            if (panel * kSearchPanelRows + row < task_.x.rows) {
              tile(panel, row, column, panels);
            }
          }
        }
      }
    }
  }

 private:
  static int64_t panels_to(int64_t position) {
    return (position + kSearchPanelRows - 1) / kSearchPanelRows;
  }

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

  // The lower triangle of a diagonal block is left to the tiles across the diagonal.
  bool is_above(int64_t column, int64_t panel) const { return !is_diagonal_ || column >= panel; }

  void tile(int64_t panel, int64_t row, int64_t column, int64_t panels) {
    const int64_t first = panel * kSearchPanelRows + row;
    bool wanted = false;
    int64_t columns[kTilePanels];
    for (int64_t p = 0; p < kTilePanels; ++p) {
      columns[p] = column + (p < panels ? p : panels - 1);
      wanted |=
          is_above(columns[p], panel) && has_candidates(first, first + kTileRows - 1, columns[p]);
    }
    if (!wanted) {
      return;
    }
    Part products[kTileRows][kParts];
    fill(panel, row, columns, products);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t own = column + p;
      if (!is_above(own, panel)) {
        continue;
      }
      serve_rows(first, own, products, p * kPanelParts);
      if (task_.is_symmetric && own != panel) {
        serve_columns(first, own, products, p * kPanelParts);
      }
    }
  }

  void fill(int64_t panel, int64_t row, const int64_t (&columns)[kTilePanels],
            Part (&products)[kTileRows][kParts]) const {
    if constexpr (kIntegers) {
      const int32_t* others[kTilePanels];
      for (int64_t p = 0; p < kTilePanels; ++p) {
        others[p] = integer_panel_of(task_.y, columns[p]);
      }
      multiply(integer_panel_of(task_.x, panel) + row, others, integer_pairs_of(task_.x), products);
    } else {
      const float* others[kTilePanels];
      for (int64_t p = 0; p < kTilePanels; ++p) {
        others[p] = search_panel_of(task_.y, columns[p]);
      }
      multiply(search_panel_of(task_.x, panel) + row, others, task_.x.dimensions, products);
    }
  }

  void serve_rows(int64_t first, int64_t panel, const Part (&products)[kTileRows][kParts],
                  int64_t part) {
    for (int64_t q = 0; q < kPanelParts; ++q) {
      const int64_t column = panel * kSearchPanelRows + q * kLanes;
      const Part addends = load(task_.y.addends + column);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const Part keys = addends + task_.factor * products[r][part + q];
        const MaskPart mask = policy_.admits(keys, first + r);
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
                     int64_t part) {
    for (int64_t q = 0; q < kPanelParts; ++q) {
      const int64_t column = panel * kSearchPanelRows + q * kLanes;
      const auto admits = policy_.admitted_columns(column);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const Part keys = task_.x.addends[first + r] + task_.factor * products[r][part + q];
        const MaskPart mask = admits(keys);
        if (__builtin_expect(any(mask), 0)) {
          for (uint32_t lanes = bits(mask); lanes != 0; lanes &= lanes - 1) {
            const int64_t lane = __builtin_ctz(lanes);
            offer(column + lane, first + r, keys[lane]);
          }
        }
      }
    }
  }

  void offer(int64_t position, int64_t candidate, float key) {
    if (position < task_.x.rows && task_.self[position] != candidate &&
        obeys(task_.rule, task_.x.labels[position], task_.y.labels[candidate])) {
      policy_.offer(position, candidate, key);
    }
  }

  const KeyTask& task_;
  Policy& policy_;
  bool is_diagonal_ = false;
};

}  // namespace

}  // namespace dmlfast::cpu::DMLFAST_ISA
