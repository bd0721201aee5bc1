// Rows of float32 to int8 codes with a scale and a sum each, after an RMSNorm or a SwiGLU or as
// they are. Codes and scales are those of kernels/reference.py, bit by bit; a row with NaN or
// infinity gets a scale that is not finite, so its products are NaN.
//
// Codes are written in the order in which the tensor core's lanes take them. Of 128 inputs, field p
// of block b (packing.py) is four bytes; a lane takes those of the blocks t and t + 4 side by side:
//
//     byte 64 (p >> 1) + 16 t + 8 (p & 1) + 4 (b >> 2) + j, with t = b & 3, is input 16 b + 4 p + j
//
// A row has whole groups of 128 and 64 bytes more, so that neighbouring rows lie in other banks.

enum Kind { PLAIN = 0, NORM = 1, SWIGLU = 2 };

// Where rows come from; row i is row index[i] of x when there is an index.
struct Rows {
    const float* x;       // (rows, stride); SWIGLU: n gates, then n more to multiply by
    const float* weight;  // NORM: (n,)
    const int* index;     // null: row i is row i
    int n, stride;
    float eps;            // NORM
};

__device__ __forceinline__ const float* row_of(const Rows& rows, int i) {
    return rows.x + (long long)(rows.index ? rows.index[i] : i) * rows.stride;
}

template <int KIND>
__device__ __forceinline__ float value_at(const Rows& rows, const float* row, int k,
                                          float inverse) {
    if (KIND == NORM) return row[k] * inverse * rows.weight[k];
    if (KIND == SWIGLU) return row[k] / (1.0f + exp32(-row[k])) * row[rows.n + k];
    return row[k];
}

constexpr int MAX_WARPS = 32;

__device__ __forceinline__ int place_of(int k) {
    return (k & ~127) | ((k & 8) << 3) | ((k & 48)) | ((k & 4) << 1) | ((k & 64) >> 4) | (k & 3);
}

// What the warps of a block tell each other while they quantise.
struct Shares {
    float squares[MAX_WARPS];
    int largest[MAX_WARPS];
    int sum[MAX_WARPS];
};

// Quantise n_rows rows into codes (n_rows, width), zero for inputs behind rows.n. The whole block
// takes part; few rows are shared by several warps each. Ends without a barrier. One is enough for
// each share: between its reading and its next writing lies that of another.
template <int KIND>
__device__ void quantize_rows(const Rows& rows, int n_rows, signed char* codes, int width,
                              float* act_scale, int* x_sum) {
    STATIC_SHARED(Shares, shares);
    const int warp = warp_id();
    int parts = n_warps();
    while (parts > 1 && n_warps() < parts * n_rows) parts >>= 1;
    const int part = warp % parts, at_once = n_warps() / parts;
    const int first_warp = warp - part, begin = part * 32 + lane_id(), step = parts * 32;
    for (int first = 0; first < n_rows; first += at_once) {
        const int i = first + warp / parts;
        const bool is_mine = i < n_rows;
        const float* row = row_of(rows, is_mine ? i : 0);
        float inverse = 1;
        if (KIND == NORM) {
            float squares = 0;
            for (int k = begin; k < rows.n; k += step) squares = fmaf(row[k], row[k], squares);
            squares = warp_sum(squares);
            if (lane_id() == 0) shares.squares[warp] = squares;
            __syncthreads();
            squares = 0;
            for (int j = 0; j < parts; ++j) squares += shares.squares[first_warp + j];
            inverse = 1.0f / sqrtf(squares / rows.n + rows.eps);
        }
        int largest = 0;  // bits of a magnitude: NaN and infinity come out on top
        for (int k = begin; k < rows.n; k += step) {
            const float value = value_at<KIND>(rows, row, k, inverse);
            largest = max(largest, __float_as_int(value) & 0x7fffffff);
        }
        largest = warp_max(largest);
        if (lane_id() == 0) shares.largest[warp] = largest;
        __syncthreads();
        for (int j = 0; j < parts; ++j) largest = max(largest, shares.largest[first_warp + j]);
        const float absmax = __int_as_float(largest);
        const float scale = (absmax < 1e-5f ? 1e-5f : absmax) / 127.0f;
        int sum = 0;
        for (int k = begin; is_mine && k < (width & ~127); k += step) {
            const float value = k < rows.n ? value_at<KIND>(rows, row, k, inverse) : 0.0f;
            const int code = __float2int_rn(value / scale);
            codes[(long long)i * width + place_of(k)] = (signed char)code;
            sum += code;
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) shares.sum[warp] = sum;
        __syncthreads();
        if (is_mine && part == 0 && lane_id() == 0) {
            for (int j = 1; j < parts; ++j) sum += shares.sum[first_warp + j];
            act_scale[i] = scale;
            x_sum[i] = sum;
        }
    }
}

struct QuantizeArgs {
    Rows rows;
    signed char* codes;  // (B, width)
    float* act_scale;    // (B,)
    int* x_sum;          // (B,)
    const int* n_active; // null, or how many of n_rows there are
    int width, n_rows;
};

// Quantise row i alone, by the whole block: its bits do not depend on how many rows there are.
template <int KIND>
__device__ __forceinline__ void quantize_one(const Rows& rows, int i, signed char* codes, int width,
                                             float* act_scale, int* x_sum) {
    Rows one = rows;
    one.x = row_of(rows, i);
    one.index = nullptr;
    quantize_rows<KIND>(one, 1, codes + (long long)i * width, width, act_scale + i, x_sum + i);
}

template <int KIND>
__device__ __forceinline__ void quantize_share(const QuantizeArgs& args) {
    const int n_rows = live(args.n_rows, args.n_active);
    for (int i = blockIdx.x; i < n_rows; i += gridDim.x) {
        quantize_one<KIND>(args.rows, i, args.codes, args.width, args.act_scale, args.x_sum);
    }
}

extern "C" __global__ void __launch_bounds__(512) quantize(const QuantizeArgs args) {
    quantize_share<PLAIN>(args);
}

extern "C" __global__ void __launch_bounds__(512) norm_quantize(const QuantizeArgs args) {
    quantize_share<NORM>(args);
}

extern "C" __global__ void __launch_bounds__(512) swiglu_quantize(const QuantizeArgs args) {
    quantize_share<SWIGLU>(args);
}
