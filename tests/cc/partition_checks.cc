// The integers below every schedule: how a message is cut, the ring's formula, the canonical order, where slots lie.
#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "schedule/canonical.h"
#include "schedule/partition.h"
#include "schedule/ring.h"
#include "schedule/window_layout.h"

namespace dcomm::checks {
namespace {

using Span = std::pair<size_t, size_t>;  // [begin, end)

/// True when the spans, in any order, cover [0, total) without gap or overlap.
bool cover_exactly(std::vector<Span> spans, size_t total) {
  std::sort(spans.begin(), spans.end());
  size_t done = 0;
  for (const auto& [begin, end] : spans) {
    if (begin == end) continue;
    if (begin != done) return false;
    done = end;
  }
  return done == total;
}

Span span_of(const Range& range) { return {range.offset, range.offset + range.count}; }

/// How many merges the recursive tree does right after it has taken term `index` of [lo, hi).
int merges_after(int lo, int hi, int index) {
  if (hi - lo == 1) return 0;
  const int middle = canonical_split(lo, hi);
  const int inner = index < middle ? merges_after(lo, middle, index) : merges_after(middle, hi, index);
  return inner + (index == hi - 1 ? 1 : 0);
}

}  // namespace

CHECK_CASE(partition_covers_everything_once) {
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 16, 64}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{17}, size_t{97}, size_t{1000},
                               size_t{7919}, size_t{65536}}) {
      for (const int channels : {1, 2, 3, 16}) {
        for (const size_t slot : {size_t{16}, size_t{48}, size_t{1024}, size_t{65536}}) {
          const ChunkPlan plan = ChunkPlan::make(count, n, slot, channels);
          std::vector<Span> chunks;
          std::vector<Span> segments;
          EXPECT(plan.num_tiles() >= 1);
          for (int c = 0; c < n; ++c) {
            chunks.push_back(span_of(plan.chunk(c)));
            std::vector<Span> parts;
            for (uint64_t tile = 0; tile < plan.num_tiles(); ++tile) {
              for (int channel = 0; channel < channels; ++channel) {
                const Range part = plan.segment(c, channel, tile);
                EXPECT(part.count <= slot);
                EXPECT(part.count == 0 || part.offset % kChunkAlign == 0);
                EXPECT(part.count == 0 ||
                       (part.offset >= chunks.back().first && part.offset + part.count <= chunks.back().second));
                parts.push_back(span_of(part));
              }
            }
            segments.insert(segments.end(), parts.begin(), parts.end());
          }
          EXPECT(cover_exactly(chunks, count));
          EXPECT(cover_exactly(segments, count));
          EXPECT(std::is_sorted(chunks.begin(), chunks.end()));
        }
      }
    }
  }
}

// The ring's order of summation is a function of the chunk, so the chunks may not move when the tuning does.
CHECK_CASE(partition_chunks_ignore_tuning) {
  for (const int n : {2, 3, 5, 8, 64}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{97}, size_t{7919}, size_t{1 << 20}}) {
      const size_t per_chunk = (count + static_cast<size_t>(n) - 1) / static_cast<size_t>(n);
      const size_t aligned = (per_chunk + 15) / 16 * 16;
      for (const int channels : {1, 2, 16}) {
        for (const size_t slot : {size_t{16}, size_t{4096}, size_t{1 << 18}}) {
          const ChunkPlan plan = ChunkPlan::make(count, n, slot, channels);
          for (int c = 0; c < n; ++c) {
            const size_t begin = std::min(count, static_cast<size_t>(c) * aligned);
            const size_t end = std::min(count, begin + aligned);
            EXPECT_EQ(plan.chunk(c).offset, begin);
            EXPECT_EQ(plan.chunk(c).count, end - begin);
          }
        }
      }
    }
  }
}

CHECK_CASE(ring_passes_on_what_it_received) {
  for (int n = 2; n <= 64; ++n) {
    for (int step = 0; step < ring_num_steps(n); ++step) {
      std::set<int> sent;
      for (int rank = 0; rank < n; ++rank) {
        const int chunk = ring_send_chunk(rank, n, step);
        EXPECT(chunk >= 0 && chunk < n);
        sent.insert(chunk);
        if (step > 0) EXPECT_EQ(chunk, ring_send_chunk(ring_prev(rank, n), n, step - 1));
        EXPECT_EQ(ring_next(ring_prev(rank, n), n), rank);
      }
      EXPECT_EQ(sent.size(), static_cast<size_t>(n));
    }
    for (int rank = 0; rank < n; ++rank) {
      EXPECT_EQ(ring_send_chunk(rank, n, 0), ring_prev(rank, n));  // chunk c starts at c + 1
      EXPECT_EQ(ring_send_chunk(rank, n, n - 1), rank);            // and is complete at c
    }
  }
}

CHECK_CASE(canonical_counter_is_the_tree) {
  EXPECT_EQ(canonical_split(0, 5), 4);
  EXPECT_EQ(canonical_split(4, 7), 6);
  EXPECT_EQ(canonical_split(0, 8), 4);
  for (int n = 2; n <= 64; ++n) {
    int left = 0;  // partial sums that wait for a partner
    for (int i = 0; i < n; ++i) {
      const int merges = canonical_merges_after(static_cast<unsigned>(i));
      // After the last term, the tree merges all that is left; before, counter and tree agree term by term.
      if (i < n - 1) EXPECT_EQ(merges, merges_after(0, n, i));
      left += 1 - merges;
    }
    EXPECT_EQ(left, __builtin_popcount(static_cast<unsigned>(n)));
  }
}

CHECK_CASE(window_places_are_disjoint) {
  for (const auto kind : {PlacementKind::kBounce, PlacementKind::kPush}) {
    for (const int n : {2, 3, 8}) {
      for (const int depth : {2, 4}) {
        for (const int channels : {1, 3}) {
          WindowLayout layout;
          layout.placement = {kind, n, depth};
          layout.num_channels = channels;
          for (int pool = 0; pool < kNumSlotPools - 1; ++pool) layout.slot_bytes[pool] = size_t{64} << pool;
          layout.packet_bytes = kPacketGrain;
          std::vector<Span> places{{0, kControlBytes}};
          for (int channel = 0; channel < channels; ++channel) {
            for (int flow = 0; flow < kNumFlows; ++flow) {
              for (int from = 0; from < n; ++from) {
                const size_t at = layout.flag_offset(channel, static_cast<Flow>(flow), from);
                places.emplace_back(at, at + kFlagBytes);
              }
            }
            for (int parity = 0; parity < 2; ++parity) {
              for (int from = 0; from < n; ++from) {
                const size_t at = layout.packet_offset(channel, parity, from);
                places.emplace_back(at, at + layout.packet_bytes);
              }
            }
            for (const SlotPool pool :
                 {SlotPool::kMain, SlotPool::kFifo, SlotPool::kExchange, SlotPool::kPair, SlotPool::kMessage}) {
              for (int i = 0; i < layout.placement.num_slots(pool); ++i) {
                const size_t at = layout.slot_offset(channel, {0, i, pool});
                places.emplace_back(at, at + layout.slot_bytes[static_cast<size_t>(pool)]);
              }
            }
          }
          std::sort(places.begin(), places.end());
          for (size_t i = 1; i < places.size(); ++i) EXPECT(places[i - 1].second <= places[i].first);
          EXPECT(places.back().second <= layout.window_bytes());
          EXPECT_EQ(layout.window_bytes() % kPageBytes, size_t{0});
        }
      }
    }
  }
}

}  // namespace dcomm::checks
