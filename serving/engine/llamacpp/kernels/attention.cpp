// Fused attention over a cache in half precision: takes the place of libggml-cpu's ggml_compute_forward_flash_attn_ext
// (ggml/src/ggml-cpu/ops.cpp), which is called for what this does not compute.
//
// One key is read once for all queries that attend to it: the heads that share it, the tokens of a tile, and the sequences
// whose cache began as a copy of one and the same. Scores, weights and sums are single precision (softmax by running
// maximum and sum, https://arxiv.org/abs/2205.14135).
//
// A query's result depends on nothing but the query and the keys that its mask leaves, to the last bit: keys are
// taken in tiles that begin at fixed positions of the cache, whatever else is in a call.

#include "attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ggml.h"
#include "kernels.h"
#include "origins.h"

namespace {

using namespace kernels;

constexpr int ROWS = 96;  // queries of a tile, at most; a multiple of LANES

struct Memory {
    float * queries;  // [ROWS][head]
    float * keys;     // [head][KEYS]
    uint16_t * turned;  // the same as in the cache
    float * values;   // [KEYS][head]
    float * scores;   // [ROWS][KEYS]
    float * sums;     // [ROWS][head]
    const char * masks[ROWS];
    alignas(64) float greatest[ROWS];
    alignas(64) float maximum[ROWS];
    alignas(64) float total[ROWS];
};

thread_local Scratch scratch;

Memory memory_for(int head) {
    float * start = scratch.take<float>((2 * ROWS + 2 * KEYS) * head + ROWS * KEYS + KEYS * head / 2);
    Memory memory;
    memory.queries = start;
    memory.keys = memory.queries + ROWS * head;
    memory.values = memory.keys + KEYS * head;
    memory.scores = memory.values + KEYS * head;
    memory.sums = memory.scores + ROWS * KEYS;
    memory.turned = reinterpret_cast<uint16_t *>(memory.sums + ROWS * head);
    return memory;
}

// What a call of attention is about, in ggml's terms.
struct Call {
    const ggml_tensor * queries;
    const ggml_tensor * keys;
    const ggml_tensor * values;
    const ggml_tensor * mask;
    ggml_tensor * out;
    float scale;
    int head;
    int tokens;
    int heads_per_key;
    int key_heads;

    explicit Call(ggml_tensor * result)
        : queries(result->src[0]), keys(result->src[1]), values(result->src[2]), mask(result->src[3]), out(result) {
        std::memcpy(&scale, result->op_params, sizeof scale);
        head = static_cast<int>(queries->ne[0]);
        tokens = static_cast<int>(queries->ne[1]);
        key_heads = static_cast<int>(keys->ne[2]);
        heads_per_key = static_cast<int>(queries->ne[2] / keys->ne[2]);
    }

    // Whether this is the attention that is computed here.
    bool can() const {
        float bias_and_cap[2];
        std::memcpy(bias_and_cap, reinterpret_cast<const float *>(out->op_params) + 1, sizeof bias_and_cap);
        return queries->type == GGML_TYPE_F32 && keys->type == GGML_TYPE_F16 && values->type == GGML_TYPE_F16 && mask != nullptr &&
               mask->type == GGML_TYPE_F16 && out->src[4] == nullptr && bias_and_cap[0] == 0.0f && bias_and_cap[1] == 0.0f &&
               head % LANES == 0 && head <= LONGEST_HEAD && values->ne[0] == head && keys->ne[0] == head &&
               queries->ne[2] % keys->ne[2] == 0 && keys->ne[2] == values->ne[2] && keys->ne[3] == queries->ne[3] &&
               values->ne[3] == queries->ne[3] && mask->ne[2] == 1 && out->nb[0] == sizeof(float) && queries->nb[0] == sizeof(float) &&
               keys->nb[0] == 2 && values->nb[0] == 2 && mask->nb[0] == 2;
    }

