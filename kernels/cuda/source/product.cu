// int8 activations times packed ternary weights on the integer tensor cores, batch 1 to 32.
//
// A unit is one row group of packing.py: 16 output rows, their 64-byte blocks one after another.
// A warp takes eight blocks of it at a time, 16 bytes a lane, and needs no field moved: masked in
// place, field p counts 4^p times and has sums of its own (reference: packing.py, levels/vnni.py).
//
// Lane 4g + t ends with rows 2g and 2g + 1 of the blocks t and t + 4. It loads 16 bytes, four rows
// of one of these blocks, and swaps two of them with the lane of the other two rows. No other order
// in memory is needed: a swap costs an eighth of an instruction per weight, and units stay small
// enough to keep all multiprocessors busy (32 rows would need none, and leave half of them idle at
// d_model 2048).
//
// A block keeps the activations of all its units in shared memory; its warps share each unit along
// the inputs and add up there. Integers only, so the order of adding changes no bit.

struct Matrix {
    const uint4* packed;        // (N/16, K/16, 64 bytes)
    const float* weight_scale;  // (N,)
    int n, k;                   // rows and inputs
};

struct Codes {
    const signed char* x_q;  // (B, width), zeros behind k
    const float* act_scale;  // (B,)
    const int* x_sum;        // (B,)
};

struct Result {
    float* out;        // (rows, stride)
    const int* index;  // null: token i goes to row i
    int* accumulators; // null, or (B, stride): the integers instead of out
    int stride;
    int adds;          // whether to add to what out holds
};

struct ProductArgs {
    Matrix matrix;
    Codes codes;
    Rows rows;   // where activations come from when they are quantised here
    Result result;
    const int* n_active;  // null, or how many of n_tokens there are
    int n_tokens, width;  // tokens; bytes of a row of codes, see codes_width in Python
    int slots;            // units that a block works on at once, a divisor of its warps
};

constexpr int AHEAD = 4;  // loads of a warp on their way while it multiplies the ones before

// What a lane multiplies of one unit: 16 bytes of every `parts`-th group of eight blocks.
struct Walk {
    const uint4* next;  // what the lane loads next
    int n, n_own;       // groups of the warp, and those in which the lane has a block
    int step;           // from one to the next, in 16 bytes
};

__device__ __forceinline__ Walk walk_of(const uint4* packed, int n_blocks, int part, int parts) {
    const int g = lane_id() >> 2, block = part * 8 + (lane_id() & 3) + (g & 1) * 4;
    const int n = ((n_blocks + 7) / 8 - part + parts - 1) / parts;
    const int n_own = (n_blocks - block + parts * 8 - 1) / (parts * 8);
    return {packed + block * 4 + (g >> 1), n, n_own, parts * 32};
}

// Where the last group is cut short a lane keeps what it had: it meets activations of zero.
__device__ __forceinline__ void load_group(Walk& walk, int i, uint4& words) {
    if (i < walk.n_own) words = load_once(walk.next);
    walk.next += walk.step;
}

template <int NB>
__device__ __forceinline__ void multiply(const uint4& w, int x, int eight,
                                         int (&sums)[NB][4][4]) {
    const bool odd = lane_id() & 4;
    const unsigned other_0 = __shfl_xor_sync(ALL_LANES, odd ? w.x : w.z, 4);
    const unsigned other_1 = __shfl_xor_sync(ALL_LANES, odd ? w.y : w.w, 4);
    const unsigned rows[4] = {odd ? other_0 : w.x, odd ? other_1 : w.y,
                              odd ? w.z : other_0, odd ? w.w : other_1};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const unsigned mask = half ? 0x30303030u : 0x03030303u, next = mask << 2;
        const unsigned a[4] = {rows[0] & mask, rows[1] & mask, rows[2] & mask, rows[3] & mask};
        const unsigned b[4] = {rows[0] & next, rows[1] & next, rows[2] & next, rows[3] & next};
#pragma unroll
        for (int nb = 0; nb < NB; ++nb) {
            const char* at = (const char*)dynamic_shared + x + nb * eight + half * 64;
            const uint4 codes = *(const uint4*)at;
            mma(sums[nb][2 * half], a, codes.x, codes.y);
            mma(sums[nb][2 * half + 1], b, codes.z, codes.w);
        }
    }
}

