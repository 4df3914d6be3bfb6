/* Decoding of batches of JPEGs that share a header and have restart markers: from bytes to the network's input.
 *
 * Four kernels: find_markers (a block per image) and decode_pieces (a thread per restart interval) in entropy.cu, transform
 * (eight threads per 8x8 block) and finish (a thread per four pixels of the result) in pixels.cu. The grid is (blocks, rows of the
 * batch). Only what a crop shows is decoded. Pixels are those of libjpeg-turbo with its accurate inverse transform (islow)
 * and fancy upsampling. Data that turbo/entropy.c refuses sets the row's status. decoder.py describes the arguments.
 *
 * One source for two compilers: NVRTC, which has no standard library, and with EMULATED a C++ compiler (emulated.cpp).
 * They read these three files as one. A kernel is a sequence of phases: `EACH_THREAD(n) {...}` is run by the n threads of a
 * block, which wait for each other before it; emulated it is a loop. So `continue` ends a thread's phase, and what is kept
 * from phase to phase lies in SHARED memory. Sections are those of ITU-T T.81 (1992).
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef short i16;
typedef long long i64;

#ifdef EMULATED
#define KERNEL(name, threads) static void name(const Batch &batch, int block, int row)
#define INLINE static inline
#define SHARED
#define UNROLL
#define EACH_THREAD(threads) for (int thread = 0; thread < (threads); thread++)
INLINE int rounded(float value) { return (int)__builtin_rintf(value); }
INLINE void worsen(int *status, int code) { if (*status < code) *status = code; }
#else
#define KERNEL(name, threads)                                                                      \
    INLINE void name##_in(const Batch &batch, int block, int row, int thread);                     \
    extern "C" __global__ void __launch_bounds__(threads, 768 / (threads)) name(const __grid_constant__ Batch batch) { \
        name##_in(batch, blockIdx.x, blockIdx.y, threadIdx.x);                                     \
    }                                                                                              \
    INLINE void name##_in(const Batch &batch, int block, int row, int thread)
#define INLINE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define EACH_THREAD(threads) __syncthreads(); for (bool begun = false; !begun; begun = true)
INLINE int rounded(float value) { return __float2int_rn(value); } /* half to even */
INLINE void worsen(int *status, int code) { atomicMax(status, code); }
#endif

#define LOOK 9             /* bits of a look-up; longer codes are rare */
#define MARGIN 2           /* pixels around the crop that upsampling of chroma reads, as in turbo/native.c */
#define FIND_THREADS 256
#define PIECE_THREADS 64
#define TRANSFORM_THREADS 128
#define FINISH_THREADS 256
#define AT_ONCE 4          /* pixels of the result that a thread makes */

enum { RIGHT, BAD_ARGUMENTS, OTHER_HEADER, BAD_MARKERS, BAD_CODE, TOO_SHORT, TOO_LONG }; /* PROBLEMS in decoder.py */
enum { UINT8, FLOAT16, FLOAT32 };

struct Tables { /* TABLES in tables.py. The Huffman tables are those of DC and AC of each component in turn */
    u16 lookup[6 << LOOK];     /* by the next LOOK bits: length of the code << 8 | symbol; 0 if it is longer, or invalid */
    int above[6][17];         /* by length: the largest code of that length plus 1; MAXCODE + 1 of F.2.2.3 */
    int offset[6][17];        /* by length: difference of a symbol's index and its code; VALPTR - MINCODE of F.2.2.3 */
    u8 symbols[6][256];
    i16 steps[3][64];         /* of quantisation, by component, row by row */
    u8 zigzag[64];            /* where each coefficient in the order of the scan lies in its block (A.3.6) */
};

struct Batch { /* Batch in kernels.py */
    const u8 *data;
    const i64 *offsets;
    const int *sizes, *boxes;
    const i64 *crops;
    const float *colours, *matrices;
    const u8 *others, *header;
    const Tables *tables;
    const float *mean_image, *scale;
    int *ends;         /* rows,pieces: the offset in its file of the marker that ends each piece; the first is -1 if none */
    i16 *coefficients; /* rows,blocks,64: of the components one after the other, row by row */
    u8 *planes;        /* rows,blocks * 64: of the components one after the other, padded to whole MCUs */
    void *images;
    int *status;
    i64 data_bytes;
    int rows, size, dtype;
    int height, width, components, h, v; /* h, v: the sampling factors of the first component */
    int mcus_down, mcus_across, interval, pieces, header_bytes;
};

/* Return the bits of a float16, rounded half to even. */
INLINE u16 half_of(float value) {
#ifndef EMULATED
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    u32 bits, sign, most_finite = 0x477FF000; /* from here on infinite: 65520 */
    __builtin_memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return (u16)(sign | 0x7FFF);
    if (bits >= most_finite) return (u16)(sign | 0x7C00);
    if (bits < 0x38800000) { /* below 2^-14: a multiple of 2^-24 */
        float small;
        __builtin_memcpy(&small, &bits, 4);
        return (u16)(sign | (u32)__builtin_rintf(small * 16777216.0f));
    }
    return (u16)(sign | (((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112 << 10)));
#endif
}

struct Window { int top, bottom, left, right; }; /* the crop, in MCUs; bottom and right are exclusive */

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE int clamp(int value, int low, int high) { return most(low, least(value, high)); }

INLINE int blocks_of(const Batch &batch) {
    return batch.mcus_down * batch.mcus_across * (batch.h * batch.v + batch.components - 1);
}

/* Return the MCUs that turbo decodes for this row's crop: rows below it only if upsampling reads them. */
INLINE Window window_of(const Batch &batch, int at) {
    const int *box = batch.boxes + 4 * at;
    int height = 8 * batch.v, width = 8 * batch.h, down = 2 + batch.v, right = 2 + batch.h; /* of an MCU; shifts to divide */
    int below = batch.v > 1 ? MARGIN : 0;
    return {most(0, box[0] - MARGIN) >> down, least(batch.mcus_down, (box[0] + box[2] + below + height - 1) >> down),
            most(0, box[1] - MARGIN) >> right,
            least(batch.mcus_across, (box[1] + box[3] + MARGIN + width - 1) >> right)};
}

/* Return true if a range of MCUs touches the window. A range over several rows of MCUs counts if any of its rows does. */
INLINE bool touches(const Window &window, int first, int count, int across) {
    int last = first + count - 1, top = first / across, bottom = last / across;
    if (bottom < window.top || top >= window.bottom) return false;
    return top < bottom || (last - top * across >= window.left && first - top * across < window.right);
}

/* Return true if all arguments of a row lie within their arrays. */
INLINE bool sound(const Batch &batch, int at) {
    const int *box = batch.boxes + 4 * at;
    const i64 *crop = batch.crops + 3 * at;
    i64 offset = batch.offsets[at], bytes = batch.sizes[at];
    if (batch.mean_image && (crop[0] < 0 || crop[1] < 0 || crop[0] > batch.height - batch.size
                             || crop[1] > batch.width - batch.size)) return false;
    if (!bytes) return batch.others != 0;
    return offset >= 0 && bytes > 0 && bytes <= batch.data_bytes && offset <= batch.data_bytes - bytes
        && box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0
        && box[2] <= batch.height && box[3] <= batch.width
        && box[0] <= batch.height - box[2] && box[1] <= batch.width - box[3];
}