    // Queries of one head of keys of one sequence.
    int rows() const { return tokens * heads_per_key; }

    const char * mask_of(int token, int64_t sequence) const {
        return static_cast<const char *>(mask->data) + token * mask->nb[1] + sequence % mask->ne[3] * mask->nb[3];
    }
};

struct Part {
    int64_t sequence;
    int64_t key_head;
};

// Queries of neighbouring tokens: for each of the parts these `rows`, of which row = token * heads_per_key + head.
// Where there are few, there are several parts: all heads of a sequence, so that its cache is read from front to back,
// or a head of several sequences with the same keys, which are read once.
struct Tile {
    const Part * parts;
    int num_parts;
    int first_row;
    int rows;
    int64_t leader;  // the sequence whose keys are read for all parts; NOBODY: each has its own

    static constexpr int64_t NOBODY = -1;

    int all_rows() const { return num_parts * rows; }
    int rows_per_key() const { return leader == NOBODY ? rows : all_rows(); }
    Part key(int row) const {
        const Part & part = parts[row / rows];
        return {leader == NOBODY ? part.sequence : leader, part.key_head};
    }
    int token(const Call & call, int row) const { return (first_row + row % rows) / call.heads_per_key; }
    int64_t sequence(int row) const { return parts[row / rows].sequence; }
    int64_t query_head(const Call & call, int row) const {
        return parts[row / rows].key_head * call.heads_per_key + (first_row + row % rows) % call.heads_per_key;
    }
};

// Numbers of a mask, in half precision.
constexpr auto MASKED = static_cast<int16_t>(0xFC00);  // minus infinity
constexpr int16_t SEEN = 0;

// Whether the mask has this number for all of the tile's queries and keys.
bool mask_is(int16_t number, const Tile & tile, const Memory & memory, int64_t key, int count) {
    for (int r = 0; r < tile.all_rows(); r++) {
        if (r > 0 && memory.masks[r] == memory.masks[r - 1]) {
            continue;
        }
        const char * mask = memory.masks[r] + key * 2;
        for (int i = 0; i < count; i += LANES) {
            if (!all_are(number, mask + i * 2, std::min(count - i, LANES))) {
                return false;
            }
        }
    }
    return true;
}

// Adds the mask to the scores. Keys beyond `count` count as masked.
void mask_scores(const Tile & tile, Memory & memory, int64_t key, int count) {
    for (int r = 0; r < tile.all_rows(); r++) {
        float * scores = memory.scores + r * KEYS;
        const char * mask = memory.masks[r] + key * 2;
        for (int i = 0; i < KEYS / LANES; i++) {
            const Floats bias = first_halves_to_floats(mask + i * LANES * 2, std::clamp(count - i * LANES, 0, LANES));
            store(scores + i * LANES, add(load(scores + i * LANES), bias));
        }
    }
}

void find_greatest(const Tile & tile, Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r++) {
        Floats greatest = all(-INFINITY);
        for (int i = 0; i < KEYS / LANES; i++) {
            greatest = max(greatest, load(memory.scores + r * KEYS + i * LANES));
        }
        memory.greatest[r] = greatest_of(greatest);
    }
}

// Moves each row's running maximum, and scales what was added up relative to the one before.
void move_maxima(const Call & call, const Tile & tile, Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r += LANES) {
        const Floats before = load(memory.maximum + r);
        const Floats maximum = max(before, load(memory.greatest + r));
        const Floats factors = where_greater(maximum, before, exp_of(sub(before, maximum)), all(1.0f));
        store(memory.maximum + r, maximum);
        store(memory.total + r, mul(load(memory.total + r), factors));
        alignas(64) float of_row[LANES];
        store(of_row, factors);
        for (unsigned left = greater(maximum, before); left != 0; left &= left - 1) {
            const int i = __builtin_ctz(left);
            float * sums = memory.sums + (r + i) * call.head;
            for (int d = 0; d < call.head; d += LANES) {
                store(sums + d, mul(load(sums + d), all(of_row[i])));
            }
        }
    }
}

