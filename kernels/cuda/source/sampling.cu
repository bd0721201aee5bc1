// The end of a decode step: leaving loops, and the next token, both without asking the host.
//
// The arithmetic is that of nanochat_lib/model/decoding: the same random numbers by hashing the
// sequence's seed and place, ties kept, the same bisection over bit patterns. Sums run in another
// order and in float32, so a draw may differ where two tokens meet within rounding.

struct Scratch {
    float values[MAX_WARPS];
    int counts[MAX_WARPS];
};

// Sums over the block, for all threads; `values` before and after must be passed by all.
__device__ __forceinline__ float block_sum(float value) {
    STATIC_SHARED(Scratch, scratch);
    const int warp = warp_id();
    value = warp_sum(value);
    __syncthreads();
    if (lane_id() == 0) scratch.values[warp] = value;
    __syncthreads();
    value = 0;
    for (int i = 0; i < n_warps(); ++i) value += scratch.values[i];
    return value;
}

__device__ __forceinline__ int block_sum(int value) {
    STATIC_SHARED(Scratch, scratch);
    const int warp = warp_id();
    value = warp_sum(value);
    __syncthreads();
    if (lane_id() == 0) scratch.counts[warp] = value;
    __syncthreads();
    value = 0;
    for (int i = 0; i < n_warps(); ++i) value += scratch.counts[i];
    return value;
}

// The largest value and the first place of it.
struct Best {
    float value;
    int at;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__device__ __forceinline__ Best block_best(Best best) {
    STATIC_SHARED(Scratch, scratch);
    const int warp = warp_id();
    for (int step = 16; step; step >>= 1) {
        const float value = __shfl_xor_sync(ALL_LANES, best.value, step);
        best = better(best, {value, __shfl_xor_sync(ALL_LANES, best.at, step)});
    }
    __syncthreads();
    if (lane_id() == 0) {
        scratch.values[warp] = best.value;
        scratch.counts[warp] = best.at;
    }
    __syncthreads();
    for (int i = 0; i < n_warps(); ++i) best = better(best, {scratch.values[i], scratch.counts[i]});
    return best;
}

// splitmix64 of (seed, counter) in [0, 1), as sampling.py has it; 24 bits are what a float holds.
__device__ __forceinline__ float uniform(unsigned long long seed, int counter) {
    unsigned long long state = seed + (counter + 1ull) * 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    state = state ^ (state >> 31);
    return (float)(state >> 40) * (1.0f / 16777216.0f);
}

// The largest bound that at least `wanted` of the values reach, counted or by their sum.
__device__ __forceinline__ float border(const float* values, int n, bool counts, float wanted) {
    int low = 0, high = 0x3F800000;  // 0 and 1: bits of such floats are in order
    while (low < high) {
        const int middle = low + (high - low + 1) / 2;
        float mass = 0;
        int count = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            if (__float_as_int(values[i]) >= middle) {
                mass += values[i];
                ++count;
            }
        }
        if ((counts ? (float)block_sum(count) : block_sum(mass)) >= wanted) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return __int_as_float(low);
}

struct SampleArgs {
    const float* logits;             // (rows, stride)
    float* probability;              // (rows, vocab), scratch
    const unsigned long long* seed;  // (rows,)
    const int* place;                // (rows,) tokens that the sequence has so far
    int* token;                      // (rows,) out
    float* entropy;                  // (rows,) out: nats at temperature 1
    int n_rows, vocab, stride, top_k;
    float temperature, top_p;
};

// Draw from values that sum to `total`: each thread owns a run of tokens, in order.
__device__ __forceinline__ int draw(const float* values, int n, float chance) {
    float* runs = (float*)dynamic_shared;  // one sum for each thread
    const int length = (n + blockDim.x - 1) / blockDim.x;
    const int begin = min(n, (int)threadIdx.x * length), end = min(n, begin + length);
    float sum = 0;
    for (int i = begin; i < end; ++i) sum += values[i];
    runs[threadIdx.x] = sum;
    __syncthreads();
    Best found = {-1.0f, 0};  // the one thread that holds the token, or the last with any mass
    if (threadIdx.x == 0) {
        float total = 0;
        for (int i = 0; i < blockDim.x; ++i) total += runs[i];
        float left = chance * total;
        int run = 0;
        for (int i = 0; i < blockDim.x; ++i) {
            if (runs[i] > 0) run = i;
            if (runs[i] > 0 && left < runs[i]) break;
            left -= runs[i];
        }
        int last = run * length;
        for (int i = last; i < min(n, (run + 1) * length); ++i) {
            if (values[i] <= 0) continue;
            last = i;
            left -= values[i];
            if (left < 0) break;
        }
        found = {1.0f, last};
    }
    return block_best(found).at;
}

struct Weighed {
    int token;      // the most likely
    float entropy;  // nats at temperature 1
};

// Write the weights that row `at` of the logits gives to its tokens, zero for those left out.
__device__ __forceinline__ Weighed weigh(const SampleArgs& args, int at, float* probability) {
    const int n = args.vocab;
    const float* logits = args.logits + (long long)at * args.stride;
    Best best = {-3.4e38f, n};
    for (int i = threadIdx.x; i < n; i += blockDim.x) best = better(best, {logits[i], i});
    best = block_best(best);
    float total = 0, weighted = 0, mass = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const float above = logits[i] - best.value, chance = exp32(above);
        total += chance;
        weighted += chance * above;
        probability[i] = args.temperature > 0 ? exp32(above * (1 / args.temperature)) : 0;
    }
    total = block_sum(total);
    weighted = block_sum(weighted);
    if (args.temperature > 0) {
        float lowest = 0;
        if (args.top_k > 0 && args.top_k < n) lowest = border(probability, n, true, args.top_k);
        if (args.top_p < 1) {
            for (int i = threadIdx.x; i < n; i += blockDim.x) {
                if (probability[i] < lowest) probability[i] = 0;
                mass += probability[i];
            }
            mass = block_sum(mass);
            lowest = fmaxf(lowest, border(probability, n, false, args.top_p * mass));
        }
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            if (probability[i] < lowest) probability[i] = 0;
        }
        __syncthreads();
    }
    return {best.at, logf(total) - weighted / total};
}

