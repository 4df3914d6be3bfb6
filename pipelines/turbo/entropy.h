/* Huffman decoding in place of libjpeg's: entropy.c. */

#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

struct entropy; /* a thread's tables and memory */

struct entropy *entropy_new(void); /* NULL where there is no memory */
void entropy_free(struct entropy *entropy);

/* After jpeg_start_decompress of a JPEG that is whole in memory: only what these pixels need is decoded, of the image as it
 * is stored, from top to before bottom. Calls error_exit for what it cannot do. */
void entropy_replace(struct entropy *entropy, j_decompress_ptr info, int32_t top, int32_t bottom, int32_t left,
                     int32_t right);

/* After jpeg_start_decompress too: decode everything and keep nothing. Calls error_exit where the data is damaged. */
void entropy_check(struct entropy *entropy, j_decompress_ptr info);