// Add the sums of a warp to the unit's totals (16, n_tokens).
template <int NB>
__device__ __forceinline__ void add_up(const int (&sums)[NB][4][4], int* totals, int n_tokens) {
    const int g = lane_id() >> 2, t = lane_id() & 3;
#pragma unroll
    for (int nb = 0; nb < NB; ++nb) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int row = 2 * g + (c >> 1), token = nb * 8 + 2 * t + (c & 1);
            const int sum = sums[nb][0][c] + (sums[nb][1][c] >> 2) + (sums[nb][2][c] >> 4) +
                            (sums[nb][3][c] >> 6);
            if (token < n_tokens) atomicAdd(totals + row * n_tokens + token, sum);
        }
    }
}

// Multiply one unit by the staged codes, this warp's part of the inputs.
template <int NB>
__device__ __forceinline__ void one_unit(Walk walk, int part, const ProductArgs& args,
                                         int* totals) {
    constexpr int U = AHEAD;
    int sums[NB][4][4] = {};
    // Lanes of columns behind the last token read the last, or what lies there: nobody looks.
    const int token = NB == 1 ? min(lane_id() >> 2, args.n_tokens - 1) : lane_id() >> 2;
    const int eight = args.width * 8;  // bytes from a token's codes to those of the eighth after
    int x = part * 128 + token * args.width + (lane_id() & 3) * 16;
    uint4 words[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) load_group(walk, u, words[u]);
    const int stride = walk.step * 4;
    int i = 0;
#pragma unroll 1
    for (; i + U <= walk.n; i += U) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
            multiply<NB>(words[u], x, eight, sums);
            load_group(walk, i + u + U, words[u]);
            x += stride;
        }
    }
#pragma unroll 1
    for (; i < walk.n; ++i) {
        multiply<NB>(words[0], x, eight, sums);
#pragma unroll
        for (int u = 1; u < U; ++u) words[u - 1] = words[u];
        x += stride;
    }
    add_up<NB>(sums, totals, args.n_tokens);
}

__device__ __forceinline__ void write_result(const ProductArgs& args, int first_unit, int n_units,
                                             const int* totals, const float* act_scale,
                                             const int* x_sum) {
    const int n_rows = min(n_units * 16, args.matrix.n - first_unit * 16), B = args.n_tokens;
    for (int i = threadIdx.x; i < n_rows * B; i += blockDim.x) {
        const int token = i / n_rows, row = i - token * n_rows, n = first_unit * 16 + row;
        const int sum = totals[row * B + token] - x_sum[token];
        const Result& to = args.result;
        if (to.accumulators) {
            to.accumulators[(long long)token * to.stride + n] = sum;
            continue;
        }
        const long long at = (long long)(to.index ? to.index[token] : token) * to.stride + n;
        const float value = (float)sum * (act_scale[token] * args.matrix.weight_scale[n]);
        to.out[at] = to.adds ? to.out[at] + value : value;
    }
}

// Units of this block: an even share, in order.
__device__ __forceinline__ int share_begin(int n, int index) {
    return (int)((long long)n * index / gridDim.x);
}

// Ask for a block's weights while it still waits for its activations.
__device__ __forceinline__ void ask_for(const Matrix& matrix) {
    const int n_all = (matrix.n + 15) / 16, n_blocks = (matrix.k + 15) / 16;
    const long long bytes = 64ll * n_blocks, begin = share_begin(n_all, blockIdx.x) * bytes;
    const long long end = share_begin(n_all, blockIdx.x + 1) * bytes;
    for (long long at = begin + threadIdx.x * 128; at < end; at += blockDim.x * 128) {
        prefetch((const char*)matrix.packed + at);
    }
}