extern "C" __global__ void __launch_bounds__(512) sample(const SampleArgs args) {
    const int row = blockIdx.x;
    float* probability = args.probability + (long long)row * args.vocab;
    const Weighed one = weigh(args, row, probability);
    int token = one.token;
    if (args.temperature > 0) {
        token = draw(probability, args.vocab, uniform(args.seed[row], args.place[row]));
    }
    if (threadIdx.x == 0) {
        args.token[row] = token;
        args.entropy[row] = one.entropy;
    }
}

struct LeaveArgs {
    float* hidden;             // (rows, D) in place: after the final norm
    float* final;              // (rows, D) of rows that leave
    const float* norm_weight;  // (D,)
    const float* gate_weight;  // (D,)
    const float* gate_bias;    // (1,)
    float* survival;           // (rows,)
    int* active;               // (rows,) in and out: who stays, in order
    int* n_active;             // (1,)
    unsigned* arrived;         // (1,) rows that are done, zero between loops
    int* exit_loop;            // (rows,) loops run, from 1
    unsigned char* depth;      // (S, T), as attention reads it
    const int *slot, *position;
    int d_model, max_len, loop, n_loops;
    float eps, threshold;      // above 1: nobody leaves before the last loop
};

constexpr int COLUMNS = 256;  // threads that share a row here, in a block of at least as many

// The end of a loop for row i of the active ones, by a block: norm and exit gate. `active` then
// holds -1 where the row has left.
//
// A sum is made of COLUMNS partial sums: that of column c adds the inputs c, c + 256, c + 512, ...
// in order; a warp's 32 columns are added by halves, distant ones first (16, 8, 4, 2, 1), and the
// warps' sums in order. So a row's bits do not depend on its block's size, nor on other rows. The
// CPU engine adds input by input: the two differ by rounding, as keys in float16 make them anyway.
__device__ __forceinline__ void leave_row(const LeaveArgs& args, int loop, int i) {
    const int row = args.active[i], D = args.d_model;
    const int begin = threadIdx.x < COLUMNS ? threadIdx.x : D;
    float* hidden = args.hidden + (long long)row * D;
    float squares = 0, gate = 0;
    for (int k = begin; k < D; k += COLUMNS) squares = fmaf(hidden[k], hidden[k], squares);
    const float inverse = 1.0f / sqrtf(block_sum(squares) / D + args.eps);
    // Twice and no more: in the persistent kernel registers are short.
#pragma unroll 2
    for (int k = begin; k < D; k += COLUMNS) {
        hidden[k] = hidden[k] * inverse * args.norm_weight[k];
        gate = fmaf(hidden[k], args.gate_weight[k], gate);
    }
    gate = block_sum(gate) + args.gate_bias[0];
    const float survival = args.survival[row] * (1.0f - 1.0f / (1.0f + exp32(-gate)));
    const bool is_last = loop + 1 == args.n_loops;
    const bool leaves = is_last || (args.threshold <= 1 && 1.0f - survival >= args.threshold);
    if (leaves) {
        float* final = args.final + (long long)row * D;
#pragma unroll 2
        for (int k = begin; k < D; k += COLUMNS) final[k] = hidden[k];
    }
    __syncthreads();  // all have read the row's survival
    if (threadIdx.x == 0) {
        args.survival[row] = survival;
        if (leaves) {
            args.active[i] = -1;
            args.exit_loop[row] = loop + 1;
            args.depth[(long long)args.slot[row] * args.max_len + args.position[row]] =
                (unsigned char)(loop + 1);
        }
    }
}

// The end of a loop, a row to a block: the last to be done makes the new list of rows that go on.
// No block reads the list or its length after that: each has rows of the old one, or none.
__device__ __forceinline__ void leave_loop(const LeaveArgs& args, int loop) {
    STATIC_SHARED(int, is_last);
    const int n_rows = args.n_active[0];
    for (int i = blockIdx.x; i < n_rows; i += gridDim.x) {
        leave_row(args, loop, i);
        if (threadIdx.x == 0) is_last = arrive(args.arrived, 1u) == (unsigned)n_rows - 1;
        __syncthreads();
        if (is_last && warp_id() == 0) {
            if (lane_id() == 0) *args.arrived = 0;
            const int row = lane_id() < n_rows ? args.active[lane_id()] : -1;
            list_rows(row, args.active, args.n_active);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) leave(const LeaveArgs args) {
    leave_loop(args, args.loop);
}
