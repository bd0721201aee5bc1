// Runs the CUDA sources on a CPU: every thread of a block is a fiber, and one of them runs at a
// time. What a warp or a block does together makes a fiber wait until the others are there. Blocks
// run one after another, or all together when they wait for each other (a cooperative launch). The
// order of the fibers is random by a seed and one warp lags far behind, of blocks that run together
// one whole block, so that a missing barrier shows as a wrong result; shared memory begins as noise and ends in bytes that nobody may have
// changed; loads of 16 bytes must be aligned, and lie where shim_allow says.
//
// Not simulated: the memory model (all writes are seen at once), divergence inside a warp, timing.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

using std::max;
using std::min;

#define NANOCHAT_SHIM
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct shim_index { int x; };

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct ShimFiber;

struct ShimBarrier {
    int members = 0;
    std::vector<ShimFiber*> waiting;
};

struct ShimWarp {
    ShimBarrier barrier;
    uint64_t box[2][32];
    unsigned mma_box[2][32][6];
    unsigned n_exchanges[32] = {};
};

struct ShimBlock {
    ShimBarrier barrier;
    std::vector<ShimWarp> warps;
    std::vector<uint4> shared;
    std::map<int, std::unique_ptr<char[]>> statics;
};

struct ShimFiber {
    ucontext_t context;  // to begin with
    jmp_buf place;       // to go on: a jump asks nothing of the system
    bool is_begun = false;
    std::unique_ptr<char[]> stack;
    shim_index thread, block;
    ShimBlock* in;
};

static std::vector<ShimFiber*> shim_ready;  // all that could go on, without the one that runs
static int shim_unfinished;
static ShimFiber* shim_me;
static ucontext_t shim_main;
static shim_index blockDim, gridDim;
static void (*shim_body)(const void*);
static const void* shim_arguments;
static std::minstd_rand shim_random;
static int shim_laggard;  // a warp of every block
static int shim_late_block = -1;  // of a grid that runs together
static int shim_turns;    // of fibers that only look whether others have arrived
static std::vector<std::pair<uintptr_t, uintptr_t>> shim_allowed;

#define threadIdx (shim_me->thread)
#define blockIdx (shim_me->block)
#define dynamic_shared (shim_me->in->shared.data())

// Give up: the launch returns this message.
static char shim_message[200];
[[noreturn]] inline void shim_fail(const char* why) {
    const int block = blockIdx.x, thread = threadIdx.x;
    const auto size = sizeof shim_message;
    std::snprintf(shim_message, size, "%s (block %d, thread %d)", why, block, thread);
    setcontext(&shim_main);
    std::abort();
}

// Let another fiber go on.
inline void shim_switch() {
    ShimFiber* leaving = shim_me;
    if (shim_ready.empty()) {
        if (shim_unfinished) shim_fail("a barrier is missed by some of its threads");
        setcontext(&shim_main);
    }
    const auto lags = [](const ShimFiber* fiber) {
        return fiber->thread.x / 32 == shim_laggard || fiber->block.x == shim_late_block;
    };
    size_t at = shim_random() % shim_ready.size();
    for (int i = 0; i < 8 && lags(shim_ready[at]); ++i) at = shim_random() % shim_ready.size();
    shim_me = shim_ready[at];
    shim_ready[at] = shim_ready.back();
    shim_ready.pop_back();
    if (_setjmp(leaving->place)) return;
    if (shim_me->is_begun) _longjmp(shim_me->place, 1);
    shim_me->is_begun = true;
    setcontext(&shim_me->context);
}

inline void shim_wait(ShimBarrier& barrier) {
    shim_turns = 0;
    if ((int)barrier.waiting.size() + 1 == barrier.members) {
        shim_ready.insert(shim_ready.end(), barrier.waiting.begin(), barrier.waiting.end());
        barrier.waiting.clear();
    } else {
        barrier.waiting.push_back(shim_me);
        shim_switch();
    }
}

inline ShimWarp& shim_warp() { return shim_me->in->warps[threadIdx.x / 32]; }

template <class T>
T& shim_static(int site) {
    auto& place = shim_me->in->statics[site];
    if (!place) {
        place.reset(new char[sizeof(T) + 16]);
        std::memset(place.get(), 0xA5, sizeof(T));
    }
    return *(T*)(((uintptr_t)place.get() + 15) / 16 * 16);
}
template <class T>
T* shim_shared(int site) { return &shim_static<T>(site); }

inline void __syncthreads() { shim_wait(shim_me->in->barrier); }
inline void __syncwarp() { shim_wait(shim_warp().barrier); }
inline void __threadfence() {}
// Values go through two boxes in turn: a lane cannot be two exchanges ahead of another.
template <class T>
T shim_exchange(T value, int from) {
    static_assert(sizeof(T) <= 8);
    ShimWarp& warp = shim_warp();
    const int lane = threadIdx.x & 31;
    auto& box = warp.box[warp.n_exchanges[lane]++ & 1];
    std::memcpy(&box[lane], &value, sizeof(T));
    shim_wait(warp.barrier);
    T found;
    std::memcpy(&found, &box[from], sizeof(T));
    return found;
}

template <class T>
T __shfl_sync(unsigned, T value, int from) { return shim_exchange(value, from & 31); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
    return shim_exchange(value, (threadIdx.x & 31) ^ step);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int step) {
    const int lane = threadIdx.x & 31;
    return shim_exchange(value, lane >= step ? lane - step : lane);
}

