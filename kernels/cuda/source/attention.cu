// Attention of one decode step: rows of queries over the keys and values of their own past.
//
// A unit is a row, a key head with some of the query heads that share it, and a stretch of the
// past; a block takes one at a time. Eight lanes read a position, so a warp reads four; softmax is
// kept up to date as positions come (online), and put together from lanes, warps and stretches.
// The block that finishes the last stretch of a row puts the stretches together, in order, so the
// result does not depend on who that is.
//
// Leaving a loop early costs no copies: a position remembers how many loops it ran, and loops
// behind that read what it left in its last (the same values as shared caches would hold).

#ifndef HEAD_SIZE
#define HEAD_SIZE 64
#endif
#ifndef CACHE_BITS
#define CACHE_BITS 16
#endif

#if CACHE_BITS == 32
typedef float cached;
__device__ __forceinline__ float from_cache(cached x) { return x; }
__device__ __forceinline__ cached to_cache(float x) { return x; }
#else
typedef unsigned short cached;  // float16
__device__ __forceinline__ float from_cache(cached x) { return from_half(x); }
__device__ __forceinline__ cached to_cache(float x) { return to_half(x); }
#endif

constexpr int DIMS = HEAD_SIZE / 8;             // of a head in a lane
constexpr int HEADS = DIMS > 8 ? 2 : 4;         // query heads of a unit: their sums are registers
constexpr int STATE = HEADS * (HEAD_SIZE + 2);  // sums, largest score and total of each

struct Cache {
    cached *k, *v;         // (S, R, L, kv heads, T, HEAD_SIZE)
    unsigned char* depth;  // (S, T) loops that each position ran
    int n_loops, n_layers, n_kv_heads, max_len;
};

struct Attention {
    const float* qkv;     // (active rows, stride): queries, keys, values
    const float* rope;    // (2, positions, HEAD_SIZE / 2) cosines and sines
    float* attended;      // (active rows, heads * HEAD_SIZE)
    float* partial;       // (rows * units of a row, splits, STATE)
    unsigned* arrived;    // (rows * units of a row,) zero between uses
    const int *active, *slot, *position;
    int stride, n_heads, rope_len, n_splits;
};

__device__ __forceinline__ int units_per_row(const Attention& a, const Cache& cache) {
    const int per_kv = a.n_heads / cache.n_kv_heads;
    return cache.n_kv_heads * ((per_kv + HEADS - 1) / HEADS);
}

__device__ __forceinline__ long long cache_at(const Cache& cache, int slot, int loop, int layer,
                                              int head, int position) {
    const long long place = ((long long)slot * cache.n_loops + loop) * cache.n_layers + layer;
    return ((place * cache.n_kv_heads + head) * cache.max_len + position) * HEAD_SIZE;
}

// Element i of a head of a row, pair (i & ~1, i | 1) turned by the angle of the position.
__device__ __forceinline__ float turned(const Attention& a, const float* head, int position,
                                        int i) {
    const int at = position * (HEAD_SIZE / 2) + i / 2;
    const float cos = a.rope[at], sin = a.rope[a.rope_len * (HEAD_SIZE / 2) + at];
    const float even = head[i & ~1], odd = head[i | 1];
    return i & 1 ? even * sin + odd * cos : even * cos - odd * sin;
}

// Write key and value of active row i, one key head, to the cache.
__device__ __forceinline__ void store_kv(const Attention& a, const Cache& cache, int i, int loop,
                                         int layer, int head) {
    const int row = a.active[i], position = a.position[row];
    const long long at = cache_at(cache, a.slot[row], loop, layer, head, position);
    const float* k = a.qkv + (long long)i * a.stride + (a.n_heads + head) * HEAD_SIZE;
    const float* v = k + cache.n_kv_heads * HEAD_SIZE;
    for (int d = threadIdx.x; d < HEAD_SIZE; d += blockDim.x) {
        cache.k[at + d] = to_cache(turned(a, k, position, d));
        cache.v[at + d] = to_cache(v[d]);
    }
}

// Online softmax of some heads: largest score, total and weighted sums of values.
struct Softmax {
    float largest[HEADS], total[HEADS], sums[HEADS][DIMS];
};

