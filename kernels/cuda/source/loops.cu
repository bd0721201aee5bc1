// All loops of a decode step in one launch: the phases that the launches of the other files are,
// with the same bits, and a barrier of the whole grid where a launch would end.
//
// A barrier costs about a launch less the time to fill the multiprocessors again, and a block asks
// for its weights of the next product before it waits. When nobody is left in the loops the grid
// ends. All blocks must run at the same time: the launch is a cooperative one.

struct LoopsArgs {
    BeginArgs begin;
    ProductArgs products[4];  // of layer 0: q, k and v; o; gate and up; down
    long long steps[4];       // 16 bytes of weights from one layer to the next
    AttentionArgs attention;
    LeaveArgs leave;
    unsigned* barrier;        // zero before the first launch, then left alone
    int first_loop, n_layers;
    int stores_first;         // rows of one sequence: all keys are written before any is read
};

constexpr int FUSED_ROWS = 2;  // up to here every block quantises for itself, which saves a barrier

// Wait until every block of the grid is here. Together they add half of what a counter holds, so
// its highest bit turns over when the last arrives, and it never has to be set back.
__device__ __forceinline__ void grid_barrier(unsigned* counter) {
    constexpr unsigned HALF = 0x80000000u;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned before = arrive(counter, blockIdx.x ? 1u : HALF - (gridDim.x - 1));
        while (((arrivals(counter) ^ before) & HALF) == 0) {}
    }
    __syncthreads();
}

__device__ __forceinline__ Matrix matrix_of(const LoopsArgs& args, int which, int layer) {
    Matrix matrix = args.products[which].matrix;
    matrix.packed += args.steps[which] * layer;
    matrix.weight_scale += (long long)matrix.n * layer;
    return matrix;
}

// Bring the activations of a product to this block's shared memory.
template <int NB>
__device__ __forceinline__ void bring(const ProductArgs& one, int which, const Staged& place,
                                      unsigned* barrier) {
    const bool fused = one.n_tokens <= FUSED_ROWS;
    signed char* codes = fused ? place.codes : (signed char*)one.codes.x_q;
    float* act_scale = fused ? place.act_scale : (float*)one.codes.act_scale;
    int* x_sum = fused ? place.x_sum : (int*)one.codes.x_sum;
    const int step = fused ? 1 : gridDim.x;
    for (int i = fused ? 0 : blockIdx.x; i < one.n_tokens; i += step) {
        if (which == 1) {
            quantize_one<PLAIN>(one.rows, i, codes, one.width, act_scale, x_sum);
        } else if (which == 3) {
            quantize_one<SWIGLU>(one.rows, i, codes, one.width, act_scale, x_sum);
        } else {
            quantize_one<NORM>(one.rows, i, codes, one.width, act_scale, x_sum);
        }
    }
    if (!fused) {
        grid_barrier(barrier);
        stage(one, place);
    }
}

template <int NB>
__device__ __forceinline__ void layer_of(const LoopsArgs& args, int loop, int layer, int n_rows) {
#pragma unroll 1
    for (int which = 0; which < 4; ++which) {
        if (which == 1) {
            if (args.stores_first) {
                store_share(args.attention, loop, layer);
                grid_barrier(args.barrier);
            }
            attention_share(args.attention, loop, layer);
            grid_barrier(args.barrier);
        }
        ProductArgs one = args.products[which];
        one.n_tokens = n_rows;
        one.matrix = matrix_of(args, which, layer);
        if (one.rows.weight) one.rows.weight += (long long)one.rows.n * layer;
        const Staged place = staged<NB>(one);
        bring<NB>(one, which, place, args.barrier);
        multiply_share<NB>(one, place);
        const int next = layer + (which == 3);
        ask_for(matrix_of(args, (which + 1) & 3, next < args.n_layers ? next : 0));
        grid_barrier(args.barrier);
    }
}

template <int NB>
__device__ __forceinline__ void all_loops(const LoopsArgs& args) {
    begin_rows(args.begin);
    ask_for(args.products[0].matrix);
    grid_barrier(args.barrier);
#pragma unroll 1
    for (int loop = args.first_loop; loop < args.leave.n_loops; ++loop) {
        const int n_rows = args.leave.n_active[0];
        if (n_rows == 0) break;
#pragma unroll 1
        for (int layer = 0; layer < args.n_layers; ++layer) layer_of<NB>(args, loop, layer, n_rows);
        leave_loop(args.leave, loop);
        grid_barrier(args.barrier);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) loops_1(const LoopsArgs args) {
    all_loops<1>(args);
}

extern "C" __global__ void __launch_bounds__(512, 1) loops_2(const LoopsArgs args) {
    all_loops<2>(args);
}

extern "C" __global__ void __launch_bounds__(256, 1) loops_4(const LoopsArgs args) {
    all_loops<4>(args);
}
