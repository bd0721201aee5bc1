// What the kernels stand on: wide loads, the tensor core, and warps.
//
// The sources are compiled as one text by NVRTC, without a header. Only this file holds assembly,
// so that a CPU can run the others: tests/cuda_shim defines the same functions in C++ instead.
// Compiled without contraction: what is fused is written fmaf, so both compute the same bits.

#ifdef NANOCHAT_SHIM
#define STATIC_SHARED(type, name) type& name = *shim_shared<type>(__COUNTER__)
#else
#define STATIC_SHARED(type, name) __shared__ type name
extern __shared__ uint4 dynamic_shared[];

// Weights pass through once per product: they need no room in the nearest cache.
__device__ __forceinline__ uint4 load_once(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

__device__ __forceinline__ void prefetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(at));
}

// d += a b of 16 x 32 unsigned by 32 x 8 signed bytes. Of lane 4g + t: a is rows g and g + 8 at
// inputs 4t..4t+3, then both at 16 more; b column g at the same inputs; d rows g, g + 8 at
// columns 2t, 2t + 1.
__device__ __forceinline__ void mma(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Add to a counter that all blocks share, and read it. What a thread wrote before it arrived is
// seen by those that have read its arrival, and by threads that meet these at a barrier afterwards.
__device__ __forceinline__ unsigned arrive(unsigned* at, unsigned n) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before) : "l"(at), "r"(n) : "memory");
    return before;
}

__device__ __forceinline__ unsigned arrivals(const unsigned* at) {
    unsigned now;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(at) : "memory");
    return now;
}

__device__ __forceinline__ float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return threadIdx.x & 31; }
// Through a shuffle, so that the compiler knows it to be one number for a warp: all lanes call it.
__device__ __forceinline__ int warp_id() { return __shfl_sync(ALL_LANES, threadIdx.x >> 5, 0); }
__device__ __forceinline__ int n_warps() { return blockDim.x >> 5; }

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

__device__ __forceinline__ int warp_sum(int value) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

__device__ __forceinline__ int warp_max(int value) {
    for (int step = 16; step; step >>= 1) {
        value = max(value, __shfl_xor_sync(ALL_LANES, value, step));
    }
    return value;
}

// exp(x) as nanochat_lib/model/decoding/sampling.py computes it, bit by bit.
__device__ __forceinline__ float exp32(float x) {
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    const float n = floorf(x * 1.4426950408889634f + 0.5f);
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    const float tail =
        1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040))));
    const float power = 1.0f + (r + r * r * (0.5f + r * tail));
    return power * __int_as_float(((int)n + 127) << 23);
}

// Rows that a kernel works on: as many as are still in the loops, when somebody counts them.
__device__ __forceinline__ int live(int n, const int* n_active) {
    return n_active ? min(n, *n_active) : n;
}

// Write the rows that are not -1, one a lane, in order, and how many. All lanes of a warp call it.
__device__ __forceinline__ void list_rows(int row, int* active, int* n_active) {
    int place = row >= 0;
    for (int step = 1; step < 32; step <<= 1) {
        const int before = __shfl_up_sync(ALL_LANES, place, step);
        if (lane_id() >= step) place += before;
    }
    if (row >= 0) active[place - 1] = row;
    if (lane_id() == 31) *n_active = place;
}