__device__ __forceinline__ void merge(float& largest, float& total, float* sums, int n,
                                      float other_largest, float other_total, const float* other) {
    const float top = fmaxf(largest, other_largest);
    const float keep = exp32(largest - top), take = exp32(other_largest - top);
    total = total * keep + other_total * take;
    for (int d = 0; d < n; ++d) sums[d] = sums[d] * keep + other[d] * take;
    largest = top;
}

__device__ __forceinline__ void load_dims(const cached* from, float (&to)[DIMS]) {
    constexpr int BYTES = DIMS * sizeof(cached);
    if constexpr (BYTES % 16 == 0) {
        constexpr int PER = 16 / sizeof(cached);
#pragma unroll
        for (int i = 0; i < BYTES / 16; ++i) {
            const uint4 words = ((const uint4*)from)[i];
#pragma unroll
            for (int j = 0; j < PER; ++j) to[i * PER + j] = from_cache(((const cached*)&words)[j]);
        }
    } else {
#pragma unroll
        for (int d = 0; d < DIMS; ++d) to[d] = from_cache(from[d]);
    }
}

// Go over the positions [begin, end) that fall to this warp.
__device__ __forceinline__ void attend(const Attention& a, const Cache& cache, const float* queries,
                                       int row, int loop, int layer, int head, int begin, int end,
                                       Softmax& state) {
    const int warp = warp_id(), group = lane_id() >> 3, dim = (lane_id() & 7) * DIMS;
    const int slot = a.slot[row], position = a.position[row];
    const float scale = 1.0f / sqrtf((float)HEAD_SIZE);
#pragma unroll 1
    for (int first = begin + warp * 4; first < end; first += n_warps() * 4) {
        const bool is_inside = first + group < end;
        const int t = is_inside ? first + group : end - 1;
        const int ran = cache.depth[(long long)slot * cache.max_len + t];
        const int from = t == position ? loop : min(loop, ran - 1);
        const long long at = cache_at(cache, slot, from, layer, head, t) + dim;
        float k[DIMS], v[DIMS];
        load_dims(cache.k + at, k);
        load_dims(cache.v + at, v);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float score = 0;
#pragma unroll
            for (int d = 0; d < DIMS; ++d) {
                score = fmaf(queries[h * HEAD_SIZE + dim + d], k[d], score);
            }
            for (int step = 4; step; step >>= 1) score += __shfl_xor_sync(ALL_LANES, score, step);
            if (is_inside) {
                score *= scale;
                merge(state.largest[h], state.total[h], state.sums[h], DIMS, score, 1.0f, v);
            }
        }
    }
    for (int step = 8; step <= 16; step <<= 1) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float other[DIMS];
#pragma unroll
            for (int d = 0; d < DIMS; ++d) {
                other[d] = __shfl_xor_sync(ALL_LANES, state.sums[h][d], step);
            }
            const float largest = __shfl_xor_sync(ALL_LANES, state.largest[h], step);
            const float total = __shfl_xor_sync(ALL_LANES, state.total[h], step);
            merge(state.largest[h], state.total[h], state.sums[h], DIMS, largest, total, other);
        }
    }
}

// Put n states together for dimension d of head h; returns sum / total, or the parts in `state`.
__device__ __forceinline__ float put_together(const float* states, int n, int h, int d,
                                              float* state) {
    float largest = -1e30f, total = 0, sum = 0;
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
        const float* one = states + i * STATE + h * (HEAD_SIZE + 2);
        merge(largest, total, &sum, 1, one[HEAD_SIZE], one[HEAD_SIZE + 1], one + d);
    }
    if (state) {
        float* to = state + h * (HEAD_SIZE + 2);
        to[d] = sum;
        to[HEAD_SIZE] = largest;
        to[HEAD_SIZE + 1] = total;
    }
    return sum / total;
}

struct AttentionShared {
    float queries[HEADS * HEAD_SIZE];
    int is_last;
};

