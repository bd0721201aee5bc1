// Runs the CUDA sources on a CPU: every thread of a block is a fiber, and one of them runs at a
// time. What a warp or a block does together makes a fiber wait until the others are there. Blocks
// run one after another, or all together when they wait for each other (a cooperative launch). The
// order of the fibers is random by a seed and one warp lags far behind, of blocks that run together
// one whole block, so that a missing barrier shows as a wrong result; shared memory begins as noise
// and ends in bytes that nobody may have changed; loads of 16 bytes must be aligned, and lie where
// shim_allow says. Fibers are kept from one launch to the next, where they end: making one costs
// more than most kernels.
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

constexpr int SHIM_STACK = 64 << 10, SHIM_GUARD = 16;
struct ShimFiber;
inline void shim_switch();

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
    jmp_buf place;  // to go on: a jump asks nothing of the system
    bool is_begun = false;
    std::unique_ptr<char[]> stack;
    shim_index thread, block;
    ShimBlock* in;
    bool lags;
    const unsigned* looked_at;
    unsigned seen;
};

static std::vector<std::unique_ptr<ShimFiber>> shim_fibers;
static std::vector<ShimFiber*> shim_ready;  // all that could go on, without the one that runs
static std::vector<ShimFiber*> shim_late;   // those of them that lag behind
static std::vector<ShimFiber*> shim_looking;  // that looked in vain whether others have arrived
static int shim_unfinished;
static ShimFiber* shim_me;
static jmp_buf shim_main;
static shim_index blockDim, gridDim;
static void (*shim_body)(const void*);
static const void* shim_arguments;
static std::minstd_rand shim_random;
inline size_t shim_below(size_t n) { return ((uint64_t)shim_random() * n) >> 31; }
static int shim_laggard;  // a warp of every block
static int shim_late_block = -1;  // of a grid that runs together
static int shim_turns;    // of all fibers that look, when nobody else can go on
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
    _longjmp(shim_main, 1);
}

inline void shim_start() {
    for (;;) {
        shim_body(shim_arguments);
        --shim_unfinished;
        shim_switch();
    }
}

inline void shim_let(ShimFiber* fiber) { (fiber->lags ? shim_late : shim_ready).push_back(fiber); }

[[noreturn]] inline void shim_enter(ShimFiber* fiber) {
    shim_me = fiber;
    if (fiber->is_begun) _longjmp(fiber->place, 1);
    fiber->is_begun = true;
    fiber->stack.reset(new char[SHIM_STACK]);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber->stack.get();
    context.uc_stack.ss_size = SHIM_STACK;
    context.uc_link = nullptr;
    makecontext(&context, shim_start, 0);
    setcontext(&context);
    std::abort();
}

inline void shim_wake(std::vector<ShimFiber*>& fibers) {
    for (ShimFiber* fiber : fibers) shim_let(fiber);
    fibers.clear();
}

// Let one of the fibers go on that can; without one the launch has ended.
[[noreturn]] inline void shim_next() {
    if (shim_ready.empty() && shim_late.empty() && !shim_looking.empty()) {
        if (++shim_turns > 1 << 10) {
            shim_fail("a barrier of the grid is missed by some of its blocks");
        }
        shim_wake(shim_looking);
    }
    if (shim_ready.empty() && shim_late.empty()) {
        if (shim_unfinished) shim_fail("a barrier is missed by some of its threads");
        _longjmp(shim_main, 1);
    }
    const bool lags = shim_ready.empty() || (!shim_late.empty() && shim_below(512) == 0);
    auto& ready = lags ? shim_late : shim_ready;
    std::swap(ready[shim_below(ready.size())], ready.back());
    ShimFiber* next = ready.back();
    ready.pop_back();
    shim_enter(next);
}

inline void shim_switch() {
    if (!_setjmp(shim_me->place)) shim_next();
}

inline void shim_wait(ShimBarrier& barrier) {
    shim_turns = 0;
    if ((int)barrier.waiting.size() + 1 == barrier.members) {
        shim_wake(barrier.waiting);
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

inline unsigned arrive(unsigned* at, unsigned n) {
    shim_wake(shim_looking);
    return atomicAdd(at, n);
}
// Whoever looks lets the others run, and who has seen nothing new waits until another arrives or
// nobody else can go on: all of them look in vain only when some will never arrive.
inline unsigned arrivals(const unsigned* at) {
    const bool is_new = shim_me->looked_at != at || shim_me->seen != *at;
    if (is_new) {
        shim_let(shim_me);
    } else {
        shim_looking.push_back(shim_me);
    }
    shim_switch();
    shim_me->looked_at = at;
    return shim_me->seen = *at;
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

// Give a block its shared memory, and fibers from the first that nobody has.
inline void shim_fill(ShimBlock& in, int at, int n_shared, size_t first) {
    in.barrier.members = blockDim.x;
    in.warps = std::vector<ShimWarp>(blockDim.x / 32);
    for (ShimWarp& warp : in.warps) warp.barrier.members = 32;
    in.shared.resize((n_shared + 15) / 16 + SHIM_GUARD);
    for (uint4& words : in.shared) words = {(unsigned)shim_random(), 0xA5A5A5A5, 0x7FC00001, 0xA5};
    for (int t = 0; t < blockDim.x; ++t) {
        if (first + t == shim_fibers.size()) shim_fibers.emplace_back(new ShimFiber);
        ShimFiber& fiber = *shim_fibers[first + t];
        fiber.thread.x = t;
        fiber.block.x = at;
        fiber.in = &in;
        fiber.looked_at = nullptr;
        fiber.lags = t / 32 == shim_laggard || at == shim_late_block;
        shim_let(&fiber);
    }
}

// Run what is ready to its end, or to the first mistake.
inline void shim_go() {
    if (_setjmp(shim_main)) return;
    shim_next();
}

// Run a grid, block after block or all together; sizes: grid, block, shared, seed, together.
inline const char* shim_run(void (*body)(const void*), const void* arguments, const int* sizes) {
    const int grid = sizes[0], block = sizes[1], n_shared = sizes[2];
    shim_random.seed(sizes[3]);
    shim_laggard = shim_random() % (block / 32);
    shim_late_block = sizes[4] ? shim_random() % grid : -1;
    gridDim.x = grid;
    blockDim.x = block;
    shim_body = body;
    shim_arguments = arguments;
    const int at_once = sizes[4] ? grid : 1;
    for (int first = 0; first < grid; first += at_once) {
        std::vector<ShimBlock> blocks(at_once);
        shim_ready.clear();
        shim_late.clear();
        shim_looking.clear();
        for (int b = 0; b < at_once; ++b) {
            shim_fill(blocks[b], first + b, n_shared, (size_t)b * block);
        }
        std::vector<std::vector<uint4>> before;
        for (ShimBlock& in : blocks) {
            before.emplace_back(in.shared.end() - SHIM_GUARD, in.shared.end());
        }
        shim_message[0] = 0;
        shim_turns = 0;
        shim_unfinished = shim_ready.size() + shim_late.size();
        shim_go();
        if (shim_message[0]) {
            shim_fibers.clear();  // in the middle of what they did
            return shim_message;
        }
        for (int b = 0; b < at_once; ++b) {
            const uint4* end = blocks[b].shared.data() + blocks[b].shared.size() - SHIM_GUARD;
            if (std::memcmp(end, before[b].data(), SHIM_GUARD * sizeof(uint4))) {
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
