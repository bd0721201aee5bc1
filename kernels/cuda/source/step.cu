// The ends of a decode step: tokens become rows, hidden states logits, and what was drawn is kept.
// Between them stand the kernels of the other files; nothing in a step asks the host, so a graph of
// its launches repeats it for as many tokens as are wanted.

struct BeginArgs {
    const float* embed;             // (V, D)
    float *hidden, *survival;       // (rows, D), (rows,)
    int *active, *n_active;         // out: the rows that take part, in order
    const int *token, *slot, *position;
    const unsigned char* finished;  // (rows,) rows that do not
    unsigned char* depth;           // (S, T): all loops, until one is left early
    int n_rows, d_model, max_len, n_loops;
};

__device__ __forceinline__ void begin_rows(const BeginArgs& args) {
    for (int row = blockIdx.x; row < args.n_rows; row += gridDim.x) {
        if (args.finished[row]) continue;
        const float* from = args.embed + (long long)args.token[row] * args.d_model;
        float* to = args.hidden + (long long)row * args.d_model;
        for (int k = threadIdx.x; k < args.d_model; k += blockDim.x) to[k] = from[k];
        if (threadIdx.x == 0) {
            args.survival[row] = 1;
            args.depth[(long long)args.slot[row] * args.max_len + args.position[row]] =
                (unsigned char)args.n_loops;
        }
    }
    if (blockIdx.x == 0 && warp_id() == 0) {
        const int row = lane_id();
        list_rows(row < args.n_rows && !args.finished[row] ? row : -1, args.active, args.n_active);
    }
}

extern "C" __global__ void __launch_bounds__(256) begin(const BeginArgs args) { begin_rows(args); }

struct HeadArgs {
    const uint4* weight;  // int16 (V/16, D, 16)
    const float* scale;   // (V padded,)
    const float* hidden;  // (rows, D)
    float* logits;        // (rows, V padded)
    int n_groups, d_model, n_rows;
};

// A warp makes 16 logits of four rows: two lanes share an input, each with eight outputs.
extern "C" __global__ void __launch_bounds__(256, 1) head(const HeadArgs args) {
    const int half = lane_id() & 1, D = args.d_model;
    const int first = blockIdx.x * n_warps() + warp_id(), step = gridDim.x * n_warps();
    for (int group = first; group < args.n_groups; group += step) {
        const uint4* weight = args.weight + (long long)group * D * 2;
        for (int row = 0; row < args.n_rows; row += 4) {
            float sums[4][8] = {};
#pragma unroll 2
            for (int k = lane_id() >> 1; k < D; k += 16) {
                const uint4 words = weight[k * 2 + half];
                const short* w = (const short*)&words;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int at = min(row + i, args.n_rows - 1);
                    const float x = args.hidden[(long long)at * D + k];
#pragma unroll
                    for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(x, (float)w[j], sums[i][j]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    float sum = sums[i][j];
                    for (int far = 2; far < 32; far <<= 1) {
                        sum += __shfl_xor_sync(ALL_LANES, sum, far);
                    }
                    const int n = group * 16 + half * 8 + j;
                    if (lane_id() < 2 && row + i < args.n_rows) {
                        const long long at = (long long)(row + i) * args.n_groups * 16 + n;
                        args.logits[at] = sum * args.scale[n];
                    }
                }
            }
        }
    }
}

struct AppendArgs {
    const int* token;              // (rows,) what was drawn
    const float* entropy;
    const int* exit_loop;
    const unsigned char* is_stop;  // (V,)
    int* tokens;                   // (rows, width)
    float* entropies;
    int* exit_loops;
    int *place, *position;         // (rows,) tokens so far, and where the next is read
    unsigned char* finished;
    const int* limit;              // (1,) tokens wanted of each
    int n_rows, width, max_len;
};

extern "C" __global__ void __launch_bounds__(32) append(const AppendArgs args) {
    for (int row = threadIdx.x; row < args.n_rows; row += blockDim.x) {
        if (args.finished[row]) continue;
        const int done = args.place[row], token = args.token[row];
        args.tokens[row * args.width + done] = token;
        args.entropies[row * args.width + done] = args.entropy[row];
        args.exit_loops[row * args.width + done] = args.exit_loop[row];
        args.place[row] = done + 1;
        args.finished[row] = args.is_stop[token] || done + 1 >= args.limit[0] ||
                             ++args.position[row] >= args.max_len;
    }
}