// Turns scores into weights relative to the running maxima, and adds them up.
void weigh(const Tile & tile, Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r++) {
        float * scores = memory.scores + r * KEYS;
        const float maximum = memory.maximum[r] == -INFINITY ? 0.0f : memory.maximum[r];
        Floats total = zeros();
        for (int i = 0; i < KEYS / LANES; i++) {
            const Floats weights = exp_of(sub(load(scores + i * LANES), all(maximum)));
            store(scores + i * LANES, weights);
            total = add(total, weights);
        }
        memory.total[r] += sum_of(total);
    }
}

// The tile's queries, which have seen no key yet.
void begin(const Call & call, const Tile & tile, Memory & memory) {
    std::fill_n(memory.greatest, ROWS, -INFINITY);
    std::fill_n(memory.maximum, ROWS, -INFINITY);
    std::fill_n(memory.total, ROWS, 0.0f);
    const Floats scale = all(call.scale);
    for (int r = 0; r < tile.all_rows(); r++) {
        const int token = tile.token(call, r);
        const char * query = static_cast<const char *>(call.queries->data) + token * call.queries->nb[1] +
                             tile.query_head(call, r) * call.queries->nb[2] + tile.sequence(r) * call.queries->nb[3];
        memory.masks[r] = call.mask_of(token, tile.sequence(r));
        for (int d = 0; d < call.head; d += LANES) {
            const Floats numbers = load_any(reinterpret_cast<const float *>(query) + d);
            store(memory.queries + r * call.head + d, mul(numbers, scale));
            store(memory.sums + r * call.head + d, zeros());
        }
    }
}

// out[head][query head][token][sequence], as ggml has it: the heads of a token side by side.
void write(const Call & call, const Tile & tile, const Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r++) {
        const Floats factor = all(memory.total[r] == 0.0f ? 0.0f : 1.0f / memory.total[r]);
        char * out = static_cast<char *>(call.out->data) + tile.query_head(call, r) * call.out->nb[1] +
                     tile.token(call, r) * call.out->nb[2] + tile.sequence(r) * call.out->nb[3];
        for (int d = 0; d < call.head; d += LANES) {
            const Floats sums = load(memory.sums + r * call.head + d);
            store_any(reinterpret_cast<float *>(out) + d, mul(sums, factor));
        }
    }
}

// A tile of keys or values of the cache, of one head.
struct Cached {
    const char * first;
    size_t stride;
    int count;

    Cached(const ggml_tensor * tensor, const Part & part, int64_t key, int num_keys)
        : first(static_cast<const char *>(tensor->data) + key * tensor->nb[1] + part.key_head * tensor->nb[2] + part.sequence * tensor->nb[3]),
          stride(tensor->nb[1]), count(num_keys) {}
};

// For `rows` of the tile, from `row` on, which have the same keys.
void score_rows(const Call & call, Memory & memory, int row, int rows, const Cached & keys) {
    const auto score_from = [&](int r, const auto & source) {
        with_rows<ROWS_AT_ONCE>(row + rows - r, [&](auto num_rows) {
            score<num_rows()>(memory.scores + r * KEYS, memory.queries + r * call.head, source, call.head);
        });
    };
    const bool few = rows <= ROWS_AT_ONCE;
    turn_keys(memory.turned, keys.first, keys.stride, call.head, keys.count, few);
    if (few) {
        score_from(row, TurnedKeys{memory.turned});
        return;
    }
    widen_keys(memory.keys, memory.turned, call.head);
    for (int r = row; r < row + rows; r += ROWS_AT_ONCE) {
        score_from(r, WideKeys{memory.keys});
    }
}