template <class T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = before + value;
    return before;
}

inline unsigned arrive(unsigned* at, unsigned n) { return atomicAdd(at, n); }
// Whoever looks lets the others run: all of them look in vain only when some will never arrive.
inline unsigned arrivals(const unsigned* at) {
    if (++shim_turns > 1 << 20) shim_fail("a barrier of the grid is missed by some of its blocks");
    shim_ready.push_back(shim_me);
    shim_switch();
    return *at;
}

inline int __float_as_int(float x) { int bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __int_as_float(int bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline int __float2int_rn(float x) {
    if (std::isnan(x)) return 0;
    return (int)std::min(2147483520.0f, std::max(-2147483648.0f, std::nearbyintf(x)));
}

inline uint4 load_once(const uint4* at) {
    if ((uintptr_t)at % 16) shim_fail("a load of 16 bytes that is not aligned");
    const auto holds = [at](const auto& range) {
        return range.first <= (uintptr_t)at && (uintptr_t)(at + 1) <= range.second;
    };
    if (!std::any_of(shim_allowed.begin(), shim_allowed.end(), holds)) {
        shim_fail("a weight was read from outside the matrix");
    }
    return *at;
}
inline void prefetch(const void*) {}
inline float from_half(unsigned short bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return (float)value;
}
inline unsigned short to_half(float x) {
    const _Float16 value = (_Float16)x;
    unsigned short bits;
    std::memcpy(&bits, &value, 2);
    return bits;
}

inline void mma(int (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    ShimWarp& warp = shim_warp();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    auto& box = warp.mma_box[warp.n_exchanges[lane]++ & 1];
    for (int i = 0; i < 4; ++i) box[lane][i] = a[i];
    box[lane][4] = b0;
    box[lane][5] = b1;
    shim_wait(warp.barrier);
    for (int c = 0; c < 4; ++c) {
        const int upper = c >> 1, column = 2 * t + (c & 1);
        unsigned sum = 0;
        for (int k = 0; k < 32; ++k) {
            const int at = (k & 15) / 4, late = k >> 4, shift = 8 * (k & 3);
            const int weight = box[4 * g + at][upper + 2 * late] >> shift & 255;
            const int x = (int8_t)(box[4 * column + at][4 + late] >> shift);
            sum += (unsigned)(weight * x);
        }
        d[c] = (int)((unsigned)d[c] + sum);
    }
}

inline void shim_start() {
    shim_body(shim_arguments);
    --shim_unfinished;
    shim_switch();
}

// Run a grid, block after block or all together; sizes: grid, block, shared, seed, together.
inline const char* shim_run(void (*body)(const void*), const void* arguments, const int* sizes) {
    const int grid = sizes[0], block = sizes[1], n_shared = sizes[2];
    constexpr int STACK = 64 << 10, GUARD = 16;
    auto& random = shim_random;
    random.seed(sizes[3]);
    shim_laggard = random() % (block / 32);
    shim_late_block = sizes[4] ? random() % grid : -1;
    shim_turns = 0;
    gridDim.x = grid;
    blockDim.x = block;
    shim_body = body;
    shim_arguments = arguments;
    const int at_once = sizes[4] ? grid : 1;
    for (int first = 0; first < grid; first += at_once) {
        std::vector<ShimBlock> blocks(at_once);
        std::vector<ShimFiber> fibers((size_t)at_once * block);
        shim_ready.clear();
        for (int b = 0; b < at_once; ++b) {
            ShimBlock& in = blocks[b];
            in.barrier.members = block;
            in.warps = std::vector<ShimWarp>(block / 32);
            for (ShimWarp& warp : in.warps) warp.barrier.members = 32;
            in.shared.resize((n_shared + 15) / 16 + GUARD);
            for (uint4& words : in.shared) {
                words = {(unsigned)random(), 0xA5A5A5A5, 0x7FC00001, 0xA5};
            }
            for (int t = 0; t < block; ++t) {
                ShimFiber& fiber = fibers[(size_t)b * block + t];
                fiber.stack.reset(new char[STACK]);
                fiber.thread.x = t;
                fiber.block.x = first + b;
                fiber.in = &in;
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.get();
                fiber.context.uc_stack.ss_size = STACK;
                fiber.context.uc_link = nullptr;
                makecontext(&fiber.context, shim_start, 0);
                shim_ready.push_back(&fiber);
            }
        }
        std::vector<std::vector<uint4>> before;
        for (ShimBlock& in : blocks) before.emplace_back(in.shared.end() - GUARD, in.shared.end());
        shim_message[0] = 0;
        shim_unfinished = shim_ready.size();
        shim_me = shim_ready.back();
        shim_ready.pop_back();
        shim_me->is_begun = true;
        swapcontext(&shim_main, &shim_me->context);
        if (shim_message[0]) return shim_message;
        for (int b = 0; b < at_once; ++b) {
            const uint4* end = blocks[b].shared.data() + blocks[b].shared.size() - GUARD;
            if (std::memcmp(end, before[b].data(), GUARD * sizeof(uint4))) {
                return "bytes behind the block's shared memory were written";
            }
        }
    }
    return nullptr;
}

extern "C" void shim_allow(const void* begin, size_t n_bytes) {
    if (n_bytes == 0) shim_allowed.clear();
    shim_allowed.emplace_back((uintptr_t)begin, (uintptr_t)begin + n_bytes);
}
