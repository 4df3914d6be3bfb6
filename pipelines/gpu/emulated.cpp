/* The kernels for a CPU, compiled as C++: loops in place of the grid. emulated.py calls this through ctypes. */

#define EMULATED
#include "batch.cu"
#include "entropy.cu"
#include "pixels.cu"

#define RUN(kernel, work, threads)                                              \
    for (int row = 0; row < batch->rows; row++)                                 \
        for (int block = 0; block < ((work) + (threads) - 1) / (threads); block++) kernel(*batch, block, row)

/* Return a number for the layout of the two structs. emulated.py loads no library whose number differs from its own. */
extern "C" int layout(void) { return sizeof(Batch) * 100000 + sizeof(Tables); }

/* Decode a batch. Its pointers are those of host memory. */
extern "C" void decode_batch(const Batch *batch) {
    RUN(find_markers, 1, 1);
    RUN(decode_pieces, batch->pieces, PIECE_THREADS);
    RUN(transform, blocks_of(*batch), TRANSFORM_THREADS / 8);
    RUN(finish, batch->size * ((batch->size + AT_ONCE - 1) / AT_ONCE), FINISH_THREADS);
}