// Where a block keeps the activations of a product in its shared memory, and its sums.
struct Staged {
    signed char* codes;  // (tokens, width)
    float* act_scale;
    int *x_sum, *totals;  // (tokens,), (units, 16, tokens)
};

template <int NB>
__device__ __forceinline__ Staged staged(const ProductArgs& args) {
    const int B = args.n_tokens;
    signed char* codes = (signed char*)dynamic_shared;
    float* act_scale = (float*)(codes + (NB == 1 ? B : NB * 8) * args.width);
    int* x_sum = (int*)(act_scale + B);
    return {codes, act_scale, x_sum, x_sum + B};
}

// Copy codes that a kernel or a phase before has written.
__device__ __forceinline__ void stage(const ProductArgs& args, const Staged& to) {
    const int B = args.n_tokens;
    const uint4* from = (const uint4*)args.codes.x_q;
    for (int i = threadIdx.x; i < B * args.width / 16; i += blockDim.x) dynamic_shared[i] = from[i];
    for (int i = threadIdx.x; i < B; i += blockDim.x) {
        to.act_scale[i] = args.codes.act_scale[i];
        to.x_sum[i] = args.codes.x_sum[i];
    }
}

// Do this block's share of a product of what is staged, without waiting for the staging before.
template <int NB>
__device__ __forceinline__ void multiply_share(const ProductArgs& args, const Staged& from) {
    const int n_all = (args.matrix.n + 15) / 16, first = share_begin(n_all, blockIdx.x);
    const int n_units = share_begin(n_all, blockIdx.x + 1) - first, B = args.n_tokens;
    for (int i = threadIdx.x; i < n_units * 16 * B; i += blockDim.x) from.totals[i] = 0;
    __syncthreads();
    const int parts = n_warps() / args.slots, part = warp_id() % parts;
    const int n_blocks = (args.matrix.k + 15) / 16;
    for (int unit = warp_id() / parts; unit < n_units; unit += args.slots) {
        const uint4* packed = args.matrix.packed + (long long)(first + unit) * n_blocks * 4;
        const Walk walk = walk_of(packed, n_blocks, part, parts);
        one_unit<NB>(walk, part, args, from.totals + unit * 16 * B);
    }
    __syncthreads();
    write_result(args, first, n_units, from.totals, from.act_scale, from.x_sum);
    __syncthreads();
}

// Do this block's share of a product. KIND below 0 takes args.codes, else rows are quantised here.
template <int NB, int KIND>
__device__ __forceinline__ void product(const ProductArgs& given) {
    ProductArgs args = given;
    args.n_tokens = live(given.n_tokens, given.n_active);
    if (args.n_tokens == 0) return;
    ask_for(args.matrix);
    const Staged place = staged<NB>(args);
    if constexpr (KIND < 0) {
        stage(args, place);
    } else {
        quantize_rows<KIND>(args.rows, args.n_tokens, place.codes, args.width, place.act_scale,
                            place.x_sum);
    }
    multiply_share<NB>(args, place);
}

extern "C" __global__ void __launch_bounds__(512, 1) w2a8_mma_1(const ProductArgs args) {
    product<1, -1>(args);
}

extern "C" __global__ void __launch_bounds__(512, 1) w2a8_mma_2(const ProductArgs args) {
    product<2, -1>(args);
}

// Its sums need the registers of twice as many threads.
extern "C" __global__ void __launch_bounds__(256, 1) w2a8_mma_4(const ProductArgs args) {
    product<4, -1>(args);
}

// Quantises as it begins: for one or two tokens that is cheaper than a kernel before.
extern "C" __global__ void __launch_bounds__(512, 1) w2a8_mma_fused(const ProductArgs args) {
    product<1, PLAIN>(args);
}
