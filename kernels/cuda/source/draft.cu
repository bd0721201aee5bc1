// Self-speculation: the first loops draft a few tokens, all loops verify them together, and the
// text has the distribution of all loops exactly (arXiv 2211.17192). The rule and the random
// numbers are those of nanochat_lib/model/decoding/generate.py.
//
// Draft j of sequence i is verified in row i * n_drafts + j, which goes on from the hidden state
// that the drafting loops left. A draft that found no place in its sequence has no row to verify.

constexpr unsigned long long DRAFT = 1ull << 61, ACCEPT = 2ull << 61, REPLACE = 3ull << 61;

struct DraftArgs {
    SampleArgs sample;     // of rows when drafting; its token is what the next pass begins with
    const float* final;    // (S, D) after the drafting loops
    float* drafted;        // (S, n_drafts, D)
    float* kept;           // (S, n_drafts, V) what each draft was drawn from
    int* drafted_token;    // (S, n_drafts)
    int *slot, *position;  // (S,)
    unsigned char* finished;
    int *verify_slot, *verify_position;  // (S, n_drafts)
    unsigned char* verify_finished;
    const unsigned char* is_stop;  // (V,)
    int *tokens, *exit_loops;      // (S, width)
    float* entropies;
    int *place, *passes;           // (S,)
    const int* limit;
    int index, n_drafts, d_model, max_len, width, n_loops;
};

// Make a distribution of weights.
__device__ __forceinline__ void normalize(float* values, int n) {
    float total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += values[i];
    total = block_sum(total);
    for (int i = threadIdx.x; i < n; i += blockDim.x) values[i] = values[i] / total;
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512, 1) draft(const DraftArgs args) {
    const int row = blockIdx.x, at = row * args.n_drafts + args.index, n = args.sample.vocab;
    const bool is_finished = args.finished[row];
    if (is_finished) {
        if (threadIdx.x == 0) args.verify_finished[at] = 1;
        return;
    }
    float* kept = args.kept + (long long)at * n;
    int token = weigh(args.sample, row, kept).token;
    if (args.sample.temperature > 0) {
        normalize(kept, n);
        const float chance = uniform(args.sample.seed[row] ^ DRAFT, args.place[row] + args.index);
        token = draw(kept, n, chance);
    }
    for (int k = threadIdx.x; k < args.d_model; k += blockDim.x) {
        args.drafted[(long long)at * args.d_model + k] =
            args.final[(long long)row * args.d_model + k];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        args.drafted_token[at] = token;
        args.verify_slot[at] = args.slot[row];
        args.verify_position[at] = args.position[row];
        args.verify_finished[at] = 0;
        args.sample.token[row] = token;
        args.finished[row] = ++args.position[row] >= args.max_len;
    }
}

// Append drafts until one is refused, and then what takes its place.
extern "C" __global__ void __launch_bounds__(512, 1) verify(const DraftArgs args) {
    const int row = blockIdx.x, first = row * args.n_drafts, n = args.sample.vocab;
    if (args.verify_finished[first]) return;
    const int before = args.place[row], limit = args.limit[0];
    const unsigned long long seed = args.sample.seed[row];
    float* wanted = args.sample.probability + (long long)row * n;
    int done = before, token = 0;
    bool goes_on = true;
    for (int i = 0; i < args.n_drafts && goes_on && !args.verify_finished[first + i]; ++i) {
        const int drafted = args.drafted_token[first + i];
        const Weighed one = weigh(args.sample, first + i, wanted);
        token = one.token;
        if (args.sample.temperature > 0) {
            const float* kept = args.kept + (long long)(first + i) * n;
            normalize(wanted, n);
            token = drafted;
            if (uniform(seed ^ ACCEPT, done) * kept[drafted] >= wanted[drafted]) {
                __syncthreads();
                for (int k = threadIdx.x; k < n; k += blockDim.x) {
                    wanted[k] = fmaxf(wanted[k] - kept[k], 0.0f);
                }
                __syncthreads();
                token = draw(wanted, n, uniform(seed ^ REPLACE, done));
            }
        }
        if (threadIdx.x == 0) {
            args.tokens[row * args.width + done] = token;
            args.entropies[row * args.width + done] = one.entropy;
            args.exit_loops[row * args.width + done] = args.n_loops;
        }
        ++done;
        goes_on = token == drafted && !args.is_stop[token] && done < limit;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const int position = args.verify_position[first] + done - before;
        args.place[row] = done;
        args.passes[row] += 1;
        args.sample.token[row] = token;
        args.position[row] = position;
        args.finished[row] = args.is_stop[token] || done >= limit || position >= args.max_len;
    }
}
