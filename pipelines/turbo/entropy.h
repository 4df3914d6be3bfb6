/* Huffman decoding in place of libjpeg's: entropy.c. */

#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

struct entropy; /* a thread's Huffman tables and memory */

/* Return a new decoder, or NULL if memory is short. */
struct entropy *entropy_new(void);

/* Free a decoder, or do nothing for NULL. */
void entropy_free(struct entropy *entropy);

/* Replace libjpeg's Huffman decoder after jpeg_start_decompress; the whole JPEG must be in memory. Only what the pixels of
 * this rectangle need is decoded, in coordinates of the stored image; bottom and right are exclusive. Call error_exit for a
 * JPEG that is progressive, arithmetically coded or lacks a table, and later for damaged data. */
void entropy_replace(struct entropy *entropy, j_decompress_ptr info, int32_t top, int32_t bottom, int32_t left,
                     int32_t right);

/* Decode everything and keep nothing, after jpeg_start_decompress. Call error_exit if the data is damaged. */
void entropy_check(struct entropy *entropy, j_decompress_ptr info);