// Attend with one unit; every block of a row with several stretches goes through here.
__device__ __forceinline__ void attention_unit(const Attention& a, const Cache& cache, int loop,
                                               int layer, int unit) {
    STATIC_SHARED(AttentionShared, shared);
    float* states = (float*)dynamic_shared;
    const int split = unit % a.n_splits, place = unit / a.n_splits;
    const int per_row = units_per_row(a, cache), i = place / per_row;
    const int per_kv = a.n_heads / cache.n_kv_heads, parts = per_row / cache.n_kv_heads;
    const int kv_head = place % per_row / parts, first = place % parts * HEADS;
    const int row = a.active[i], position = a.position[row], n = position + 1;
    const int length = ((n + a.n_splits - 1) / a.n_splits + 63) / 64 * 64;
    const int begin = split * length, end = min(n, begin + length);
    const int used = (n + length - 1) / length;
    if (begin >= n) return;
    const int n_heads = min(HEADS, per_kv - first), head = kv_head * per_kv + first;
    for (int j = threadIdx.x; j < HEADS * HEAD_SIZE; j += blockDim.x) {
        const int h = min(j / HEAD_SIZE, n_heads - 1);
        const float* from = a.qkv + (long long)i * a.stride + (head + h) * HEAD_SIZE;
        shared.queries[j] = turned(a, from, position, j % HEAD_SIZE);
    }
    if (end == n) store_kv(a, cache, i, loop, layer, kv_head);
    __syncthreads();
    Softmax state;
    for (int h = 0; h < HEADS; ++h) {
        state.largest[h] = -1e30f;
        state.total[h] = 0;
        for (int d = 0; d < DIMS; ++d) state.sums[h][d] = 0;
    }
    attend(a, cache, shared.queries, row, loop, layer, kv_head, begin, end, state);
    float* mine = states + warp_id() * STATE;
    if (lane_id() < 8) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float* to = mine + h * (HEAD_SIZE + 2);
            for (int d = 0; d < DIMS; ++d) to[lane_id() * DIMS + d] = state.sums[h][d];
            to[HEAD_SIZE] = state.largest[h];
            to[HEAD_SIZE + 1] = state.total[h];
        }
    }
    __syncthreads();
    float* out = a.attended + ((long long)i * a.n_heads + head) * HEAD_SIZE;
    float* parts_of_row = a.partial + (long long)place * a.n_splits * STATE;
    float* own = used > 1 ? parts_of_row + split * STATE : nullptr;
    for (int j = threadIdx.x; j < HEADS * HEAD_SIZE; j += blockDim.x) {
        const float value = put_together(states, n_warps(), j / HEAD_SIZE, j % HEAD_SIZE, own);
        if (used == 1 && j < n_heads * HEAD_SIZE) out[j] = value;
    }
    if (used > 1) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            shared.is_last = atomicAdd(a.arrived + place, 1u) == (unsigned)used - 1;
            if (shared.is_last) a.arrived[place] = 0;
            __threadfence();
        }
        __syncthreads();
        for (int j = threadIdx.x; shared.is_last && j < n_heads * HEAD_SIZE; j += blockDim.x) {
            out[j] = put_together(parts_of_row, used, j / HEAD_SIZE, j % HEAD_SIZE, nullptr);
        }
    }
    __syncthreads();
}

struct AttentionArgs {
    Attention attention;
    Cache cache;
    const int* n_active;      // null, or how many of n_rows are active
    int loop, layer, n_rows;
};

__device__ __forceinline__ void attention_share(const AttentionArgs& args, int loop, int layer) {
    const int n_rows = live(args.n_rows, args.n_active);
    const int n_units = n_rows * units_per_row(args.attention, args.cache);
    for (int unit = blockIdx.x; unit < n_units * args.attention.n_splits; unit += gridDim.x) {
        attention_unit(args.attention, args.cache, loop, layer, unit);
    }
}

__device__ __forceinline__ void store_share(const AttentionArgs& args, int loop, int layer) {
    const int n_units = live(args.n_rows, args.n_active) * args.cache.n_kv_heads;
    for (int unit = blockIdx.x; unit < n_units; unit += gridDim.x) {
        const int i = unit / args.cache.n_kv_heads, head = unit % args.cache.n_kv_heads;
        store_kv(args.attention, args.cache, i, loop, layer, head);
    }
}

// Rows of the same sequence in one launch: the keys of all must be in the cache before, by `store`.
extern "C" __global__ void __launch_bounds__(512) attention(const AttentionArgs args) {
    attention_share(args, args.loop, args.layer);
}

extern "C" __global__ void __launch_bounds__(256) store(const AttentionArgs args) {
    store_share(args, args.loop, args.layer);
}