void add_rows(const Call & call, Memory & memory, int row, int rows, const Cached & values) {
    const auto add = [&](int r, const auto & source) {
        with_rows<ROWS_AT_ONCE>(row + rows - r, [&](auto num_rows) {
            add_all_values<num_rows()>(memory.sums + r * call.head, memory.scores + r * KEYS, source, call.head, values.count);
        });
    };
    if (rows <= ROWS_AT_ONCE) {
        add(row, InCache{values.first, values.stride});
        return;
    }
    take_values(memory.values, values.first, values.stride, call.head, values.count);
    for (int r = row; r < row + rows; r += ROWS_AT_ONCE) {
        add(r, AsFloats{memory.values, call.head});
    }
}

// To the keys of the cache from `first` on, a multiple of KEYS, to before `last`.
void attend(const Call & call, const Tile & tile, Memory & memory, int64_t first, int64_t last) {
    const int rows = tile.rows_per_key();
    for (int64_t key = first; key < last; key += KEYS) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, last - key));
        if (mask_is(MASKED, tile, memory, key, count)) {
            continue;
        }
        for (int row = 0; row < tile.all_rows(); row += rows) {
            score_rows(call, memory, row, rows, Cached(call.keys, tile.key(row), key, count));
        }
        if (count < KEYS || !mask_is(SEEN, tile, memory, key, count)) {
            mask_scores(tile, memory, key, count);
        }
        find_greatest(tile, memory);
        move_maxima(call, tile, memory);
        weigh(tile, memory);
        for (int row = 0; row < tile.all_rows(); row += rows) {
            add_rows(call, memory, row, rows, Cached(call.values, tile.key(row), key, count));
        }
    }
}

// Sequences of which each is a single part or a few: each by itself, but for what their caches have in common.
class Crowd {
  public:
    Crowd(const Call & call, const Origins & origins, Memory & memory) : call_(call), origins_(origins), memory_(memory) {
        const int64_t rows = call.queries->ne[3] * call.key_heads * call.rows();
        float * start = kept_.take<float>(rows * (call.head + 2));
        sums_ = start;
        maximum_ = sums_ + rows * call.head;
        total_ = maximum_ + rows;
        // A view of the whole cache, from one sequence on; anything else has nothing in common.
        first_ = call.keys->view_src != nullptr ? static_cast<int64_t>(call.keys->view_offs / call.keys->nb[3]) : origins.sequences;
    }

    void attend_to_all(std::vector<int64_t> sequences) { share(sequences.begin(), sequences.end(), 0); }

  private:
    using Member = std::vector<int64_t>::iterator;

    // 0 where a sequence has the tile for itself.
    int32_t origin(int64_t sequence, int64_t tile) const {
        const bool known = first_ + sequence < origins_.sequences && tile < origins_.tiles && (tile + 1) * KEYS <= call_.keys->ne[1];
        return known ? origins_.numbers[(first_ + sequence) * origins_.tiles + tile] : 0;
    }

    // What is left for these sequences, which have seen the keys before `tile`.
    void share(Member first, Member last, int64_t tile) {
        std::stable_sort(first, last, [&](int64_t a, int64_t b) { return origin(a, tile) < origin(b, tile); });
        while (first != last) {
            const int32_t common = origin(*first, tile);
            const Member next = std::find_if(first, last, [&](int64_t each) { return origin(each, tile) != common; });
            if (common == 0 || next - first == 1) {
                std::for_each(first, next, [&](int64_t each) { finish(each, tile); });
            } else {
                int64_t end = tile;
                do {
                    end++;
                } while (origin(*first, end) != 0 &&
                         std::all_of(first, next, [&](int64_t each) { return origin(each, end) == origin(*first, end); }));
                attend_together(first, next, tile, end);
                share(first, next, end);
            }
            first = next;
        }
    }

    void attend_together(Member first, Member last, int64_t tile, int64_t end) {
        const int64_t at_once = ROWS / call_.rows();
        Part parts[ROWS];
        for (int64_t key_head = 0; key_head < call_.key_heads; key_head++) {
            for (Member member = first; member != last;) {
                int num_parts = 0;
                for (; num_parts < at_once && member != last; member++) {
                    parts[num_parts++] = {*member, key_head};
                }
                const Tile queries{parts, num_parts, 0, call_.rows(), *first};
                go_on(queries, tile);
                attend(call_, queries, memory_, tile * KEYS, end * KEYS);
                keep(queries);
            }
        }
    }

    void finish(int64_t sequence, int64_t tile) {
        Part parts[ROWS];
        for (int64_t key_head = 0; key_head < call_.key_heads; key_head++) {
            parts[key_head] = {sequence, key_head};
        }
        const Tile queries{parts, call_.key_heads, 0, call_.rows(), Tile::NOBODY};
        go_on(queries, tile);
        attend(call_, queries, memory_, tile * KEYS, call_.keys->ne[1]);
        write(call_, queries, memory_);
    }

    void go_on(const Tile & tile, int64_t seen) {
        begin(call_, tile, memory_);
        for (int part = 0; seen > 0 && part < tile.num_parts; part++) {
            const int64_t from = place(tile.parts[part]);
            const int to = part * tile.rows;
            std::copy_n(sums_ + from * call_.head, tile.rows * call_.head, memory_.sums + to * call_.head);
            std::copy_n(maximum_ + from, tile.rows, memory_.maximum + to);
            std::copy_n(total_ + from, tile.rows, memory_.total + to);
        }
    }

    void keep(const Tile & tile) {
        for (int part = 0; part < tile.num_parts; part++) {
            const int64_t to = place(tile.parts[part]);
            const int from = part * tile.rows;
            std::copy_n(memory_.sums + from * call_.head, tile.rows * call_.head, sums_ + to * call_.head);
            std::copy_n(memory_.maximum + from, tile.rows, maximum_ + to);
            std::copy_n(memory_.total + from, tile.rows, total_ + to);
        }
    }

    int64_t place(const Part & part) const { return (part.sequence * call_.key_heads + part.key_head) * call_.rows(); }

    static thread_local Scratch kept_;
    const Call & call_;
    const Origins origins_;
    Memory & memory_;
    float * sums_;     // [sequence][head of keys][row][head]
    float * maximum_;  // [sequence][head of keys][row]
    float * total_;
    int64_t first_;  // sequence of the cache
};

thread_local Scratch Crowd::kept_;

// The thread's share of heads with many queries: tiles of one head of keys of one sequence.
void attend_by_tiles(const Call & call, Memory & memory, const ComputeParams * params) {
    const int tiles = (call.rows() + ROWS - 1) / ROWS;
    const int64_t work = call.queries->ne[3] * call.key_heads * tiles;
    for (int64_t i = params->thread; i < work; i += params->num_threads) {
        const Part part{i / tiles / call.key_heads, i / tiles % call.key_heads};
        const int first = static_cast<int>(i % tiles) * ROWS;
        const Tile queries{&part, 1, first, std::min(ROWS, call.rows() - first), Tile::NOBODY};
        begin(call, queries, memory);
        attend(call, queries, memory, 0, call.keys->ne[1]);
        write(call, queries, memory);
    }
}

}  // namespace

namespace kernels {

Attention original_attention = nullptr;

void serving_attention(const ComputeParams * params, ggml_tensor * result) {
    const Call call(result);
    if (!enabled || !call.can()) {
        original_attention(params, result);
        return;
    }
    Memory memory = memory_for(call.head);
    if (call.rows() * call.key_heads > ROWS || call.queries->ne[3] < params->num_threads) {
        attend_by_tiles(call, memory, params);
        return;
    }
    std::vector<int64_t> sequences;
    for (int64_t sequence = params->thread; sequence < call.queries->ne[3]; sequence += params->num_threads) {
        sequences.push_back(sequence);
    }
    Crowd(call, origins_of(params), memory).attend_to_all(std::move(sequences));
}

}  // namespace kernels
